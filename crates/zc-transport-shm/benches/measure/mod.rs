//! What the benchmarks share.

/// The process that a benchmark starts is told by this what to connect to.
pub(crate) const CHILD: &str = "ZC_SHM_BENCH_CHILD";

pub(crate) fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if rustix::thread::sched_setaffinity(None, &set).is_err() {
        println!("core {core} can't be used: the figures mean little");
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
