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

/// Runs a benchmark of two processes, each on its core: the child if this is it.
#[allow(dead_code, clippy::expect_used, reason = "a benchmark; some are of another shape")]
pub(crate) fn two_processes<P: Future<Output = ()>, C: Future<Output = ()>>(
    parent: impl FnOnce() -> P,
    child: impl FnOnce(String) -> C,
) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match std::env::var(CHILD) {
        Ok(name) => {
            pin(1);
            rt.block_on(child(name));
        }
        Err(_) => {
            pin(0);
            rt.block_on(parent());
        }
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
