//! One call's state, both directions.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderMap, request, response};

use super::error::Ended;
use super::frame::Control;

/// Names a call for as long as somebody holds a handle on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) id: u32,
}

/// A request's or a response's head, to be sent.
pub(super) enum Head {
    Request(Box<request::Parts>),
    Response(Box<response::Parts>),
}

/// Whether more of a body may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendRoom {
    Ready,
    Full,
    /// Nobody wants it any more.
    Gone,
}

/// What comes next of a body.
#[derive(Debug)]
pub(crate) enum BodyItem {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Pending,
    Failed(Ended),
}

#[derive(Default)]
pub(super) struct Call {
    /// Zero: the place is free.
    pub(super) id: u32,
    pub(super) tx: TxHalf,
    pub(super) rx: RxHalf,
    /// Why it ended early.
    pub(super) ended: Option<Ended>,
    /// Handles that look at it: of the sending and the receiving half.
    pub(super) tx_held: bool,
    pub(super) rx_held: bool,
}

/// Where a call waits for its turn to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Queue {
    #[default]
    None,
    Ready,
    Starved,
}

/// What the peer lets a connection's calls send.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Allowance {
    /// Of the connection's window; below zero once calls have used their reserve.
    pub(super) credit: i64,
    /// What a call may have on its way whatever the connection's credit.
    pub(super) reserve: u32,
    /// What a call's credit begins with.
    pub(super) call_window: u32,
}

impl Allowance {
    /// No bound but the call's own.
    pub(super) const UNBOUNDED: Self = Self { credit: i64::MAX, reserve: 0, call_window: 0 };
}

#[derive(Default)]
pub(super) struct TxHalf {
    pub(super) head: Option<Head>,
    pub(super) head_sent: bool,
    pub(super) body: VecDeque<Bytes>,
    pub(super) body_bytes: usize,
    pub(super) trailers: Option<HeaderMap>,
    /// The application has given everything.
    pub(super) finished: bool,
    pub(super) end_sent: bool,
    pub(super) credit: u32,
    pub(super) queue: Queue,
    /// Body bytes sent in this turn.
    pub(super) run_bytes: u32,
    /// The application was told to wait.
    pub(super) full: bool,
}

#[derive(Default)]
pub(super) struct RxHalf {
    pub(super) response: Option<Box<response::Parts>>,
    pub(super) head_seen: bool,
    pub(super) body: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) end_seen: bool,
    /// What the peer may still send.
    pub(super) window: u32,
    /// Taken by the application and not granted again.
    pub(super) taken: u32,
}

impl Call {
    pub(super) fn begin(&mut self, id: u32) {
        self.id = id;
        self.tx_held = true;
        self.rx_held = true;
    }

    /// Ready for the next call; keeps what was allocated.
    pub(super) fn clear(&mut self) {
        let mut tx_body = std::mem::take(&mut self.tx.body);
        let mut rx_body = std::mem::take(&mut self.rx.body);
        tx_body.clear();
        rx_body.clear();
        *self = Self::default();
        self.tx.body = tx_body;
        self.rx.body = rx_body;
    }

    /// The grant of what was taken, if that is at least `due` bytes and the peer has more to send.
    pub(super) fn grant(&mut self, due: u32) -> Option<Control> {
        if self.rx.taken < due.max(1) || self.rx.end_seen || self.ended.is_some() {
            return None;
        }
        let add = std::mem::take(&mut self.rx.taken);
        self.rx.window += add;
        Some(Control::Window { call: self.id, add })
    }

    /// Both directions are done, as far as the wire goes.
    pub(super) fn is_complete(&self) -> bool {
        self.tx.end_sent && self.rx.end_seen
    }
}

impl TxHalf {
    /// Body bytes that may go now.
    pub(super) fn room(&self, allowance: Allowance) -> u32 {
        let outstanding = allowance.call_window.saturating_sub(self.credit);
        let reserve = allowance.reserve.saturating_sub(outstanding);
        allowance.credit.max(reserve.into()).min(self.credit.into()) as u32
    }

    /// Whether a frame could go now.
    pub(super) fn can_send(&self, allowance: Allowance) -> bool {
        if self.end_sent {
            return false;
        }
        self.head.is_some()
            || (self.head_sent && self.body_bytes > 0 && self.room(allowance) > 0)
            || (self.head_sent && self.body_bytes == 0 && self.finished)
    }

    /// Whether the next frame is its first, or takes all there is.
    pub(super) fn is_short(&self, frame_bytes: usize) -> bool {
        self.head.is_some() || self.body_bytes <= frame_bytes
    }

    pub(super) fn discard(&mut self) {
        self.head = None;
        self.body.clear();
        self.body_bytes = 0;
        self.trailers = None;
    }
}

impl RxHalf {
    /// Drops what was not taken; how many bytes that were.
    pub(super) fn discard(&mut self) -> u32 {
        self.trailers = None;
        self.response = None;
        self.body.drain(..).map(|bytes| bytes.len() as u32).sum()
    }
}
