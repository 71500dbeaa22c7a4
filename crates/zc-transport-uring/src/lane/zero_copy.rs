//! Sends out of the memory itself: which payloads go so, and what the kernel still reads from (M2).

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Instant;

use zc_core::memory::{CopyLedger, KernelCopied};
use zc_core::transport::SendToken;

use crate::engine::{Usage, ZeroCopySend};
use crate::limits::{MAX_UNRELEASED_SENDS, ZERO_COPY_MIN_BYTES};
use crate::zero_copy::{PeerPlace, ZeroCopyAttempt, ZeroCopyMode, ZeroCopyPolicy};

/// An operation that sent a part of a payload, or all of it; the kernel may still read that.
struct Out {
    send: ZeroCopySend,
    attempt: ZeroCopyAttempt,
    token: SendToken,
    bytes: u64,
}

/// A payload, parts of which went out so.
struct Held {
    token: SendToken,
    /// Operations that the kernel has not let go of.
    left: usize,
    bytes: u64,
    copied_bytes: u64,
    /// More of it may follow.
    open: bool,
}

/// Those of one socket.
pub(super) struct ZeroCopy {
    policy: ZeroCopyPolicy,
    outs: VecDeque<Out>,
    held: VecDeque<Held>,
    /// The next operation goes the ordinary way: the kernel could not do this one otherwise.
    paused: bool,
    /// Payloads that are free again, in total.
    freed: u64,
}

impl ZeroCopy {
    pub(super) fn new(policy: ZeroCopyPolicy) -> Self {
        let (outs, held) = (VecDeque::new(), VecDeque::new());
        Self { policy, outs, held, paused: false, freed: 0 }
    }

    /// For who sends nothing any more.
    pub(super) fn off() -> Self {
        Self::new(ZeroCopyPolicy::new(ZeroCopyMode::Never, PeerPlace::ThisHost))
    }

    /// Payloads of at least so many bytes may be sent so.
    pub(super) fn min_bytes(&self) -> Option<usize> {
        (!self.policy.is_off()).then_some(ZERO_COPY_MIN_BYTES)
    }

    /// Whether the next operation may be one. The clock is only asked where somebody might.
    pub(super) fn may_begin(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let may = !self.policy.is_off()
            && self.outs.len() < MAX_UNRELEASED_SENDS
            && !self.paused
            && self.policy.may_attempt(now());
        self.paused = false;
        may
    }

    /// Leave to send `len` bytes of a payload so.
    pub(super) fn attempt(&mut self, len: usize, now: Instant) -> Option<ZeroCopyAttempt> {
        // The rest of a payload may be shorter than is worth it, whatever the policy.
        if len < ZERO_COPY_MIN_BYTES { None } else { self.policy.attempt(len, now) }
    }

    /// The operation sent `n` bytes.
    pub(super) fn sent(&mut self, send: ZeroCopySend, attempt: ZeroCopyAttempt, token: SendToken, n: usize) {
        let bytes = n as u64;
        self.outs.push_back(Out { send, attempt, token, bytes });
        match self.held.back_mut() {
            Some(held) if held.token == token => {
                held.left += 1;
                held.bytes += bytes;
            }
            _ => self.held.push_back(Held { token, left: 1, bytes, copied_bytes: 0, open: true }),
        }
    }

    /// It sent nothing, and says nothing of the peer. The same bytes go the ordinary way now; with `forever` all others, too.
    pub(super) fn refused(&mut self, attempt: ZeroCopyAttempt, forever: bool, now: Instant) {
        self.policy.report(attempt, Usage::Unused, now);
        self.paused = true;
        if forever {
            self.policy.give_up();
        }
    }

    /// All of the payload is written; how much of it so.
    pub(super) fn written(&mut self, token: SendToken) -> Option<u64> {
        let held = self.held.back_mut().filter(|held| held.token == token)?;
        held.open = false;
        Some(held.bytes)
    }

    /// Nothing more is written.
    pub(super) fn abandon(&mut self) {
        if let Some(held) = self.held.back_mut() {
            held.open = false;
        }
    }

    /// Nothing went out so that is not over.
    pub(super) fn is_at_rest(&self) -> bool {
        self.held.is_empty()
    }

    /// The kernel has let go of all.
    pub(super) fn is_idle(&self) -> bool {
        self.outs.is_empty()
    }

    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    /// Hears what the kernel has let go of; `cx` is woken when there is more. Calls `done` for each payload that is free
    /// again, with whether the kernel copied any of it.
    pub(super) fn reap(
        &mut self,
        cx: &mut Context<'_>,
        now: impl Fn() -> Instant,
        ledger: &CopyLedger,
        done: impl FnMut(SendToken, bool),
    ) {
        // As a rule they come in the order of the stream; the first that is missing wakes us.
        while let Some(out) = self.outs.front_mut()
            && let Poll::Ready(usage) = out.send.poll_released(cx)
            && let Some(Out { attempt, token, bytes, .. }) = self.outs.pop_front()
        {
            // An engine that has ended will never tell.
            self.policy.report(attempt, usage.as_ref().map_or(Usage::Unused, |usage| *usage), now());
            if usage.is_err() {
                ledger.kernel_copied(KernelCopied::Unknown);
            }
            if let Some(held) = self.held.iter_mut().find(|held| held.token == token) {
                held.left -= 1;
                held.copied_bytes += if matches!(usage, Ok(Usage::Copied)) { bytes } else { 0 };
            }
        }
        self.settle(ledger, done);
    }

    /// Lets go of payloads that are written and free.
    fn settle(&mut self, ledger: &CopyLedger, mut done: impl FnMut(SendToken, bool)) {
        while self.held.front().is_some_and(|held| !held.open && held.left == 0)
            && let Some(held) = self.held.pop_front()
        {
            if held.copied_bytes > 0 {
                ledger.kernel_copied(KernelCopied::Known(held.copied_bytes));
            }
            self.freed += 1;
            done(held.token, held.copied_bytes > 0);
        }
    }
}
