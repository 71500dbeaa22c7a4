//! Packets of strangers, and of a peer that has the key and lies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zc_core::memory::{BufPool, CopyLedger, PinnedBuf, PinnedBufMut};
use zc_core::transport::FrameKind;

use super::peer::{content, data, sessions};
use crate::protocol::packet::{self, ChunkEntry, Head};
use crate::protocol::*;

/// A peer that makes its packets by hand.
pub(super) struct Liar {
    pub(super) victim: Session,
    pub(super) ledger: Arc<CopyLedger>,
    key: mac::MacKey,
    number: u64,
    pub(super) now: Instant,
}

impl Liar {
    fn new(options: &SessionOptions) -> Self {
        Self::with_pool(options, &super::peer::memory().pool)
    }

    pub(super) fn with_pool(options: &SessionOptions, pool: &BufPool) -> Self {
        let now = Instant::now();
        let offers =
            [Side::Client, Side::Server].map(|side| Offer::new(options, &super::peer::random(side, 1)));
        let agreed = offer::Agreed::new(Side::Client, &offers[0], &offers[1]).unwrap();
        let memory = Memory { pool: pool.clone(), ..super::peer::memory() };
        let ledger = memory.ledger.clone();
        let victim = Session::new(Side::Server, &offers[1], &offers[0], options, memory, 1, now).unwrap();
        Self { victim, ledger, key: agreed.send_key, number: 0, now }
    }

    pub(super) fn packet(&mut self, entries: impl FnOnce(&mut Vec<u8>), payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        packet::begin(&mut out);
        entries(&mut out);
        let session = self.victim_session();
        let number = self.number;
        self.number += 1;
        Head { ack_now: false, len: out.len(), session, number, settled_below: 0 }.write(&mut out);
        packet::seal(&self.key, &mut out, [payload], payload.len());
        [&out, payload].concat()
    }

    fn victim_session(&self) -> u32 {
        Offer::new(&SessionOptions::default(), &super::peer::random(Side::Server, 1)).session()
    }

    pub(super) fn say(&mut self, entries: impl FnOnce(&mut Vec<u8>), payload: &[u8]) -> Result<(), Dropped> {
        let packet = self.packet(entries, payload);
        self.victim.handle(self.now, PinnedBuf::from(packet))
    }

    pub(super) fn chunk(&mut self, chunk: ChunkEntry) -> Result<(), Dropped> {
        self.say(|out| chunk.write(out), &content(1, usize::from(chunk.len)))
    }
}

pub(super) fn chunk(message: u64, offset: u32, len: u16, total: u32) -> ChunkEntry {
    ChunkEntry {
        kind: FrameKind::Data,
        ack: false,
        len,
        offset,
        total,
        message,
        seq: message.saturating_add(1),
    }
}

/// What one chunk of a full packet carries.
pub(super) const CHUNK: u16 = 1472 - HEAD_BYTES as u16 - CHUNK_ENTRY_BYTES as u16;

fn broken(result: Result<(), Dropped>, what: &str) {
    assert_eq!(result, Err(Dropped::Protocol(what.to_owned().leak())));
}

#[test]
fn a_forged_packet_changes_nothing() {
    let (options, now) = (SessionOptions::default(), Instant::now());
    let [(mut client, _), (mut server, _)] = sessions([&options, &options], 1, now);
    client.send(data(1, 300), None).unwrap();
    let mut out = Transmit::default();
    assert!(client.poll_transmit(now, &mut out));
    let packet = out.to_datagram();
    let before = (server.poll_timeout(), server.stats());
    for bit in 0..packet.len() * 8 {
        let mut forged = packet.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(server.handle(now + Duration::from_secs(1), PinnedBuf::from(forged)).is_err());
    }
    for len in 0..packet.len() {
        assert!(
            server
                .handle(now, PinnedBuf::from(packet.iter().copied().take(len).collect::<Vec<_>>()))
                .is_err()
        );
    }
    let after = server.stats();
    assert_eq!(after.malformed_packets + after.forged_packets, (packet.len() * 9) as u64);
    let counters = SessionStats { malformed_packets: 0, forged_packets: 0, ..after };
    assert_eq!((server.poll_timeout(), counters), before);
    assert!(server.recv().is_none() && !server.poll_transmit(now, &mut out) && server.poll_event().is_none());
    server.handle(now, PinnedBuf::from(packet.clone())).unwrap();
    assert_eq!(server.handle(now, PinnedBuf::from(packet)), Err(Dropped::Replayed));
    assert_eq!(server.recv().unwrap().payload, content(1, 300)[..]);
    assert!(server.recv().is_none());
}

#[test]
fn keys_of_other_offers_fit_nothing() {
    let (options, now) = (SessionOptions::default(), Instant::now());
    let [(mut client, _), _] = sessions([&options, &options], 1, now);
    let [_, (mut server, _)] = sessions([&options, &options], 2, now);
    client.send(data(1, 10), None).unwrap();
    let mut out = Transmit::default();
    assert!(client.poll_transmit(now, &mut out));
    let mut packet = out.to_datagram();
    assert_eq!(server.handle(now, PinnedBuf::from(packet.clone())), Err(Dropped::NotOurs));
    let session = Offer::new(&options, &super::peer::random(Side::Server, 2)).session();
    crate::protocol::codec::patch(&mut packet, 4, &session.to_le_bytes());
    assert_eq!(server.handle(now, PinnedBuf::from(packet)), Err(Dropped::Forged));

    // One and the same session number, but somebody in the middle changed the window.
    let offers = [Side::Client, Side::Server].map(|side| Offer::new(&options, &super::peer::random(side, 1)));
    let changed = Offer { window_bytes: 1, ..offers[0].clone() };
    let mut server =
        Session::new(Side::Server, &offers[1], &changed, &options, super::peer::memory(), 1, now).unwrap();
    assert_eq!(server.handle(now, PinnedBuf::from(out.to_datagram())), Err(Dropped::Forged));
    let itself = Session::new(Side::Server, &offers[1], &offers[1], &options, super::peer::memory(), 1, now);
    assert_eq!(itself.err(), Some(OfferError::Reflected));
}

#[test]
fn acknowledgements_of_what_was_not_sent() {
    let acks: [(u64, u64); 3] = [(0, 0), (0, 5), (5, u64::MAX - 1)];
    for ack in acks {
        let mut liar = Liar::new(&SessionOptions::default());
        let result = liar.say(|out| packet::put_ack(out, 0, 0, 1, [ack].into_iter()), &[]);
        broken(result, "acknowledgement of a packet that was not sent");
        assert!(liar.victim.poll_event().is_some());
    }
    let mut liar = Liar::new(&SessionOptions::default());
    liar.victim.send(data(1, 10), None).unwrap();
    assert!(liar.victim.poll_transmit(liar.now, &mut Transmit::default()));
    let result = liar.say(|out| packet::put_ack(out, 0, 2, 1, [(0, 0)].into_iter()), &[]);
    broken(result, "delivery of a message that was not sent");
}

/// A receiver that acknowledges everything up to the highest number it saw, to be sent more, names one left out.
#[test]
fn optimistic_acknowledgements_are_found_out() {
    let mut liar = Liar::new(&SessionOptions::default());
    let mut out = Transmit::default();
    for seq in 1.. {
        assert!(seq < 4 * SKIP_EVERY_PACKETS, "never found out");
        if liar.victim.may_send(FrameKind::Data, 10) == Ok(true) {
            liar.victim.send(data(seq, 10), None).unwrap();
        }
        let mut highest = None;
        liar.now += Duration::from_millis(1);
        while liar.victim.poll_transmit(liar.now, &mut out) {
            highest = Head::decode(out.head()).ok().map(|head| head.number);
        }
        while liar.victim.poll_completion().is_some() {}
        let Some(highest) = highest else { continue };
        let all = |out: &mut Vec<u8>| {
            packet::put_ack(out, 0, 0, 1, [(0, highest)].into_iter());
            packet::put_credit(out, 1 << 20, 1 << 40);
        };
        if let Err(dropped) = liar.say(all, &[]) {
            broken(Err(dropped), "acknowledgement of a packet that was not sent");
            return;
        }
    }
}

#[test]
fn chunks_that_no_sender_makes() {
    let max = SessionOptions { max_message: 10_000, ..SessionOptions::default() };
    for (wrong, what) in [
        (chunk(0, 1, CHUNK, 9000), "chunk"),
        (chunk(0, 0, 10, 9000), "chunk"),
        (chunk(0, u32::from(CHUNK), 0, u32::from(CHUNK)), "chunk"),
        (chunk(u64::MAX, 0, 10, 10), "chunk"),
        (chunk(0, 0, CHUNK, 10_001), "message length"),
        (ChunkEntry { kind: FrameKind::Session, seq: 0, ..chunk(0, 0, CHUNK, 9000) }, "message length"),
        (ChunkEntry { seq: 0, ..chunk(0, 0, 10, 10) }, "sequence number"),
        (ChunkEntry { kind: FrameKind::Session, ..chunk(0, 0, 10, 10) }, "sequence number"),
    ] {
        broken(Liar::new(&max).chunk(wrong), what);
    }
    broken(Liar::new(&max).say(|out| chunk(0, 0, 10, 10).write(out), b"short"), "payload length");
    broken(Liar::new(&max).say(|_| (), b"payload of nothing"), "payload length");
    let mut liar = Liar::new(&max);
    liar.chunk(chunk(0, 0, CHUNK, 9000)).unwrap();
    broken(liar.chunk(chunk(0, u32::from(CHUNK), CHUNK, 9001)), "message");
}

#[test]
fn more_than_the_credit() {
    let options = SessionOptions { window_bytes: 10_000, window_messages: 4, ..SessionOptions::default() };
    let mut liar = Liar::new(&options);
    // One message may exceed the window; the next one may not begin, in whatever order they come.
    liar.chunk(chunk(1, 0, CHUNK, 1 << 20)).unwrap();
    liar.chunk(chunk(0, 0, CHUNK, 9000)).unwrap();
    broken(liar.chunk(chunk(2, 0, 10, 10)), "message beyond the credit");

    let mut liar = Liar::new(&options);
    (0..4).for_each(|message| liar.chunk(chunk(message, 0, 10, 10)).unwrap());
    broken(liar.chunk(chunk(4, 0, 10, 10)), "message beyond the credit");
}

/// Records need no credit. There is room for so many of them however large the window is, and for the next one in order.
#[test]
fn records_are_bounded() {
    let room = MAX_UNCREDITED_MESSAGES as u64;
    let record = |message| ChunkEntry { kind: FrameKind::Session, seq: 0, ..chunk(message, 0, 10, 10) };
    for window_messages in [4, 4096] {
        let mut liar = Liar::new(&SessionOptions { window_messages, ..SessionOptions::default() });
        (0..room).for_each(|message| liar.chunk(record(message)).unwrap());
        assert_eq!(liar.chunk(record(room)), Err(Dropped::NoRoom));
        liar.chunk(chunk(room, 0, 10, 10)).unwrap();
        assert!(liar.victim.recv().is_some());
        liar.chunk(record(room + 1)).unwrap();
        assert_eq!(liar.victim.stats().refused_packets, 1);

        let mut liar = Liar::new(&SessionOptions { window_messages, ..SessionOptions::default() });
        (1..=room).for_each(|message| liar.chunk(record(message)).unwrap());
        assert_eq!(liar.chunk(record(room + 1)), Err(Dropped::NoRoom));
        liar.chunk(record(0)).unwrap();
        assert_eq!(std::iter::from_fn(|| liar.victim.recv()).count() as u64, room + 1);
    }
}

#[test]
fn one_acknowledgement_is_enough_for_a_packet() {
    let mut liar = Liar::new(&SessionOptions::default());
    liar.victim.send(data(1, 10), None).unwrap();
    assert!(liar.victim.poll_transmit(liar.now, &mut Transmit::default()));
    let ack = |out: &mut Vec<u8>| packet::put_ack(out, 0, 0, 1, [(0, 0)].into_iter());
    let twice = |out: &mut Vec<u8>| {
        ack(out);
        ack(out);
    };
    broken(liar.say(twice, &[]), "second acknowledgement");
}

/// A peer that acknowledges nothing and asks for acknowledgements all the time neither silences the session nor makes
/// it spin.
#[test]
fn a_full_table_mutes_nobody() {
    let mut liar = Liar::new(&SessionOptions::default());
    let mut out = Transmit::default();
    liar.victim.send(data(1, 10), None).unwrap();
    for _ in 0..MAX_SENT_PACKETS + 1000 {
        // Out of turn, so each is answered at once.
        liar.number += 1;
        liar.say(packet::put_ping, &[]).unwrap();
        assert!(liar.victim.poll_transmit(liar.now, &mut out), "muted");
        while liar.victim.poll_transmit(liar.now, &mut out) {}
    }
    let (start, sent) = (liar.now, liar.victim.stats().sent_packets);
    while liar.now < start + Duration::from_secs(4) {
        let until = liar.victim.poll_timeout().unwrap();
        assert!(until > liar.now, "it spins");
        liar.now = until;
        liar.victim.handle_timeout(liar.now);
        while liar.victim.poll_transmit(liar.now, &mut out) {}
    }
    assert!((1..100).contains(&(liar.victim.stats().sent_packets - sent)), "probes");
    liar.victim.close(liar.now, 1);
    assert!(liar.victim.poll_transmit(liar.now, &mut out), "the CLOSE");
}

/// A victim without memory, and a chunk that it must refuse.
fn without_memory() -> (Liar, Vec<PinnedBufMut>, ChunkEntry) {
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let held = std::iter::from_fn(|| pool.try_alloc(64 << 10).ok()).collect();
    let liar = Liar::with_pool(&SessionOptions::default(), &pool);
    let last = 100_000 / u32::from(CHUNK) * u32::from(CHUNK);
    (liar, held, chunk(0, last, (100_000 - last) as u16, 100_000))
}

/// Whoever captured a packet for which there was no room cannot keep the session of a dead peer alive with it.
#[test]
fn a_refused_packet_shows_no_life() {
    let (mut liar, _held, refused) = without_memory();
    let packet = liar.packet(|out| refused.write(out), &content(1, refused.len.into()));
    for _ in 0..11 {
        let again = PinnedBuf::from(packet.clone());
        let refused = liar.victim.handle(liar.now, again);
        assert!(matches!(refused, Err(Dropped::NoRoom | Dropped::Ended)), "{refused:?}");
        liar.now += Duration::from_secs(1);
        liar.victim.handle_timeout(liar.now);
        while liar.victim.poll_transmit(liar.now, &mut Transmit::default()) {}
    }
    assert_eq!(liar.victim.poll_event(), Some(Event::Ended(End::TimedOut)));
}

/// But what is acknowledged in it for the first time does: an honest peer may have put it there.
#[test]
fn an_answer_in_a_refused_packet_shows_life() {
    let (mut liar, _held, refused) = without_memory();
    let mut out = Transmit::default();
    for _ in 0..30 {
        liar.now += Duration::from_secs(1);
        liar.victim.handle_timeout(liar.now);
        while liar.victim.poll_transmit(liar.now, &mut out) {
            let number = Head::decode(out.head()).unwrap().number;
            let answer = |out: &mut Vec<u8>| {
                packet::put_ack(out, 0, 0, 1, [(number, number)].into_iter());
                refused.write(out);
            };
            assert_eq!(liar.say(answer, &content(1, refused.len.into())), Err(Dropped::NoRoom));
        }
    }
    assert_eq!(liar.victim.poll_event(), None);
}

/// A large message of which only the first packet comes takes one buffer, and gives it back in the end.
#[test]
fn unfinished_messages_are_bounded() {
    let options =
        SessionOptions { window_bytes: 1 << 20, max_message: 16 << 20, ..SessionOptions::default() };
    let memory = super::peer::memory();
    let mut liar = Liar::with_pool(&options, &memory.pool);
    for message in 0..7 {
        liar.chunk(chunk(message, 0, CHUNK, 150_000)).unwrap();
    }
    broken(liar.chunk(chunk(7, 0, CHUNK, 16 << 20)), "message beyond the credit");
    let used = memory.pool.stats().in_use_bytes;
    assert!(used > 7 * 150_000 && used < 4 << 20, "{used}");
    drop(liar);
    assert_eq!(memory.pool.stats().in_use_bytes, 0);
}

#[test]
fn the_end_is_final() {
    let mut liar = Liar::new(&SessionOptions::default());
    liar.say(|out| packet::put_fin(out, 2), &[]).unwrap();
    liar.chunk(chunk(1, 0, 10, 10)).unwrap();
    broken(liar.chunk(chunk(2, 0, 10, 10)), "message after the last");
    let mut liar = Liar::new(&SessionOptions::default());
    liar.chunk(chunk(1, 0, 10, 10)).unwrap();
    broken(liar.say(|out| packet::put_fin(out, 1), &[]), "last message");
    let mut liar = Liar::new(&SessionOptions::default());
    liar.say(|out| packet::put_fin(out, 2), &[]).unwrap();
    broken(liar.say(|out| packet::put_fin(out, 3), &[]), "last message");
}
