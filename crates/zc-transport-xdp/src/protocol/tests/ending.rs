//! Finishing, closing, dying; and what is known of messages then.

use std::time::{Duration, Instant};

use zc_core::memory::PinnedBuf;
use zc_core::transport::FrameKind;

use super::peer::{Peer, data, sessions};
use super::sim::{Net, Path};
use crate::protocol::*;

const MS: Duration = Duration::from_millis(1);

fn net(path: Path, messages: [u64; 2]) -> Net<Peer> {
    let start = Instant::now();
    let mut net = Net::new(3, start);
    let (there, back) = (net.link(path.clone()), net.link(path));
    let [a, b] = Peer::pair(&SessionOptions::default(), 3, start, messages, |_| 5000);
    net.pair((a, there), (b, back));
    net
}

fn lan() -> Path {
    Path::new(12.5e6, MS, 64e3)
}

/// All datagrams that come out now.
fn transmit(session: &mut Session, now: Instant) -> Vec<Vec<u8>> {
    let mut out = Transmit::default();
    std::iter::from_fn(|| session.poll_transmit(now, &mut out).then(|| out.to_datagram())).collect()
}

/// One direction of a path without delay or faults.
fn pass(from: &mut Session, to: &mut Session, now: Instant) {
    from.handle_timeout(now);
    transmit(from, now).into_iter().for_each(|datagram| _ = to.handle(now, PinnedBuf::from(datagram)));
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

#[test]
fn both_finish_over_a_bad_path() {
    let mut net = net(Path { loss: 0.2, ..lan() }, [100, 50]);
    assert!(net.run(Duration::from_secs(60), |hosts| hosts[0].sent == 100 && hosts[1].sent == 50));
    for host in &mut net.hosts {
        host.session.finish();
        assert_eq!(host.session.may_send(FrameKind::Data, 1), Err(SendError::Finished));
    }
    assert!(net.run(Duration::from_secs(60), |hosts| hosts.iter().all(|h| h.session.is_over())));
    for (host, received) in net.hosts.iter().zip([50, 100]) {
        assert_eq!(host.received, received);
        // Whose last acknowledgement was lost for good hears nothing more.
        assert!(
            matches!(host.events[..], [Event::Finished, Event::Ended(End::Finished)]),
            "{:?}",
            host.events
        );
        assert!(host.session.is_acknowledged() && host.session.is_peer_finished());
    }
}

/// FIN overtakes a message that is lost again and again: that it was acknowledged says nothing about the message.
#[test]
fn an_acknowledged_fin_is_not_the_end() {
    let (options, mut now) = (SessionOptions::default(), Instant::now());
    let [(mut a, _), (mut b, _)] = sessions([&options, &options], 1, now);
    b.finish();
    pass(&mut b, &mut a, now);
    a.send(data(1, a.datagram_bytes() - HEAD_BYTES - CHUNK_ENTRY_BYTES), None).unwrap();
    a.finish();
    let mut packets = transmit(&mut a, now);
    assert_eq!(packets.len(), 2, "the message fills the first");
    b.handle(now, PinnedBuf::from(packets.pop().unwrap())).unwrap();
    now += MS;
    pass(&mut b, &mut a, now);
    // All else is lost for longer than a session lingers.
    for _ in 0..100 {
        now += 10 * MS;
        a.handle_timeout(now);
        let _ = transmit(&mut a, now);
    }
    assert_eq!(events(&mut a), []);
    assert!(!a.is_over() && !a.is_acknowledged());
    let mut received = Vec::new();
    for _ in 0..500 {
        now += 10 * MS;
        pass(&mut a, &mut b, now);
        received.extend(b.recv().map(|frame| frame.seq));
        pass(&mut b, &mut a, now);
    }
    assert_eq!(received, [1]);
    for session in [&mut a, &mut b] {
        assert_eq!(events(session), [Event::Finished, Event::Ended(End::Finished)]);
    }
}

/// How fast the application takes what came has no part in how the session ends.
#[test]
fn what_came_can_be_taken_after_the_end() {
    let (options, mut now) = (SessionOptions::default(), Instant::now());
    let [(mut a, _), (mut b, _)] = sessions([&options, &options], 1, now);
    (1..=3).for_each(|seq| a.send(data(seq, 2000), None).unwrap());
    a.finish();
    b.finish();
    for _ in 0..2000 {
        now += 10 * MS;
        pass(&mut a, &mut b, now);
        pass(&mut b, &mut a, now);
    }
    for session in [&mut a, &mut b] {
        assert_eq!(events(session), [Event::Finished, Event::Ended(End::Finished)]);
    }
    assert!(!b.is_peer_finished());
    assert_eq!(std::iter::from_fn(|| b.recv()).map(|frame| frame.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(b.is_peer_finished());
}

#[test]
fn half_a_session_goes_on() {
    let mut net = net(lan(), [10, 0]);
    net.hosts[1].session.finish();
    assert!(net.run(Duration::from_secs(5), |hosts| hosts[1].received == 10 && hosts[0].completed == 10));
    assert!(net.hosts[0].session.is_peer_finished() && !net.hosts[0].session.is_over());
    assert_eq!(net.hosts[1].events, [Event::Finished]);
}

#[test]
fn a_close_ends_both_at_once() {
    let mut net = net(lan(), [1000, 0]);
    net.run(20 * MS, |_| false);
    let now = net.now;
    net.hosts[0].session.close(now, 77);
    assert_eq!(net.hosts[0].session.may_send(FrameKind::Data, 1), Err(SendError::Ended));
    assert!(net.run(Duration::from_secs(5), |hosts| hosts.iter().all(|h| h.session.is_over())));
    assert_eq!(net.hosts[0].events, [Event::Ended(End::Closed { code: 77 })]);
    assert_eq!(net.hosts[1].events, [Event::Ended(End::PeerClosed { code: 77 })]);
    let (sent, completed) = (net.hosts[0].sent, net.hosts[0].completed);
    let known = net.hosts[0].session.stats().delivered_messages;
    assert!(known <= net.hosts[1].received && known > 0);
    let undone: Vec<_> = net.hosts[0].session.abandon().map(|(frame, _)| frame.seq).collect();
    let range = completed + 1..=sent;
    assert!(!undone.is_empty() && undone.iter().all(|seq| range.contains(seq)), "{undone:?} of {range:?}");
    assert!(undone.is_sorted() && *undone.last().unwrap() == sent);
    let completions = std::iter::from_fn(|| net.hosts[0].session.poll_completion()).count() as u64;
    assert_eq!(completed + completions + undone.len() as u64, sent, "every token once");
}

/// A lost CLOSE is repeated when the peer goes on.
#[test]
fn a_lost_close_is_repeated() {
    let mut net = net(lan(), [0, 1_000_000]);
    net.run(20 * MS, |_| false);
    net.path(0).loss = 1.0;
    let now = net.now;
    net.hosts[0].session.close(now, 1);
    net.run(2 * MS, |_| false);
    net.path(0).loss = 0.0;
    let heard = |hosts: &mut [Peer]| !hosts[1].events.is_empty();
    assert!(net.run(Duration::from_secs(1), heard));
    assert_eq!(net.hosts[1].events, [Event::Ended(End::PeerClosed { code: 1 })]);
}

#[test]
fn a_dead_peer_is_noticed_in_time() {
    let options = SessionOptions::default();
    let bound = options.keepalive_interval + options.keepalive_timeout;
    for busy in [0, 1_000_000] {
        let mut net = net(lan(), [busy, 0]);
        net.run(Duration::from_secs(12), |_| false);
        assert!(net.hosts.iter().all(|host| host.events.is_empty()), "idle, and alive");
        net.hosts[1].dead = true;
        let died = net.now;
        assert!(net.run(bound + Duration::from_secs(5), |hosts| hosts[0].session.is_over()));
        assert_eq!(net.hosts[0].events, [Event::Ended(End::TimedOut)]);
        assert!(net.now - died <= bound + 10 * MS, "{:?}", net.now - died);
        assert!(net.hosts[0].session.poll_timeout().is_none());
    }
}

/// Until they are acknowledged the sender keeps the bytes (M2), and not longer.
#[test]
fn memory_is_kept_until_acknowledged() {
    let (options, now) = (SessionOptions::default(), Instant::now());
    let [(mut client, memory), (mut server, _)] = sessions([&options, &options], 1, now);
    let mut out = Transmit::default();
    let mut buf = memory.pool.try_alloc(5000).unwrap();
    buf.resize(5000, 7);
    let frame = zc_core::transport::Frame { payload: buf.into(), ..data(1, 0) };
    client.send(frame, None).unwrap();
    let mut datagrams = Vec::new();
    while client.poll_transmit(now, &mut out) {
        datagrams.push(out.to_datagram());
    }
    out = Transmit::default();
    assert!(client.is_flushed() && !client.is_acknowledged());
    let in_use = || memory.pool.stats().in_use_bytes;
    assert!(in_use() >= 5000);
    let later = now + MS;
    datagrams.into_iter().for_each(|datagram| server.handle(later, PinnedBuf::from(datagram)).unwrap());
    assert!(server.recv().unwrap().payload.segments().len() == 4, "a rope of packets");
    server.handle_timeout(later + MS);
    while server.poll_transmit(later + MS, &mut out) {
        assert!(in_use() >= 5000);
        client.handle(later + MS, PinnedBuf::from(out.to_datagram())).unwrap();
    }
    assert_eq!((in_use(), client.is_acknowledged(), client.stats().delivered_messages), (0, true, 1));
}

/// What is lent lies in the packets; what is gathered is counted, and so is what is copied out when too many are kept.
#[test]
fn copies_are_counted() {
    use zc_core::memory::CopyPlace;
    let options = SessionOptions { lent_packets: 4, ..SessionOptions::default() };
    let now = Instant::now();
    let [(mut client, _), (mut server, memory)] = sessions([&options, &options], 1, now);
    let mut pass = |client: &mut Session| {
        let mut out = Transmit::default();
        while client.poll_transmit(now, &mut out) {
            server.handle(now, PinnedBuf::from(out.to_datagram())).unwrap();
        }
        std::iter::from_fn(|| server.recv()).count()
    };
    client.send(data(1, 1000), None).unwrap();
    client.send(data(2, 4000), None).unwrap();
    assert_eq!(pass(&mut client), 2);
    let ledger = || memory.ledger.snapshot();
    assert_eq!(ledger().copied_bytes(), 0);
    client.send(data(3, 13_000), None).unwrap();
    // The window of the start holds ten packets.
    let _ = pass(&mut client);
    assert!(ledger().copied_at(CopyPlace::Gather) > 5000);
    assert_eq!(ledger().copied_at(CopyPlace::CopyOut), 0);
    assert_eq!(ledger().copied_bytes(), ledger().copied_at(CopyPlace::Gather));
}
