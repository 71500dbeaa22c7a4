//! Runs one behaviour: a runtime, a guard against hanging, and a look at what is left.

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::setup::{Bench, Setup};

/// The longest that a behaviour may take. Not a bound on speed: none needs a quarter of it.
pub const GUARD: Duration = Duration::from_secs(120);
/// The longest to wait for memory and tasks to go away.
const LEFTOVERS: Duration = Duration::from_secs(45);

/// A behaviour that does not apply, with the reason.
///
/// ```
/// use zc_conformance::Skipped;
///
/// let skipped = Skipped("the transport has no one-sided operations".into());
/// assert!(skipped.0.contains("one-sided"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped(pub String);

/// How a behaviour that did not panic ended.
///
/// ```
/// use zc_conformance::{Bench, Skipped, Verdict};
///
/// /// A behaviour of your own: a failed expectation panics.
/// async fn nothing_to_see(_: &Bench) -> Verdict {
///     Err(Skipped("an example".into()))
/// }
/// let setup = zc_conformance::Setup::new(zc::Fabric::auto_builder, "zc+mem://{}");
/// zc_conformance::run("doc::nothing_to_see", setup, nothing_to_see);
/// ```
pub type Verdict = Result<(), Skipped>;

/// Runs `behaviour`. `name` is its whole path, which begins with the test crate's name.
///
/// # Panics
/// When the behaviour does, when it hangs, or when something is left behind.
pub fn run<F>(name: &'static str, setup: Setup, behaviour: F)
where
    F: AsyncFnOnce(&Bench) -> Verdict + Send + 'static,
{
    let short = name.rsplit("::").next().unwrap_or(name);
    if let Some(why) = setup.left_out(short) {
        return say(name, why);
    }
    let bench = Bench::new(setup, name);
    let (done, wait) = mpsc::channel();
    // Children die with the thread that started them, so all of it happens on this one.
    let thread = thread::Builder::new().name(short.to_owned());
    let thread = thread.spawn(move || {
        let _ = done.send(on_a_runtime(bench, behaviour));
    });
    let thread = thread.expect("a thread");
    match wait.recv_timeout(GUARD) {
        Ok(Ok(())) => {}
        Ok(Err(Skipped(why))) => say(name, &why),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name} hangs: {GUARD:?} have passed"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Past the test harness, which would show it for failed tests only.
fn say(name: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}

fn on_a_runtime<F>(bench: Bench, behaviour: F) -> Verdict
where
    F: AsyncFnOnce(&Bench) -> Verdict,
{
    bench.runtime().block_on(async {
        let verdict = behaviour(&bench).await;
        nothing_is_left(&bench, 0).await;
        verdict
    })
}

/// The tasks of this runtime.
pub(crate) fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Waits until every buffer is back and every task has ended, but for so many.
pub(crate) async fn nothing_is_left(bench: &Bench, but_tasks: usize) {
    let began = Instant::now();
    loop {
        let tasks = tasks();
        let lent = bench.outstanding();
        if tasks <= but_tasks && lent.is_empty() {
            return;
        }
        assert!(began.elapsed() < LEFTOVERS, "left behind: {tasks} tasks, buffers {lent:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
