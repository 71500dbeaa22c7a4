//! A receiver that keeps what it gets: its peer always has something left to send from.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use common::*;
use zc_core::memory::{PinnedBuf, RegionKind};
use zc_core::transport::Frame;

async fn send(a: &mut End, seq: u64, len: usize) {
    let mut buf = a.alloc(len).await;
    buf.put_slice(&body(len, seq as usize));
    a.send(data(seq, buf.freeze())).await.unwrap();
}

async fn take(b: &mut End) -> Vec<Frame> {
    let frames = b.recv().await.unwrap();
    frames.iter().for_each(|frame| b.lane.rx.release(frame.payload.len()));
    frames
}

fn is_lent(frame: &Frame) -> bool {
    let region = frame.payload.segments().first().and_then(PinnedBuf::region);
    region.is_some_and(|region| region.info().kind == RegionKind::Peer)
}

fn are_whole(frames: &[Frame], len: usize) -> bool {
    frames.iter().all(|frame| frame.payload == body(len, frame.seq as usize)[..])
}

/// Far below the soft lease, and more of them than there are blocks.
#[test]
fn thousands_of_short_messages_are_kept() {
    const LEN: usize = 200;
    run(async {
        let (mut a, mut b) = pair(&Setup::default()).await;
        let mut kept = Vec::new();
        for seq in 1..3000 {
            send(&mut a, seq, LEN).await;
            kept.extend(take(&mut b).await);
        }
        assert!(are_whole(&kept, LEN));
        let lent = kept.iter().filter(|frame| is_lent(frame)).count();
        assert!((300..=400).contains(&lent), "{lent}");
        drop(kept);
        send(&mut a, 3000, LEN).await;
        assert!(is_lent(&take(&mut b).await[0]), "there is room again");
    });
}

/// One message of each arena, so that none of them can be taken away: there is still room for longer ones.
#[test]
fn a_few_of_many_arenas_are_kept() {
    const LEN: usize = 5000;
    const WAVE: usize = 200;
    run(async {
        let mut setup = Setup::default();
        (setup.limits.send_window, setup.limits.recv_window) = (64 << 20, 64 << 20);
        let (mut a, mut b) = pair(&setup).await;
        let (mut kept, mut seq) = (Vec::new(), 0);
        for _ in 0..40 {
            // Many at a time are under way, in many arenas.
            for _ in 0..WAVE {
                seq += 1;
                send(&mut a, seq, LEN).await;
            }
            let mut wave = Vec::new();
            while wave.len() < WAVE {
                wave.extend(take(&mut b).await);
            }
            kept.extend(wave.into_iter().step_by(9));
        }
        for len in [60_000, 300_000, 2 << 20, 40 << 20] {
            seq += 1;
            send(&mut a, seq, len).await;
            assert!(are_whole(&take(&mut b).await, len));
        }
        assert!(are_whole(&kept, LEN));
    });
}

/// Memory that ends long before the soft lease does.
#[test]
fn little_memory_is_not_all_kept() {
    for (max_arena_bytes, len) in [(0, 1000), (80 << 10, 4000), (4 << 20, 700_000), (4 << 20, 3 << 20)] {
        run(async {
            let mut setup = Setup::default();
            setup.options.max_arena_bytes = max_arena_bytes;
            let (mut a, mut b) = pair(&setup).await;
            let mut kept = Vec::new();
            for seq in 1..20 {
                send(&mut a, seq, len).await;
                kept.extend(take(&mut b).await);
            }
            assert!(are_whole(&kept, len));
        });
    }
}

/// Not even when there is no memory for a copy: then it waits for some.
#[test]
fn what_would_leave_nothing_waits_for_memory() {
    const LEN: usize = 700_000;
    run(async {
        let (mut a, mut b) = pair(&scarce()).await;
        let taken = exhausted(&b.pool);
        let (seq, kept) = until_one_waits(async |seq| {
            send(&mut a, seq, LEN).await;
            take(&mut b).await
        })
        .await;
        assert!(kept.iter().all(is_lent) && (1..=2).contains(&kept.len()), "{}", kept.len());
        drop(taken);
        let waited = take(&mut b).await;
        assert!(!is_lent(&waited[0]) && are_whole(&waited, LEN) && are_whole(&kept, LEN));
        drop(waited);
        // What goes back at once is sent again.
        for seq in seq + 1..seq + 10 {
            send(&mut a, seq, LEN).await;
            assert!(are_whole(&take(&mut b).await, LEN));
        }
    });
}
