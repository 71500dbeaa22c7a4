//! Lanes over real sockets, one end of which may be a bare one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs
)]

mod common;

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use common::{on_many_threads, on_one_thread, pattern};
use proptest::prelude::*;
use zc::TokioReactor;
use zc_conformance::exchange;
use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBufMut};
use zc_core::transport::*;
use zc_core::wire::{FrameFlags, FrameHeader, FrameType};
use zc_transport_tcp::StreamLink;
use zc_transport_uring::{LARGE_MIN, SLOW_RECEIVE_MS, UringOptions, UringTransport, probe};

struct End {
    lane: Lane,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
}

fn works() -> bool {
    let found = probe();
    if let Err(why) = &found {
        eprintln!("skipped, no io_uring here: {why}");
    }
    found.is_ok()
}

async fn end(transport: &UringTransport, socket: UnixStream, limits: LaneLimits, pool: BufPool) -> End {
    end_on(Arc::new(TokioReactor::new()), transport, socket, limits, pool).await
}

async fn end_on(
    reactor: Arc<dyn Reactor>,
    transport: &UringTransport,
    socket: UnixStream,
    limits: LaneLimits,
    pool: BufPool,
) -> End {
    socket.set_nonblocking(true).unwrap();
    let link =
        StreamLink::new(reactor.register(socket.into()).unwrap(), LinkAddr::UnixAbstract("pair".into()));
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(reactor, pool.clone(), ledger.clone(), limits);
    let mut link: Option<Box<dyn ControlLink>> = Some(Box::new(link));
    let (mine, peer) = (Offer::default(), Offer::default());
    let lane = transport.join(Role::Client, mine, peer, &mut link, cx).await.unwrap();
    assert!(link.is_none());
    End { lane, pool, ledger }
}

fn big_pool() -> BufPool {
    BufPool::builder().max_bytes(256 << 20).build()
}

fn wide() -> LaneLimits {
    let mut limits = LaneLimits::default();
    (limits.recv_window, limits.lease_soft, limits.lease_hard) = (u32::MAX, usize::MAX, usize::MAX);
    limits
}

async fn pair(limits: LaneLimits) -> (End, End) {
    let (a, b) = UnixStream::pair().unwrap();
    let transport = UringTransport::default();
    (end(&transport, a, limits, big_pool()).await, end(&transport, b, limits, big_pool()).await)
}

/// A lane to a bare, blocking socket.
async fn with_socket(limits: LaneLimits, pool: BufPool) -> (End, UnixStream) {
    let (socket, peer) = UnixStream::pair().unwrap();
    (end(&UringTransport::default(), socket, limits, pool).await, peer)
}

fn data(seq: u64, payload: impl Into<Message>) -> Frame {
    Frame { kind: FrameKind::Data, ack: false, seq, payload: payload.into() }
}

fn record(len: usize) -> Frame {
    Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: vec![3; len].into() }
}

fn flat(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

impl End {
    async fn recv(&mut self) -> Result<Vec<Frame>, LaneError> {
        let mut out = Batch::new();
        poll_fn(|cx| self.lane.rx.poll_recv(cx, &mut out)).await?;
        Ok(out.drain().collect())
    }

    /// Everything up to the end.
    async fn recv_all(&mut self) -> (Vec<Frame>, Result<(), LaneError>) {
        let mut all = Vec::new();
        loop {
            match self.recv().await {
                Err(error) => return (all, Err(error)),
                Ok(frames) if frames.is_empty() => return (all, Ok(())),
                Ok(frames) => all.extend(frames),
            }
        }
    }

    async fn flush(&mut self) {
        poll_fn(|cx| self.lane.tx.poll_flush(cx)).await.unwrap();
    }

    fn drive(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        self.lane.drive.as_mut().unwrap().poll_drive(&mut cx, Instant::now()).unwrap();
    }
}

/// Waits until nothing of the pool is in use, but for what an engine and its lanes have.
async fn is_back(pool: &BufPool) {
    while pool.stats().in_use_bytes > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

const SIZES: [usize; 16] = [
    0,
    1,
    16,
    511,
    512,
    513,
    4096,
    16384,
    65520,
    65537,
    LARGE_MIN - 1,
    LARGE_MIN,
    8 << 20,
    3,
    8 << 20,
    1 << 20,
];

async fn sizes_in_order() {
    let (mut a, mut b) = pair(LaneLimits::default()).await;
    let expect: Vec<_> = SIZES.iter().enumerate().map(|(i, n)| pattern(*n, i)).collect();
    let messages = expect.iter().cloned().map(Message::from).collect();
    exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
    assert_eq!(b.lane.leases.outstanding_bytes(), 0);
    let pools = [a.pool.clone(), b.pool.clone()];
    drop((a, b));
    for pool in &pools {
        is_back(pool).await;
    }
}

#[test]
fn all_sizes_arrive_in_order_and_leave_nothing() {
    if works() {
        on_one_thread(sizes_in_order());
        on_many_threads(sizes_in_order());
    }
}

fn header(kind: FrameType, len: usize, seq: u64, ext: bool) -> Vec<u8> {
    let flags = FrameFlags { ext, ack_requested: false };
    let mut bytes = FrameHeader { kind, flags, length: len as u32, seq }.encode().to_vec();
    if ext {
        // One TLV that nobody knows, and that may be skipped.
        bytes.extend([6, 0, 0x34, 0x12, 2, 0, 7, 7]);
    }
    bytes
}

/// On the wire there is no difference to any other engine: these are the bytes of `docs/wire.md`.
#[test]
fn the_bytes_are_those_of_the_stream() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let (mut a, mut peer) = with_socket(wide(), big_pool()).await;
        let mut expect = Vec::new();
        for (n, len) in [5usize, 0, 600, 40_000, 1 << 20, 3].into_iter().enumerate() {
            let payload = pattern(len, n);
            expect.extend(header(FrameType::Data, len, n as u64 + 1, false));
            expect.extend(&payload);
            a.lane.tx.start_send(data(n as u64 + 1, payload), false).unwrap();
            expect.extend(header(FrameType::Session, 9, 0, false));
            expect.extend([3; 9]);
            a.lane.tx.start_send(record(9), false).unwrap();
        }
        let golden = [0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(expect[..16], golden, "a header's bytes: kind, flags, length, number");
        let len = expect.len();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            peer.read_exact(&mut bytes).unwrap();
            (bytes, peer)
        });
        a.flush().await;
        let (bytes, mut peer) = read.await.unwrap();
        assert!(bytes == expect);
        // The end of our direction, and only that.
        poll_fn(|cx| a.lane.tx.poll_close(cx)).await.unwrap();
        assert_eq!(peer.read(&mut [0; 9]).unwrap(), 0);
        peer.write_all(&header(FrameType::Data, 1, 1, true)).unwrap();
        peer.write_all(b"x").unwrap();
        assert_eq!(flat(&a.recv().await.unwrap()[0].payload), b"x");
    });
}

/// What comes out of these bytes, which are written in portions.
async fn read_all(bytes: Vec<u8>, portion: usize) -> (Vec<Frame>, Result<(), LaneError>) {
    let (mut end, mut peer) = with_socket(wide(), big_pool()).await;
    let write = tokio::task::spawn_blocking(move || {
        for part in bytes.chunks(portion.max(1)) {
            if peer.write_all(part).is_err() {
                break;
            }
        }
        let _ = peer.shutdown(Shutdown::Write);
        peer
    });
    let all = end.recv_all().await;
    drop(end);
    write.await.unwrap();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_in_any_portions(
        lens in prop::collection::vec(prop_oneof![0..700usize, 10_000..70_000usize, 200_000..700_000usize], 1..12),
        portion in prop_oneof![1..100usize, 1000..100_000usize],
        ext in any::<bool>(),
    ) {
        if works() {
            let portion = portion.max(lens.iter().sum::<usize>() / 2000);
            let mut bytes = Vec::new();
            for (n, len) in lens.iter().enumerate() {
                bytes.extend(header(FrameType::Data, *len, n as u64 + 1, ext));
                bytes.extend(pattern(*len, n));
                bytes.extend(header(FrameType::Session, 12, 0, !ext));
                bytes.extend([3; 12]);
            }
            let (all, done) = on_one_thread(read_all(bytes, portion));
            prop_assert!(done.is_ok(), "{done:?}");
            prop_assert_eq!(all.len(), 2 * lens.len());
            for (n, frames) in all.chunks(2).enumerate() {
                prop_assert!(flat(&frames[0].payload) == pattern(lens[n], n));
                prop_assert!(frames[1].kind == FrameKind::Session && flat(&frames[1].payload) == [3; 12]);
            }
        }
    }

    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..300), portion in 1usize..64) {
        if works() {
            let _ = on_one_thread(read_all(bytes, portion));
        }
    }
}

/// Over TCP, in both ways in which a peer may end right behind its last bytes.
#[test]
fn an_end_or_a_reset_of_tcp_right_behind_the_last_bytes_is_told() {
    if !works() {
        return;
    }
    for round in 0..60 {
        let resets = round % 2 == 1;
        on_one_thread(async move {
            let (socket, peer) = common::tcp_pair();
            let mut peer = std::net::TcpStream::from(peer);
            let mut lane = end(&UringTransport::default(), socket.into(), wide(), big_pool()).await;
            let writes = tokio::task::spawn_blocking(move || {
                let bytes = [header(FrameType::Data, 3000, 1, false), pattern(3000, round)].concat();
                bytes.chunks(100).for_each(|part| peer.write_all(part).unwrap());
                if resets {
                    rustix::net::sockopt::set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
                }
            });
            let (all, done) = lane.recv_all().await;
            writes.await.unwrap();
            // A reset may take what was not read yet with it.
            assert!(resets || (all.len() == 1 && done.is_ok()), "{done:?}");
            assert!(!resets || all.len() <= 1);
        });
    }
}

/// The kernel may take the end for a part of what came just before it: it is told nevertheless.
#[test]
fn an_end_right_behind_the_last_bytes_is_told() {
    if !works() {
        return;
    }
    let lens = [50_667usize, 62_862, 11_676];
    for _ in 0..100 {
        let frame = |(n, len): (usize, &usize)| {
            [header(FrameType::Data, *len, n as u64 + 1, false), pattern(*len, n)].concat()
        };
        let bytes: Vec<u8> = lens.iter().enumerate().flat_map(frame).collect();
        let (all, done) = on_one_thread(read_all(bytes, 62));
        assert!(done.is_ok() && all.len() == lens.len(), "{done:?}");
    }
}

#[test]
fn what_is_no_frame_is_an_error_behind_what_was() {
    if !works() {
        return;
    }
    let good = [header(FrameType::Data, 3, 1, false), b"abc".to_vec()].concat();
    for (bad, torn) in [
        (header(FrameType::Data, u32::MAX as usize, 2, false), false),
        (vec![0xff; 16], false),
        (vec![1, 0, 0], true),
        (header(FrameType::Data, 9, 2, false), true),
        ([header(FrameType::Data, 1 << 20, 2, false), vec![0; 600_000]].concat(), true),
    ] {
        let (all, done) = on_one_thread(read_all([&good[..], &bad].concat(), 1 << 20));
        assert_eq!(all.len(), 1);
        match done {
            Err(LaneError::PeerGone(_)) if torn => {}
            Err(LaneError::Protocol(_)) if !torn => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Takes all that a pool has.
fn drain(pool: &BufPool) -> Vec<PinnedBufMut> {
    let mut all = Vec::new();
    for len in [1 << 20, 64 << 10, 4 << 10, 1] {
        while let Ok(buf) = pool.try_alloc(len) {
            all.push(buf);
        }
    }
    all
}

/// The pool is exhausted, so the engine has nothing to receive into: records and credit get through, or those
/// who hold the memory might wait for ever. Messages wait, and come when there is memory again.
#[test]
fn records_get_through_while_the_pool_is_exhausted() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let pool = BufPool::builder().max_bytes(1 << 20).region_bytes(64 << 10).build();
        let (mut end, mut peer) = with_socket(wide(), pool.clone()).await;
        let all = drain(&pool);
        for len in [0, 12, 300, 12] {
            peer.write_all(&header(FrameType::Session, len, 0, len == 12)).unwrap();
            peer.write_all(&vec![3; len]).unwrap();
            let frames = end.recv().await.unwrap();
            assert_eq!((frames.len(), flat(&frames[0].payload)), (1, vec![3; len]));
        }
        for len in [100usize, 70_000] {
            peer.write_all(&header(FrameType::Data, len, 1, false)).unwrap();
            peer.write_all(&pattern(len, 1)).unwrap();
        }
        let (mut all, mut got) = (Some(all), Vec::new());
        let mut turns = 0;
        while got.len() < 2 {
            let mut out = Batch::new();
            let polled = poll_fn(|cx| std::task::Poll::Ready(end.lane.rx.poll_recv(cx, &mut out))).await;
            assert!(!matches!(polled, std::task::Poll::Ready(Err(_))), "{polled:?}");
            got.extend(out.drain());
            turns += 1;
            if turns == 50 {
                assert!(got.is_empty(), "there was no memory");
                all = None;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(all.is_none() && flat(&got[0].payload) == pattern(100, 1));
        assert!(flat(&got[1].payload) == pattern(70_000, 1));
        drop((got, end, all));
        is_back(&pool).await;
    });
}

/// What waits for memory lies on the heap, and no more of it than may for all lanes together. Who needs more fails, and leaves his
/// part to others.
#[test]
fn what_waits_for_memory_is_bounded() {
    if !works() {
        return;
    }
    on_one_thread(async {
        const LEN: usize = 300_000;
        let pool = BufPool::builder().max_bytes(4 << 20).region_bytes(64 << 10).build();
        let mut options = UringOptions::default();
        options.max_spilled_bytes = 50_000;
        let transport = UringTransport::new(options);
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        // The last has room when the second, which has failed, has given its part back.
        let came = [20_000, 40_000, 20_000];
        let mut ends = Vec::new();
        for (n, came) in came.into_iter().enumerate() {
            let (socket, mut peer) = UnixStream::pair().unwrap();
            let spy = socket.try_clone().unwrap();
            let mut end = end_on(reactor.clone(), &transport, socket, wide(), pool.clone()).await;
            let nothing = end.lane.rx.poll_recv(&mut Context::from_waker(Waker::noop()), &mut Batch::new());
            assert!(nothing.is_pending());
            peer.write_all(&header(FrameType::Data, LEN, 1, false)).unwrap();
            peer.write_all(&pattern(LEN, n)[..came]).unwrap();
            while rustix::io::ioctl_fionread(&spy).unwrap() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            ends.push((end, peer));
        }
        let all = drain(&pool);
        for (n, (end, _)) in ends.iter_mut().enumerate() {
            let mut failed = None;
            for _ in 0..50 {
                let mut out = Batch::new();
                let polled = poll_fn(|cx| std::task::Poll::Ready(end.lane.rx.poll_recv(cx, &mut out))).await;
                if let std::task::Poll::Ready(done) = polled {
                    failed = done.err();
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(matches!(failed, Some(LaneError::Memory(_))), n == 1, "{n}: {failed:?}");
            assert!(n == 1 || failed.is_none(), "{failed:?}");
        }
        drop(all);
        for n in [0, 2] {
            let (end, peer) = &mut ends[n];
            let (mut peer, rest) = (peer.try_clone().unwrap(), pattern(LEN, n).split_off(came[n]));
            let write = tokio::task::spawn_blocking(move || peer.write_all(&rest).unwrap());
            assert!(flat(&end.recv().await.unwrap()[0].payload) == pattern(LEN, n));
            write.await.unwrap();
        }
        drop(ends);
        is_back(&pool).await;
    });
}

/// What was received ahead needs no memory to be handed out, also where it lies in several pieces: those who hold the
/// pool's memory may be lanes that wait like this one.
#[test]
fn what_is_there_is_handed_out_while_the_pool_is_exhausted() {
    if !works() {
        return;
    }
    for soft in [1, usize::MAX] {
        on_one_thread(async {
            let pool = BufPool::builder().max_bytes(16 << 20).build();
            let mut limits = wide();
            limits.lease_soft = soft;
            let (socket, mut peer) = UnixStream::pair().unwrap();
            let spy = socket.try_clone().unwrap();
            let mut end = end(&UringTransport::default(), socket, limits, pool.clone()).await;
            let nothing = end.lane.rx.poll_recv(&mut Context::from_waker(Waker::noop()), &mut Batch::new());
            assert!(nothing.is_pending());
            let lens: Vec<usize> = (0..6000).map(|n| if n % 100 == 99 { 20_000 } else { 100 }).collect();
            let mut bytes = Vec::new();
            for (n, len) in lens.iter().enumerate() {
                bytes.extend(header(FrameType::Data, *len, n as u64 + 1, false));
                bytes.extend(pattern(*len, n));
            }
            let write = tokio::task::spawn_blocking(move || {
                peer.write_all(&bytes).unwrap();
                peer
            });
            let peer = write.await.unwrap();
            while rustix::io::ioctl_fionread(&spy).unwrap() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            let all = drain(&pool);
            let mut held = Vec::new();
            while held.len() < lens.len() {
                held.extend(end.recv().await.unwrap());
            }
            for (n, frame) in held.iter().enumerate() {
                assert!(flat(&frame.payload) == pattern(lens[n], n), "message {n}");
            }
            drop((peer, held, end, all));
            is_back(&pool).await;
        });
    }
}

/// A body is received by long operations, behind which nothing shows. A peer that takes its time shows that it goes on,
/// one that does not shows nothing, and nothing is lost.
#[test]
fn a_large_message_that_takes_long_to_arrive_shows_life() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let (mut end, mut peer) = with_socket(wide(), big_pool()).await;
        let len = 1 << 20;
        let bytes = [header(FrameType::Data, len, 1, false), pattern(len, 1)].concat();
        let mut out = Batch::new();
        async fn look(end: &mut End, out: &mut Batch<Frame>) -> bool {
            for _ in 0..10 {
                let polled = poll_fn(|cx| std::task::Poll::Ready(end.lane.rx.poll_recv(cx, out))).await;
                assert!(!matches!(polled, std::task::Poll::Ready(Err(_))), "{polled:?}");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            end.lane.drive.as_mut().unwrap().heard()
        }
        let late = std::time::Duration::from_millis(SLOW_RECEIVE_MS);
        let (first, rest) = bytes.split_at(1000);
        peer.write_all(first).unwrap();
        look(&mut end, &mut out).await;
        let (mut heard, mut at) = (Vec::new(), 0);
        for n in [1000, 0, 1, 0, 5000] {
            peer.write_all(&rest[at..at + n]).unwrap();
            at += n;
            let soon = look(&mut end, &mut out).await;
            tokio::time::pause();
            tokio::time::advance(late).await;
            tokio::time::resume();
            heard.push(soon || look(&mut end, &mut out).await);
        }
        assert_eq!(heard, [true, false, true, false, true]);
        let rest = rest[at..].to_vec();
        let write = tokio::task::spawn_blocking(move || {
            peer.write_all(&rest).unwrap();
            peer
        });
        while out.is_empty() {
            look(&mut end, &mut out).await;
        }
        assert!(out.drain().all(|frame| flat(&frame.payload) == pattern(len, 1)));
        drop(write.await.unwrap());
    });
}

/// A peer that is gone shows nothing when the receive is ended early.
#[test]
fn a_receive_that_is_ended_early_is_neither_life_nor_the_end() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let (mut end, mut peer) = with_socket(wide(), big_pool()).await;
        let len = 1 << 20;
        peer.write_all(&header(FrameType::Data, len, 1, false)).unwrap();
        for _ in 0..3 {
            for _ in 0..10 {
                let polled =
                    end.lane.rx.poll_recv(&mut Context::from_waker(Waker::noop()), &mut Batch::new());
                assert!(polled.is_pending(), "{polled:?}");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            end.lane.drive.as_mut().unwrap().heard();
            tokio::time::pause();
            tokio::time::advance(std::time::Duration::from_millis(SLOW_RECEIVE_MS)).await;
            tokio::time::resume();
        }
        assert!(!end.lane.drive.as_mut().unwrap().heard());
        drop(peer);
        assert!(matches!(end.recv().await, Err(LaneError::PeerGone(_))));
    });
}

/// What the application holds counts, whole buffers at a time, and past the soft lease little of it is a buffer's.
#[test]
fn small_messages_that_are_held_pin_little() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let mut limits = wide();
        (limits.lease_soft, limits.lease_hard) = (1 << 20, 4 << 20);
        let (mut end, mut peer) = with_socket(limits, big_pool()).await;
        let mut held = Vec::new();
        for n in 0..2000u64 {
            peer.write_all(&header(FrameType::Data, 64, n + 1, false)).unwrap();
            peer.write_all(&[n as u8; 64]).unwrap();
            held.extend(end.recv().await.unwrap());
            assert!(end.lane.leases.outstanding_bytes() <= (1 << 20) + (64 << 10) + 2000 * 256);
        }
        assert_eq!(held.len(), 2000);
        assert!(held.iter().enumerate().all(|(n, frame)| flat(&frame.payload) == [n as u8; 64]));
        assert!(end.ledger.snapshot().copied_bytes() > 0, "past the soft lease it is copied out");
        held.clear();
        let nothing = end.lane.rx.poll_recv(&mut Context::from_waker(Waker::noop()), &mut Batch::new());
        assert!(nothing.is_pending(), "from here on it is idle");
        assert_eq!(end.lane.leases.outstanding_bytes(), 0);
    });
}

/// Once large messages flow they are received where they belong.
#[test]
fn a_stream_of_large_messages_is_not_copied_by_us() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let (mut a, mut b) = pair(LaneLimits::default()).await;
        for round in 0..2 {
            let before = b.ledger.snapshot().copied_bytes();
            let expect: Vec<_> = (0..10).map(|i| pattern(1 << 20, i)).collect();
            let messages = expect.iter().cloned().map(Message::from).collect();
            exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
            let copied = b.ledger.snapshot().copied_bytes() - before;
            assert!(copied <= if round == 0 { 1 << 20 } else { 0 }, "round {round}: {copied}");
        }
        assert_eq!(a.ledger.snapshot().copied_bytes(), 0);
    });
}

#[test]
fn half_close_in_both_orders_and_a_peer_that_goes() {
    if !works() {
        return;
    }
    on_one_thread(async {
        for first in [0, 1] {
            let (a, b) = pair(LaneLimits::default()).await;
            let mut ends = if first == 0 { [a, b] } else { [b, a] };
            for i in [0, 1] {
                for _ in 0..2 {
                    poll_fn(|cx| ends[i].lane.tx.poll_close(cx)).await.unwrap();
                }
                let closed = poll_fn(|cx| ends[i].lane.tx.poll_ready(cx, 1)).await;
                assert!(matches!(closed, Err(LaneError::Closed)));
                assert!(ends[1 - i].recv().await.unwrap().is_empty());
                if i == 0 {
                    // The other direction goes on.
                    ends[1].lane.tx.start_send(data(1, vec![5u8; 100_000]), false).unwrap();
                    ends[1].flush().await;
                    assert_eq!(ends[0].recv().await.unwrap()[0].payload.len(), 100_000);
                }
            }
            assert!(ends[0].recv().await.unwrap().is_empty());
        }
        // A peer that goes with our bytes unread resets the connection.
        let (mut a, peer) = with_socket(LaneLimits::default(), big_pool()).await;
        a.lane.tx.start_send(data(1, vec![1u8; 100]), false).unwrap();
        a.flush().await;
        drop(peer);
        for _ in 0..2 {
            assert!(matches!(a.recv().await, Err(LaneError::PeerGone(_))), "it stays that way");
        }
        a.lane.tx.start_send(data(2, vec![1u8; 100]), false).unwrap();
        assert!(matches!(poll_fn(|cx| a.lane.tx.poll_flush(cx)).await, Err(LaneError::PeerGone(_))));
    });
}

/// A peer that does not read bounds what is queued; what flies then goes with its lane and stays with the engine.
#[test]
fn a_lane_that_goes_while_it_sends_leaves_nothing() {
    if !works() {
        return;
    }
    on_one_thread(async {
        let mut limits = wide();
        limits.send_window = u32::MAX;
        let (mut a, mut peer) = with_socket(limits, big_pool()).await;
        let mut cx = Context::from_waker(Waker::noop());
        let mut sent = 0;
        while a.lane.tx.poll_ready(&mut cx, 100_000).is_ready() {
            sent += 1;
            a.lane.tx.start_send(data(sent, pattern(100_000, 0)), true).unwrap();
            assert!(sent < 1000, "nothing bounds it");
            tokio::task::yield_now().await;
        }
        a.drive();
        let pool = a.pool.clone();
        assert!(pool.stats().in_use_bytes > 0);
        drop(a);
        is_back(&pool).await;
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty());
    });
}
