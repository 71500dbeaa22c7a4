//! A pool that is too small, or in use.

use std::time::{Duration, Instant};

use zc_core::memory::{BufPool, CopyPlace, PinnedBufMut};

use super::hostile::{CHUNK, Liar, chunk};
use super::peer::{self, Peer, content, sessions};
use super::sim::{Net, Path};
use crate::protocol::*;

const MIB: u32 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

fn pool(mib: u32) -> BufPool {
    BufPool::builder().max_bytes((mib * MIB) as usize).build()
}

fn liar(pool: &BufPool) -> Liar {
    Liar::with_pool(&SessionOptions { window_bytes: 64 * MIB, ..SessionOptions::default() }, pool)
}

fn all_of(pool: &BufPool) -> Vec<PinnedBufMut> {
    std::iter::from_fn(|| pool.try_alloc(64 << 10).ok()).collect()
}

/// What exceeds the pool, or the part of it that a peer may ask for, ends the session: waiting would not help.
#[test]
fn a_message_that_no_memory_can_hold_ends_the_session() {
    for (bytes, ends) in [(4 * MIB, true), (MIB / 8 * 7, true), (MIB / 2, false)] {
        let mut liar = liar(&pool(1));
        let result = liar.chunk(chunk(0, 0, CHUNK, bytes));
        assert_eq!(result, if ends { Err(Dropped::NoMemory) } else { Ok(()) }, "{bytes}");
        assert_eq!(liar.victim.poll_event(), ends.then_some(Event::Ended(End::NoMemory)));
        let mut out = Transmit::default();
        assert_eq!(liar.victim.poll_transmit(liar.now, &mut out), ends);
        assert!(!ends || out.head().ends_with(&[5, 0, 0, 0, 5, 0, 0, 0]), "CLOSE, internal error");
    }
}

/// Messages behind a missing one leave a part of the pool, of which that one may take.
#[test]
fn the_next_message_finds_memory() {
    let pool = pool(8);
    let mut liar = liar(&pool);
    let behind = (1..20).map(|message| liar.chunk(chunk(message, 0, CHUNK, MIB)));
    let refused = behind.take_while(|result| result.is_ok()).count() as u64 + 1;
    assert!((4..8).contains(&refused), "{refused}");
    assert!(pool.stats().in_use_bytes <= 6 * u64::from(MIB));
    assert_eq!(liar.chunk(chunk(refused, 0, CHUNK, MIB)), Err(Dropped::NoRoom));
    liar.chunk(chunk(0, 0, CHUNK, MIB)).unwrap();
}

/// Where that is too little, nothing ever sets memory free, and the session ends.
#[test]
fn a_session_in_its_own_way_ends() {
    let pool = pool(8);
    let mut liar = liar(&pool);
    (1..5).for_each(|message| liar.chunk(chunk(message, 0, CHUNK, MIB)).unwrap());
    for second in 0..=10 {
        assert_eq!(liar.victim.poll_event(), None);
        liar.say(packet::put_ping, &[]).unwrap();
        liar.victim.handle_timeout(liar.now);
        let expected = if second < 10 { Dropped::NoRoom } else { Dropped::NoMemory };
        assert_eq!(liar.chunk(chunk(0, 0, CHUNK, 5 * MIB)), Err(expected), "{second}");
        liar.now += SECOND;
    }
    assert_eq!(liar.victim.poll_event(), Some(Event::Ended(End::NoMemory)));
}

/// While others have the memory, waiting helps, however long.
#[test]
fn memory_in_use_elsewhere_is_waited_for() {
    let pool = pool(8);
    let mut liar = liar(&pool);
    let held = all_of(&pool);
    for _ in 0..60 {
        liar.say(packet::put_ping, &[]).unwrap();
        liar.victim.handle_timeout(liar.now);
        assert_eq!(liar.chunk(chunk(0, 0, CHUNK, MIB)), Err(Dropped::NoRoom));
        liar.now += SECOND;
    }
    assert_eq!(liar.victim.poll_event(), None);
    drop(held);
    liar.chunk(chunk(0, 0, CHUNK, MIB)).unwrap();
}

/// The same where the next message itself holds some, since a part of it was copied.
#[test]
fn a_part_of_a_message_holds_up_no_other() {
    let pool = pool(8);
    let options = SessionOptions { lent_packets: 0, ..SessionOptions::default() };
    let mut liar = Liar::with_pool(&options, &pool);
    let total = 3 * u32::from(CHUNK);
    liar.chunk(chunk(0, 0, CHUNK, total)).unwrap();
    assert!(pool.stats().in_use_bytes > 0, "it was copied");
    let _held = all_of(&pool);
    let _small: Vec<_> = std::iter::from_fn(|| pool.try_alloc(CHUNK.into()).ok()).collect();
    for _ in 0..60 {
        liar.say(packet::put_ping, &[]).unwrap();
        liar.victim.handle_timeout(liar.now);
        assert_eq!(liar.chunk(chunk(0, CHUNK.into(), CHUNK, total)), Err(Dropped::NoRoom));
        liar.now += SECOND;
    }
    assert_eq!(liar.victim.poll_event(), None);
}

/// A next message that found memory at last begins anew when it is the turn of another.
#[test]
fn patience_is_for_one_message() {
    let pool = pool(8);
    let mut liar = liar(&pool);
    (2..5).for_each(|message| liar.chunk(chunk(message, 0, CHUNK, MIB)).unwrap());
    let held = all_of(&pool);
    assert_eq!(liar.chunk(chunk(0, 0, CHUNK, 100_000)), Err(Dropped::NoRoom));
    liar.now += 9 * SECOND;
    drop(held);
    let pieces = 100_000_u32.div_ceil(CHUNK.into());
    for index in 0..pieces {
        let offset = index * u32::from(CHUNK);
        liar.chunk(chunk(0, offset, (100_000 - offset).min(CHUNK.into()) as u16, 100_000)).unwrap();
    }
    assert!(liar.victim.recv().is_some());
    let _held = all_of(&pool);
    for _ in 0..9 {
        assert_eq!(liar.chunk(chunk(1, 0, CHUNK, 100_000)), Err(Dropped::NoRoom));
        liar.now += SECOND;
    }
}

/// What does not stay where it is is copied once it is known to be genuine.
#[test]
fn what_is_forged_takes_no_memory() {
    let pool = pool(8);
    let mut liar = liar(&pool);
    let payload = content(1, 1000);
    let mut packet = liar.packet(|out| chunk(0, 0, 1000, 1000).write(out), &payload);
    let last = packet.len() - 1;
    packet[last] ^= 1;
    assert_eq!(liar.victim.handle_shown(liar.now, &packet), Err(Dropped::Forged));
    assert_eq!(pool.stats().reserved_bytes, 0, "nothing was ever taken");
    packet[last] ^= 1;
    liar.victim.handle_shown(liar.now, &packet).unwrap();
    packet.fill(0);
    assert!(
        liar.victim.recv().unwrap().payload == payload[..],
        "what was verified, whatever comes of the packet"
    );
    assert!(pool.stats().reserved_bytes > 0);
    let ledger = liar.ledger.snapshot();
    assert_eq!((ledger.copied_at(CopyPlace::CopyOut), ledger.inline_bytes), (1000, 0), "the copy is counted");
}

/// However long the buffers are that short packets came in, a peer has no more of them kept than that.
#[test]
fn short_packets_keep_few_long_buffers() {
    const BUFFER: usize = 64 << 10;
    let pool = pool(64);
    let options = SessionOptions { lent_bytes: 4 * BUFFER, ..SessionOptions::default() };
    let mut liar = Liar::with_pool(&options, &pool);
    for message in 0..500 {
        let packet = liar.packet(|out| chunk(message, 0, 100, 100).write(out), &content(1, 100));
        let mut buffer = pool.try_alloc(BUFFER).unwrap();
        buffer.put_slice(&packet);
        liar.victim.handle(liar.now, buffer.freeze()).unwrap();
    }
    let kept = pool.stats().in_use_bytes;
    assert!(kept <= 5 * BUFFER as u64 + 500 * 512, "{kept} bytes for 50,000");
    while let Some(frame) = liar.victim.recv() {
        assert!(frame.payload == content(1, 100)[..]);
    }
    assert_eq!(pool.stats().in_use_bytes, 0);
}

/// A peer that has no memory does not acknowledge, which is no fault of the path's.
#[test]
fn a_peer_without_memory_is_no_narrow_path() {
    let (options, start) = (SessionOptions::default(), Instant::now());
    let [(sender, _), (receiver, memory)] = sessions([&options, &options], 1, start);
    let _held = all_of(&memory.pool);
    let mut net = Net::new(1, start);
    let links = [0; 2].map(|_| net.link(Path::new(12.5e6, Duration::from_millis(1), 64e3)));
    let peers =
        [Peer::new((sender, peer::memory()), 1, |_| 100_000), Peer::new((receiver, memory), 0, |_| 0)];
    let [a, b] = peers;
    net.pair((a, links[0]), (b, links[1]));
    assert!(!net.run(Duration::from_secs(60), |hosts| hosts.iter().any(|host| !host.events.is_empty())));
    let stats = net.hosts[1].session.stats();
    assert!(stats.refused_packets > 0 && stats.received_packets > stats.refused_packets, "{stats:?}");
}
