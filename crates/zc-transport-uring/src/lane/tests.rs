//! Lanes whose payloads go out of their own memory, towards a peer on loopback, where the kernel then copies.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "a test")]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::task::{Context, Waker};
use std::time::Duration;

use zc::TokioReactor;
use zc_core::memory::{CopyLedger, KernelCopied, Message};
use zc_core::transport::{
    Batch, Frame, FrameKind, LaneError, LaneLimits, LaneRx, Reactor, Received, SendReport,
};
use zc_core::wire::{FrameFlags, FrameHeader, FrameType};

use super::*;
use crate::engine::{EngineOptions, Engines, Kept};
use crate::ladder::Flavour;
use crate::limits::{
    HOT_LOOKS, MAX_HOT_LANES, MAX_LINGERS, MAX_UNRELEASED_SENDS, RELEASE_MS, ZERO_COPY_MIN_BYTES,
};
use crate::zero_copy::{PeerPlace, ZeroCopyMode, ZeroCopyPolicy};

const GUARD: Duration = Duration::from_secs(60);
const HEADER: usize = zc_core::wire::FRAME_HEADER_BYTES;

struct End {
    lane: Lane,
    engines: Engines,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
}

/// A lane with this policy, and the bare, blocking socket of its peer.
fn end(policy: ZeroCopyPolicy) -> Option<(End, TcpStream)> {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let pool = BufPool::builder().max_bytes(256 << 20).build();
    let options = EngineOptions::new(Flavour::OneThread);
    let engines = match Engines::start(reactor.clone(), &pool, options, 1) {
        Ok(engines) => engines,
        Err(why) => {
            eprintln!("skipped, no io_uring here: {why}");
            return None;
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    socket.set_nodelay(true).unwrap();
    let halves = engines.pick().socket(socket.into()).unwrap();
    let ledger = Arc::new(CopyLedger::new());
    let mut limits = LaneLimits::default();
    limits.send_window = u32::MAX;
    let cx = OfferContext::new(reactor, pool.clone(), ledger.clone(), limits);
    let scratch = Scratch::new(&pool).unwrap();
    let (idle, moved) = (Duration::ZERO, Arc::default());
    let tenant = Kept::start(engines.clone(), pool.clone(), &cx.reactor, idle, moved, false);
    let lane = start_with(halves, policy, tenant, scratch, Caps::stream(), cx);
    Some((End { lane, engines, pool, ledger }, peer))
}

fn forced() -> ZeroCopyPolicy {
    ZeroCopyPolicy::new(ZeroCopyMode::Always, PeerPlace::ThisHost)
}

fn on_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(GUARD, test).await.unwrap() });
}

impl End {
    fn payload(&self, len: usize, seed: usize) -> Message {
        let mut buf = self.pool.try_alloc(len).unwrap();
        buf.put_slice(&pattern(len, seed));
        buf.freeze().into()
    }

    fn start(&mut self, payload: Message, n: usize) {
        let frame = Frame { kind: FrameKind::Data, ack: false, seq: n as u64 + 1, payload };
        self.lane.tx.start_send(frame, true).unwrap();
    }

    async fn flush(&mut self) {
        poll_fn(|cx| self.lane.tx.poll_flush(cx)).await.unwrap();
    }

    async fn reports(&mut self, count: usize) -> Vec<SendReport> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut out = Batch::new();
            poll_fn(|cx| self.lane.tx.poll_completions(cx, &mut out)).await.unwrap();
            all.extend(out.drain().map(|(_, report)| report));
        }
        all
    }

    fn kernel_copied(&self) -> KernelCopied {
        self.ledger.snapshot().kernel_copied
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + seed).wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

/// Reads frames of these lengths in a thread of its own.
fn reader(mut peer: TcpStream, lens: Vec<usize>) -> tokio::task::JoinHandle<TcpStream> {
    tokio::task::spawn_blocking(move || {
        for (n, len) in lens.into_iter().enumerate() {
            let mut frame = vec![0; HEADER + len];
            peer.read_exact(&mut frame).unwrap();
            assert_eq!(frame[4..8], (len as u32).to_le_bytes(), "frame {n}");
            assert!(frame[HEADER..] == pattern(len, n), "frame {n}");
        }
        peer
    })
}

async fn is_back(pool: &BufPool) {
    let back = async {
        while pool.stats().in_use_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(GUARD, back).await.unwrap();
}

#[test]
fn large_payloads_go_out_of_their_memory_and_the_ledger_says_what_the_kernel_did() {
    on_runtime(async {
        let Some((mut end, peer)) = end(forced()) else { return };
        let lens = [10, 70_000, 600, 3 << 20, ZERO_COPY_MIN_BYTES, 1 << 20, 5, ZERO_COPY_MIN_BYTES - 1];
        let reader = reader(peer, lens.to_vec());
        for (n, len) in lens.into_iter().enumerate() {
            let mut payload = end.payload(len.min(100_000), n);
            if len > 100_000 {
                payload.push(pattern(len, n)[100_000..].to_vec()).unwrap();
            }
            end.start(payload, n);
            end.flush().await;
        }
        let reports = end.reports(lens.len()).await;
        for (len, report) in lens.into_iter().zip(&reports) {
            let expected = if len < ZERO_COPY_MIN_BYTES { SendReport::Sent } else { SendReport::SentCopied };
            assert_eq!(*report, expected, "{len}");
        }
        // On loopback everything is copied in the end, which only the kernel could tell.
        let all: usize = lens.iter().sum();
        assert_eq!(end.kernel_copied(), KernelCopied::Known(all as u64));
        assert!(end.lane.tx.poll_close(&mut Context::from_waker(Waker::noop())).is_ready());
        let (pool, peer) = (end.pool.clone(), reader.await.unwrap());
        drop((end, peer));
        is_back(&pool).await;
    });
}

/// Loopback is known by its address as a rule; here nobody knows, so it is tried.
#[test]
fn what_is_found_to_be_copied_is_not_sent_so_again() {
    on_runtime(async {
        let policy = ZeroCopyPolicy::new(ZeroCopyMode::Probe, PeerPlace::Elsewhere);
        let Some((mut end, peer)) = end(policy) else { return };
        let reader = reader(peer, vec![100_000; 20]);
        let mut reports = Vec::new();
        for n in 0..20 {
            end.start(end.payload(100_000, n), n);
            end.flush().await;
            reports.extend(end.reports(1).await);
        }
        assert_eq!(reports[0], SendReport::SentCopied);
        assert!(reports[1..].iter().all(|report| *report == SendReport::Sent));
        assert_eq!(end.kernel_copied(), KernelCopied::Known(2_000_000));
        reader.await.unwrap();
    });
}

/// Completions wait for the kernel, and nothing else does; so many are out at a time and no more.
#[test]
fn only_completions_wait_for_notifications() {
    on_runtime(async {
        let Some((mut end, peer)) = end(forced()) else { return };
        // What does not fit on the other side is not acknowledged.
        let (mut cx, mut flushed) = (Context::from_waker(Waker::noop()), 0);
        for turn in 0..500 {
            let done = end.lane.tx.poll_flush(&mut cx);
            if done.is_ready() {
                flushed = turn.min(flushed + 1);
                end.start(end.payload(ZERO_COPY_MIN_BYTES, flushed), flushed);
            }
            tokio::task::yield_now().await;
        }
        let mut out = Batch::new();
        let _ = end.lane.tx.poll_completions(&mut cx, &mut out);
        let early = out.drain().count();
        assert!(early < flushed, "{early} of {flushed}: all of these were written");
        // The socket receives by itself, and one waits for room.
        let in_flight = end.engines.stats().in_flight;
        assert!(in_flight > 1 && in_flight <= MAX_UNRELEASED_SENDS + 2, "{in_flight}");
        let count = flushed + 1;
        let reader = reader(peer, vec![ZERO_COPY_MIN_BYTES; count]);
        end.flush().await;
        end.reports(count - early).await;
        reader.await.unwrap();
        let all = (count * ZERO_COPY_MIN_BYTES) as u64;
        assert_eq!(end.kernel_copied(), KernelCopied::Known(all));
    });
}

/// Sends until nothing more goes: the peer does not read.
async fn fill(end: &mut End) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut n = 0;
    while end.lane.tx.poll_ready(&mut cx, 1 << 20).is_ready() && n < 100 {
        end.start(end.payload(1 << 20, n), n);
        n += 1;
        let _ = end.lane.tx.poll_flush(&mut cx);
        tokio::task::yield_now().await;
    }
}

/// Too many lanes have gone like this: one more waits for nobody.
#[test]
fn a_lane_that_may_not_wait_resets_its_connection() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let Some((mut end, mut peer)) = end(forced()) else { return };
        fill(&mut end).await;
        let (other, _other_peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (other, _rx) = end.engines.pick().socket(other.into()).unwrap();
        let places: Vec<_> = std::iter::from_fn(|| other.linger_place()).collect();
        assert_eq!(places.len(), MAX_LINGERS);
        let (pool, ledger, began) = (end.pool.clone(), end.ledger.clone(), tokio::time::Instant::now());
        drop(end);
        while ledger.snapshot().kernel_copied != KernelCopied::Unknown {
            tokio::task::yield_now().await;
        }
        assert!(began.elapsed() < Duration::from_millis(RELEASE_MS));
        drop((other, _rx, places));
        is_back(&pool).await;
        let _ = peer.read_to_end(&mut Vec::new());
        assert!(peer.write_all(&[0; 9]).and_then(|()| peer.write_all(&[0; 9])).is_err(), "it was reset");
    });
}

/// The lane goes while the kernel has memory that it can't send: the peer hears of the end, and all memory comes back, by force
/// after a while.
#[test]
fn a_lane_that_goes_gets_its_memory_back_from_a_peer_that_does_not_read() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        for kills in [false, true] {
            let Some((mut end, mut peer)) = end(forced()) else { return };
            fill(&mut end).await;
            let pool = end.pool.clone();
            drop(end);
            assert!(pool.stats().in_use_bytes > 0, "the kernel has it");
            if kills {
                // With bytes unread: a reset.
                drop(peer);
                is_back(&pool).await;
                continue;
            }
            is_back(&pool).await;
            let mut rest = Vec::new();
            let _ = peer.read_to_end(&mut rest);
            assert!(peer.write_all(&[0; 9]).and_then(|()| peer.write_all(&[0; 9])).is_err(), "it was reset");
        }
    });
}

/// A frame as it is on the wire.
fn frame(len: usize, n: usize) -> Vec<u8> {
    let header = FrameHeader {
        kind: FrameType::Data,
        flags: FrameFlags::default(),
        length: len as u32,
        seq: n as u64 + 1,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(pattern(len, n));
    bytes
}

/// What comes, in order.
struct Coming<'a> {
    rx: &'a mut dyn LaneRx,
    out: Batch<Frame>,
    queue: VecDeque<Frame>,
    count: usize,
}

impl Coming<'_> {
    /// The next message, of this many bytes; whoever sleeps does not look. False: it is the end.
    async fn next(&mut self, len: usize, sleeps: bool) -> bool {
        while self.queue.is_empty() {
            let received = match sleeps {
                true => Some(poll_fn(|cx| self.rx.poll_recv(cx, &mut self.out)).await.unwrap()),
                false => self.rx.try_recv(&mut self.out).unwrap(),
            };
            self.queue.extend(self.out.drain());
            match received {
                Some(Received::Closed) => return false,
                Some(_) => {}
                None => tokio::task::yield_now().await,
            }
        }
        let Some(frame) = self.queue.pop_front() else { return false };
        let n = self.count;
        assert_eq!((frame.seq, frame.payload.len()), (n as u64 + 1, len));
        assert!(frame.payload == *pattern(len, n), "message {n} of {len} bytes");
        self.rx.release(len);
        self.count += 1;
        true
    }
}

/// Order and content hold, whatever comes when the way of reading changes.
#[test]
fn who_finds_by_looking_reads_past_the_ring_until_he_sleeps() {
    const LENS: [usize; 8] = [64, 0, 1_000, 16_000, 70_000, 300_000, 1 << 20, 5];
    on_runtime(async {
        let Some((mut end, mut peer)) = end(forced()) else { return };
        let (other, _other_peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_tx, other) = end.engines.pick().socket(other.into()).unwrap();
        let free = || std::iter::from_fn(|| other.hot_place()).collect::<Vec<_>>().len();
        let is_hot = || free() == MAX_HOT_LANES - 1;
        let (rx, pool) = (&mut *end.lane.rx, end.pool.clone());
        let mut coming = Coming { rx, out: Batch::new(), queue: VecDeque::new(), count: 0 };
        // Nothing receives by itself before somebody has slept.
        peer.write_all(&frame(5, 0)).unwrap();
        assert!(coming.next(5, true).await && !is_hot());
        for (len, sleeps) in LENS.into_iter().flat_map(|len| [(len, false), (len, true)]) {
            for _ in 0..2 * HOT_LOOKS {
                peer.write_all(&frame(64, coming.count)).unwrap();
                assert!(coming.next(64, false).await);
                tokio::task::yield_now().await;
            }
            assert!(is_hot(), "in front of {len} bytes");
            // A part of a head, the rest and more, and what else there is.
            let bytes = [frame(len, coming.count), frame(64, coming.count + 1)].concat();
            let mut to = peer.try_clone().unwrap();
            let sender = tokio::task::spawn_blocking(move || {
                let (first, rest) = bytes.split_at(7);
                let (middle, last) = rest.split_at(rest.len() / 2);
                for part in [first, middle, last] {
                    to.write_all(part).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            assert!(coming.next(len, sleeps).await && coming.next(64, sleeps).await);
            assert!(!sleeps || !is_hot(), "who sleeps is woken by the ring");
            sender.await.unwrap();
        }
        for _ in 0..2 * HOT_LOOKS {
            peer.write_all(&frame(64, coming.count)).unwrap();
            assert!(coming.next(64, false).await);
        }
        assert!(is_hot());
        // Without memory heads and records are read all the same, and messages wait for some.
        let all: Vec<_> = std::iter::from_fn(|| pool.try_alloc(64 << 10).ok()).collect();
        for len in [0, 0, 64] {
            peer.write_all(&frame(len, coming.count)).unwrap();
            if len > 0 {
                drop(all);
                assert!(coming.next(len, false).await);
                break;
            }
            assert!(coming.next(len, false).await);
        }
        for _ in 0..2 * HOT_LOOKS {
            peer.write_all(&frame(64, coming.count)).unwrap();
            assert!(coming.next(64, false).await);
        }
        assert!(is_hot());
        drop(peer);
        assert!(!coming.next(0, false).await, "the end");
    });
}

#[test]
fn who_reads_past_the_ring_hears_of_a_reset() {
    on_runtime(async {
        let Some((mut end, mut peer)) = end(forced()) else { return };
        for n in 0..2 * HOT_LOOKS as usize {
            peer.write_all(&frame(64, n)).unwrap();
            let mut out = Batch::new();
            // The first one has receiving begin.
            if n == 0 {
                poll_fn(|cx| end.lane.rx.poll_recv(cx, &mut out)).await.unwrap();
            }
            while out.is_empty() && end.lane.rx.try_recv(&mut out).unwrap().is_none() {
                tokio::task::yield_now().await;
            }
        }
        rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        let mut out = Batch::new();
        let error = loop {
            match end.lane.rx.try_recv(&mut out) {
                Ok(None) => tokio::task::yield_now().await,
                Ok(Some(received)) => panic!("{received:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, LaneError::PeerGone("connection reset")), "{error:?}");
    });
}
