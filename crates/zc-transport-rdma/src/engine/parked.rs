//! A waker that is kept under a lock.

use std::task::{Context, Waker};

use zc_core::memory::Deferral;

/// Whom to wake, if anybody. It is woken, and let go of, where no lock is held.
#[derive(Default)]
pub(super) struct Parked(Option<Waker>);

impl Parked {
    /// The waker of the last call.
    pub(super) fn park(&mut self, cx: &Context<'_>) {
        if self.0.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return;
        }
        if let Some(old) = self.0.replace(cx.waker().clone()) {
            Deferral::discard(old);
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.0.take() {
            Deferral::wake(waker);
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            Deferral::discard(waker);
        }
    }
}
