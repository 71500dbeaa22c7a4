//! `MSG_ZEROCOPY`: where it is switched off, what happens when the kernel refuses, and at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::*;
use zc_core::memory::KernelCopied;
use zc_core::transport::*;
use zc_transport_tcp::{LINGER_MS, StreamLink, ZERO_COPY_MIN};

/// These tests mean nothing where the kernel can't do it: that must show.
fn require_zero_copy() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one: libc::c_int = 1;
    // SAFETY: the option value is a live c_int of the length given.
    let done = unsafe {
        let value = (&raw const one).cast();
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, value, len)
    };
    assert_eq!(done, 0, "this kernel has no SO_ZEROCOPY: {}", io::Error::last_os_error());
}

/// Sends one large message from `a` to `b`; how it ended.
async fn send_reported(a: &mut End, b: &mut End, seq: u64, len: usize) -> SendReport {
    a.lane.tx.start_send(frame(seq, body(len, 5).into()), true).unwrap();
    let (mut got, mut report, mut out, mut reports) = (Batch::new(), None, Batch::new(), Batch::new());
    loop {
        a.drive();
        std::future::poll_fn(|cx| {
            let _ = b.lane.rx.poll_recv(cx, &mut out).map(Result::unwrap);
            let _ = a.lane.tx.poll_completions(cx, &mut reports).map(Result::unwrap);
            Poll::Ready(())
        })
        .await;
        out.drain().for_each(|f| got.push(f));
        report = report.or(reports.drain().next().map(|(_, report)| report));
        if let (Some(report), 1) = (report, got.len()) {
            assert!(got.drain().all(|f| f.payload == body(len, 5)[..]));
            return report;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn it_is_switched_off_where_the_kernel_copies() {
    require_zero_copy();
    run(async {
        let (mut a, mut b) = pair(tcp(), LaneLimits::default()).await;
        // Loopback copies, and says so.
        assert_eq!(send_reported(&mut a, &mut b, 1, 1 << 20).await, SendReport::SentCopied);
        assert_eq!(send_reported(&mut a, &mut b, 2, 1 << 20).await, SendReport::Sent);
        assert_eq!(a.ledger.snapshot().kernel_copied, KernelCopied::Known(2 << 20));
        assert_eq!(a.pool.stats().in_use_bytes, 0);
    });
}

/// Fails chosen writes as a kernel does that has no room left to keep books.
struct Refusing {
    io: Box<dyn Readiness>,
    writes: AtomicUsize,
    refused: usize,
}

impl Readiness for Refusing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.io.fd()
    }
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.io.poll_io(cx, interest, &mut |fd| {
            if interest == Interest::Write && self.writes.fetch_add(1, Ordering::Relaxed) == self.refused {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            io(fd)
        })
    }
}

async fn refusing_pair(refused: usize) -> (End, End) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket2::SockRef::from(&socket).set_send_buffer_size(3 * ZERO_COPY_MIN).unwrap();
    let peer = listener.accept().await.unwrap().0.into_std().unwrap();
    let writes = AtomicUsize::new(0);
    let io = Refusing { io: TokioReactor::new().register(socket.into()).unwrap(), writes, refused };
    let a = StreamLink::new(Box::new(io), tcp());
    let b = StreamLink::new(TokioReactor::new().register(peer.into()).unwrap(), tcp());
    (end(Box::new(a), LaneLimits::default()).await, end(Box::new(b), LaneLimits::default()).await)
}

#[test]
fn without_room_for_book_keeping_it_is_sent_by_copy() {
    require_zero_copy();
    run(async {
        // The header is the first write, the payload the second.
        let (mut a, mut b) = refusing_pair(1).await;
        let len = 100_000;
        assert_eq!(send_reported(&mut a, &mut b, 1, len).await, SendReport::Sent);
        assert_eq!(a.ledger.snapshot().kernel_copied, KernelCopied::Known(len as u64));
        // The next one is tried again.
        assert_eq!(send_reported(&mut a, &mut b, 2, len).await, SendReport::SentCopied);
        // To a write that was to be copied anyway it is an error.
        let (mut a, _b) = refusing_pair(0).await;
        a.lane.tx.start_send(frame(1, body(len, 1).into()), false).unwrap();
        let failed = std::future::poll_fn(|cx| a.lane.tx.poll_flush(cx)).await;
        assert!(matches!(failed, Err(LaneError::Os { errno: libc::ENOBUFS, .. })), "{failed:?}");
    });
}

/// A peer that reads nothing: the kernel can't let go. Returns the peer and the lane's pool.
async fn stuck() -> (std::net::TcpStream, zc_core::memory::BufPool, End) {
    let (peer, mut a) = deaf_peer().await;
    let mut buf = a.pool.try_alloc(1 << 20).unwrap();
    buf.resize(1 << 20, 7);
    a.lane.tx.start_send(frame(1, buf.freeze().into()), false).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..10 {
        let _ = a.lane.tx.poll_flush(&mut cx).map(Result::unwrap);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(a.pool.stats().in_use_bytes >= 1 << 20);
    (peer, a.pool.clone(), a)
}

async fn deaf_peer() -> (std::net::TcpStream, End) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // A small buffer over there keeps the rest over here.
    let socket = socket2::SockRef::from(&listener);
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let peer = listener.accept().unwrap().0;
    let link = StreamLink::new(TokioReactor::new().register(socket.into()).unwrap(), tcp());
    (peer, end(Box::new(link), LaneLimits::default()).await)
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// No readiness tells that buffers are free again, so whoever leaves some with the kernel wakes the driver,
/// which then looks by itself until they are back, less and less often.
#[test]
fn the_driver_hears_of_buffers_that_the_kernel_holds() {
    require_zero_copy();
    simulated(async {
        let (peer, mut a) = deaf_peer().await;
        // The reactor finds out that there is room.
        a.send(1, vec![7; 10]).await;
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(flag.clone());
        let drive = a.lane.drive.as_mut().unwrap();
        let now = tokio::time::Instant::now().into_std();
        assert_eq!(drive.poll_drive(&mut Context::from_waker(&waker), now).unwrap(), None);
        // They fit into the socket, so nothing else wakes anybody; the peer has no room for the second one.
        for seq in [2, 3] {
            a.lane.tx.start_send(frame(seq, vec![7; ZERO_COPY_MIN].into()), true).unwrap();
        }
        assert!(!flag.0.load(Ordering::SeqCst));
        assert!(a.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(flag.0.load(Ordering::SeqCst), "nobody knows");
        // Of real time, for the kernel to be done with what the peer has room for.
        std::thread::sleep(Duration::from_millis(50));
        let mut pauses = Vec::new();
        while pauses.len() < 10 {
            let now = tokio::time::Instant::now().into_std();
            let at = a.drive().expect("the kernel holds the buffer");
            pauses.push((at - now).as_millis());
            tokio::time::sleep_until(at.into()).await;
        }
        assert_eq!(pauses[..6], [1, 2, 4, 8, 16, 16]);
        drop(peer);
        while let Some(at) = a.drive() {
            tokio::time::sleep_until(at.into()).await;
        }
        let mut reports = Batch::new();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(a.lane.tx.poll_completions(cx, &mut reports).is_ready());
    });
}

fn simulated<F: Future>(f: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    rt.block_on(f)
}

#[test]
fn a_lane_that_ends_keeps_its_buffers_until_the_kernel_is_done() {
    require_zero_copy();
    simulated(async {
        let (peer, pool, a) = stuck().await;
        drop(a);
        assert!(pool.stats().in_use_bytes >= 1 << 20, "freed under the kernel's hands");
        // The peer goes: what it never read is dropped, and the kernel says so.
        drop(peer);
        let start = tokio::time::Instant::now();
        while pool.stats().in_use_bytes > 0 {
            assert!(start.elapsed() < Duration::from_millis(LINGER_MS), "{:?}", pool.stats());
            tokio::time::sleep(Duration::from_millis(10)).await;
            // The kernel's time is not simulated.
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn a_peer_that_never_reads_does_not_hold_the_buffers_for_good() {
    require_zero_copy();
    simulated(async {
        let (peer, pool, a) = stuck().await;
        drop(a);
        tokio::time::sleep(Duration::from_millis(LINGER_MS / 2)).await;
        assert!(pool.stats().in_use_bytes >= 1 << 20, "the peer still has time");
        tokio::time::sleep(Duration::from_millis(LINGER_MS)).await;
        assert_eq!(pool.stats().in_use_bytes, 0, "the connection was reset and the memory came back");
        let mut peer = peer;
        peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let reset = loop {
            match io::Read::read(&mut peer, &mut [0; 65536]) {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn without_a_runtime_the_connection_is_reset_at_once() {
    require_zero_copy();
    let (peer, pool, a) = simulated(stuck());
    // The runtime is gone.
    drop(a);
    assert_eq!(pool.stats().in_use_bytes, 0);
    drop(peer);
}
