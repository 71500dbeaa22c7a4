//! Lies about regions of groups.

use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use zc_core::transport::*;

use super::{group, join};
use crate::common::{body, data, run};
use crate::layout::{BY_REFERENCE, Descriptor, Head, Kind, Return, SHARED, Share};
use crate::sys;

/// What a peer says of regions of groups is checked like all else: each lie ends the lane, and only it.
#[test]
fn lies_about_regions_of_groups() {
    let share = |region: u8, bytes: u64| (Kind::Share, Share { region, bytes }.pack().to_vec());
    let name = |slab: u8, loan: u32, offset: u32, len: u32| {
        let at = Descriptor { slab, generation: 0, block: loan, offset, len };
        (Kind::Data, at.pack().to_vec())
    };
    let first = share(SHARED, 8192);
    let cases = [
        ("not a region", vec![share(5, 8192)]),
        ("another size", vec![share(SHARED, 4096)]),
        ("no size", vec![share(SHARED, 0)]),
        ("beyond the bound", vec![share(SHARED, u64::MAX)]),
        ("twice", vec![first.clone(), first.clone()]),
        ("no such region", vec![first.clone(), name(SHARED | 1, 0, 0, 200)]),
        ("no such loan", vec![first.clone(), name(SHARED, crate::MAX_SHARED_LOANS, 0, 200)]),
        ("past the end", vec![first.clone(), name(SHARED, 0, 8000, 200)]),
        ("around the end", vec![first.clone(), name(SHARED, 0, u32::MAX, 200)]),
        ("nothing", vec![first.clone(), name(SHARED, 0, 0, 0)]),
        ("a loan made twice", vec![first.clone(), name(SHARED, 3, 0, 200), name(SHARED, 3, 500, 200)]),
        ("gone", vec![first.clone(), (Kind::Retire, vec![SHARED.into()]), name(SHARED, 0, 0, 200)]),
        ("gone twice", vec![first, (Kind::Retire, vec![SHARED.into()]), (Kind::Retire, vec![SHARED.into()])]),
    ];
    for (what, slots) in cases {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let region = sys::create(8192).unwrap();
            for (kind, words) in slots {
                if kind == Kind::Share {
                    let fd = [region.fd().unwrap()];
                    std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &fd)).await.unwrap();
                }
                let head = match kind {
                    Kind::Data => Head::new(kind, BY_REFERENCE, 1),
                    _ => Head::new(kind, 0, words.len() * 8),
                };
                evil.slot(head, 1, &words);
            }
            let mut kept = Vec::new();
            let error = loop {
                match good.recv().await {
                    Ok(frames) => kept.extend(frames),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, LaneError::Protocol(_)), "{what}: {error}");
        });
    }
}

/// A region that could shrink under us is no region.
#[test]
fn regions_of_groups_are_sealed_or_refused() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &[fd.as_fd()])).await.unwrap();
        evil.slot(Head::new(Kind::Share, 0, 16), 0, &Share { region: SHARED, bytes: 8192 }.pack());
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
    });
}

/// A loan that was never made, or of a group's buffer that came back already, can't be given back.
#[test]
fn what_was_not_lent_of_a_group_is_not_taken_back() {
    for wrong in [
        Return { slab: SHARED, sent_back: 0, generation: 0, block: 1 },
        Return { slab: SHARED | 1, sent_back: 0, generation: 0, block: 0 },
        Return { slab: SHARED, sent_back: 0, generation: 1, block: 0 },
        Return { slab: 0, sent_back: 0, generation: 0, block: 0 },
    ] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            let group = group();
            good.lane.tx.join_group(&group).unwrap();
            let mut buf = group.pool().try_alloc(4000).unwrap();
            buf.put_slice(&body(4000, 1));
            let keep = buf.freeze();
            good.send(data(1, keep.clone())).await.unwrap();
            assert_eq!(good.ledger.snapshot().copied_bytes(), 0);
            evil.give_back(wrong);
            assert!(
                good.send(data(2, vec![0; 500])).await.is_err()
                    || good.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready()
            );
            let mut cx = Context::from_waker(Waker::noop());
            let poll = good.lane.tx.poll_alloc(&mut cx, 100_000);
            assert!(matches!(poll, Poll::Ready(Err(_))), "{wrong:?}");
            // The lane is at its end, and the peer may still read.
            assert!(keep.clone().try_into_mut().is_err());
            drop(good);
            assert!(keep.try_into_mut().is_err(), "kept until the peer is gone (M2)");
            drop(evil.link);
        });
    }
}
