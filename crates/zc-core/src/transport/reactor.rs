//! The only door to a runtime.

use std::io;
use std::num::NonZero;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;

/// Which readiness to wait for.
///
/// ```
/// use std::task::{Context, Poll};
/// use zc_core::transport::{Interest, Readiness};
///
/// fn poll_read(io: &dyn Readiness, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<std::io::Result<usize>> {
///     io.poll_io(cx, Interest::Read, &mut |fd| Ok(rustix::io::read(fd, &mut *buf)?))
/// }
/// # let _ = poll_read;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Data, or the end, can be read.
    Read,
    /// There is room to write.
    Write,
}

/// Descriptor readiness, timers and tasks.
///
/// ```
/// use std::io;
/// use std::os::fd::OwnedFd;
/// use std::time::Instant;
/// use zc_core::transport::{BoxFuture, Reactor, Readiness, TaskHandle, Timer};
///
/// /// Refuses everything; `examples/own_loop.rs` has a whole one, on epoll.
/// struct Nothing;
///
/// impl Reactor for Nothing {
///     fn register(&self, _: OwnedFd) -> io::Result<Box<dyn Readiness>> {
///         Err(io::ErrorKind::NotConnected.into())
///     }
///     fn timer(&self) -> io::Result<Box<dyn Timer>> {
///         Err(io::ErrorKind::NotConnected.into())
///     }
///     fn spawn(&self, _: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
///         Err(io::ErrorKind::NotConnected.into())
///     }
///     fn now(&self) -> Instant {
///         Instant::now()
///     }
/// }
/// assert!(Nothing.timer().is_err());
/// ```
pub trait Reactor: Send + Sync + 'static {
    /// Watches a non-blocking descriptor; dropping the result closes it.
    ///
    /// # Errors
    /// The registration failed, or no runtime is running (`ErrorKind::NotConnected`).
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>>;
    /// The same for a descriptor that is only read: nobody is woken because there is room to write. (An eventfd says so after
    /// each read.)
    ///
    /// # Errors
    /// As [`Reactor::register`].
    fn register_to_read(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        self.register(fd)
    }
    /// A timer that is not set.
    ///
    /// # Errors
    /// No runtime is running (`ErrorKind::NotConnected`).
    fn timer(&self) -> io::Result<Box<dyn Timer>>;
    /// Runs a task until it ends or its handle is dropped.
    ///
    /// # Errors
    /// No runtime is running (`ErrorKind::NotConnected`).
    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>>;
    /// The runtime's clock; simulated in tests. It is asked under locks, so it must not use what uses this reactor.
    fn now(&self) -> Instant;
    /// Whether all tasks of this reactor run in one thread, always the same one. Some devices are cheaper to drive then.
    fn runs_in_one_thread(&self) -> bool {
        false
    }
    /// How many threads run tasks at a time, about; by default as many as the machine has for us.
    fn threads(&self) -> usize {
        if self.runs_in_one_thread() {
            1
        } else {
            std::thread::available_parallelism().map_or(1, NonZero::get)
        }
    }
    /// The runtime that tasks would be spawned on now, where there may be several: a number that no other one of them has that
    /// lives at this moment.
    fn runtime(&self) -> u64 {
        0
    }
    /// Has the task that is being polled polled again, after all others, descriptors and timers have had their turn. Some
    /// runtimes run tasks that wake themselves many times before they look at anything else.
    fn yield_now(&self, cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }
    /// Takes one from what the task that is being polled may do before it gives way; pending, with the waker called later, when
    /// nothing is left. A runtime that has no such budget is always ready, and then who always finds work keeps others waiting.
    fn poll_proceed(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// A watched descriptor.
///
/// ```
/// use std::io;
/// use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
/// use std::task::{Context, Poll};
/// use zc_core::transport::{Interest, Readiness};
///
/// /// For a loop that polls all the time anyway.
/// struct Busy(OwnedFd);
///
/// impl Readiness for Busy {
///     fn fd(&self) -> BorrowedFd<'_> {
///         self.0.as_fd()
///     }
///     fn poll_io(
///         &self,
///         cx: &mut Context<'_>,
///         _: Interest,
///         io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
///     ) -> Poll<io::Result<usize>> {
///         match io(self.fd()) {
///             Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
///                 cx.waker().wake_by_ref();
///                 Poll::Pending
///             }
///             done => Poll::Ready(done),
///         }
///     }
/// }
/// ```
pub trait Readiness: Send + Sync {
    /// The descriptor.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Calls `io` when the descriptor is ready; on `WouldBlock` waits for readiness and keeps the
    /// waker of the last call per interest.
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;
    /// As [`Readiness::poll_io`] to read a stream socket or an eventfd; `io` also says whether it took all there was (a short
    /// read). The next call may then wait for news at once, instead of trying in vain first.
    fn poll_read_stream(
        &self,
        cx: &mut Context<'_>,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<(usize, bool)>,
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, Interest::Read, &mut |fd| io(fd).map(|(n, _)| n))
    }
    /// Whether each signal of an eventfd makes it ready anew, although nobody has read the ones before (`EPOLLET`). Then nobody
    /// need read it, if `io` says that it took all there was.
    fn tells_each_signal(&self) -> bool {
        false
    }
}

/// A timer.
///
/// ```
/// use std::task::{Context, Poll};
/// use std::time::Instant;
/// use zc_core::transport::Timer;
///
/// /// For a loop that polls all the time anyway.
/// #[derive(Default)]
/// struct Busy(Option<Instant>);
///
/// impl Timer for Busy {
///     fn reset(&mut self, deadline: Instant) {
///         self.0 = Some(deadline);
///     }
///     fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
///         match self.0 {
///             Some(deadline) if Instant::now() >= deadline => Poll::Ready(()),
///             Some(_) => {
///                 cx.waker().wake_by_ref();
///                 Poll::Pending
///             }
///             None => Poll::Pending,
///         }
///     }
/// }
/// let mut timer = Busy::default();
/// timer.reset(Instant::now());
/// assert!(timer.poll_expired(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
/// ```
pub trait Timer: Send {
    /// Sets or moves the deadline.
    fn reset(&mut self, deadline: Instant);
    /// Ready once the deadline has passed; pending when none was set.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A running task; dropping it cancels the task.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use zc_core::transport::TaskHandle;
///
/// /// The loop drops a task whose flag says so.
/// struct Handle(Arc<AtomicBool>);
///
/// impl Drop for Handle {
///     fn drop(&mut self) {
///         self.0.store(true, Ordering::Relaxed);
///     }
/// }
///
/// impl TaskHandle for Handle {
///     fn detach(self: Box<Self>) {
///         std::mem::forget(self);
///     }
/// }
/// let cancelled = Arc::new(AtomicBool::new(false));
/// drop(Handle(cancelled.clone()));
/// assert!(cancelled.load(Ordering::Relaxed));
/// ```
pub trait TaskHandle: Send + Sync {
    /// Lets the task run on without a handle.
    fn detach(self: Box<Self>);
}
