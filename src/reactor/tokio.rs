//! The reactor over tokio.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use zc_core::transport::{BoxFuture, Interest, Reactor, Readiness, TaskHandle, Timer};

/// Runs everything on a tokio runtime, which must have I/O and time enabled.
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
}

impl Reactor for TokioReactor {
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        let handle = self.handle()?;
        let _inside = handle.enter();
        // SAFETY: an `OwnedFd` keeps its one descriptor open for as long as it lives, and
        // `Descriptor` hands out borrows of it only (M1: nobody else closes what is watched).
        let watched = unsafe { AsyncFd::register(fd) }?;
        Ok(Box::new(Descriptor(watched)))
    }

    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        let handle = self.handle()?;
        let _inside = handle.enter();
        let sleep = Box::pin(tokio::time::sleep_until(tokio::time::Instant::now()));
        Ok(Box::new(TokioTimer { sleep, set: false }))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        Ok(Box::new(Task(Some(self.handle()?.spawn(task)))))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

struct Descriptor(AsyncFd<OwnedFd>);

impl Readiness for Descriptor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = match interest {
                Interest::Read => ready!(self.0.poll_read_ready(cx))?,
                Interest::Write => ready!(self.0.poll_write_ready(cx))?,
            };
            if let Ok(result) = guard.try_io(|fd| io(fd.get_ref().as_fd())) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_read_stream(
        &self,
        cx: &mut Context<'_>,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<(usize, bool)>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let Ok(result) = guard.try_io(|fd| io(fd.get_ref().as_fd())) else { continue };
            if let Ok((_, true)) = result {
                // The guard is older than the read, so news that came since then stays.
                guard.clear_ready();
            }
            return Poll::Ready(result.map(|(n, _)| n));
        }
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn without_a_runtime_there_is_an_error() {
        let reactor = TokioReactor::new();
        assert_eq!(reactor.timer().err().map(|e| e.kind()), Some(io::ErrorKind::NotConnected));
        assert!(reactor.spawn(Box::pin(async {})).is_err());
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
}
