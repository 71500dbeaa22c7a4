//! One cache line that two processes bounce: how far their cores are apart.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use zc_core::memory::{Backing, PeerMapping, Region, Sealing};

const BOUNCES: u64 = 2_000;
const BYTES: usize = 4096;
/// Names its memory to the child.
const LINE: &str = "ZC_SHM_BENCH_LINE";
/// How far the cores are apart: one core that plays two, near, and far.
pub(crate) const APART: [&str; 3] = ["one", "near", "far"];
/// From one to the next by what a bounce takes.
const BOUNDS_NS: [f64; 2] = [65.0, 250.0];

pub(crate) struct Line {
    region: Region,
    first: bool,
    turn: u64,
}

impl Line {
    /// Makes it, and lets `child` inherit it.
    pub(crate) fn shared_with(child: &mut Command) -> Self {
        let memory = Region::builder(BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
        let region = memory.prefault(true).build().unwrap();
        // Kept open by the region, as long as the child takes to start.
        let fd = region.fd().unwrap();
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        child.env(LINE, fd.as_raw_fd().to_string());
        Self { region, first: true, turn: 0 }
    }

    /// That of the parent.
    pub(crate) fn inherited() -> Self {
        let fd = std::env::var(LINE).unwrap().parse().unwrap();
        // SAFETY: made by the parent for this process, and taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let sealing = Sealing::AnyoneWrites;
        let both = PeerMapping { max_bytes: BYTES, sealing, writable: true, prefault: true };
        Self { region: both.map(fd).unwrap(), first: false, turn: 0 }
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: aligned, inside of the region, and accessed atomically only.
        unsafe { &*self.region.base().cast() }
    }

    fn wait(&self, value: u64) {
        while self.word().load(Ordering::Acquire) != value {
            std::hint::spin_loop();
        }
    }

    /// There and back, nanoseconds.
    pub(crate) fn bounce(&mut self) -> f64 {
        let start = Instant::now();
        for _ in 0..BOUNCES {
            self.turn += 2;
            if self.first {
                self.word().store(self.turn, Ordering::Release);
                self.wait(self.turn + 1);
            } else {
                self.wait(self.turn);
                self.word().store(self.turn + 1, Ordering::Release);
            }
        }
        start.elapsed().as_nanos() as f64 / BOUNCES as f64
    }
}

/// Of [`APART`].
pub(crate) fn apart(bounce_ns: f64) -> usize {
    BOUNDS_NS.iter().filter(|bound| bounce_ns >= **bound).count()
}
