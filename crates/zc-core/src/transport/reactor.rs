//! The only door to a runtime.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;

/// Which readiness to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Data, or the end, can be read.
    Read,
    /// There is room to write.
    Write,
}

/// Descriptor readiness, timers and tasks.
pub trait Reactor: Send + Sync + 'static {
    /// Watches a non-blocking descriptor; dropping the result closes it.
    ///
    /// # Errors
    /// The registration failed, or no runtime is running (`ErrorKind::NotConnected`).
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>>;
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
    /// The runtime's clock; simulated in tests.
    fn now(&self) -> Instant;
}

/// A watched descriptor.
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
    /// As [`Readiness::poll_io`] to read a stream socket; `io` also says whether it took all there was (a short
    /// read). The next call may then wait for news at once, instead of trying in vain first.
    fn poll_read_stream(
        &self,
        cx: &mut Context<'_>,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<(usize, bool)>,
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, Interest::Read, &mut |fd| io(fd).map(|(n, _)| n))
    }
}

/// A timer.
pub trait Timer: Send {
    /// Sets or moves the deadline.
    fn reset(&mut self, deadline: Instant);
    /// Ready once the deadline has passed; pending when none was set.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A running task; dropping it cancels the task.
pub trait TaskHandle: Send + Sync {
    /// Lets the task run on without a handle.
    fn detach(self: Box<Self>);
}
