//! Memory and descriptors are back at the end. One test at a time: descriptors are the process's.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::busy::*;
use common::*;
use futures::FutureExt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBuf};
use zc_core::transport::*;
use zc_transport_tcp::StreamLink;
use zc_transport_uring::{Flavour, IDLE_MS, UringOptions, UringTransport, probe};

static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[test]
fn a_thousand_sockets_leave_nothing_behind() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let before = open_descriptors();
            for round in 0..20 {
                let mut all = Vec::new();
                for n in 0..50 {
                    let (a, b) = if n % 2 == 0 { unix_pair() } else { tcp_pair() };
                    let (a, mut b) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
                    a.0.send(bytes(n + 1, round), true).await.unwrap();
                    if n % 3 > 0 {
                        assert_eq!(b.1.recv().await.unwrap()[..], pattern(n + 1, round));
                    }
                    if n % 3 > 1 {
                        assert!(b.1.recv().now_or_never().is_none());
                    }
                    all.push((a, b));
                }
            }
            let until = std::time::Instant::now() + GUARD;
            while open_descriptors() > before || engine.stats().in_flight > 0 {
                assert!(std::time::Instant::now() < until, "{} of {before}", open_descriptors());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            engine.shutdown().await;
            wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
        });
    }
}

/// The runtime is dropped, here or in another thread: all memory comes back, and who still waits is told.
#[test]
fn a_runtime_that_goes_leaves_nothing_behind() {
    let _alone = ALONE.lock();
    let pool = big_pool();
    // With its signals compiled in, tokio's first runtime opens two descriptors that the process keeps.
    on_one_thread(async {});
    let before = open_descriptors();
    for (flavour, workers, elsewhere) in [
        (Flavour::OneThread, 0, false),
        (Flavour::OneThread, 0, true),
        (Flavour::ManyThreads, 0, false),
        (Flavour::ManyThreads, 2, false),
        (Flavour::ManyThreads, 2, true),
    ] {
        // In a thread of its own: a ring's number stays with the thread that has it.
        let in_thread = pool.clone();
        let thread = std::thread::spawn(move || {
            let mut builder = match workers {
                0 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = builder.worker_threads(workers.max(1)).enable_all().build().unwrap();
            let Some((engine, busy)) = runtime.block_on(async {
                let engine = engine(&in_thread, flavour)?;
                let busy = busy(&engine, &in_thread).await;
                Some((engine, busy))
            }) else {
                return;
            };
            if elsewhere {
                std::thread::spawn(move || drop(runtime)).join().unwrap();
            } else {
                drop(runtime);
            }
            drop(busy);
            let error = engine.nop().now_or_never().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        });
        thread.join().unwrap();
        wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
    }
    wait_for_descriptors(before);
}

/// The runtime of one thread is dropped in another one, which cannot take the ring down: peers see the end at once.
#[test]
fn peers_see_the_end_while_the_thread_lives_on() {
    let _alone = ALONE.lock();
    let pool = pool();
    let before = open_descriptors();
    let in_thread = pool.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Some((halves, mut peer)) = runtime.block_on(async {
            let engine = engine(&in_thread, Flavour::OneThread)?;
            let (a, b) = tcp_pair();
            let (tx, mut rx) = engine.socket(a).unwrap();
            assert!(rx.recv().now_or_never().is_none());
            while engine.stats().in_flight == 0 {
                tokio::task::yield_now().await;
            }
            engine.nop().await.unwrap();
            Some(((tx, rx), std::net::TcpStream::from(b)))
        }) else {
            return;
        };
        std::thread::spawn(move || drop((runtime, halves))).join().unwrap();
        peer.set_read_timeout(Some(GUARD)).unwrap();
        assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 0);
    });
    thread.join().unwrap();
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
    wait_for_descriptors(before);
}

/// The runtime of one thread is dropped in another one: what was to be closed, and never came to the kernel, is.
#[test]
fn what_was_to_be_closed_is_closed() {
    let _alone = ALONE.lock();
    let pool = pool();
    let before = open_descriptors();
    for flavour in FLAVOURS {
        let in_thread = pool.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let Some((engine, op, mut peer)) = runtime.block_on(async {
                let engine = engine(&in_thread, flavour)?;
                engine.nop().await.unwrap();
                let (a, b) = unix_pair();
                let mut op = engine.close(a);
                assert!((&mut op).now_or_never().is_none());
                Some((engine, op, std::os::unix::net::UnixStream::from(b)))
            }) else {
                return;
            };
            std::thread::spawn(move || drop(runtime)).join().unwrap();
            peer.set_read_timeout(Some(GUARD)).unwrap();
            assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 0);
            drop((engine, op));
        });
        thread.join().unwrap();
    }
    wait_for_descriptors(before);
}

/// The last handle ends the engine, in any thread.
#[test]
fn the_last_handle_ends_it() {
    let _alone = ALONE.lock();
    let pool = pool();
    let before = open_descriptors();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = unix_pair();
            let (_tx, mut rx) = engine.socket(a).unwrap();
            assert!(rx.recv().now_or_never().is_none());
            engine.nop().await.unwrap();
            drop(engine);
            // The socket keeps it.
            std::os::unix::net::UnixStream::from(b).write_all(b"x").unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], b"x"[..]);
            std::thread::spawn(move || drop((_tx, rx))).join().unwrap();
            while pool.stats().in_use_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    wait_for_descriptors(before);
}

async fn lane(
    transport: &UringTransport,
    socket: OwnedFd,
    reactor: Arc<dyn Reactor>,
    pool: &BufPool,
) -> Lane {
    rustix::io::ioctl_fionbio(&socket, true).unwrap();
    let link = StreamLink::new(reactor.register(socket).unwrap(), LinkAddr::UnixAbstract("pair".into()));
    let (ledger, limits) = (Arc::new(CopyLedger::new()), LaneLimits::default());
    let cx = OfferContext::new(reactor, pool.clone(), ledger, limits);
    let mut link: Option<Box<dyn ControlLink>> = Some(Box::new(link));
    let (mine, peer) = (Offer::default(), Offer::default());
    transport.join(Role::Client, mine, peer, &mut link, cx).await.unwrap()
}

/// One message there.
async fn exchange(a: &mut Lane, b: &mut Lane, n: usize) -> Result<Message, LaneError> {
    let payload = PinnedBuf::from(pattern(70_000, n)).into();
    let frame = Frame { kind: FrameKind::Data, ack: false, seq: 1, payload };
    a.tx.start_send(frame, false).map_err(|rejected| rejected.error)?;
    std::future::poll_fn(|cx| a.tx.poll_flush(cx)).await?;
    let mut out = Batch::new();
    std::future::poll_fn(|cx| b.rx.poll_recv(cx, &mut out)).await?;
    let received = out.drain().next().unwrap().payload;
    assert_eq!(received.len(), 70_000);
    Ok(received)
}

async fn lanes(transport: &UringTransport, reactor: &Arc<dyn Reactor>, pool: &BufPool) -> (Lane, Lane) {
    let (a, b) = unix_pair();
    let a = lane(transport, a, reactor.clone(), pool).await;
    (a, lane(transport, b, reactor.clone(), pool).await)
}

/// Short connections in a row use one ring, which goes after a while in which there was none.
#[test]
fn rings_stay_for_a_while_after_the_last_lane() {
    let _alone = ALONE.lock();
    if probe().is_err() {
        return;
    }
    let transport = UringTransport::default();
    let (inside, pool) = (&transport, pool());
    let memory = pool.clone();
    on_one_thread(async move {
        let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
        let settle = async || {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        };
        let almost = Duration::from_millis(IDLE_MS - 1);
        for _ in 0..3 {
            let (mut a, mut b) = lanes(inside, &reactor, &memory).await;
            exchange(&mut a, &mut b, 1).await.unwrap();
            tokio::time::pause();
            let turns = inside.stats().turns;
            drop((a, b));
            settle().await;
            tokio::time::advance(almost).await;
            settle().await;
            let stats = inside.stats();
            assert_eq!((stats.rings, stats.sockets), (1, 0));
            assert!(stats.turns >= turns, "another ring");
            tokio::time::resume();
        }
        tokio::time::pause();
        tokio::time::advance(almost).await;
        settle().await;
        assert_eq!(inside.stats().rings, 0, "nobody uses it");
    });
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

/// A runtime of one thread may be driven by one thread after another. Its ring breaks once, and never again, also if no
/// connection is left that remembers.
#[test]
fn a_runtime_that_moves_breaks_its_ring_once() {
    let _alone = ALONE.lock();
    if probe().is_err() {
        return;
    }
    let mut options = UringOptions::default();
    options.idle = Duration::ZERO;
    let (transport, pool) = (UringTransport::new(options), pool());
    let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_thread = |mut old: Option<(Lane, Lane)>| {
        std::thread::scope(|scope| {
            let test = async {
                if old.is_none() {
                    old = Some(lanes(&transport, &reactor, &pool).await);
                }
                let (a, b) = old.as_mut().unwrap();
                let done = exchange(a, b, 1).await.map(drop);
                (old.take(), done)
            };
            let test = async { tokio::time::timeout(GUARD, test).await.expect("hangs") };
            scope.spawn(|| runtime.block_on(test)).join().unwrap()
        })
    };
    let (first, done) = in_thread(None);
    done.unwrap();
    let (first, done) = in_thread(first);
    assert!(done.is_err(), "a ring for one thread in another one");
    drop(first);
    assert_eq!(transport.stats().rings, 0);
    let (mut second, done) = in_thread(None);
    done.unwrap();
    for _ in 0..3 {
        let done;
        (second, done) = in_thread(second);
        done.unwrap();
    }
    drop((second, runtime));
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}

/// What comes for a connection lies in the pool that it was given, whoever else uses the transport.
#[test]
fn each_pool_has_rings_of_its_own() {
    let _alone = ALONE.lock();
    if probe().is_err() {
        return;
    }
    let transport = UringTransport::default();
    let pools = [pool(), pool()];
    on_one_thread(async {
        let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
        let (mut a, mut b) = lanes(&transport, &reactor, &pools[0]).await;
        let before = pools[1].stats().in_use_bytes;
        exchange(&mut a, &mut b, 1).await.unwrap();
        assert_eq!(pools[1].stats().in_use_bytes, before);
        let (mut c, mut d) = lanes(&transport, &reactor, &pools[1]).await;
        let (_, before) = (transport.stats(), pools.each_ref().map(|pool| pool.stats().in_use_bytes));
        let received = exchange(&mut c, &mut d, 1).await.unwrap();
        assert_eq!(transport.stats().rings, 2);
        assert!(pools[1].stats().in_use_bytes > before[1]);
        assert_eq!(pools[0].stats().in_use_bytes, before[0]);
        drop(received);
    });
    wait_until("all memory is back", || pools.iter().all(|pool| pool.stats().in_use_bytes == 0));
}

/// The rings of a runtime begin with its first lane, are used by all of them, and go with the last where none are kept.
#[test]
fn the_rings_of_a_transport_go_with_its_lanes() {
    let _alone = ALONE.lock();
    if probe().is_err() {
        return;
    }
    on_one_thread(async {});
    let before = open_descriptors();
    let pool = big_pool();
    let mut options = UringOptions::default();
    (options.rings, options.idle) = (Some(3), Duration::ZERO);
    let transport = Arc::new(UringTransport::new(options));
    let (inside, memory) = (transport.clone(), pool.clone());
    on_many_threads(async move {
        let (transport, pool) = (inside, memory);
        let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
        for _ in 0..5 {
            let mut lanes = Vec::new();
            for n in 0..12 {
                let (a, b) = if n % 2 == 0 { unix_pair() } else { tcp_pair() };
                let mut a = lane(&transport, a, reactor.clone(), &pool).await;
                let mut b = lane(&transport, b, reactor.clone(), &pool).await;
                exchange(&mut a, &mut b, n).await.unwrap();
                lanes.push((a, b));
            }
            let stats = transport.stats();
            assert_eq!((stats.rings, stats.sockets), (3, 24));
            drop(lanes);
            assert_eq!(transport.stats().rings, 0, "nobody uses them");
        }
    });
    assert_eq!(transport.stats().rings, 0);
    wait_for_descriptors(before);
    wait_until("all memory is back", || pool.stats().in_use_bytes == 0);
}
