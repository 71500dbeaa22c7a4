//! Messages that go back to where they came from, as they lie.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::collections::VecDeque;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::*;
use futures::future::select;
use proptest::prelude::*;
use zc_core::memory::{Backing, BufPool, CopyPlace, MemoryGroup, Message, PinnedBuf, PinnedBufMut};
use zc_core::transport::*;
use zc_transport_shm::TRIM_INTERVAL_MS;

async fn send(a: &mut End, seq: u64, len: usize) -> PinnedBuf {
    let mut buf = a.alloc(len).await;
    buf.put_slice(&body(len, seq as usize));
    let buf = buf.freeze();
    a.send(data(seq, buf.clone())).await.unwrap();
    buf
}

async fn take(b: &mut End) -> Frame {
    let mut frames = b.recv().await.unwrap();
    assert_eq!(frames.len(), 1);
    let frame = frames.pop().unwrap();
    b.lane.rx.release(frame.payload.len());
    frame
}

async fn echo(b: &mut End) {
    let frame = take(b).await;
    b.send(frame).await.unwrap();
}

fn copied(end: &End) -> u64 {
    end.ledger.snapshot().copied_bytes()
}

/// The sending half looks at what came back.
fn look(end: &mut End) -> Vec<(SendToken, SendReport)> {
    let mut out = Batch::new();
    let _ = end.lane.tx.poll_completions(&mut Context::from_waker(Waker::noop()), &mut out);
    out.drain().collect()
}

#[test]
fn an_echo_copies_nothing_on_either_side() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        for (seq, len) in [113, 4096, 5000, 64 << 10, 1 << 20, 10 << 20, 10 << 20].into_iter().enumerate() {
            let seq = seq as u64;
            let sent = send(&mut a, seq, len).await;
            echo(&mut b).await;
            let frame = take(&mut a).await;
            assert_eq!((frame.seq, frame.payload.segments()[0].as_ptr()), (seq, sent.as_ptr()));
            assert!(frame.payload == body(len, seq as usize)[..]);
        }
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// The same message to and fro: each time it is here it can be sent again.
#[test]
fn one_message_goes_to_and_fro_for_ever() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        send(&mut a, 1, 20_000).await;
        for _ in 0..1000 {
            echo(&mut b).await;
            let frame = take(&mut a).await;
            assert!(frame.payload == body(20_000, 1)[..]);
            a.send(frame).await.unwrap();
        }
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// A peer to whom nobody's messages are lent still gets its own back as they lie.
#[test]
fn trust_is_not_asked_for() {
    run(async {
        let wary = Setup { trust: Trust::Untrusted, ..Setup::default() };
        let (mut a, mut b) = pair_of(&wary, &Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        echo(&mut b).await;
        let frame = take(&mut a).await;
        assert_eq!(frame.payload.segments()[0].as_ptr(), sent.as_ptr());
        assert_eq!((copied(&a), copied(&b)), (0, 0));
        // The other way it is copied out, and is no longer what came.
        send(&mut b, 2, 5000).await;
        echo(&mut a).await;
        assert!(take(&mut b).await.payload == body(5000, 2)[..]);
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::CopyOut), 5000);
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::Foreign), 5000);
    });
}

/// Parts of a message, some of them twice, between memory of the sender's own and from elsewhere.
#[test]
fn parts_go_back_among_others() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (one, two) = (send(&mut a, 1, 5000).await, send(&mut a, 2, 6000).await);
        let (first, second) = (take(&mut b).await.payload, take(&mut b).await.payload);
        let mut own = b.alloc(300).await;
        own.put_slice(&body(300, 3));
        let parts = [
            first.segments()[0].slice(10..200),
            own.freeze(),
            second.segments()[0].clone(),
            PinnedBuf::from(body(400, 4)),
            first.segments()[0].slice(100..),
            first.segments()[0].clone(),
            first.segments()[0].slice(..1),
            second.segments()[0].slice(5999..),
        ];
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut message = Message::new();
        parts.into_iter().for_each(|part| message.push(part).unwrap());
        drop((first, second));
        b.send(data(9, message)).await.unwrap();
        assert_eq!(copied(&b), 400, "what is from elsewhere");
        // All blocks are back before the message is read, and none of them may be used yet.
        assert!(look(&mut a).is_empty());
        let got = take(&mut a).await.payload;
        assert!(got == whole[..]);
        assert_eq!(got.segments()[0].as_ptr(), one[10..].as_ptr());
        assert_eq!(got.segments()[2].as_ptr(), two.as_ptr());
        assert_eq!(copied(&a), 0);
        look(&mut a);
        drop(got);
        assert!(one.try_into_mut().is_ok() && two.try_into_mut().is_ok(), "nobody has them any more");
    });
}

/// A block stays while the message is unread that sends it back, whatever else the peer has given back.
#[test]
fn a_block_is_ours_again_when_all_is_read() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let mut buf = a.alloc(5000).await;
        buf.put_slice(&body(5000, 1));
        let sent = buf.freeze();
        a.lane.tx.start_send(data(1, sent.clone()), true).unwrap();
        std::future::poll_fn(|cx| a.lane.tx.poll_flush(cx)).await.unwrap();
        let frame = take(&mut b).await;
        let token = b.lane.tx.start_send(data(1, frame.payload.clone()), true).unwrap();
        b.lane.tx.start_send(frame, false).unwrap();
        std::future::poll_fn(|cx| b.lane.tx.poll_flush(cx)).await.unwrap();
        assert_eq!(look(&mut b), [(token, SendReport::Sent)], "the sender has nothing more to do with it");
        assert!(look(&mut a).is_empty());
        let sent = sent.try_into_mut().unwrap_err();
        let frames = a.recv().await.unwrap();
        assert_eq!(frames.len(), 2);
        assert!(frames.iter().all(|frame| frame.payload == body(5000, 1)[..]));
        assert_eq!(look(&mut a).len(), 1);
        drop(frames);
        assert!(sent.try_into_mut().is_ok());
    });
}

/// One that waits for a block is woken by the message that sends it back being read.
#[test]
fn who_waits_for_a_block_is_woken() {
    run(async {
        let mut setup = Setup::default();
        // The first arena, and a small one, which is taken already.
        setup.options.max_arena_bytes = 102_400 + (32 << 10);
        let (mut a, mut b) = pair(&setup).await;
        let (mut sent, mut rest) = (0, Vec::new());
        let woken = std::sync::Arc::new(Flag::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        while let Poll::Ready(buf) = a.lane.tx.poll_alloc(&mut cx, 1000) {
            let mut buf = buf.unwrap();
            if sent == 13 {
                rest.push(buf);
                continue;
            }
            buf.put_slice(&body(1000, sent));
            sent += 1;
            a.send(data(sent as u64, buf.freeze())).await.unwrap();
        }
        let mut frames = Vec::new();
        while frames.len() < sent {
            frames.extend(b.recv().await.unwrap());
        }
        for frame in frames {
            b.send(frame).await.unwrap();
        }
        assert!(a.lane.tx.poll_alloc(&mut cx, 1000).is_pending(), "they have come back, but not been read");
        woken.0.store(false, std::sync::atomic::Ordering::SeqCst);
        let got = a.recv().await.unwrap();
        assert_eq!((got.len(), copied(&a)), (sent, 0));
        assert!(woken.0.load(std::sync::atomic::Ordering::SeqCst));
        assert!(a.lane.tx.poll_alloc(&mut cx, 1000).is_pending(), "the application has them");
        drop(got);
        assert!(a.lane.tx.poll_alloc(&mut cx, 1000).is_ready());
    });
}

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// An application that keeps what comes back always has something left to send from.
#[test]
fn thousands_are_kept() {
    for (len, max_arena_bytes) in
        [(200, 1 << 30), (5000, 1 << 30), (1000, 0), (4000, 80 << 10), (700_000, 4 << 20)]
    {
        run(async {
            let mut setup = Setup::default();
            setup.options.max_arena_bytes = max_arena_bytes;
            let (mut a, mut b) = pair(&setup).await;
            let mut kept = Vec::new();
            let rounds = if len > 100_000 { 40 } else { 1500 };
            for seq in 1..rounds {
                send(&mut a, seq, len).await;
                echo(&mut b).await;
                kept.push(take(&mut a).await);
            }
            // Of little memory nothing is lent there in the first place.
            assert!(copied(&b) == 0 || max_arena_bytes < 1 << 30);
            let own = rounds - 1 - copied(&a) / len as u64;
            assert!(own < 300 && (max_arena_bytes < 1 << 30 || own > 150), "{own}");
            assert!(kept.iter().all(|frame| frame.payload == body(len, frame.seq as usize)[..]));
            drop(kept);
            let before = copied(&a);
            for seq in 0..1500.min(rounds) {
                send(&mut a, seq, len).await;
                echo(&mut b).await;
                take(&mut a).await;
            }
            assert!(copied(&a) == before || max_arena_bytes < 1 << 30, "there is room again");
        });
    }
}

/// Nor when the peer keeps as much as it may besides.
#[test]
fn both_sides_keep_what_they_may() {
    const LEN: usize = 200;
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let (mut kept, mut lent) = (Vec::new(), Vec::new());
        for seq in 1..600 {
            send(&mut a, seq, LEN).await;
            echo(&mut b).await;
            kept.push(take(&mut a).await);
        }
        // None is copied at the sender: there is always a block.
        for seq in 600..1500 {
            send(&mut a, seq, LEN).await;
            lent.push(take(&mut b).await);
        }
        assert!(copied(&b) > 0, "past its half it copies");
        let all = kept.iter().chain(&lent);
        assert!(all.into_iter().all(|frame| frame.payload == body(LEN, frame.seq as usize)[..]));
    });
}

/// Not even when there is no memory for a copy: then it waits for some.
#[test]
fn what_would_leave_nothing_waits_for_memory() {
    const LEN: usize = 700_000;
    run(async {
        let (mut a, mut b) = pair(&scarce()).await;
        let taken = exhausted(&a.pool);
        let (seq, mut kept) = until_one_waits(async |seq| {
            send(&mut a, seq, LEN).await;
            echo(&mut b).await;
            vec![take(&mut a).await]
        })
        .await;
        assert!(copied(&a) == 0 && (1..=2).contains(&kept.len()), "{}", kept.len());
        drop(taken);
        kept.push(take(&mut a).await);
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::CopyOut), LEN as u64);
        assert!(kept.iter().all(|frame| frame.payload == body(LEN, frame.seq as usize)[..]));
        kept.pop();
        for seq in seq + 1..seq + 10 {
            send(&mut a, seq, LEN).await;
            echo(&mut b).await;
            assert!(take(&mut a).await.payload == body(LEN, seq as usize)[..]);
        }
    });
}

/// A message in parts copies what the peer lent as all else, and the loan is over when it is out.
#[test]
fn what_was_lent_goes_into_a_message_in_parts() {
    const LEN: usize = 700_000;
    run(async {
        let mut setup = Setup::default();
        (setup.options.max_arena_bytes, setup.options.longer_in_parts) = (2 << 20, true);
        let (mut a, mut b) = pair(&setup).await;
        let sent = send(&mut a, 1, LEN).await;
        let lent = take(&mut b).await.payload.into_segments().next().unwrap();
        // Once as it lies before.
        b.send(data(1, lent.clone())).await.unwrap();
        let view = take(&mut a).await;
        let (mut message, mut expect) = (Message::from(body(50_000, 2)), body(50_000, 2));
        for _ in 0..4 {
            message.push(lent.clone()).unwrap();
            expect.extend(body(LEN, 1));
        }
        drop(lent);
        let (done, got) = futures::future::join(b.send(data(2, message)), take(&mut a)).await;
        done.unwrap();
        assert!(got.payload == expect[..]);
        assert_eq!(copied(&b), expect.len() as u64);
        look(&mut a);
        drop(view);
        assert!(sent.try_into_mut().is_ok(), "the counts agree");
    });
}

/// A view of what came back is named where it lies in a message in parts, once the peer has given it back.
#[test]
fn what_came_back_goes_into_a_message_in_parts() {
    const LEN: usize = 400_000;
    run(async {
        let mut setup = Setup::default();
        (setup.options.max_arena_bytes, setup.options.longer_in_parts) = (2 << 20, true);
        let (mut a, mut b) = pair(&setup).await;
        send(&mut a, 1, LEN).await;
        echo(&mut b).await;
        let mut message = take(&mut a).await.payload;
        message.push(PinnedBuf::from(body(2 << 20, 2))).unwrap();
        let expect = [body(LEN, 1), body(2 << 20, 2)].concat();
        let (done, got) = futures::future::join(a.send(data(2, message)), take(&mut b)).await;
        done.unwrap();
        assert!(got.payload == expect[..]);
        assert_eq!(copied(&a), 2 << 20);
    });
}

/// The byte that says how often a loan was sent back does not run over: then it is copied.
#[test]
fn a_loan_is_sent_back_only_so_often() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 200).await;
        let frame = take(&mut b).await;
        for _ in 0..3 {
            // As many parts as a message has.
            let mut parts = Message::new();
            (0..64).for_each(|_| parts.push(frame.payload.segments()[0].clone()).unwrap());
            b.send(data(1, parts)).await.unwrap();
            take(&mut a).await;
        }
        assert_eq!(copied(&b), 0);
        for n in 192..400_u64 {
            b.send(data(1, frame.payload.clone())).await.unwrap();
            assert!(take(&mut a).await.payload == body(200, 1)[..]);
            assert_eq!(copied(&b) > 0, n >= 192, "{n}");
        }
        drop(frame);
        look(&mut a);
        assert!(sent.try_into_mut().is_ok(), "the counts agree");
    });
}

/// What went through `Bytes` on its way is found by its address, as zc-http's bodies are.
#[test]
fn bytes_go_back_too() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        let bytes = take(&mut b).await.payload.into_segments().next().unwrap().into_bytes();
        b.send(data(1, PinnedBuf::from(bytes.slice(7..)))).await.unwrap();
        drop(bytes);
        assert_eq!(take(&mut a).await.payload.segments()[0].as_ptr(), sent[7..].as_ptr());
        assert_eq!((copied(&a), copied(&b)), (0, 0));
    });
}

/// A frame that found no room is not counted before it goes.
#[test]
fn what_waits_for_room_is_counted_once() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        let frame = take(&mut b).await;
        // More than the ring has slots, in pieces.
        for seq in 0..300 {
            let mut message = Message::from(frame.payload.segments()[0].slice(seq..seq + 1000));
            message.push(PinnedBuf::from(body(10, seq))).unwrap();
            if seq >= 180 {
                message = PinnedBuf::from(body(50, seq)).into();
            }
            b.lane.tx.start_send(data(seq as u64, message), false).unwrap();
        }
        let late = frame.payload.segments()[0].slice(4000..);
        b.lane.tx.start_send(data(300, late), false).unwrap();
        drop(frame);
        let mut got = Vec::new();
        while got.len() < 301 {
            let mut cx = Context::from_waker(Waker::noop());
            a.drive(&mut cx);
            b.drive(&mut cx);
            let _ = b.lane.tx.poll_flush(&mut cx);
            tokio::task::yield_now().await;
            let mut batch = Batch::new();
            if let Some(Received::Some) = a.lane.rx.try_recv(&mut batch).unwrap() {
                for frame in batch.drain() {
                    a.lane.rx.release(frame.payload.len());
                    got.push(frame);
                }
            }
        }
        assert!(got[300].payload == body(5000, 1)[4000..]);
        drop(got);
        look(&mut a);
        assert!(sent.try_into_mut().is_ok());
    });
}

/// Only the receiving half is left, or only it is gone.
#[test]
fn halves_end_apart() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        echo(&mut b).await;
        let End { lane: Lane { tx, mut rx, .. }, .. } = a;
        drop(tx);
        let mut batch = Batch::new();
        assert!(matches!(rx.try_recv(&mut batch), Ok(Some(Received::Some))));
        let frame = batch.drain().next().unwrap();
        assert!(frame.payload == body(5000, 1)[..]);
        drop(rx);
        drop(frame);
        assert!(sent.try_into_mut().is_err(), "the peer may read it");
        drop(b);
    });
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        echo(&mut b).await;
        look(&mut a);
        // Nobody will read it.
        a.lane.rx.stop();
        look(&mut a);
        assert!(sent.try_into_mut().is_ok());
        let sent = send(&mut a, 2, 5000).await;
        echo(&mut b).await;
        look(&mut a);
        assert!(sent.try_into_mut().is_ok());
    });
}

/// The peer is gone, and what it sent back has not been read.
#[test]
fn what_was_sent_back_before_the_end_is_delivered() {
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let sent = send(&mut a, 1, 5000).await;
        let other = send(&mut a, 2, 6000).await;
        echo(&mut b).await;
        let kept = b.recv().await.unwrap();
        drop((kept, b));
        // The sending half knows first.
        while a.try_ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        let sent = sent.try_into_mut().unwrap_err();
        let frame = take(&mut a).await;
        assert!(frame.payload == body(5000, 1)[..]);
        assert!(a.recv().await.is_err());
        drop(frame);
        assert!(sent.try_into_mut().is_ok() && other.try_into_mut().is_ok());
    });
}

impl End {
    async fn try_ready(&mut self) -> Result<(), LaneError> {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.lane.tx.poll_ready(cx, 1)
        })
        .await
    }
}

/// What one of two sides does.
#[derive(Debug, Clone)]
enum Act {
    Send(usize),
    /// From memory of its group.
    SendShared(usize),
    Leave,
    Receive,
    /// A part of something that it has, from this byte on, perhaps twice.
    Pass(usize, usize, bool),
    Drop(usize),
    Look,
    /// Some time goes by: what lies idle is given back.
    Trim,
}

const LONGEST: usize = 1 << 20;

fn act() -> impl Strategy<Value = (bool, Act)> {
    let size = prop_oneof![8 => 113usize..9000, 1 => 9000..=LONGEST];
    let act = prop_oneof![
        4 => size.prop_map(Act::Send),
        2 => (1usize..9000).prop_map(Act::SendShared),
        1 => Just(Act::Leave),
        8 => Just(Act::Receive),
        8 => (any::<usize>(), any::<usize>(), any::<bool>()).prop_map(|(which, at, twice)| Act::Pass(which, at, twice)),
        7 => any::<usize>().prop_map(Act::Drop),
        4 => Just(Act::Look),
        2 => Just(Act::Trim),
    ];
    (any::<bool>(), act)
}

/// A side, and what it should know.
struct Side {
    end: End,
    /// Of this side alone.
    group: MemoryGroup,
    /// What it has, and what that should be.
    has: Vec<(Message, Vec<u8>)>,
    /// What should come.
    coming: VecDeque<Vec<u8>>,
    /// Its time.
    now: Instant,
}

impl Side {
    fn new(end: End) -> Self {
        let group = MemoryGroup::new(BufPool::builder().backing(Backing::Memfd).max_bytes(8 << 20));
        Self { end, group, has: Vec::new(), coming: VecDeque::new(), now: Instant::now() }
    }

    /// Sends if there is room: what then comes to the other.
    fn send(&mut self, message: Message) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = self.end.lane.tx.poll_ready(&mut cx, message.len());
        if ready.is_ready() {
            self.end.lane.tx.start_send(data(1, message), false).unwrap();
        }
        assert!(!matches!(self.end.lane.tx.poll_flush(&mut cx), Poll::Ready(Err(_))));
        ready.is_ready()
    }

    /// A message in this memory, which is kept.
    fn send_from(&mut self, mut buf: PinnedBufMut, len: usize, seed: usize) -> Option<Vec<u8>> {
        buf.put_slice(window(len, seed));
        let message = Message::from(buf.freeze());
        self.send(message.clone()).then(|| {
            self.has.push((message, window(len, seed).to_vec()));
            window(len, seed).to_vec()
        })
    }

    /// A part of something that it has.
    fn pass(&mut self, which: usize, at: usize, twice: bool) -> Option<Vec<u8>> {
        let (message, bytes) = self.has.get(which % self.has.len().max(1))?;
        let segment = &message.segments()[0];
        let at = at % segment.len();
        let times = if twice { 2 } else { 1 };
        let expect = bytes[at..segment.len()].repeat(times);
        let mut parts = Message::new();
        (0..times).for_each(|_| parts.push(segment.slice(at..)).unwrap());
        (expect.len() <= LONGEST && self.send(parts)).then_some(expect)
    }

    fn receive(&mut self) {
        self.end.drive(&mut Context::from_waker(Waker::noop()));
        let mut batch = Batch::new();
        let _ = self.end.lane.rx.try_recv(&mut batch).unwrap();
        for frame in batch.drain() {
            self.end.lane.rx.release(frame.payload.len());
            let expect = self.coming.pop_front().expect("sent");
            assert!(frame.payload == expect[..]);
            self.has.push((frame.payload, expect));
        }
    }

    /// It looks for what lies idle, as it does from time to time.
    fn trim(&mut self) {
        for _ in 0..2 {
            self.now += Duration::from_millis(TRIM_INTERVAL_MS);
            let mut cx = Context::from_waker(Waker::noop());
            self.end.lane.drive.as_mut().unwrap().poll_drive(&mut cx, self.now).unwrap();
            look(&mut self.end);
            assert!(!matches!(self.end.lane.tx.poll_flush(&mut cx), Poll::Ready(Err(_))));
        }
    }

    /// What the other is to get.
    fn act(&mut self, act: Act, n: usize) -> Option<Vec<u8>> {
        let mut cx = Context::from_waker(Waker::noop());
        self.end.drive(&mut cx);
        match act {
            Act::Send(len) => {
                let Poll::Ready(buf) = self.end.lane.tx.poll_alloc(&mut cx, len) else { return None };
                return self.send_from(buf.unwrap(), len, n);
            }
            Act::SendShared(len) => {
                // It is there already, or there again after it was left.
                let _ = self.end.lane.tx.join_group(&self.group);
                let buf = self.group.pool().try_alloc(len).ok()?;
                return self.send_from(buf, len, n);
            }
            Act::Pass(which, at, twice) => return self.pass(which, at, twice),
            Act::Leave => self.end.lane.tx.leave_group(&self.group),
            Act::Receive => self.receive(),
            Act::Drop(which) if !self.has.is_empty() => {
                let (message, expect) = self.has.swap_remove(which % self.has.len());
                assert!(message == expect[..]);
            }
            Act::Drop(_) | Act::Look => drop(look(&mut self.end)),
            Act::Trim => self.trim(),
        }
        None
    }

    /// Nobody writes what somebody has.
    fn check(&self) {
        assert!(self.has.iter().all(|(message, expect)| *message == expect[..]));
    }
}

async fn play(acts: Vec<(bool, Act)>) {
    let (a, b) = pair(&Setup::default()).await;
    let mut sides = [a, b].map(Side::new);
    for (n, (who, act)) in acts.into_iter().enumerate() {
        let [one, other] = &mut sides;
        let (me, peer) = if who { (one, other) } else { (other, one) };
        peer.coming.extend(me.act(act, n));
        tokio::task::yield_now().await;
        if n % 4 == 0 {
            sides.iter().for_each(Side::check);
        }
    }
    while sides.iter().any(|side| !side.coming.is_empty()) {
        for side in &mut sides {
            look(&mut side.end);
            let flushed = side.end.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop()));
            assert!(!matches!(flushed, Poll::Ready(Err(_))));
            side.receive();
            tokio::task::yield_now().await;
        }
    }
    sides.iter().for_each(Side::check);
    nothing_counts_as_lent(&mut sides).await;
}

/// When nobody has anything, it goes on, and nothing counts as lent in the end.
async fn nothing_counts_as_lent(sides: &mut [Side; 2]) {
    sides.iter_mut().for_each(|side| side.has.clear());
    for turn in 0..2 {
        let [one, other] = &mut *sides;
        let (me, peer) = if turn == 0 { (one, other) } else { (other, one) };
        look(&mut me.end);
        peer.coming.extend((0..15).map(|n: usize| body(1000, n)));
        let sending = async {
            for n in 0..15 {
                send(&mut me.end, n, 1000).await;
            }
        };
        // It goes on taking, for what it has not said yet of what it took may be all the room there is.
        let taking = async {
            loop {
                peer.receive();
                peer.has.clear();
                tokio::task::yield_now().await;
            }
        };
        select(pin!(sending), pin!(taking)).await;
    }
    for (one, other) in [(0, 1), (1, 0)] {
        while !sides[other].coming.is_empty() {
            sides[other].receive();
            tokio::task::yield_now().await;
        }
        sides[other].has.clear();
        look(&mut sides[one].end);
        assert_eq!(sides[one].end.lane.leases.outstanding_bytes(), 0);
    }
    for side in sides {
        side.trim();
        assert_eq!(side.group.pool().stats().in_use_bytes, 0, "a loan of the group is not over");
        assert_eq!(side.end.pool.stats().in_use_bytes, 0);
    }
}

/// Whatever is sent, passed on to and fro, kept and dropped in whatever order, and however much is given back meanwhile: what comes
/// is what was sent, and stays so.
#[test]
fn fuzz_what_goes_back_is_what_was_sent() {
    try_cases(64, &prop::collection::vec(act(), 1..200), play);
}
