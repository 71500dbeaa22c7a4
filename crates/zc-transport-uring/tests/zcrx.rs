//! Zero-copy receive without a device: the kernel fills the area by a copy, and all behind that is as with a NIC.
//!
//! It takes Linux 7.1 and CAP_NET_ADMIN. Elsewhere these tests pass by with the reason, but not where `ZC_ZCRX_MACHINE` is set.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods
)]

mod common;

use std::future::{Future, poll_fn};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{bytes, on_many_threads, on_one_thread, open_descriptors, pattern, pool, tcp_pair, unix_pair};
use common::{wait_for_descriptors, wait_until};
use zc::TokioReactor;
use zc::testing::fabric_over;
use zc_conformance::{Setup, exchange, suite};
use zc_core::memory::{BufPool, CopyLedger, KernelCopied, Message, PinnedBuf};
use zc_core::transport::*;
use zc_transport_tcp::StreamLink;
use zc_transport_uring::{
    Engine, EngineOptions, EngineThread, Flavour, LARGE_MIN, SocketRx, UringOptions, UringTransport,
    ZcrxOptions, ZcrxSource, probe_zero_copy_receive,
};

const PAGE: usize = 4096;

fn area(bytes: usize) -> ZcrxOptions {
    let mut options = ZcrxOptions::without_device();
    options.area_bytes = bytes;
    options
}

fn engine_with(pool: &BufPool, options: EngineOptions) -> Option<Engine> {
    let engine = common::engine_with(pool, options)?;
    match engine.zero_copy_receive().expect("it was asked for") {
        Ok(()) => Some(engine),
        Err(why) => {
            assert!(std::env::var_os("ZC_ZCRX_MACHINE").is_none(), "not here: {why}; {}", why.remedy());
            eprintln!("skipped, no zero-copy receive here: {why}");
            None
        }
    }
}

fn engine(pool: &BufPool, area_bytes: usize) -> Option<Engine> {
    let mut options = EngineOptions::new(Flavour::OneThread);
    options.zero_copy_receive = Some(area(area_bytes));
    engine_with(pool, options)
}

/// Both ends of a connection, one of them the engine's.
fn socket(engine: &Engine) -> (SocketRx, TcpStream) {
    let (ours, peer) = tcp_pair();
    let (_tx, rx) = engine.socket(ours).unwrap();
    assert!(rx.is_into_area());
    (rx, peer.into())
}

/// A thread that writes so many bytes of the pattern, in pieces of this length, and ends the stream.
fn write_all(mut peer: TcpStream, total: usize, piece: usize) -> JoinHandle<TcpStream> {
    std::thread::spawn(move || {
        let all = pattern(total, 0);
        for part in all.chunks(piece) {
            peer.write_all(part).unwrap();
        }
        peer.shutdown(Shutdown::Write).unwrap();
        peer
    })
}

/// Reads to the end, and gives each piece to `keep`.
async fn read_to_end(rx: &mut SocketRx, mut keep: impl FnMut(usize, PinnedBuf)) -> usize {
    let mut at = 0;
    loop {
        let piece = rx.recv().await.unwrap();
        if piece.is_empty() {
            return at;
        }
        let len = piece.len();
        keep(at, piece);
        at += len;
    }
}

/// All pieces are back, and what the engine has done is what was to be done.
async fn settled(engine: Engine) {
    engine.shutdown().await;
    let stats = engine.stats();
    assert_eq!((stats.in_flight, stats.unknown, stats.area_lent_pages), (0, 0, 0));
}

#[test]
fn bytes_arrive_as_they_were_sent_and_in_the_area() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 1 << 20) else { return };
        for (total, piece) in [(1, 1), (3000, 7), (1 << 20, 1 << 20), (5_000_000, 100_000), (20_000, 1)] {
            let (mut rx, peer) = socket(&engine);
            let writer = write_all(peer, total, piece);
            let expect = pattern(total, 0);
            let before = engine.stats();
            let got = read_to_end(&mut rx, |at, piece| {
                assert!(piece.len() <= PAGE && expect[at..at + piece.len()] == piece[..], "at {at}");
            });
            assert_eq!(got.await, total);
            writer.join().unwrap();
            let now = engine.stats();
            assert!(now.area_pieces - before.area_pieces >= total.div_ceil(PAGE) as u64);
        }
        // No other memory was received into.
        assert_eq!(engine.stats().recv_buffers, 0);
        settled(engine).await;
    });
    assert_eq!(pool.stats().in_use_bytes, 0);
}

/// Unix sockets, and those of other engines, are none of the kernel's business here.
#[test]
fn other_sockets_receive_into_buffers() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 1 << 20) else { return };
        let (ours, peer) = unix_pair();
        let (_tx, mut rx) = engine.socket(ours).unwrap();
        assert!(!rx.is_into_area());
        std::os::unix::net::UnixStream::from(peer).write_all(b"hello").unwrap();
        assert_eq!(rx.recv().await.unwrap()[..], *b"hello");
        assert!(rx.recv().await.unwrap().is_empty());
        assert_eq!(engine.stats().area_pieces, 0);
        drop(rx);
        let (mut rx, _peer) = socket(&engine);
        let refused = rx.recv_into(pool.try_alloc(10).unwrap(), 10, true).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
        drop((rx, _tx));
        settled(engine).await;
    });
}

/// What is kept stays as it is however often the rest of the area is filled meanwhile, and goes back from any thread.
#[test]
fn pieces_that_are_kept_stay_as_they_are() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 64 * PAGE) else { return };
        let (mut rx, peer) = socket(&engine);
        let total = 8 << 20;
        let writer = write_all(peer, total, 64 << 10);
        let expect = pattern(total, 0);
        let mut kept = Vec::new();
        let read = read_to_end(&mut rx, |at, piece| {
            assert!(expect[at..at + piece.len()] == piece[..], "at {at}");
            // Of different ages; the last ones are all of the area that may be lent.
            if kept.len() < 20 && at.is_multiple_of(3) || at > total - 2 * 64 * PAGE {
                kept.push((at, piece));
            }
        });
        assert_eq!(read.await, total);
        drop(writer.join().unwrap());
        let stats = engine.stats();
        assert!(stats.area_lent_pages >= 31 && stats.area_copied_bytes > 0, "{stats:?}");
        for (at, piece) in &kept {
            assert!(expect[*at..*at + piece.len()] == piece[..], "at {at}");
        }
        std::thread::spawn(move || drop(kept)).join().unwrap();
        assert_eq!(engine.stats().area_lent_pages, 0);
        drop(rx);
        settled(engine).await;
    });
    assert_eq!(pool.stats().in_use_bytes, 0);
}

/// Nothing of a piece is the engine's, the ring's or the connection's: only its memory is.
#[test]
fn pieces_outlive_their_connection_and_their_engine() {
    let pool = pool();
    let before = open_descriptors();
    let mut kept = Vec::new();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 64 * PAGE) else { return };
        // Connections that end in order, with something left to read, and with a receive under way.
        for left in [0, 100_000, 50_000] {
            let (mut rx, mut peer) = socket(&engine);
            peer.write_all(&pattern(100_000, 0)).unwrap();
            let mut got = 0;
            while got < 100_000 - left {
                let piece = rx.recv().await.unwrap();
                kept.push((got, piece.clone()));
                got += piece.len();
            }
            if left == 0 {
                drop(peer);
                assert!(rx.recv().await.unwrap().is_empty());
            }
        }
        let (mut rx, _peer) = socket(&engine);
        assert!(poll_fn(|cx| Poll::Ready(rx.poll_recv(cx).is_pending())).await);
        engine.shutdown().await;
        assert!(rx.recv().await.is_err());
    });
    let expect = pattern(100_000, 0);
    assert!(kept.iter().all(|(at, piece)| expect[*at..*at + piece.len()] == piece[..]));
    // The ring is gone although what it received is still there.
    wait_for_descriptors(before);
    drop(kept);
    wait_until("the pool is unused", || pool.stats().in_use_bytes == 0);
}

/// A runtime that goes at any moment, with receives under way and pieces lent: these never change again.
#[test]
fn a_runtime_that_goes_writes_nothing_more() {
    let pool = pool();
    for round in 0..5usize {
        let mut kept: Vec<(usize, PinnedBuf)> = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut writer = None;
        let mut left = None;
        runtime.block_on(async {
            let Some(engine) = engine(&pool, 64 * PAGE) else { return };
            let (mut rx, mut peer) = socket(&engine);
            writer = Some(std::thread::spawn(move || {
                // Until the connection is cut.
                let all = pattern(1 << 20, 0);
                while peer.write_all(&all).is_ok() {}
            }));
            let mut at = 0;
            while kept.len() < 20 {
                let piece = rx.recv().await.unwrap();
                let len = piece.len();
                if (at / PAGE + round).is_multiple_of(2) {
                    kept.push((at, piece));
                }
                at += len;
            }
            left = Some((rx, engine));
        });
        let Some(writer) = writer else { return };
        if round.is_multiple_of(2) {
            drop(runtime);
        } else {
            // In another thread than the ring's.
            std::thread::spawn(move || drop(runtime)).join().unwrap();
        }
        let expect = pattern(1 << 20, 0);
        for _ in 0..20 {
            assert!(kept.iter().all(|(at, piece)| expect[*at..*at + piece.len()] == piece[..]));
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(left);
        writer.join().unwrap();
        assert!(kept.iter().all(|(at, piece)| expect[*at..*at + piece.len()] == piece[..]));
    }
}

/// All of the area is lent and there is nowhere to copy to: receiving waits, and goes on when something is back.
#[test]
fn a_full_area_holds_receives_up_until_something_is_back() {
    let (pool, small) = (pool(), BufPool::builder().max_bytes(64 << 10).build());
    on_one_thread(async {
        let mut options = EngineOptions::new(Flavour::OneThread);
        options.zero_copy_receive = Some(area(16 * PAGE));
        (options.recv_buffers, options.recv_buffer_bytes, options.max_spilled_bytes) = (1, Some(4096), 0);
        let Some(engine) = engine_with(&small, options) else { return };
        // Nothing of the pool is free.
        let mut taken = Vec::new();
        while let Ok(buf) = small.try_alloc(4096).or_else(|_| small.try_alloc(64)) {
            taken.push(buf);
        }
        let (mut rx, peer) = socket(&engine);
        let total = 1 << 20;
        let writer = write_all(peer, total, 32 << 10);
        let expect = pattern(total, 0);
        let (mut at, mut held) = (0, Vec::new());
        while at < total {
            match tokio::time::timeout(Duration::from_millis(300), rx.recv()).await {
                Ok(piece) => {
                    let piece = piece.unwrap();
                    assert!(!piece.is_empty() && expect[at..at + piece.len()] == piece[..], "at {at}");
                    at += piece.len();
                    held.push(piece);
                }
                Err(_) => {
                    // All of it is held; so one by one.
                    let stats = engine.stats();
                    assert_eq!((stats.area_lent_pages, held.len()), (16, 16), "{stats:?} at {at}");
                    let last = held.split_off(1);
                    held = if at < total / 8 { last } else { Vec::new() };
                }
            }
        }
        assert!(engine.stats().area_full > 2, "{:?}", engine.stats());
        assert_eq!(engine.stats().area_copied_bytes, 0);
        held.clear();
        assert!(rx.recv().await.unwrap().is_empty());
        drop(writer.join().unwrap());
        drop((rx, taken));
        settled(engine).await;
    });
    drop(pool);
    assert_eq!(small.stats().in_use_bytes, 0);
}

/// One connection that keeps all it gets does not stall another one.
#[test]
fn who_keeps_everything_stalls_nobody_else() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 32 * PAGE) else { return };
        let (mut keeper, peer) = socket(&engine);
        let total = 2 << 20;
        let writer = write_all(peer, total, 32 << 10);
        let mut kept = Vec::new();
        assert_eq!(read_to_end(&mut keeper, |at, piece| kept.push((at, piece))).await, total);
        drop(writer.join().unwrap());
        let (mut other, peer) = socket(&engine);
        let writer = write_all(peer, total, 32 << 10);
        assert_eq!(read_to_end(&mut other, |_, _| {}).await, total);
        drop(writer.join().unwrap());
        let expect = pattern(total, 0);
        assert!(kept.iter().all(|(at, piece)| expect[*at..*at + piece.len()] == piece[..]));
        let stats = engine.stats();
        // Half of the area stays where it is, all else went elsewhere.
        assert!(stats.area_lent_pages <= 16, "{stats:?}");
        assert!(stats.area_copied_bytes >= total as u64 - 16 * PAGE as u64, "{stats:?}");
        drop((kept, keeper, other));
        settled(engine).await;
    });
    assert_eq!(pool.stats().in_use_bytes, 0);
}

/// Receives are given up after every number of polls; the socket is made quiet in between.
#[test]
fn receives_that_are_given_up_lose_nothing() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 64 * PAGE) else { return };
        let (mut rx, mut peer) = socket(&engine);
        let (mut sent, mut got) = (0, Vec::new());
        for round in 0..60usize {
            if round.is_multiple_of(2) {
                let len = 1 + round * 700;
                peer.write_all(&pattern(len, sent)).unwrap();
                sent += len;
            }
            {
                let mut recv = pin!(rx.recv());
                for _ in 0..round % 5 {
                    let piece = poll_fn(|cx| Poll::Ready(recv.as_mut().poll(cx))).await;
                    if let Poll::Ready(piece) = piece {
                        got.extend(piece.unwrap().iter().copied());
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            if round.is_multiple_of(7) {
                poll_fn(|cx| rx.poll_quiet(cx)).await;
            }
            while let Poll::Ready(piece) = rx.try_recv() {
                got.extend(piece.unwrap().iter().copied());
            }
        }
        while got.len() < sent {
            got.extend(rx.recv().await.unwrap().iter().copied());
        }
        assert!(got == pattern(sent, 0));
        drop((rx, peer));
        settled(engine).await;
    });
    assert_eq!(pool.stats().in_use_bytes, 0);
}

#[test]
fn many_connections_share_an_area() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 128 * PAGE) else { return };
        let total = 500_000;
        let (mut writers, mut reads) = (Vec::new(), Vec::new());
        for n in 0..30 {
            let (mut rx, peer) = socket(&engine);
            writers.push(write_all(peer, total, 1000 + 777 * n));
            reads.push(async move {
                let (expect, mut kept) = (pattern(total, 0), Vec::new());
                let read = read_to_end(&mut rx, |at, piece| {
                    assert!(expect[at..at + piece.len()] == piece[..], "at {at}");
                    if kept.len() < 10 {
                        kept.push(piece);
                    } else {
                        kept.clear();
                    }
                });
                assert_eq!(read.await, total);
            });
        }
        futures::future::join_all(reads).await;
        writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
        settled(engine).await;
    });
    assert_eq!(pool.stats().in_use_bytes, 0);
}

#[test]
fn a_reset_is_told() {
    let pool = pool();
    on_one_thread(async {
        let Some(engine) = engine(&pool, 64 * PAGE) else { return };
        let (mut rx, peer) = socket(&engine);
        assert!(poll_fn(|cx| Poll::Ready(rx.poll_recv(cx).is_pending())).await);
        let peer = OwnedFd::from(peer);
        rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        let error = rx.recv().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        drop(rx);
        settled(engine).await;
    });
}

/// An engine that can't have it works as always, and says why.
#[test]
fn a_refusal_is_typed_and_the_engine_works() {
    let pool = pool();
    let refused = [
        (Flavour::ManyThreads, ZcrxOptions::without_device()),
        (Flavour::OneThread, ZcrxOptions::queue("no-such-if0", 0)),
        // Loopback has no device behind it.
        (Flavour::OneThread, ZcrxOptions::queue("lo", 0)),
    ];
    for (flavour, wanted) in refused {
        assert!(wanted.source != ZcrxSource::NoDevice || flavour == Flavour::ManyThreads);
        on_one_thread(async {
            let mut options = EngineOptions::new(flavour);
            options.zero_copy_receive = Some(wanted.clone());
            let Some(engine) = common::engine_with(&pool, options) else { return };
            let why = engine.zero_copy_receive().unwrap().unwrap_err();
            let known = [
                "needs_one_thread",
                "kernel_too_old",
                "no_device",
                "driver_no_zero_copy",
                "missing_capability",
            ];
            assert!(known.contains(&why.code()) && !why.remedy().is_empty(), "{wanted:?}: {why}");
            let (ours, peer) = tcp_pair();
            let (_tx, mut rx) = engine.socket(ours).unwrap();
            assert!(!rx.is_into_area());
            TcpStream::from(peer).write_all(b"hello").unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], *b"hello");
        });
    }
}

/// The test machine's cards (virtio-net) have no queues that can be taken over.
#[test]
fn cards_of_the_test_machine_refuse() {
    if std::env::var_os("ZC_ZCRX_MACHINE").is_none() {
        eprintln!("skipped, it is about the cards of the test machine");
        return;
    }
    for interface in ["eth0", "eth1"] {
        let why = probe_zero_copy_receive(interface, 0).unwrap_err();
        eprintln!("{interface}: {why} ({}): {}", why.code(), why.remedy());
        assert_eq!(why.code(), "driver_no_zero_copy");
    }
}

struct End {
    lane: Lane,
    ledger: Arc<CopyLedger>,
}

async fn end(transport: &UringTransport, socket: OwnedFd, limits: LaneLimits, pool: BufPool) -> End {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    rustix::io::ioctl_fionbio(&socket, true).unwrap();
    let link = StreamLink::new(reactor.register(socket).unwrap(), LinkAddr::UnixAbstract("pair".into()));
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(reactor, pool, ledger.clone(), limits);
    let mut link: Option<Box<dyn ControlLink>> = Some(Box::new(link));
    let lane = transport.join(Role::Client, Offer::default(), Offer::default(), &mut link, cx).await.unwrap();
    End { lane, ledger }
}

/// The last block stays with a connection until it waits.
fn waits(end: &mut End) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(end.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
}

/// Whether lanes of this transport receive so; what they are tested for else is nothing new.
fn is_used(transport: &UringTransport) -> bool {
    match transport.zero_copy_receive() {
        Some(Ok(())) => true,
        why => {
            assert!(std::env::var_os("ZC_ZCRX_MACHINE").is_none(), "not here: {why:?}");
            eprintln!("skipped, no zero-copy receive here: {why:?}");
            false
        }
    }
}

const SIZES: [usize; 14] =
    [0, 1, 16, 511, 4096, 4097, 16384, 65537, LARGE_MIN - 1, LARGE_MIN, 3, 8 << 20, 1 << 20, 100];

async fn sizes_in_order(options: UringOptions) {
    let transport = UringTransport::new(options);
    let (a, b) = tcp_pair();
    let pools = [pool(), pool()];
    let (mut a, mut b) = (
        end(&transport, a, LaneLimits::default(), pools[0].clone()).await,
        end(&transport, b, LaneLimits::default(), pools[1].clone()).await,
    );
    if !is_used(&transport) {
        return;
    }
    // Without a device there is no claim to that.
    assert_eq!(b.lane.caps.zero_copy_rx, ZeroCopy::Never);
    let expect: Vec<_> = SIZES.iter().enumerate().map(|(i, n)| pattern(*n, i)).collect();
    let messages = expect.iter().cloned().map(Message::from).collect();
    exchange(&mut a.lane, &mut b.lane, &TokioReactor::new(), messages, &expect).await;
    waits(&mut b);
    assert_eq!(b.lane.leases.outstanding_bytes(), 0);
    // Without a device the kernel copies all of it, once.
    let total = SIZES.iter().sum::<usize>() as u64;
    assert_eq!(b.ledger.snapshot().kernel_copied, KernelCopied::Known(total));
    let stats = transport.stats();
    assert!(stats.area_pieces >= total / PAGE as u64, "{stats:?}");
    drop((a, b));
    for pool in &pools {
        while pool.stats().in_use_bytes > 0 || transport.stats().area_lent_pages > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn uring_options(area_bytes: usize) -> UringOptions {
    let mut options = UringOptions::default();
    options.zero_copy_receive = Some(area(area_bytes));
    options
}

#[test]
fn messages_of_all_sizes_arrive_in_order_and_leave_nothing() {
    on_one_thread(sizes_in_order(uring_options(4 << 20)));
    // Of which much less is free than the peer may send.
    on_one_thread(sizes_in_order(uring_options(64 << 10)));
}

/// A runtime of several threads uses an engine in a thread of its own.
#[test]
fn an_engine_in_its_own_thread_receives_for_others() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reactor = Arc::new(TokioReactor::on(runtime.handle().clone()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || runtime.block_on(stopped));
    let mut options = uring_options(4 << 20);
    options.thread = Some(EngineThread::of(reactor));
    on_many_threads(sizes_in_order(options));
    drop(stop);
    let _ = thread.join().unwrap();
}

/// Messages up to a rope's length are lent as they came; each page of the area that they keep counts as this connection's.
#[test]
fn messages_are_lent_without_a_copy_of_ours_and_count_as_leased() {
    on_one_thread(async {
        let transport = UringTransport::new(uring_options(4 << 20));
        let (a, b) = tcp_pair();
        let mut limits = LaneLimits::default();
        (limits.recv_window, limits.lease_soft, limits.lease_hard) = (u32::MAX, usize::MAX, usize::MAX);
        let (mut a, mut b) =
            (end(&transport, a, limits, pool()).await, end(&transport, b, limits, pool()).await);
        if !is_used(&transport) {
            return;
        }
        let mut held: Vec<(usize, Frame)> = Vec::new();
        for (n, len) in [1000usize, 100_000, 20_000, 5].into_iter().enumerate() {
            let payload = bytes(len, n).into();
            a.lane
                .tx
                .start_send(Frame { kind: FrameKind::Data, ack: false, seq: n as u64 + 1, payload }, false)
                .unwrap();
            poll_fn(|cx| a.lane.tx.poll_flush(cx)).await.unwrap();
            while held.len() <= n {
                let mut out = Batch::new();
                poll_fn(|cx| b.lane.rx.poll_recv(cx, &mut out)).await.unwrap();
                held.extend(out.drain().map(|frame| (len, frame)));
            }
        }
        assert_eq!(b.ledger.snapshot().copied_bytes(), 0, "{:?}", b.ledger.snapshot());
        let flat = |message: &Message| -> Vec<u8> {
            message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
        };
        for (n, (len, frame)) in held.iter().enumerate() {
            assert!(flat(&frame.payload) == pattern(*len, n));
        }
        let leased = b.lane.leases.outstanding_bytes();
        assert!(leased >= 121_005 && leased % PAGE == 0, "{leased}");
        assert!(transport.stats().area_lent_pages * PAGE >= leased);
        held.clear();
        waits(&mut b);
        assert_eq!((b.lane.leases.outstanding_bytes(), transport.stats().area_lent_pages), (0, 0));
    });
}

// The behaviour suite, over rings with an area each.
suite!(in_an_area, || {
    let engine = on_one_thread(async { engine(&pool(), 1 << 20) });
    let builder = || fabric_over(Arc::new(UringTransport::new(uring_options(2 << 20))));
    let setup = Setup::new(builder, "zc://127.0.0.1:0").on_one_thread().connections(100);
    let setup = setup.max_message(8 << 20);
    if engine.is_some() { setup } else { setup.absent("no zero-copy receive here") }
});
