//! Two ends, with bytes moved between them in any portions.

use std::io::Read;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::{Parser, Pieces, Sending, Wakers, halves};
use crate::memory::{BufPool, CopyLedger, Message};
use crate::transport::{Batch, Frame, FrameKind, LaneError, LaneLimits};
use crate::wire::FRAME_HEADER_BYTES;

struct End {
    sending: Sending,
    parser: Parser,
    pool: BufPool,
    got: Vec<Message>,
    /// The application takes what comes.
    takes: bool,
}

impl End {
    fn new() -> Self {
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        let (ledger, wakers) = (Arc::new(CopyLedger::new()), Arc::new(Wakers::default()));
        let limits = LaneLimits { send_window: 64 << 10, recv_window: 64 << 10, ..LaneLimits::default() };
        let (sending, parser) = halves(&limits, pool.clone(), &ledger, &wakers);
        Self { sending, parser, pool, got: Vec::new(), takes: true }
    }

    fn send(&mut self, kind: FrameKind, payload: Vec<u8>) {
        let seq = u64::from(kind == FrameKind::Data);
        let frame = Frame { kind, ack: false, seq, payload: payload.into() };
        self.sending.start_send(frame, false, None).map_err(|rejected| rejected.error).unwrap();
    }

    /// One write, of at most `most` bytes.
    fn write(&mut self, most: usize) -> Vec<u8> {
        self.sending.grant(&mut Context::from_waker(Waker::noop()));
        let mut pieces = Pieces::new();
        self.sending.plan(false, &mut pieces);
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).take(most).collect();
        drop(pieces);
        self.sending.advance(bytes.len(), |_| None);
        bytes
    }

    /// Takes it all, with room for `ahead` bytes unless it is to be read exactly.
    fn read(&mut self, mut bytes: &[u8], ahead: usize) -> Result<(), LaneError> {
        while !bytes.is_empty() {
            let ahead = if self.parser.reads_exactly() { 0 } else { ahead };
            let had = bytes.len();
            for space in self.parser.spaces(ahead > 0) {
                let _ = bytes.read(space).unwrap();
            }
            let mut chunk = Vec::new();
            bytes.by_ref().take(ahead as u64).read_to_end(&mut chunk).unwrap();
            assert_eq!(self.parser.filled(had - bytes.len()), chunk.len());
            if !chunk.is_empty() {
                self.parser.feed(chunk.into());
            }
            self.parse()?;
        }
        Ok(())
    }

    fn parse(&mut self) -> Result<(), LaneError> {
        let mut out = Batch::new();
        while self.parser.find_head()? {
            match self.parser.body_wanted() {
                Some(_) if self.parser.is_record() => self.parser.begin_body_on_heap(),
                Some(len) => self.parser.begin_body(self.pool.try_alloc(len).unwrap()),
                None => {}
            }
            if !self.parser.take_frame(&self.pool, &mut out)? {
                break;
            }
            for frame in out.drain() {
                if self.takes && frame.kind == FrameKind::Data {
                    self.parser.release(frame.payload.len());
                }
                self.got.push(frame.payload);
            }
        }
        Ok(())
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

#[test]
fn frames_come_out_as_they_went_in_however_the_bytes_are_moved() {
    for (step, ahead) in [(1, 0), (1, 100), (7, 0), (4096, 64 << 10), (usize::MAX, 0), (usize::MAX, 64 << 10)]
    {
        let (mut a, mut b, mut sent) = (End::new(), End::new(), Vec::new());
        for i in 0..60usize {
            let len = [0, 5, 496, 513, 3000, 20_000][i % 6];
            let (kind, len) = if i % 7 == 0 { (FrameKind::Session, 9) } else { (FrameKind::Data, len) };
            sent.push(vec![i as u8; len]);
            while !a.sending.may_send() {
                let written = a.write(step);
                assert!(!a.sending.is_empty() || !written.is_empty(), "no credit comes back");
                b.read(&written, ahead).unwrap();
                let grants = b.write(usize::MAX);
                a.read(&grants, ahead).unwrap();
            }
            a.send(kind, vec![i as u8; len]);
        }
        while !a.sending.is_empty() {
            let written = a.write(step);
            b.read(&written, ahead).unwrap();
        }
        assert!(!b.parser.is_inside_frame());
        assert!(b.got.iter().map(bytes).eq(sent), "{step} at a time, {ahead} ahead");
    }
}

#[test]
fn a_message_beyond_the_credit_is_refused() {
    for takes in [true, false] {
        let (mut a, mut b) = (End::new(), End { takes, ..End::new() });
        for _ in 0..2 {
            a.send(FrameKind::Data, vec![0; 64 << 10]);
        }
        assert!(!a.sending.may_send());
        let mut read = Ok(());
        while !a.sending.is_empty() && read.is_ok() {
            let written = a.write(FRAME_HEADER_BYTES + (64 << 10));
            read = b.read(&written, 0);
            // What is granted counts from when it is queued.
            b.write(usize::MAX);
        }
        assert_eq!((read.is_ok(), b.got.len()), if takes { (true, 2) } else { (false, 1) });
    }
}

/// An engine that has no room for more frames, or no memory for a body, asks again; nothing is lost.
#[test]
fn what_there_is_no_room_for_waits() {
    let (mut a, mut b) = (End::new(), End::new());
    (0..70).for_each(|n| a.send(FrameKind::Session, vec![n]));
    let bytes = a.write(usize::MAX);
    assert!(b.parser.spaces(true).iter().all(|space| space.is_empty()));
    assert_eq!(b.parser.filled(bytes.len()), bytes.len());
    b.parser.feed(bytes.into());
    let mut seen = Vec::new();
    while seen.len() < 70 {
        let mut batch = Batch::new();
        while b.parser.find_head().unwrap() && b.parser.take_frame(&b.pool, &mut batch).unwrap() {}
        assert!(!batch.is_empty(), "{seen:?}");
        seen.extend(batch.drain().map(|frame| frame.payload.segments()[0][0]));
    }
    assert!(seen.into_iter().eq(0..70));
    a.send(FrameKind::Session, vec![7; 5]);
    let head = a.write(FRAME_HEADER_BYTES);
    assert_eq!(b.parser.filled(head.len()), head.len());
    b.parser.feed(head.into());
    assert!(b.parser.find_head().unwrap());
    assert!(!b.parser.take_frame(&b.pool, &mut Batch::new()).unwrap(), "there is no memory for its body");
    assert_eq!(b.parser.body_wanted(), Some(5));
}

/// A write may end when the lane has failed already.
#[test]
fn nothing_goes_out_of_a_lane_that_failed() {
    let mut a = End::new();
    a.send(FrameKind::Data, vec![1; 100]);
    a.sending.fail(LaneError::Closed);
    a.sending.advance(50, |_| None);
    a.sending.grant(&mut Context::from_waker(Waker::noop()));
    assert!(a.sending.is_empty() && a.sending.written_bytes() == 0);
}
