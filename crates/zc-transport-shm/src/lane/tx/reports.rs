//! Sends whose end was asked for.

use std::collections::VecDeque;

use zc_core::transport::{SendReport, SendToken};

/// In the order of their tokens, which is that of the sends.
#[derive(Default)]
pub(super) struct Reports(VecDeque<Report>);

struct Report {
    token: u64,
    /// Blocks that the peer still holds, or the one that the queue does.
    left: u32,
}

impl Reports {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A send begins, with the highest token so far.
    pub(super) fn open(&mut self, token: Option<u64>) {
        self.0.extend(token.map(|token| Report { token, left: 1 }));
    }

    /// The send that began last was refused.
    pub(super) fn withdraw(&mut self, token: Option<u64>) {
        if token.is_some() {
            self.0.pop_back();
        }
    }

    /// The peer holds so many blocks of the send.
    pub(super) fn expect(&mut self, token: Option<u64>, blocks: usize) {
        if let Some(report) = self.find(token) {
            report.left += blocks as u32;
        }
    }

    /// One thing that the send waited for is there.
    pub(super) fn settle(&mut self, token: Option<u64>) {
        if let Some(report) = self.find(token) {
            report.left -= 1;
        }
    }

    fn find(&mut self, token: Option<u64>) -> Option<&mut Report> {
        let token = token?;
        let at = self.0.binary_search_by_key(&token, |report| report.token).ok()?;
        self.0.get_mut(at)
    }

    /// Whether the first send waits for nothing.
    pub(super) fn is_done(&self) -> bool {
        self.0.front().is_some_and(|report| report.left == 0)
    }

    /// The first send, if it is done or, when all `failed`, in any case.
    pub(super) fn pop(&mut self, failed: bool) -> Option<(SendToken, SendReport)> {
        if !failed && !self.is_done() {
            return None;
        }
        let report = self.0.pop_front()?;
        let how = if report.left == 0 { SendReport::Sent } else { SendReport::Failed };
        Some((SendToken(report.token), how))
    }
}
