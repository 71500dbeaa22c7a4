//! `MSG_ZEROCOPY`: which sends the kernel still reads from (M2).

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use zc_core::memory::{CopyLedger, KernelCopied, Message};
use zc_core::transport::SendToken;

use crate::io::ByteIo;
use crate::limits::MAX_HELD_SENDS;
use crate::sys::{self, Completed};

/// A message whose memory the kernel may be reading; its sends have consecutive numbers.
struct Held {
    token: SendToken,
    first: u32,
    sends: u32,
    done: u32,
    /// Payload that was sent without a copy.
    bytes: u64,
    /// More of it may follow.
    open: bool,
    copied: bool,
    message: Message,
}

/// The zero-copy sends of one socket.
#[derive(Default)]
pub(super) struct ZeroCopy {
    enabled: bool,
    next: u32,
    held: VecDeque<Held>,
    /// Messages that are free again, in total.
    freed: u64,
    /// Completions that belong to nothing (M3).
    unknown: u64,
}

impl ZeroCopy {
    pub(super) fn new(io: &ByteIo) -> Self {
        let enabled = match io {
            ByteIo::Socket { io, tcp: true } => sys::enable_zero_copy(io.fd()).is_ok(),
            _ => false,
        };
        Self { enabled, ..Self::default() }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn may_send(&self) -> bool {
        self.enabled && self.held.len() < MAX_HELD_SENDS
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    /// The kernel took `n` bytes of `message` without a copy.
    pub(super) fn sent(&mut self, token: SendToken, message: &Message, n: usize) {
        match self.held.back_mut() {
            Some(held) if held.token == token => {
                held.sends += 1;
                held.bytes += n as u64;
            }
            _ => self.held.push_back(Held {
                token,
                first: self.next,
                sends: 1,
                done: 0,
                bytes: n as u64,
                open: true,
                copied: false,
                message: message.clone(),
            }),
        }
        self.next = self.next.wrapping_add(1);
    }

    /// All of the message is written; how much of it without a copy, if the kernel still holds it.
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

    /// Looks at the error queue; calls `done` for each message that is free again.
    pub(super) fn reap(
        &mut self,
        fd: BorrowedFd<'_>,
        ledger: &CopyLedger,
        mut done: impl FnMut(SendToken, bool),
    ) {
        // Every entry stands for a send of ours at least.
        let entries = self.held.front().map_or(0, |oldest| self.next.wrapping_sub(oldest.first));
        for _ in 0..entries {
            match sys::take_completion(fd) {
                Ok(Some(range)) => self.complete(range),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        while self.held.front().is_some_and(|held| !held.open && held.done >= held.sends)
            && let Some(held) = self.held.pop_front()
        {
            if held.copied {
                ledger.kernel_copied(KernelCopied::Known(held.bytes));
            }
            self.freed += 1;
            done(held.token, held.copied);
        }
    }

    fn complete(&mut self, range: Completed) {
        self.enabled &= !range.copied;
        let oldest = self.held.front().map_or(self.next, |held| held.first);
        let outstanding = self.next.wrapping_sub(oldest);
        let (first, last) = (range.first.wrapping_sub(oldest), range.last.wrapping_sub(oldest));
        if first > last || last >= outstanding {
            self.unknown += 1;
            return;
        }
        for held in &mut self.held {
            let from = held.first.wrapping_sub(oldest);
            let sends = (last + 1).min(from + held.sends).saturating_sub(first.max(from));
            held.done += sends;
            held.copied |= sends > 0 && range.copied;
        }
    }

    /// Keeps what the kernel may still read for good (M4).
    pub(super) fn leak(&mut self) {
        self.held.retain(|held| held.done < held.sends);
        if !self.held.is_empty() {
            let bytes: usize = self.held.iter().map(|h| h.message.len()).sum();
            tracing::warn!(bytes, unknown = self.unknown, "leaking buffers that the kernel may still send");
            self.held.drain(..).for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, last: u32) -> Completed {
        Completed { first, last, copied: false }
    }

    fn holding(next: u32, messages: u64) -> ZeroCopy {
        let mut zc = ZeroCopy { enabled: true, next, ..ZeroCopy::default() };
        for token in 0..messages {
            zc.sent(SendToken(token), &vec![1u8; 10].into(), 4);
            zc.sent(SendToken(token), &vec![1u8; 10].into(), 6);
            assert_eq!(zc.written(SendToken(token)), Some(10));
        }
        zc
    }

    /// The tokens that are free, without looking at any socket.
    fn free(zc: &mut ZeroCopy) -> Vec<u64> {
        let (nothing, mut tokens) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), Vec::new());
        let fd = std::os::fd::AsFd::as_fd(&nothing);
        zc.reap(fd, &CopyLedger::new(), |token, _| tokens.push(token.0));
        tokens
    }

    #[test]
    fn ranges_free_whole_messages_in_order_across_the_wrap() {
        let mut zc = holding(u32::MAX - 2, 3);
        zc.complete(range(u32::MAX, 0));
        assert_eq!(free(&mut zc), [] as [u64; 0], "the first message is still out");
        zc.complete(range(u32::MAX - 2, u32::MAX - 1));
        assert_eq!(free(&mut zc), [0, 1]);
        zc.complete(range(1, 1));
        assert!(free(&mut zc).is_empty());
        zc.complete(range(2, 2));
        assert_eq!((free(&mut zc), zc.freed(), zc.unknown), (vec![2], 3, 0));
    }

    #[test]
    fn completions_of_nothing_are_counted() {
        let mut zc = holding(10, 1);
        for nothing in [range(500, 400), range(9, 10), range(12, 12), range(11, 10), range(0, u32::MAX)] {
            zc.complete(nothing);
        }
        assert_eq!((zc.unknown, free(&mut zc)), (5, vec![]));
    }

    #[test]
    fn a_bound_on_what_is_held_and_a_copy_switch_it_off() {
        let mut zc = holding(0, MAX_HELD_SENDS as u64 - 1);
        assert!(zc.may_send());
        zc.sent(SendToken(1 << 40), &vec![1u8; 10].into(), 10);
        assert!(!zc.may_send());
        zc.complete(range(0, 1));
        assert_eq!(free(&mut zc), [0]);
        assert!(zc.may_send());
        zc.complete(Completed { first: 2, last: 3, copied: true });
        assert!(!zc.may_send());
    }

    #[test]
    fn a_message_that_was_given_up_is_freed_too() {
        let mut zc = holding(0, 0);
        zc.sent(SendToken(7), &vec![1u8; 10].into(), 3);
        zc.complete(range(0, 0));
        assert!(free(&mut zc).is_empty());
        zc.abandon();
        assert_eq!(free(&mut zc), [7]);
    }
}
