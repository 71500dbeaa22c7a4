//! The peer's arenas and blocks, and what is left when there is no memory.

use std::task::{Context, Waker};

use zc_core::transport::*;

use super::{join, send_arenas};
use crate::common::{Setup, body, run};
use crate::layout::{BY_REFERENCE, Descriptor, Grow, Head, Kind};

/// Mapping takes long: one turn maps one arena.
#[test]
fn arenas_are_mapped_one_a_turn() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        send_arenas(&mut evil, 3).await;
        for slab in 1..=3 {
            let grow = Grow { slab, block_len: 4096, blocks: 1 };
            evil.slot(Head::new(Kind::Grow, 0, 16), 0, &grow.pack());
        }
        evil.slot(Head::new(Kind::Data, 0, 8), 1, &[7]);
        let mut batch = Batch::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut turns = 0;
        while good.lane.rx.try_recv(&mut batch).unwrap().is_none() {
            tokio::task::yield_now().await;
            good.drive(&mut cx);
            turns += 1;
        }
        assert!(turns >= 3, "{turns}");
        assert_eq!(batch.drain().count(), 1);
    });
}

/// One that is lent is not given back by a copy.
#[test]
fn a_block_is_not_copied_out_while_it_is_lent() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let block = evil.geometry.first_block();
        let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len: 500 };
        let head = |kind| Head::new(kind, BY_REFERENCE, 1);
        evil.slot(head(Kind::Data), 1, &at.pack());
        evil.slot(head(Kind::Session), 0, &at.pack());
        let lent = good.recv().await.unwrap();
        assert_eq!(lent.len(), 1);
        let error = good.recv().await.unwrap_err();
        assert!(matches!(error, LaneError::Protocol(_)), "{error}");
    });
}

/// Records take memory of nobody who might not have any.
#[test]
fn records_come_through_an_exhausted_pool() {
    run(async {
        let setup = Setup { pool_bytes: 1 << 20, trust: Trust::Untrusted, ..Setup::default() };
        let (mut a, mut b) = crate::common::pair(&setup).await;
        // Nothing is left: neither in the pool nor below the lease.
        let mut all = Vec::new();
        for len in [64 << 10, 4096, 1024, 256, 64] {
            while let Ok(buf) = b.pool.try_alloc(len) {
                all.push(buf);
            }
        }
        for len in [40, 400, 1000] {
            let record = Frame { kind: FrameKind::Session, ack: false, seq: 0, payload: body(len, 1).into() };
            a.lane.tx.start_send(record, false).unwrap();
            assert!(a.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
            assert!(b.recv().await.unwrap()[0].payload == body(len, 1)[..]);
        }
        drop(all);
    });
}
