//! Frames in any portions, over a link that hands out bytes as it is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use common::script::Script;
use common::*;
use proptest::prelude::*;
use zc_core::transport::*;
use zc_core::wire::{FrameFlags, FrameHeader, FrameType, MIN_FRAME_CREDIT_BYTES};

/// A frame as the peer sends it: its bytes, and what must come out.
#[derive(Debug, Clone)]
enum Sent {
    Data { len: usize, ext: bool, ack: bool },
    Record(usize),
    Credit,
}

type Expected = (FrameKind, bool, u64, Vec<u8>);

fn header(kind: FrameType, length: usize, seq: u64, ext: bool, ack_requested: bool) -> Vec<u8> {
    let flags = FrameFlags { ext, ack_requested };
    let mut bytes = FrameHeader { kind, flags, length: length as u32, seq }.encode().to_vec();
    if ext {
        // One TLV that nobody knows, and that may be skipped.
        bytes.extend([6, 0, 0x34, 0x12, 2, 0, 7, 7]);
    }
    bytes
}

fn encode(frames: &[Sent]) -> (Vec<u8>, Vec<Expected>) {
    let (mut bytes, mut expected, mut seq, mut granted) = (Vec::new(), Vec::new(), 0, 1 << 40);
    for (i, sent) in frames.iter().enumerate() {
        match *sent {
            Sent::Data { len, ext, ack } => {
                seq += 1;
                bytes.extend(header(FrameType::Data, len, seq, ext, ack));
                bytes.extend(body(len, i));
                expected.push((FrameKind::Data, ack, seq, body(len, i)));
            }
            Sent::Record(len) => {
                bytes.extend(header(FrameType::Session, len, 0, i % 3 == 0, false));
                bytes.extend(body(len, i));
                expected.push((FrameKind::Session, false, 0, body(len, i)));
            }
            Sent::Credit => {
                granted += 1;
                bytes.extend(header(FrameType::Credit, 0, granted, i % 2 == 0, false));
            }
        }
    }
    (bytes, expected)
}

fn wide() -> LaneLimits {
    let mut limits = LaneLimits::default();
    (limits.recv_window, limits.lease_soft, limits.lease_hard) = (u32::MAX, usize::MAX, usize::MAX);
    limits
}

/// All that comes out of `bytes`, read in these portions; then the end.
async fn read_all(script: Script, limits: LaneLimits) -> (Vec<Expected>, Result<(), LaneError>, End) {
    let mut end = end(Box::new(script), limits).await;
    let mut all = Vec::new();
    loop {
        match end.recv().await {
            Err(error) => return (all, Err(error), end),
            Ok(frames) if frames.is_empty() => return (all, Ok(()), end),
            Ok(frames) => {
                for f in frames {
                    let payload = f.payload.segments().iter().flat_map(|s| s.to_vec()).collect();
                    all.push((f.kind, f.ack, f.seq, payload));
                }
            }
        }
    }
}

#[test]
fn split_at_every_offset() {
    let frames = [
        Sent::Data { len: 3, ext: true, ack: false },
        Sent::Record(12),
        Sent::Data { len: 0, ext: false, ack: true },
        Sent::Credit,
        Sent::Data { len: 700, ext: false, ack: false },
        Sent::Data { len: 20_000, ext: true, ack: false },
        Sent::Record(12),
        Sent::Credit,
        Sent::Data { len: 1, ext: true, ack: false },
    ];
    let (bytes, expected) = encode(&frames);
    run(async {
        for at in (1..1200).chain(bytes.len() - 200..bytes.len()) {
            let halves = Script::new(&bytes, &[at, usize::MAX], 1);
            let (all, done, end) = read_all(halves, wide()).await;
            assert!(done.is_ok() && all == expected, "split at {at}: {done:?}");
            assert_eq!(end.pool.stats().in_use_bytes, 0);
        }
        for portion in [1, 15, 16, 17] {
            let mut script = Script::new(&bytes, &[portion], 1);
            script.stutter = true;
            let (all, done, _) = read_all(script, wide()).await;
            assert!(done.is_ok() && all == expected, "portions of {portion}: {done:?}");
        }
    });
}

#[test]
fn an_end_inside_a_frame_is_a_fault_at_every_offset() {
    let (bytes, _) = encode(&[Sent::Data { len: 40, ext: true, ack: false }, Sent::Record(12)]);
    let whole = [bytes.len() - 16 - 12, bytes.len()];
    run(async {
        for at in 1..bytes.len() {
            let (_, done, _) = read_all(Script::new(&bytes[..at], &[], 1), wide()).await;
            let clean = whole.contains(&at) || (at == 16 + 8 + 40);
            assert_eq!(done.is_ok(), clean, "end at {at}: {done:?}");
        }
    });
}

#[test]
fn extensions_that_must_be_known_end_the_lane() {
    run(async {
        let mut bytes = header(FrameType::Data, 0, 1, true, false);
        assert_eq!(read_all(Script::new(&bytes, &[], 1), wide()).await.0.len(), 1);
        bytes[19] |= 0x80;
        let (_, done, _) = read_all(Script::new(&bytes, &[], 1), wide()).await;
        assert!(matches!(done, Err(LaneError::Protocol(_))), "{done:?}");
        // Longer than any extension block may be.
        bytes[16..18].copy_from_slice(&2000u16.to_le_bytes());
        let (_, done, _) = read_all(Script::new(&bytes, &[], 1), wide()).await;
        assert!(matches!(done, Err(LaneError::Protocol(_))), "{done:?}");
    });
}

#[test]
fn a_message_beyond_the_credit_ends_the_lane_and_those_before_it_come_out() {
    run(async {
        let mut limits = wide();
        limits.recv_window = 8 * MIN_FRAME_CREDIT_BYTES as u32;
        for len in [0, 64] {
            let (bytes, expected) = encode(&vec![Sent::Data { len, ext: false, ack: false }; 9]);
            for portion in [1, usize::MAX] {
                let (all, done, _) = read_all(Script::new(&bytes, &[portion], 1), limits).await;
                assert!(all == expected[..8]);
                assert!(matches!(done, Err(LaneError::Protocol(_))), "{done:?}");
            }
        }
        // No memory is taken for a large one that is not covered.
        let (bytes, _) = encode(&[
            Sent::Data { len: 5000, ext: false, ack: false },
            Sent::Data { len: 100 << 20, ext: false, ack: false },
        ]);
        let (all, done, end) = read_all(Script::new(&bytes[..6000], &[], 1), limits).await;
        assert!(all.len() == 1 && matches!(done, Err(LaneError::Protocol(_))), "{done:?}");
        assert!(end.pool.stats().peak < 10 << 20);
    });
}

#[test]
fn a_frame_that_takes_long_to_arrive_shows_life() {
    run(async {
        let (mut a, b) = links(unix()).await;
        let mut b = end(b, wide()).await;
        let heard = |end: &mut End| end.lane.drive.as_mut().unwrap().heard();
        let (bytes, _) = encode(&[Sent::Data { len: 5000, ext: false, ack: false }]);
        assert!(b.look().is_none() && !heard(&mut b), "nothing has come");
        // The first part counts at the latest once the second is there.
        let parts =
            [&bytes[..10], &bytes[10..400], &bytes[400..2000], &bytes[2000..4000], &bytes[4000..5000]];
        for (at, part) in parts.into_iter().enumerate() {
            let sent = std::future::poll_fn(|cx| a.poll_write(cx, part)).await.unwrap();
            assert_eq!(sent, part.len());
            while at > 0 && !heard(&mut b) {
                assert!(b.look().is_none());
                tokio::task::yield_now().await;
            }
            for _ in 0..10 {
                assert!(b.look().is_none());
                heard(&mut b);
                tokio::task::yield_now().await;
            }
            assert!(b.look().is_none() && !heard(&mut b), "nothing more has come");
        }
    });
}

#[test]
fn a_frame_that_takes_long_to_leave_shows_life_once_the_peer_takes_more() {
    run(async {
        let mut script = Script::new(&[], &[], usize::MAX);
        let space = Arc::new(AtomicUsize::new(1 << 20));
        (script.ends, script.space) = (false, Some(space.clone()));
        let mut a = end(Box::new(script), wide()).await;
        let heard = |end: &mut End| end.lane.drive.as_mut().unwrap().heard();
        for seq in 1..100 {
            a.send(seq, body(seq as usize * 10, 1)).await;
            a.drive();
            assert!(!heard(&mut a), "what fits in the buffer says nothing");
        }
        space.store(10_000, Ordering::Relaxed);
        a.lane.tx.start_send(frame(100, body(60_000, 1).into()), false).unwrap();
        a.drive();
        assert!(!heard(&mut a), "nor does what fills it");
        for _ in 0..4 {
            a.drive();
            assert!(!heard(&mut a), "nothing was taken");
            space.store(5000, Ordering::Relaxed);
            a.drive();
            assert!(heard(&mut a));
        }
        space.store(1 << 20, Ordering::Relaxed);
        a.drive();
        assert!(heard(&mut a), "the rest");
        a.send(101, body(1000, 1)).await;
        a.drive();
        assert!(!heard(&mut a), "all of it had gone");
    });
}

#[test]
fn written_byte_by_byte() {
    run(async {
        let mut script = Script::new(&[], &[], 1);
        (script.stutter, script.ends) = (true, false);
        let written = script.written.clone();
        let mut end = end(Box::new(script), LaneLimits::default()).await;
        let mut expect = Vec::new();
        for (i, len) in [0, 1, 512, 513, 3000, 70_000, 5].into_iter().enumerate() {
            let seq = i as u64 + 1;
            expect.extend(FrameHeader::data(len as u32, seq).encode());
            expect.extend(body(len, i));
            end.lane.tx.start_send(frame(seq, body(len, i).into()), false).unwrap();
        }
        std::future::poll_fn(|cx| end.lane.tx.poll_close(cx)).await.unwrap();
        let written = written.lock().unwrap();
        assert!(written.bytes == expect && written.shut);
        assert_eq!(end.pool.stats().in_use_bytes, 0);
    });
}

fn any_frame() -> impl Strategy<Value = Sent> {
    let len = prop_oneof![4 => 0usize..4, 8 => 0usize..600, 3 => 0usize..5000, 1 => 16_000usize..17_000];
    prop_oneof![
        6 => (len, any::<bool>(), any::<bool>()).prop_map(|(len, ext, ack)| Sent::Data { len, ext, ack }),
        2 => (0usize..100).prop_map(Sent::Record),
        1 => Just(Sent::Credit),
    ]
}

fn any_portions() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..40, 1usize..5000, Just(65536)], 0..40)
}

proptest! {
    #[test]
    fn frames_in_any_portions(
        frames in prop::collection::vec(any_frame(), 0..16), portions in any_portions(), stutter: bool,
    ) {
        let (bytes, expected) = encode(&frames);
        let mut script = Script::new(&bytes, &portions, 1);
        script.stutter = stutter;
        let (all, done, end) = run(read_all(script, wide()));
        prop_assert!(done.is_ok(), "{:?}", done);
        prop_assert!(all == expected);
        prop_assert_eq!(end.pool.stats().in_use_bytes, 0);
    }
}

/// A link on which nothing comes; it keeps the waker of the last read only, as links do.
#[derive(Debug)]
struct Silent(Arc<Mutex<Option<Waker>>>);

impl ControlLink for Silent {
    fn poll_read(&mut self, cx: &mut Context<'_>, _: &mut [u8]) -> Poll<std::io::Result<usize>> {
        *self.0.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }
    fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Pending
    }
    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn peer(&self) -> LinkAddr {
        LinkAddr::Memory("silent".into())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// Whoever waits is still woken after somebody else has looked without waiting.
#[test]
fn a_look_disarms_nobody() {
    run(async {
        let kept = Arc::default();
        let mut end = end(Box::new(Silent(Arc::clone(&kept))), LaneLimits::default()).await;
        struct Nothing;
        impl Wake for Nothing {
            fn wake(self: Arc<Self>) {}
        }
        let waiting = Waker::from(Arc::new(Nothing));
        let mut out = Batch::new();
        assert!(end.lane.rx.poll_recv(&mut Context::from_waker(&waiting), &mut out).is_pending());
        for _ in 0..2 {
            assert!(end.lane.rx.try_recv(&mut out).unwrap().is_none());
            assert!(kept.lock().unwrap().as_ref().unwrap().will_wake(&waiting));
        }
    });
}
