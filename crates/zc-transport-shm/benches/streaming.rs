//! What a streaming copy (non-temporal stores) gains or loses over the ordinary one (`memcpy`), for payload that has to
//! be copied into the arena: two processes, each on a core of its own, that both copy into a block of their own memory,
//! which the other one maps and reads in full. A loop of ordinary vector stores shows what of it is `memcpy`'s own.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench streaming       nothing else should run; a few seconds
//! ```
//!
//! The kinds of copy take turns. A round counts when a cache line bounced between the cores at the same speed before
//! and after it, and is near or far by that speed. Ratios are to `memcpy` in the same round.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a benchmark; it copies no message of anybody"
)]

mod measure;

#[cfg(target_arch = "x86_64")]
fn main() {
    streaming::main();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("streaming stores are written down for x86-64 only");
}

#[cfg(target_arch = "x86_64")]
mod streaming {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_store_si128, _mm_stream_si128};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use zc_core::memory::{Backing, PeerMapping, Region, Sealing};

    use crate::measure::{CHILD, median, pin};

    const SIZES: [usize; 8] = [8 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 10 << 20];
    const LONGEST: usize = 10 << 20;
    const ROUNDS: usize = 25;
    const BOUNCES: u64 = 2_000;
    /// The line bounces in less: near. Otherwise far.
    const NEAR_NS: f64 = 250.0;
    /// Probes of one round may differ by this factor.
    const SAME: f64 = 1.3;
    /// Control lines, and then a place for each side.
    const CONTROL: usize = 4096;
    /// A side that hears nothing for so long ends: the other one is gone.
    const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) fn main() {
        match std::env::var(CHILD) {
            Ok(fd) => child(&fd),
            Err(_) => parent(),
        }
    }

    fn trips(len: usize) -> u64 {
        (16 << 20) as u64 / len as u64 + 2
    }

    struct Side {
        region: Region,
        source: Vec<u8>,
        first: bool,
        turn: u64,
    }

    fn ordinary(from: &[u8], to: *mut u8) {
        // SAFETY: `to` is a place of that length in shared memory that the reader leaves alone until it is told.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// Line by line, in vectors.
    ///
    /// # Safety
    /// `to` is such a place.
    #[inline(always)]
    unsafe fn by_lines(from: &[u8], to: *mut u8, store: unsafe fn(*mut __m128i, __m128i)) {
        let (lines, rest) = from.as_chunks::<64>();
        assert!(rest.is_empty() && to.addr().is_multiple_of(64));
        for (at, line) in lines.iter().enumerate() {
            // SAFETY: inside of both; whole lines, so every store is aligned.
            unsafe {
                let (from, to) = (line.as_ptr().cast::<__m128i>(), to.add(64 * at).cast::<__m128i>());
                let parts = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
                parts.into_iter().enumerate().for_each(|(part, value)| store(to.add(part), value));
            }
        }
    }

    fn vectors(from: &[u8], to: *mut u8) {
        // SAFETY: as above.
        unsafe { by_lines(from, to, |to, value| _mm_store_si128(to, value)) }
    }

    fn streamed(from: &[u8], to: *mut u8) {
        // SAFETY: as above; the fence puts the stores before the flag.
        unsafe {
            by_lines(from, to, |to, value| _mm_stream_si128(to, value));
            _mm_sfence();
        }
    }

    const COPIES: [fn(&[u8], *mut u8); 3] = [ordinary, vectors, streamed];
    /// Microseconds of a trip, of our copy, and of our reading; for each kind of copy.
    type Figures = [[f64; 3]; COPIES.len()];

    impl Side {
        fn flag(&self, at: usize) -> &AtomicU64 {
            // SAFETY: aligned, inside of the region, and accessed atomically only.
            unsafe { &*self.region.base().add(512 * at).cast() }
        }

        fn place(&self, first: bool) -> *mut u8 {
            let at = CONTROL + if first { 0 } else { LONGEST };
            self.region.base_mut().as_ptr().wrapping_add(at)
        }

        fn wait(&self, at: usize, value: u64) {
            let mut start = None;
            for spins in 1u64.. {
                if self.flag(at).load(Ordering::Acquire) == value {
                    return;
                }
                std::hint::spin_loop();
                if spins.is_multiple_of(1 << 20) {
                    let start = *start.get_or_insert_with(Instant::now);
                    assert!(start.elapsed() < PATIENCE, "the other side is gone");
                }
            }
        }

        /// One cache line, there and back, nanoseconds.
        fn bounce(&mut self) -> f64 {
            let start = Instant::now();
            for _ in 0..BOUNCES {
                self.turn += 2;
                if self.first {
                    self.flag(0).store(self.turn, Ordering::Release);
                    self.wait(0, self.turn + 1);
                } else {
                    self.wait(0, self.turn);
                    self.flag(0).store(self.turn + 1, Ordering::Release);
                }
            }
            start.elapsed().as_nanos() as f64 / BOUNCES as f64
        }

        /// Messages there and back: microseconds of a trip, of our copy, and of our reading.
        fn exchange(&mut self, len: usize, copy: fn(&[u8], *mut u8)) -> [f64; 3] {
            let (mine, theirs) = if self.first { (1, 2) } else { (2, 1) };
            let (start, mut copying, mut reading) = (Instant::now(), Duration::ZERO, Duration::ZERO);
            for _ in 0..trips(len) {
                self.turn += 2;
                if !self.first {
                    self.wait(theirs, self.turn);
                    reading += self.read(len);
                }
                let before = Instant::now();
                copy(&self.source[..len], self.place(self.first));
                copying += before.elapsed();
                self.flag(mine).store(self.turn, Ordering::Release);
                if self.first {
                    self.wait(theirs, self.turn);
                    reading += self.read(len);
                }
            }
            [start.elapsed(), copying, reading].map(|all| all.as_nanos() as f64 / 1e3 / trips(len) as f64)
        }

        fn read(&self, len: usize) -> Duration {
            let before = Instant::now();
            // SAFETY: inside of the region, and its writer waits for our answer before it writes again.
            let bytes = unsafe { std::slice::from_raw_parts(self.place(!self.first), len) };
            let (words, _) = bytes.as_chunks::<8>();
            std::hint::black_box(words.iter().fold(0u64, |sum, word| sum ^ u64::from_ne_bytes(*word)));
            before.elapsed()
        }

        /// All rounds; what was measured is kept by the first.
        fn run(&mut self, mut keep: impl FnMut(usize, [f64; 2], Figures)) {
            for round in 0..=ROUNDS {
                for (at, len) in SIZES.into_iter().enumerate() {
                    let before = self.bounce();
                    let figures = COPIES.map(|copy| self.exchange(len, copy));
                    let after = self.bounce();
                    // The first round warms up.
                    if round > 0 {
                        keep(at, [before, after], figures);
                    }
                }
            }
        }
    }

    const BYTES: usize = CONTROL + 2 * LONGEST;

    fn child(fd: &str) {
        pin(1);
        // SAFETY: made by the parent for this process, and named once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
        let both =
            PeerMapping { max_bytes: BYTES, sealing: Sealing::AnyoneWrites, writable: true, prefault: true };
        let region = both.map(fd).unwrap();
        Side { region, source: vec![3; LONGEST], first: false, turn: 0 }.run(|_, _, _| ());
    }

    fn parent() {
        pin(0);
        let memory = Region::builder(BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
        let region = memory.prefault(true).build().unwrap();
        let fd = region.fd().unwrap().try_clone_to_owned().unwrap();
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(CHILD, fd.as_raw_fd().to_string()).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut rows = [const { [const { Vec::new() }; 2] }; SIZES.len()];
        let (mut changed, mut lines_ns) = (0, [const { Vec::new() }; 2]);
        let mut side = Side { region, source: vec![7; LONGEST], first: true, turn: 0 };
        side.run(|at, [before, after], figures| {
            if before.max(after) / before.min(after) > SAME {
                changed += 1;
                return;
            }
            let regime = usize::from(before >= NEAR_NS);
            lines_ns[regime].push(before);
            rows[at][regime].push(figures);
        });
        assert!(child.wait().unwrap().success());
        for (regime, name) in ["near", "far"].into_iter().enumerate() {
            println!("{name}: the line bounces in {:.0} ns", median(&mut lines_ns[regime]));
            print(rows.each_ref().map(|of| &of[regime][..]));
        }
        println!("{changed} rounds do not count");
    }

    /// Round trips; and of them the copying and the reading of one side.
    fn print(rows: [&[Figures]; SIZES.len()]) {
        println!(
            "{:>10} {:>6} {:>13} {:>8} {:>10}   {:>22} {:>22}",
            "bytes",
            "rounds",
            "memcpy",
            "vectors",
            "streaming",
            "copy: vectors, stream.",
            "read: vectors, stream."
        );
        for (len, of) in SIZES.into_iter().zip(rows) {
            let column =
                |figure: &dyn Fn(&Figures) -> f64| median(&mut of.iter().map(figure).collect::<Vec<_>>());
            let ratio = |kind: usize, what: usize| column(&|f| f[kind][what] / f[0][what]);
            println!(
                "{len:>10} {:>6} {:>10.1} us {:>8.2} {:>10.2}   {:>14.2} {:>7.2} {:>14.2} {:>7.2}",
                of.len(),
                column(&|f| f[0][0]),
                ratio(1, 0),
                ratio(2, 0),
                ratio(1, 1),
                ratio(2, 1),
                ratio(1, 2),
                ratio(2, 2),
            );
        }
    }
}
