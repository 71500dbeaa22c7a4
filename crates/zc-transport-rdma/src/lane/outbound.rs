//! What is to be sent, and what of it the peer may read. No I/O.
//!
//! ```text
//! queue: frame | long message | seq | end        in the order in which they were taken
//! shown: piece, piece ...                        announced, oldest first; the peer says how many it has read
//!   '--read--> its window is made invalid --> memory free --last piece--> the message's report
//! ```

use std::collections::VecDeque;

use zc_core::memory::Message;
use zc_core::transport::{Batch, FrameKind, SendReport, SendToken};
use zc_core::wire::WireError;

use crate::limits::{GATHER_BYTES, PIECE_MIN_BYTES};
use crate::verbs::WindowId;

/// Something to be sent.
pub(super) enum Out {
    Frame {
        kind: FrameKind,
        ack: bool,
        payload: Message,
        token: Option<SendToken>,
    },
    Large(Left),
    /// The first: how far we are, in a packet of the greatest length. Where such packets are lost, so is all that follows, and the
    /// lane does not come up.
    Probe,
    /// The next data message has this number.
    Seq(u64),
    End,
}

/// What is left of a message that the peer reads.
pub(super) struct Left {
    pub(super) id: u64,
    pub(super) kind: FrameKind,
    pub(super) ack: bool,
    /// Of the whole.
    pub(super) len: u32,
    /// Nothing was announced of it.
    pub(super) is_first: bool,
    pub(super) left: Message,
}

impl Out {
    pub(super) fn is_record(&self) -> bool {
        matches!(self, Self::Frame { kind: FrameKind::Session, .. })
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Frame { payload, .. } => payload.len(),
            Self::Large(large) => large.left.len(),
            Self::Probe | Self::Seq(_) | Self::End => 0,
        }
    }
}

/// How the next piece of a message is made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// So many bytes, all in the first segment, where they lie.
    Shown(usize),
    /// So many bytes, put together by a copy.
    Copied(usize),
}

/// `is_known`: whether the device can be told of the segment's memory.
pub(super) fn cut(left: &Message, mut is_known: impl FnMut(&zc_core::memory::PinnedBuf) -> bool) -> Cut {
    let mut copied = 0;
    for segment in left.segments() {
        let whole = segment.len() >= PIECE_MIN_BYTES || left.segments().len() == 1;
        if whole && is_known(segment) {
            if copied == 0 {
                return Cut::Shown(segment.len());
            }
            break;
        }
        copied += segment.len();
        if copied >= GATHER_BYTES {
            break;
        }
    }
    Cut::Copied(copied.min(GATHER_BYTES))
}

/// A message of which the peer has not read all.
struct Open {
    id: u64,
    token: Option<SendToken>,
    /// Shown, and not free again.
    pieces: usize,
    announced: bool,
}

/// What the peer may read.
#[derive(Default)]
pub(super) struct Shown {
    open: VecDeque<Open>,
    next_id: u64,
    pieces: VecDeque<(WindowId, u64)>,
    /// Windows that are made invalid, and of which message.
    ending: Vec<(WindowId, u64)>,
    done: u64,
}

impl Shown {
    pub(super) fn begin(&mut self, token: Option<SendToken>) -> u64 {
        self.next_id += 1;
        self.open.push_back(Open { id: self.next_id, token, pieces: 0, announced: false });
        self.next_id
    }

    fn open(&mut self, id: u64) -> Option<&mut Open> {
        self.open.iter_mut().find(|open| open.id == id)
    }

    pub(super) fn show(&mut self, window: WindowId, id: u64) {
        self.pieces.push_back((window, id));
        if let Some(open) = self.open(id) {
            open.pieces += 1;
        }
    }

    pub(super) fn announced(&mut self, id: u64) {
        if let Some(open) = self.open(id) {
            open.announced = true;
        }
    }

    /// The peer has read so many in all. Says how many that is more.
    pub(super) fn heard(&mut self, done: u64) -> Result<usize, WireError> {
        let news = done.checked_sub(self.done).filter(|news| *news <= self.pieces.len() as u64);
        let news = news.ok_or(WireError::BadValue { field: "rdma pieces done" })?;
        self.done = done;
        self.ending.reserve(news as usize);
        Ok(news as usize)
    }

    /// The window of the oldest, which is to be made invalid.
    pub(super) fn take_read(&mut self) -> Option<WindowId> {
        let (window, id) = self.pieces.pop_front()?;
        self.ending.push((window, id));
        Some(window)
    }

    /// It is. Says whose send that ended.
    pub(super) fn free(&mut self, window: WindowId) -> Option<SendToken> {
        let at = self.ending.iter().position(|(ending, _)| *ending == window)?;
        let (_, id) = self.ending.swap_remove(at);
        let open = self.open(id)?;
        open.pieces -= 1;
        if open.pieces > 0 || !open.announced {
            return None;
        }
        let at = self.open.iter().position(|open| open.id == id)?;
        self.open.remove(at)?.token
    }

    /// The peer may read nothing any more.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Sends whose end was asked for, oldest first.
#[derive(Default)]
pub(super) struct Reports {
    asked: VecDeque<(SendToken, Option<SendReport>)>,
}

impl Reports {
    pub(super) fn ask(&mut self, token: SendToken) {
        self.asked.push_back((token, None));
    }

    pub(super) fn len(&self) -> usize {
        self.asked.len()
    }

    pub(super) fn tell(&mut self, token: SendToken, report: SendReport) {
        if let Some((_, known)) = self.asked.iter_mut().find(|(asked, _)| *asked == token) {
            *known = Some(report);
        }
    }

    /// Those that are over, in order; with `failed` all.
    pub(super) fn take(&mut self, failed: bool, out: &mut Batch<(SendToken, SendReport)>) {
        while !out.is_full()
            && let Some((token, report)) = self.asked.front().copied()
            && let Some(report) = report.or(failed.then_some(SendReport::Failed))
        {
            self.asked.pop_front();
            out.push((token, report));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zc_core::memory::PinnedBuf;

    fn message(lens: &[usize]) -> Message {
        let mut message = Message::new();
        for len in lens {
            message.push(PinnedBuf::from(vec![1; *len])).unwrap();
        }
        message
    }

    #[test]
    fn long_parts_are_shown_and_others_copied_together() {
        let (known, foreign) = (|_: &PinnedBuf| true, |_: &PinnedBuf| false);
        assert_eq!(cut(&message(&[1 << 20, 5]), known), Cut::Shown(1 << 20));
        assert_eq!(cut(&message(&[5]), known), Cut::Shown(5));
        assert_eq!(cut(&message(&[5, 6, 5000, 7]), known), Cut::Copied(11));
        assert_eq!(cut(&message(&[5, 6]), known), Cut::Copied(11));
        assert_eq!(cut(&message(&[GATHER_BYTES + 1, 6]), foreign), Cut::Copied(GATHER_BYTES));
        assert_eq!(cut(&message(&[5000, 6]), foreign), Cut::Copied(5006));
    }

    #[test]
    fn a_send_ends_with_its_last_piece_and_not_when_the_peer_says_so() {
        let mut shown = Shown::default();
        let (a, b) = (shown.begin(Some(SendToken(1))), shown.begin(None));
        shown.show(WindowId(0), a);
        shown.show(WindowId(1), a);
        shown.show(WindowId(2), b);
        shown.announced(b);
        assert!(shown.heard(4).is_err());
        assert_eq!(shown.heard(3), Ok(3));
        assert!(shown.heard(2).is_err());
        let ending: Vec<_> = std::iter::from_fn(|| shown.take_read()).collect();
        assert_eq!(ending, [WindowId(0), WindowId(1), WindowId(2)]);
        assert_eq!(
            (shown.free(WindowId(2)), shown.free(WindowId(9)), shown.free(WindowId(0))),
            (None, None, None)
        );
        shown.announced(a);
        assert_eq!((shown.free(WindowId(1)), shown.is_empty()), (Some(SendToken(1)), true));
    }
}
