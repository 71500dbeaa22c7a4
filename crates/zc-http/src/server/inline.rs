//! Where a call runs: at once in the connection's task, or in one of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A first poll that takes longer holds up the connection's other calls.
const SLOW: Duration = Duration::from_micros(200);
/// For so many calls after a slow one, each gets a task of its own at once.
const PENALTY_CALLS: u32 = 1000;

/// Polls calls once where they were received, which saves a task for those that need not wait, until
/// one is slow: then the next ones run beside each other.
#[derive(Default)]
pub(super) struct Inline {
    penalty: u32,
}

impl Inline {
    pub(super) fn run<F: Future<Output = ()> + Send + 'static>(&mut self, mut call: Pin<Box<F>>) {
        if self.penalty == 0 {
            let began = Instant::now();
            // A task that is spawned is polled again, with its own waker.
            let mut cx = Context::from_waker(Waker::noop());
            let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx)));
            if began.elapsed() >= SLOW {
                self.penalty = PENALTY_CALLS;
            }
            match polled {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => return,
                // The panic was reported by its hook; dropping the call tells the peer.
                Err(_) => return,
            }
        } else {
            self.penalty -= 1;
        }
        drop(tokio::spawn(call));
    }
}
