//! Two ends, with bytes moved between them in any portions.

use std::io::Read;
use std::sync::Arc;
use std::task::{Context, Waker};

use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{Parser, Pieces, ROPE_MIN_BLOCKS, Sending, Wakers, halves};
use crate::memory::{BufPool, CopyLedger, Message, PinnedBuf};
use crate::transport::{Batch, Frame, FrameKind, LaneError, LaneLimits};
use crate::wire::FRAME_HEADER_BYTES;

struct End {
    sending: Sending,
    parser: Parser,
    pool: BufPool,
    ledger: Arc<CopyLedger>,
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
        Self { sending, parser, pool, ledger, got: Vec::new(), takes: true }
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

/// What an engine does to which the kernel hands pieces, and which writes memory of its own.
impl End {
    fn write_batch(&mut self, most: usize) -> Message {
        self.sending.grant(&mut Context::from_waker(Waker::noop()));
        let mut batch = Message::new();
        self.sending.batch(most, false, &mut batch);
        self.sending.advance(batch.len(), |_| None);
        batch
    }

    fn feed(&mut self, batch: &Message, step: usize) -> Result<(), LaneError> {
        for segment in batch.segments() {
            let mut segment = segment.clone();
            while !segment.is_empty() {
                let piece = segment.split_to(step.min(segment.len()));
                if self.parser.reads_exactly() && self.parser.body_missing() > 0 && !self.parser.is_rope() {
                    self.fill(&piece);
                } else {
                    self.parser.feed(piece);
                }
                self.parse_pieces()?;
            }
        }
        Ok(())
    }

    /// The body is away while its memory is filled.
    fn fill(&mut self, piece: &PinnedBuf) {
        let mut body = self.parser.lend_body().unwrap();
        assert!(self.parser.lend_body().is_none());
        let n = piece.len().min(self.parser.body_missing());
        body.put_slice(&piece[..n]);
        self.parser.return_body(body);
        self.parser.feed(piece.slice(n..));
    }

    fn parse_pieces(&mut self) -> Result<(), LaneError> {
        loop {
            while self.parser.find_head()? && self.parser.body_wanted().is_some() && self.parser.begin_rope()
            {
            }
            let before = self.got.len();
            self.parse()?;
            if self.got.len() == before && !self.parser.has_unread() {
                return Ok(());
            }
        }
    }
}

#[test]
fn pieces_become_the_frames_that_were_sent() {
    let lens = prop_oneof![0..600usize, 15_000..20_000usize, 60_000..300_000usize];
    proptest!(|(lens in proptest::collection::vec(lens, 1..12), most in 1..200_000usize, step in 300..100_000usize, exact in any::<bool>())| {
        let (mut a, mut b) = (End::new(), End::new());
        b.parser.set_exact_min(if exact { 100_000 } else { usize::MAX });
        let most = most.max(lens.iter().sum::<usize>() / 2000);
        for (n, len) in lens.iter().enumerate() {
            while !a.sending.may_send() {
                let batch = a.write_batch(most);
                prop_assert!(!batch.is_empty() || !a.sending.is_empty(), "no credit comes back");
                b.feed(&batch, step).unwrap();
                let grants = b.write_batch(usize::MAX);
                a.feed(&grants, step).unwrap();
            }
            a.send(FrameKind::Data, vec![n as u8; *len]);
        }
        while !a.sending.is_empty() {
            let batch = a.write_batch(most);
            b.feed(&batch, step).unwrap();
        }
        prop_assert!(!b.parser.is_inside_frame());
        let sent = lens.iter().enumerate().map(|(n, len)| vec![n as u8; *len]);
        prop_assert!(b.got.iter().map(bytes).eq(sent));
        drop(b.got);
        prop_assert_eq!((a.pool.stats().in_use_bytes, b.pool.stats().in_use_bytes), (0, 0));
    });
}

/// A long message that comes in pieces is these pieces; one in too many is put together; a short one always.
#[test]
fn long_messages_are_ropes_and_only_what_is_put_together_is_copied() {
    for (len, step, segments) in [(40_000, 1000, 41), (40_000, 400, 1), (600, 100, 1), (40_000, 50_000, 1)] {
        let (mut a, mut b) = (End::new(), End::new());
        a.send(FrameKind::Data, vec![3; len]);
        let whole = a.write(usize::MAX);
        b.feed(&Message::from(whole), step).unwrap();
        assert_eq!(bytes(&b.got[0]), vec![3; len]);
        let of_rope = b.got[0].segments().len();
        assert!(of_rope.abs_diff(segments) <= 1, "{len} in steps of {step}: {of_rope} segments");
        let copied = b.ledger.snapshot().copied_bytes();
        assert_eq!(copied > 0, segments == 1 && step < len, "{len} in steps of {step}: {copied} copied");
    }
}

/// Without memory a message goes on as the pieces that come, and waits on the heap when it has to wait; none of it is lost.
#[test]
fn what_waits_for_memory_has_none_in_hand() {
    for (len, gets_some) in [(600, true), (600, false), (40_000, true), (40_000, false)] {
        let (mut a, mut b) = (End::new(), End::new());
        a.send(FrameKind::Data, vec![3; len]);
        let mut whole = Message::from(a.write(usize::MAX)).segments()[0].clone();
        let mut feed = |b: &mut End, n: usize| {
            let mut own = b.pool.try_alloc(n).unwrap();
            own.put_slice(&whole.split_to(n));
            b.parser.feed(own.freeze());
            assert!(b.parser.find_head().unwrap());
        };
        feed(&mut b, FRAME_HEADER_BYTES + 100);
        assert_eq!(b.parser.body_wanted(), Some(len));
        b.parser.go_on_without_memory();
        assert!(b.parser.is_rope() && b.parser.body_wanted().is_none());
        feed(&mut b, 100);
        assert!(b.pool.stats().in_use_bytes > 0);
        b.parser.go_on_without_memory();
        assert!(b.parser.is_spilled() && b.parser.body_wanted() == Some(len));
        assert_eq!(b.pool.stats().in_use_bytes, 0);
        feed(&mut b, 100);
        assert_eq!((b.pool.stats().in_use_bytes, b.parser.body_missing()), (0, len - 300));
        assert!(b.parser.spaces(false).iter().all(|space| space.is_empty()), "a read would pass the body by");
        if gets_some {
            let buf = b.pool.try_alloc(len).unwrap();
            b.parser.begin_body(buf);
            assert!(!b.parser.is_spilled());
        }
        feed(&mut b, len - 300);
        assert_eq!(b.parser.body_wanted(), None);
        b.parse().unwrap();
        assert_eq!(bytes(&b.got[0]), vec![3; len]);
        // Wherever it lies, it is lent: who keeps such gets no more of them.
        assert!(b.parser.leases().outstanding_bytes() >= len);
        b.got.clear();
        assert_eq!(b.parser.leases().outstanding_bytes(), 0);
    }
}

/// A piece of one byte may keep a whole buffer: a peer that sends such pieces keeps little more than the message is long.
#[test]
fn a_rope_keeps_little_more_than_its_length() {
    let len = 20_000;
    for (soft, most) in [(usize::MAX, ROPE_MIN_BLOCKS + 1), (1, 1)] {
        let (mut a, mut b) = (End::new(), End::new());
        let limits = LaneLimits { lease_soft: soft, lease_hard: usize::MAX, ..LaneLimits::default() };
        b.parser = halves(&limits, b.pool.clone(), &b.ledger, &Arc::new(Wakers::default())).1;
        a.send(FrameKind::Data, vec![3; len]);
        let mut whole = Message::from(a.write(usize::MAX)).segments()[0].clone();
        let (pool, leases) = (b.pool.clone(), b.parser.leases().clone());
        let mut next = |n: usize| {
            let mut own = pool.try_alloc(64 << 10).unwrap();
            own.attach_lease(leases.clone());
            own.put_slice(&whole.split_to(n));
            own.freeze()
        };
        b.parser.feed(next(FRAME_HEADER_BYTES));
        assert!(b.parser.find_head().unwrap() && b.parser.begin_rope());
        let mut kept = 0;
        while b.parser.body_wanted().is_none() {
            assert!(kept < most, "{kept} blocks are kept");
            b.parser.feed(next(1));
            kept += 1;
        }
        assert_eq!(kept, most);
        b.parser.begin_body(b.pool.try_alloc(len).unwrap());
        assert_eq!(b.parser.leases().outstanding_bytes(), 0);
        b.parser.feed(next(len - kept));
        b.parse().unwrap();
        assert_eq!(bytes(&b.got[0]), vec![3; len]);
    }
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
