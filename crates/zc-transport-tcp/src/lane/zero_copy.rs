//! `MSG_ZEROCOPY`: which sends the kernel still reads from (M2).

use std::collections::VecDeque;

use zc_core::memory::{CopyLedger, KernelCopied, Message};
use zc_core::transport::{Readiness, SendToken};

use super::pop_if;
use crate::io::ByteIo;
use crate::limits::MAX_HELD_SENDS;
use crate::sys;

/// A message whose memory the kernel may be reading; its sends have consecutive numbers.
struct Held {
    token: SendToken,
    first: u32,
    sends: u32,
    done: u32,
    open: bool,
    copied: bool,
    message: Message,
}

/// The zero-copy sends of one socket.
pub(super) struct ZeroCopy {
    enabled: bool,
    next: u32,
    held: VecDeque<Held>,
    /// Completions that belong to nothing (M3).
    unknown: u64,
}

impl ZeroCopy {
    pub(super) fn new(io: &ByteIo) -> Self {
        let enabled = match io {
            ByteIo::Socket { io, tcp: true } => sys::enable_zero_copy(io.fd()).is_ok(),
            _ => false,
        };
        Self { enabled, next: 0, held: VecDeque::new(), unknown: 0 }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn has_room(&self) -> bool {
        self.held.len() < MAX_HELD_SENDS
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// The kernel took (a part of) `message` without a copy.
    pub(super) fn sent(&mut self, token: SendToken, message: &Message) {
        match self.held.back_mut() {
            Some(held) if held.token == token => held.sends += 1,
            _ => self.held.push_back(Held {
                token,
                first: self.next,
                sends: 1,
                done: 0,
                open: true,
                copied: false,
                message: message.clone(),
            }),
        }
        self.next = self.next.wrapping_add(1);
    }

    /// All of the message is written; true if the kernel still holds it.
    pub(super) fn written(&mut self, token: SendToken) -> bool {
        match self.held.back_mut() {
            Some(held) if held.token == token => {
                held.open = false;
                true
            }
            _ => false,
        }
    }

    /// Looks at the error queue; calls `done` for each message that is free again.
    pub(super) fn reap(&mut self, io: &ByteIo, ledger: &CopyLedger, mut done: impl FnMut(SendToken, bool)) {
        let ByteIo::Socket { io, .. } = io else { return };
        if !self.is_idle() {
            self.drain_queue(&**io);
            while let Some(held) = pop_if(&mut self.held, |h| !h.open && h.done >= h.sends) {
                if held.copied {
                    ledger.kernel_copied(KernelCopied::Known(held.message.len() as u64));
                }
                done(held.token, held.copied);
            }
        }
    }

    fn drain_queue(&mut self, io: &dyn Readiness) {
        // Every entry stands for a send of ours, so their number is bounded by what is held.
        while let Ok(entry) = sys::take_completion(io.fd()) {
            let Some(range) = entry else { continue };
            self.enabled &= !range.copied;
            let count = range.last.wrapping_sub(range.first);
            for i in 0..=count.min(self.next.wrapping_sub(range.first)) {
                self.complete(range.first.wrapping_add(i), range.copied);
            }
        }
    }

    fn complete(&mut self, id: u32, copied: bool) {
        match self.held.iter_mut().find(|h| id.wrapping_sub(h.first) < h.sends) {
            Some(held) => {
                held.done += 1;
                held.copied |= copied;
            }
            None => self.unknown += 1,
        }
    }

    /// The lane ends: what the kernel may still read is never freed (M4).
    pub(super) fn tear_down(&mut self, io: &ByteIo) {
        let ByteIo::Socket { io, .. } = io else { return };
        if self.held.is_empty() {
            return;
        }
        let _ = crate::io::shutdown(&**io, rustix::net::Shutdown::Both);
        self.drain_queue(&**io);
        self.held.retain(|h| h.done < h.sends);
        if !self.held.is_empty() {
            let bytes: usize = self.held.iter().map(|h| h.message.len()).sum();
            tracing::warn!(bytes, unknown = self.unknown, "leaking buffers that the kernel may still send");
            self.held.drain(..).for_each(std::mem::forget);
        }
    }
}
