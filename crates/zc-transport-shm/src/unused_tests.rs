//! Unused arenas are looked for only while there may be some: at simulated times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use zc_core::transport::*;

use crate::common::{End, Setup, body, data, pair, run};

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The sending side, as a connection serves it: whoever is woken looks at everything.
struct Served {
    end: End,
    woken: Arc<Woken>,
    now: Instant,
    timer: Option<Instant>,
    /// The application takes what comes.
    reads: bool,
}

impl Served {
    fn new(end: End) -> Self {
        Self { end, woken: Arc::default(), now: Instant::now(), timer: None, reads: true }
    }

    fn turn(&mut self) {
        let waker = Waker::from(self.woken.clone());
        let cx = &mut Context::from_waker(&waker);
        self.timer = self.end.lane.drive.as_mut().unwrap().poll_drive(cx, self.now).unwrap();
        assert!(self.end.lane.tx.poll_flush(cx).is_ready());
        assert!(!self.reads || self.end.lane.rx.poll_recv(cx, &mut Batch::new()).is_pending());
    }

    /// Turns until nobody asks for one, timers aside.
    async fn settle(&mut self) {
        self.turn();
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !self.woken.0.swap(false, Ordering::SeqCst) {
                return;
            }
            self.turn();
        }
    }

    /// Waits until it is woken.
    async fn until_woken(&mut self) {
        while !self.woken.0.swap(false, Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.settle().await;
    }

    /// Runs timers until there is none: how often one went off.
    async fn run_timers(&mut self) -> usize {
        self.settle().await;
        let mut count = 0;
        while let Some(at) = self.timer {
            count += 1;
            assert!(count < 10, "a timer for ever");
            self.now = at;
            self.settle().await;
        }
        count
    }

    async fn send(&mut self, len: usize) {
        let mut buf = self.end.alloc(len).await;
        buf.put_slice(&body(len, 1));
        self.end.send(data(1, buf.freeze())).await.unwrap();
    }
}

/// The length of a message, and of its arena: no other test of this package has one as long.
const LEN: usize = 7 << 20;

/// Arenas of that length which somebody here may write.
fn arenas() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let is_one = |line: &&str| {
        let address = |hex| usize::from_str_radix(hex, 16).unwrap();
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        line.contains("zc-shm") && line.contains("rw-s") && address(to) - address(from) == LEN
    };
    maps.lines().filter(is_one).count()
}

/// They share the table of mappings.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn what_the_peer_keeps_costs_no_timer_and_is_looked_for_when_it_is_back() {
    let _alone = ALONE.lock();
    run(async {
        let (a, mut b) = pair(&Setup::default()).await;
        let mut a = Served::new(a);
        a.settle().await;
        assert_eq!(a.timer, None);
        a.send(LEN).await;
        let kept = b.recv().await.unwrap();
        assert!((1..=2).contains(&a.run_timers().await), "one look, and then no more");
        assert_eq!(arenas(), 1);
        // The lane hears by itself of what comes back.
        drop(kept);
        a.until_woken().await;
        assert!(a.timer.is_some(), "nobody looks any more");
        assert!((1..=3).contains(&a.run_timers().await));
        assert_eq!(arenas(), 0);
    });
}

#[test]
fn what_we_keep_costs_no_timer_and_is_looked_for_when_it_is_back() {
    let _alone = ALONE.lock();
    run(async {
        let (a, mut b) = pair(&Setup::default()).await;
        let mut a = Served::new(a);
        let kept = a.end.alloc(LEN).await;
        assert!((1..=2).contains(&a.run_timers().await));
        // Small messages change nothing for long.
        for seq in 1..50 {
            a.end.send(data(seq, body(60, 1))).await.unwrap();
            b.recv().await.unwrap();
        }
        a.run_timers().await;
        assert_eq!(arenas(), 1);
        drop(kept);
        a.until_woken().await;
        assert!(a.timer.is_some(), "nobody looks any more");
        assert!((1..=3).contains(&a.run_timers().await));
        assert_eq!(arenas(), 0);
    });
}

#[test]
fn what_is_given_back_before_it_is_read_is_looked_for_when_it_is_read() {
    let _alone = ALONE.lock();
    run(async {
        let (a, mut b) = pair(&Setup::default()).await;
        let mut a = Served::new(a);
        a.reads = false;
        a.send(LEN).await;
        for frame in b.recv().await.unwrap() {
            b.send(frame).await.unwrap();
        }
        // A look finds that it was given back, and that it lies in the ring.
        assert!((1..=3).contains(&a.run_timers().await));
        assert_eq!((arenas(), a.timer), (1, None));
        let mut came = Batch::new();
        let waker = Waker::from(a.woken.clone());
        assert!(a.end.lane.rx.poll_recv(&mut Context::from_waker(&waker), &mut came).is_ready());
        assert_eq!(came.drain().count(), 1);
        a.until_woken().await;
        assert!(a.timer.is_some(), "nobody looks any more");
        assert!((1..=3).contains(&a.run_timers().await));
        assert_eq!(arenas(), 0);
    });
}

/// One that is used again and again is looked at as long as it is.
#[test]
fn what_is_used_is_not_taken_away() {
    let _alone = ALONE.lock();
    run(async {
        let (a, mut b) = pair(&Setup::default()).await;
        let mut a = Served::new(a);
        for _ in 0..5 {
            a.send(LEN).await;
            drop(b.recv().await.unwrap());
            b.lane.rx.release(LEN);
            a.settle().await;
            a.now = a.timer.expect("it may be unused from now on");
            assert_eq!(arenas(), 1);
        }
        assert!((1..=3).contains(&a.run_timers().await));
        assert_eq!(arenas(), 0);
    });
}
