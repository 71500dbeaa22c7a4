//! Models of the rings, of the handshake before sleeping and of the free list.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::borrowed::Loans;
use crate::free_list::Stack;
use crate::kept::{Kept, KeptOf, Part, Size};
use crate::layout::{Head, Return, SLOT_WORDS};
use crate::out::Views;
use crate::remote::Calls;
use crate::returns::{Returned, Returning};
use crate::ring::{Consumer, Producer};
use crate::sleep::{Rang, Ringer, Sleeper};
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

/// Two threads publish and ring for one sleeper, as messages that are dropped do: whichever rings, it sees what both did.
#[test]
fn loom_two_ringers_lose_no_wake_up() {
    loom::model(|| {
        let cells = Cells::new(3);
        let bell = Arc::new((Mutex::new(false), Condvar::new()));
        let (mut sleeper, ringer) = (Sleeper::new(cells.clone(), 0), Arc::new(Ringer::new(cells.clone(), 0)));
        let threads = [1, 2].map(|at| {
            let (theirs, ringer, rung) = (cells.clone(), ringer.clone(), bell.clone());
            thread::spawn(move || {
                theirs.publish(at, 1);
                if ringer.must_ring() {
                    *rung.0.lock().unwrap() = true;
                    rung.1.notify_one();
                }
            })
        });
        let mut seen = 0;
        let look = |seen: &mut u64| {
            let now = cells.load(1) + cells.load(2);
            std::mem::replace(seen, now) != now
        };
        while seen < 2 {
            sleeper.arm();
            if look(&mut seen) {
                sleeper.disarm();
                continue;
            }
            let mut rung = bell.0.lock().unwrap();
            while !*rung {
                rung = bell.1.wait(rung).unwrap();
            }
            *rung = false;
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Two threads give back at once: the owner gets every block once, whole, and what they read of it before.
#[test]
fn loom_returns_come_back_once_and_whole() {
    loom::model(|| {
        let cells = Cells::new(4 + 2);
        let ring = Arc::new(Returning::new(cells.clone(), 0, 4));
        let mut owner = Returned::new(cells.clone(), 0, 4);
        let give = |block: u16| {
            let (ring, cells) = (ring.clone(), cells.clone());
            thread::spawn(move || {
                // Stands for the last read of the block.
                cells.store(4 + block as usize, 1);
                ring.push(Return { slab: 1, sent_back: 0, generation: 7 + block, block });
            })
        };
        let threads = [give(0), give(1)];
        let mut got = Vec::new();
        while got.len() < 2 {
            match owner.next() {
                Some(back) => {
                    assert_eq!((back.slab, back.generation), (1, 7 + back.block));
                    assert_eq!(cells.load(4 + back.block as usize), 1, "still read");
                    got.push(back.block);
                }
                None => thread::yield_now(),
            }
        }
        got.sort_unstable();
        assert_eq!((got, owner.next()), (vec![0, 1], None));
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Blocks that two threads free are all found, each once, also by one that takes meanwhile and takes again.
#[test]
fn loom_free_list_loses_and_doubles_nothing() {
    use zc_core::memory::Reclaim;
    loom::model(|| {
        let mut stack = Stack::new(0, 3, std::sync::Arc::default());
        let all: Vec<_> = std::iter::from_fn(|| stack.pop()).collect();
        assert_eq!(all, [0, 1, 2]);
        let free = |blocks: &'static [u32]| {
            let home = stack.home();
            thread::spawn(move || blocks.iter().for_each(|block| home.reclaim(*block)))
        };
        let threads = [free(&[0, 1]), free(&[2])];
        let mut got: Vec<_> = stack.pop().into_iter().collect();
        for thread in threads {
            thread.join().unwrap();
        }
        got.extend(std::iter::from_fn(|| stack.pop()));
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
    });
}

/// Who waits for a block hears of one that comes back, or sees it when it looks again.
#[test]
fn loom_free_list_loses_no_wake_up() {
    use zc_core::memory::Reclaim;
    struct Rung(std::sync::atomic::AtomicBool);
    impl std::task::Wake for Rung {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    loom::model(|| {
        let rung = std::sync::Arc::new(Rung(false.into()));
        let waker: std::sync::Arc<futures::task::AtomicWaker> = std::sync::Arc::default();
        waker.register(&rung.clone().into());
        let mut stack = Stack::new(0, 1, waker);
        assert_eq!(stack.pop(), Some(0));
        let home = stack.home();
        let other = thread::spawn(move || home.reclaim(0));
        stack.wait();
        let seen = stack.pop().is_some();
        other.join().unwrap();
        assert!(seen || rung.0.load(std::sync::atomic::Ordering::SeqCst), "asleep for ever");
    });
}

const EPOCH: usize = 0;
const CALLS: usize = 1;
const RECORDS: usize = 2;

/// A bell, or a task that was woken.
#[derive(Clone)]
struct Signal(Arc<Mutex<(bool, bool)>>);

impl Signal {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((false, false))))
    }

    fn set(&self) {
        self.0.lock().unwrap().0 = true;
    }

    fn try_take(&self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    /// As a poll of it: if it is silent, the reactor tells of the next ring, once.
    fn hear(&self) -> bool {
        let (set, heard) = &mut *self.0.lock().unwrap();
        *heard |= !*set;
        std::mem::take(set)
    }

    /// The reactor: whether it tells of a ring.
    fn tell(&self) -> bool {
        let (set, heard) = &mut *self.0.lock().unwrap();
        *set && std::mem::take(heard)
    }
}

struct Task(Signal);

impl futures::task::ArcWake for Task {
    fn wake_by_ref(this: &std::sync::Arc<Self>) {
        this.0.set();
    }
}

/// The one-sided half, as far as its sleep goes: `Remote::poll_completions`.
struct Half {
    cells: Cells,
    sleeper: Sleeper<Cells>,
    calls: std::sync::Arc<Calls<Cells>>,
    bell: Signal,
    seen: u64,
}

impl Half {
    fn look(&mut self) {
        self.seen = self.cells.load(RECORDS);
    }

    /// Until there is nothing more.
    fn poll(&mut self, task: &std::task::Waker) {
        while self.poll_once(task) {}
    }

    /// True: it has found something.
    fn poll_once(&mut self, task: &std::task::Waker) -> bool {
        let before = self.seen;
        loop {
            self.calls.register(task);
            self.look();
            if self.seen != before || self.calls.is_resting() {
                return self.seen != before;
            }
            self.calls.rest(&mut self.sleeper);
            self.look();
            let rung = self.bell.hear();
            if rung {
                self.calls.wake();
            }
            if self.seen != before || !rung {
                return self.seen != before;
            }
        }
    }
}

/// `records` of a peer that calls for each; another half of the lane silences the bell as well, and something may make
/// the one-sided half look without having been polled, as a grant does.
fn calls_lose_no_wake_up(records: u64, aside: bool) {
    let cells = Cells::new(3);
    let (bell, task) = (Signal::new(), Signal::new());
    let calls = std::sync::Arc::new(Calls::new(cells.clone(), CALLS));
    let peer = {
        let (cells, bell) = (cells.clone(), bell.clone());
        let ringer = Ringer::new(cells.clone(), EPOCH);
        thread::spawn(move || {
            for n in 1..=records {
                cells.publish(RECORDS, n);
                cells.publish(CALLS, n);
                if ringer.must_ring() {
                    bell.set();
                }
            }
        })
    };
    let other = {
        let (calls, bell) = (calls.clone(), bell.clone());
        thread::spawn(move || {
            if bell.try_take() {
                calls.wake();
            }
        })
    };
    let sleeper = Sleeper::new(cells.clone(), EPOCH);
    let mut half = Half { cells, sleeper, calls, bell: bell.clone(), seen: 0 };
    let waker = futures::task::waker(std::sync::Arc::new(Task(task.clone())));
    half.poll(&waker);
    if aside {
        half.look();
    }
    if task.try_take() {
        half.poll(&waker);
    }
    other.join().unwrap();
    peer.join().unwrap();
    // From here on the reactor is the one to hear the bell. After a lost wake-up nobody wakes the task any more.
    while half.seen < records {
        if bell.tell() {
            half.calls.wake();
        }
        assert!(task.try_take(), "asleep for ever");
        half.poll(&waker);
    }
}

#[test]
fn loom_calls_lose_no_wake_up() {
    loom::model(|| calls_lose_no_wake_up(2, false));
}

#[test]
fn loom_calls_heard_aside_lose_no_wake_up() {
    loom::model(|| calls_lose_no_wake_up(2, true));
}

/// The sending half as it watches for what the peer gives back while nobody waits for it: a part of `Tx::wait_for_returns`. What is
/// given back on this side wakes the half itself.
struct Watching {
    cells: Cells,
    sleeper: Sleeper<Cells>,
    rang: std::sync::Arc<Rang>,
    bell: Signal,
    seen: u64,
}

impl Watching {
    fn poll(&mut self) {
        loop {
            if self.rang.take() || !self.sleeper.is_armed() {
                self.sleeper.arm();
                self.seen = self.cells.load(RECORDS);
            }
            if !self.bell.hear() {
                return;
            }
            self.rang.set();
        }
    }
}

/// What comes back is seen, whichever half silences the bell, and with `rest` also when the half goes to rest anew meanwhile.
fn returns_lose_no_wake_up(returns: u64, rest: bool) {
    let cells = Cells::new(3);
    let (bell, task) = (Signal::new(), Signal::new());
    let rang = std::sync::Arc::new(Rang::new());
    let peer = {
        let (cells, bell) = (cells.clone(), bell.clone());
        let ringer = Ringer::new(cells.clone(), EPOCH);
        thread::spawn(move || {
            for n in 1..=returns {
                cells.publish(RECORDS, n);
                if ringer.must_ring() {
                    bell.set();
                }
            }
        })
    };
    let other = {
        let (rang, bell, task) = (rang.clone(), bell.clone(), task.clone());
        thread::spawn(move || {
            if bell.try_take() {
                rang.set();
                task.set();
            }
        })
    };
    let sleeper = Sleeper::new(cells.clone(), EPOCH);
    let mut half = Watching { cells, sleeper, rang: rang.clone(), bell: bell.clone(), seen: 0 };
    half.poll();
    if rest && half.rang.take() {
        half.sleeper.disarm();
        half.poll();
    }
    if task.try_take() {
        half.poll();
    }
    other.join().unwrap();
    peer.join().unwrap();
    // From here on the reactor is the one to hear the bell. After a lost wake-up nobody wakes the task any more.
    while half.seen < returns {
        if bell.tell() {
            task.set();
        }
        assert!(task.try_take(), "asleep for ever");
        half.poll();
    }
}

#[test]
fn loom_returns_lose_no_wake_up() {
    loom::model(|| returns_lose_no_wake_up(2, false));
}

#[test]
fn loom_returns_lose_no_wake_up_at_rest() {
    loom::model(|| returns_lose_no_wake_up(2, true));
}

/// A buffer that several have; the last does something.
struct Shared<F: Fn()>(F);

impl<F: Fn()> Drop for Shared<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Whoever gives a loan back says how often it was sent back, by whomever.
#[test]
fn loom_loans_are_given_back_with_their_count() {
    loom::model(|| {
        let loans = Loans::new(1);
        loans.begin(0, 7, true);
        let said = Arc::new(Mutex::new(None));
        let (of, to) = (loans.clone(), said.clone());
        let buf = Arc::new(Shared(move || *to.lock().unwrap() = Some(of.end(3, 0))));
        let threads = [(); 2].map(|()| {
            let (buf, loans) = (buf.clone(), loans.clone());
            thread::spawn(move || {
                loans.count(0);
                drop(buf);
            })
        });
        drop(buf);
        for thread in threads {
            thread.join().unwrap();
        }
        let back = Return { slab: 3, sent_back: 2, generation: 7, block: 0 };
        assert_eq!(said.lock().unwrap().take(), Some((back, true)));
    });
}

/// While a block of an arena is kept the arena is counted, and when none is it is not.
#[test]
fn loom_kept_arenas_are_counted() {
    loom::model(|| {
        let all = Kept::new(1 << 20, Part::Half);
        let of = std::sync::Arc::new(KeptOf::new(all.clone(), Size::of_arena(4, 4096)));
        of.add();
        let give_back = || {
            let of = of.clone();
            thread::spawn(move || of.sub())
        };
        let first = give_back();
        of.add();
        assert!(all.slabs() >= 1, "one is kept");
        let second = give_back();
        of.add();
        assert!(all.slabs() >= 1, "one is kept");
        of.sub();
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(all.slabs(), 0);
    });
}

/// A block that came back as a message counts once, until nobody has it.
#[test]
fn loom_views_count_once_and_end() {
    loom::model(|| {
        let all = Kept::new(1 << 20, Part::Quarter);
        let views = Views::new(2, Some(KeptOf::new(all.clone(), Size::of_arena(2, 4096))));
        let block = |at: u32| {
            let views = views.clone();
            Arc::new(Shared(move || views.unmark(at)))
        };
        let blocks = [block(0), block(1)];
        let threads = [0, 1].map(|at| {
            // The receiving half marks what it delivers while it has it, and the sending half may let go of it meanwhile.
            let (held, delivered) = (blocks[at].clone(), blocks[at].clone());
            let sending = thread::spawn(move || drop(held));
            views.mark(at);
            views.mark(at);
            assert!(all.slabs() == 1);
            drop(delivered);
            sending
        });
        drop(blocks);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(all.slabs(), 0);
    });
}
