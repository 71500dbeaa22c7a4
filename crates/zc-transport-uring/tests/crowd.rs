//! More at a time than the queues hold.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::*;
use futures::FutureExt;
use zc_core::memory::BufPool;
use zc_transport_uring::CQ_ENTRIES;

#[test]
fn more_submissions_than_the_queue_holds() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            futures::future::try_join_all((0..10_000).map(|_| engine.nop())).await.unwrap();
            assert_eq!((engine.stats().in_flight, engine.stats().unknown), (0, 0));
        });
    }
}

/// The kernel keeps what does not fit, and none of it is lost.
#[test]
fn more_completions_than_the_queue_holds() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = BufPool::builder().max_bytes(64 << 20).build();
            let Some(engine) = engine(&pool, flavour) else { return };
            let count = CQ_ENTRIES as usize * 2 + 7;
            let (read, write) = rustix::pipe::pipe().unwrap();
            let read = engine.file(read);
            let mut reads: Vec<_> =
                (0..count).map(|_| Box::pin(read.read_at(pool.try_alloc(1).unwrap(), 1, 0))).collect();
            reads.iter_mut().for_each(|read| assert!(read.now_or_never().is_none()));
            while engine.stats().turns == 0 {
                tokio::task::yield_now().await;
            }
            // All of them end at once.
            drop(write);
            for read in reads {
                assert!(read.await.unwrap().is_empty());
            }
            engine.shutdown().await;
            assert_eq!((engine.stats().in_flight, engine.stats().unknown), (0, 0));
            assert_eq!(pool.stats().in_use_bytes, 0);
        });
    }
}

/// The task of an engine that has nothing to do sleeps.
#[test]
fn an_idle_engine_takes_no_turns() {
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = pool();
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = unix_pair();
            let (tx, _rx) = engine.socket(a).unwrap();
            let (_tx, mut rx) = engine.socket(b).unwrap();
            for n in 0..10 {
                tx.send(bytes(100, n), true).await.unwrap();
                assert_eq!(rx.recv().await.unwrap()[..], pattern(100, n));
            }
            assert!(rx.recv().now_or_never().is_none());
            // Whatever the last round has left to do.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let before = engine.stats().turns;
            assert!(before < 200, "{before} turns for 10 round trips");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            assert_eq!(engine.stats().turns, before);
        });
    }
}
