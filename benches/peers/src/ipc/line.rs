//! The bound: one cache line that two processes bounce.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::Result;
use crate::child::serve;
use crate::contender::Contender;
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;
use crate::sys::SharedPage;

/// The client's last word.
const END: u64 = u64::MAX;
/// Bounces between two looks at the clock, so that the clock is no part of the bound.
const BATCH: u32 = 64;

pub(crate) struct Line;

impl Contender for Line {
    fn name(&self) -> &'static str {
        "cache line"
    }

    fn takes(&self, test: Test, size: usize) -> bool {
        test == Test::RoundTrip && size <= 64
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        let memory = memfd_create("zc-peers", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, SharedPage::BYTES as u64)?;
        let page = SharedPage::map(&memory)?;
        let server = serve(job, memory, std::process::Stdio::null())?;
        let mut turn = 0;
        let mut bounce = || {
            page.word().store(turn + 1, Ordering::Release);
            turn += 2;
            while page.word().load(Ordering::Acquire) != turn {
                spin_loop();
            }
        };
        // The server has started when the first one comes back.
        bounce();
        let mut times = Histogram::<u64>::new(3)?;
        let until = Instant::now() + job.duration()?;
        loop {
            let began = Instant::now();
            (0..BATCH).for_each(|_| bounce());
            let now = Instant::now();
            times.record((now - began).as_nanos() as u64)?;
            if now >= until {
                break;
            }
        }
        page.word().store(END, Ordering::Release);
        server.farewell();
        Ok(vec![(Metric::RoundTripNs, times.value_at_quantile(0.5) as f64 / f64::from(BATCH))])
    }

    /// Answers odd numbers with even ones.
    fn serve(&self, _job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        let (memory, _) = crate::sockets::inherited()?;
        let page = SharedPage::map(&memory)?;
        loop {
            match page.word().load(Ordering::Acquire) {
                END => return Ok(()),
                turn if turn % 2 == 1 => page.word().store(turn + 1, Ordering::Release),
                _ => spin_loop(),
            }
        }
    }
}
