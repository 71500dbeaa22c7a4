//! The reactor over tokio.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinHandle, coop};
use tokio::time::Sleep;
use zc_core::transport::{BoxFuture, Interest, Reactor, Readiness, TaskHandle, Timer};

/// Runs everything on a tokio runtime, which must have I/O and time enabled; else there is an error of kind
/// `NotConnected`. (Tokio panics in that case and can't be asked before: in a program built with
/// `panic = "abort"` it aborts.)
///
/// ```
/// use zc_core::transport::Reactor;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let reactor = zc::TokioReactor::on(runtime.handle().clone());
/// assert!(reactor.timer().is_ok());
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TokioReactor {
    handle: Option<Handle>,
}

impl TokioReactor {
    /// Uses the runtime that surrounds each call, or the one that surrounds this one if there is any.
    pub fn new() -> Self {
        Self { handle: Handle::try_current().ok() }
    }

    /// Uses this runtime.
    pub fn on(handle: Handle) -> Self {
        Self { handle: Some(handle) }
    }

    fn handle(&self) -> io::Result<Handle> {
        match &self.handle {
            Some(handle) => Ok(handle.clone()),
            None => Handle::try_current().map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error)),
        }
    }

    fn watch(&self, fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<Box<dyn Readiness>> {
        let handle = self.handle()?;
        let _inside = handle.enter();
        let watched = watch(fd, interest)?;
        Ok(Box::new(Descriptor { watched, handle: handle.clone(), writer: Mutex::new(None) }))
    }
}

impl Reactor for TokioReactor {
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        self.watch(fd, tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE)
    }

    fn register_to_read(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        self.watch(fd, tokio::io::Interest::READABLE)
    }

    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        let handle = self.handle()?;
        let _inside = handle.enter();
        let sleep = enabled("time", || tokio::time::sleep_until(tokio::time::Instant::now()))?;
        Ok(Box::new(TokioTimer { sleep: Box::pin(sleep), set: false }))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        Ok(Box::new(Task(Some(self.handle()?.spawn(task)))))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn runs_in_one_thread(&self) -> bool {
        self.handle().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
    }

    fn threads(&self) -> usize {
        self.handle().map_or(1, |handle| handle.metrics().num_workers())
    }

    fn runtime(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.handle().ok().map(|handle| handle.id()).hash(&mut hasher);
        hasher.finish()
    }

    fn yield_now(&self, cx: &mut Context<'_>) {
        // Tokio has the task woken once it has looked at descriptors, timers and the future of `block_on`. A task that wakes
        // itself runs up to 61 times before that (`event_interval`).
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }

    fn poll_proceed(&self, cx: &mut Context<'_>) -> Poll<()> {
        coop::poll_proceed(cx).map(|taken| taken.made_progress())
    }
}

/// Sets something up that needs a part of the runtime. Tokio offers no way to ask whether that part is
/// enabled, it panics: so this is where the panic ends (in a program that aborts on panic, it aborts).
fn enabled<T>(part: &str, set_up: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(set_up)).map_err(|_| {
        let text = format!("the tokio runtime was built without {part}: use Builder::enable_all");
        io::Error::new(io::ErrorKind::NotConnected, text)
    })
}

fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its one descriptor open for as long as it lives, and `Descriptor`
    // hands out borrows of it only (M1: nobody else closes what is watched).
    Ok(enabled("I/O", || unsafe { AsyncFd::register_with_interest(fd, interest) })??)
}

struct Descriptor {
    watched: AsyncFd<OwnedFd>,
    handle: Handle,
    /// Waits for room to write where `watched` can't any more.
    writer: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Descriptor {
    /// The socket is full, but `watched` says for good that writing is over: an error event (a completion
    /// of `MSG_ZEROCOPY`) looks like that to tokio, and it never takes it back. A second registration
    /// knows nothing of it; when an error event spoils that one too, it is made anew.
    fn poll_write_anew(
        &self,
        cx: &mut Context<'_>,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        // Only the one who writes comes here.
        let mut writer = self.writer.lock();
        loop {
            if writer.is_none() {
                let _inside = self.handle.enter();
                let second = self.watched.get_ref().try_clone();
                let Ok(fresh) = second.and_then(|fd| watch(fd, tokio::io::Interest::WRITABLE)) else {
                    // Out of descriptors: slow, but it goes on.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                };
                *writer = Some(fresh);
            }
            let Some(fresh) = &*writer else { return Poll::Pending };
            let mut guard = ready!(fresh.poll_write_ready(cx))?;
            let spoilt = guard.ready().is_write_closed();
            if let Ok(result) = guard.try_io(|fd| io(fd.get_ref().as_fd())) {
                return Poll::Ready(result);
            }
            if spoilt {
                *writer = None;
            }
        }
    }
}

impl Readiness for Descriptor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.watched.get_ref().as_fd()
    }

    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = match interest {
                Interest::Read => ready!(self.watched.poll_read_ready(cx))?,
                Interest::Write => ready!(self.watched.poll_write_ready(cx))?,
            };
            let over = interest == Interest::Write && guard.ready().is_write_closed();
            if let Ok(result) = guard.try_io(|fd| io(fd.get_ref().as_fd())) {
                return Poll::Ready(result);
            }
            if over {
                return self.poll_write_anew(cx, io);
            }
        }
    }

    fn poll_read_stream(
        &self,
        cx: &mut Context<'_>,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<(usize, bool)>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.watched.poll_read_ready(cx))?;
            let Ok(result) = guard.try_io(|fd| io(fd.get_ref().as_fd())) else { continue };
            if let Ok((_, true)) = result {
                // The guard is older than the read, so news that came since then stays.
                guard.clear_ready();
            }
            return Poll::Ready(result.map(|(n, _)| n));
        }
    }

    fn tells_each_signal(&self) -> bool {
        // As tokio registers all descriptors.
        cfg!(target_os = "linux")
    }
}

struct TokioTimer {
    sleep: Pin<Box<Sleep>>,
    set: bool,
}

impl Timer for TokioTimer {
    fn reset(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(tokio::time::Instant::from_std(deadline));
        self.set = true;
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.set {
            return Poll::Pending;
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// Cancels its task when it is dropped, unless it was detached.
struct Task(Option<JoinHandle<()>>);

impl TaskHandle for Task {
    fn detach(mut self: Box<Self>) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use rustix::net::SendFlags;

    use super::*;

    #[test]
    fn without_a_runtime_there_is_an_error() {
        let reactor = TokioReactor::new();
        assert_eq!(reactor.timer().err().map(|e| e.kind()), Some(io::ErrorKind::NotConnected));
        assert!(reactor.spawn(Box::pin(async {})).is_err());
    }

    #[test]
    fn runtimes_are_told_apart() {
        let [one, other] = [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().build().unwrap());
        let of = |runtime: &tokio::runtime::Runtime| TokioReactor::on(runtime.handle().clone());
        assert!(of(&one).runs_in_one_thread() && !TokioReactor::new().runs_in_one_thread());
        assert_eq!(of(&one).runtime(), of(&one).runtime());
        assert_ne!(of(&one).runtime(), of(&other).runtime());
        let everywhere = TokioReactor::new();
        assert_eq!(one.block_on(async { everywhere.runtime() }), of(&one).runtime());
    }

    #[tokio::test(start_paused = true)]
    async fn timers_follow_the_simulated_clock() {
        let reactor = TokioReactor::new();
        let start = reactor.now();
        let mut timer = reactor.timer().unwrap();
        timer.reset(start + Duration::from_secs(3600));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert!(reactor.now() - start >= Duration::from_secs(3600));
    }

    #[test]
    fn a_runtime_without_io_or_time_is_an_error() {
        let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reactor = TokioReactor::on(bare.handle().clone());
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = reactor.register(socket.into()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(error.to_string().contains("enable_all"), "{error}");
        assert_eq!(reactor.timer().err().map(|e| e.kind()), Some(io::ErrorKind::NotConnected));
    }

    /// A completion of `MSG_ZEROCOPY` raises an error event, which must not make a full socket look
    /// writable for good.
    #[tokio::test]
    async fn a_full_socket_waits_even_after_an_error_event() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        allow_zero_copy(&socket);
        let io = TokioReactor::new().register(socket.into()).unwrap();
        let calls = AtomicUsize::new(0);
        let send = |flags| {
            let (io, calls) = (&io, &calls);
            poll_fn(move |cx| {
                io.poll_io(cx, Interest::Write, &mut |fd| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    Ok(rustix::net::send(fd, &[7; 1 << 16], SendFlags::DONTWAIT | flags)?)
                })
            })
        };
        let mut sent = send(SendFlags::from_bits_retain(libc::MSG_ZEROCOPY as u32)).await.unwrap();
        // The completion comes while nobody waits for it, and is taken; then the socket is filled up.
        while !take_completion(io.fd()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), send(SendFlags::empty())).await {
            sent += n.unwrap();
        }
        // Full, with two attempts for each success at the most, and a few for the registrations.
        let writes = calls.swap(0, Ordering::Relaxed);
        assert!(writes <= 2 * (sent >> 10) + 10, "{writes} attempts to write {sent} bytes");
        assert!(tokio::time::timeout(Duration::from_millis(100), send(SendFlags::empty())).await.is_err());
        assert!(calls.load(Ordering::Relaxed) <= 4, "{calls:?} attempts while the socket is full");
        // Once the peer reads, there is room again.
        let reads = tokio::task::spawn_blocking(move || {
            let mut left = sent;
            let mut buf = vec![0; 1 << 16];
            while left > 0 {
                match std::io::Read::read(&mut peer, &mut buf) {
                    Ok(n) => left = left.saturating_sub(n),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        assert!(send(SendFlags::empty()).await.unwrap() > 0);
        reads.await.unwrap();
    }

    fn take_completion(fd: BorrowedFd<'_>) -> bool {
        let mut space = [std::mem::MaybeUninit::uninit(); 256];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let flags = rustix::net::RecvFlags::ERRQUEUE | rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recvmsg(fd, &mut [], &mut control, flags).is_ok()
    }

    fn allow_zero_copy(socket: &std::net::TcpStream) {
        let one: libc::c_int = 1;
        // SAFETY: the option value is a live c_int of the length given.
        let done = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(socket),
                libc::SOL_SOCKET,
                libc::SO_ZEROCOPY,
                (&raw const one).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(done, 0, "this kernel has no SO_ZEROCOPY");
    }
}
