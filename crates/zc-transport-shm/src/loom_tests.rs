//! Models of the ring, of the handshake before sleeping and of the free list.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::layout::{Head, SLOT_WORDS};
use crate::ring::{Consumer, Producer};
use crate::sleep::{Ringer, Sleeper};
use crate::testing::Cells;
use crate::words::{ReadWords, WriteWords};

/// Two slots, three messages: whole, in order, never overwritten before they are read.
#[test]
fn loom_ring_delivers_whole_and_in_order() {
    loom::model(|| {
        let cells = Cells::new(2 * SLOT_WORDS + 1);
        let count = 2 * SLOT_WORDS;
        let (mut tx, mut rx) = (Producer::new(cells.clone(), 0, 2), Consumer::new(cells.clone(), 0, 2));
        let theirs = cells.clone();
        let sender = thread::spawn(move || {
            for n in 1..=3u64 {
                while tx.free() == 0 {
                    assert!(tx.update(theirs.load(count)));
                    thread::yield_now();
                }
                tx.push(Head { kind: 1, flags: 0, count: 1 }, n, &[n * 10]);
                // The second and the third in one batch, if there is room.
                if n != 2 || tx.free() == 0 {
                    tx.publish();
                }
            }
        });
        for n in 1..=3u64 {
            while rx.peek().is_none() {
                thread::yield_now();
            }
            let mut word = [0];
            rx.read(&mut word);
            assert_eq!((rx.seq(), word[0]), (n, n * 10));
            rx.advance();
            cells.publish(count, rx.count());
        }
        sender.join().unwrap();
    });
}

/// Whoever goes to sleep after nothing was found is rung for, whatever the order.
#[test]
fn loom_sleep_loses_no_wake_up() {
    loom::model(|| {
        let cells = Cells::new(2);
        let bell = Arc::new((Mutex::new(false), Condvar::new()));
        let (mut sleeper, ringer) = (Sleeper::new(cells.clone(), 0), Ringer::new(cells.clone(), 0));
        let (theirs, rung) = (cells.clone(), bell.clone());
        let waker = thread::spawn(move || {
            for n in 1..=2 {
                theirs.publish(1, n);
                if ringer.must_ring() {
                    *rung.0.lock().unwrap() = true;
                    rung.1.notify_one();
                }
            }
        });
        let mut seen = 0;
        while seen < 2 {
            if cells.load(1) > seen {
                seen = cells.load(1);
                sleeper.disarm();
                continue;
            }
            sleeper.arm();
            if cells.load(1) > seen {
                continue;
            }
            // Asleep: only the bell ends it. After a lost wake-up everybody sleeps, which loom reports.
            let mut rung = bell.0.lock().unwrap();
            while !*rung {
                rung = bell.1.wait(rung).unwrap();
            }
            *rung = false;
            drop(rung);
            sleeper.disarm();
        }
        waker.join().unwrap();
    });
}
