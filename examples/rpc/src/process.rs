//! A server as a second process, and what it costs.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use tokio::signal::unix::{SignalKind, signal};

use crate::BoxError;

/// A server in a process of its own, pinned to the first core. It ends when this is dropped.
pub struct Server {
    child: Child,
    /// Where it listens, with the real port.
    pub uri: String,
}

impl Server {
    /// Starts this program again as `server URI --child`, with `--http2` if asked for.
    ///
    /// # Errors
    /// It did not start, or said nothing.
    pub fn start(uri: &str, http2: bool) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["server", uri, "--child"])
            .args(http2.then_some("--http2"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the server has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let uri = line.trim().to_owned();
        if uri.is_empty() {
            child.wait()?;
            return Err("the server did not start".into());
        }
        Ok(Self { child, uri })
    }

    /// The time that its threads have run, nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        cpu_ns(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its end is the server's signal to stop.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The time that a process's threads have run, nanoseconds; 0 if the kernel does not say.
pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks.flatten().filter_map(|task| ran_ns(&task.path())).sum()
}

/// The time that a thread of this process has run, nanoseconds; 0 if the kernel does not say.
pub fn thread_cpu_ns(thread: u32) -> u64 {
    ran_ns(format!("/proc/self/task/{thread}").as_ref()).unwrap_or(0)
}

fn ran_ns(task: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The number that the kernel gave to the calling thread.
pub fn this_thread() -> u32 {
    gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The calling thread, and those that it starts, stay on one core, if there are two.
pub fn pin(core: usize) {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > core) {
        let mut set = CpuSet::new();
        set.set(core);
        let _ = sched_setaffinity(None, &set);
    }
}

/// Ready at a SIGTERM.
async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut signals) => drop(signals.recv().await),
        // It ends the process, then, as it does by default.
        Err(_) => std::future::pending().await,
    }
}

/// Ready when a server should stop: Ctrl-C or a SIGTERM, or as a child when its parent is gone.
pub async fn stopped(child: bool) {
    if !child {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            () = terminated() => {}
        }
        return;
    }
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = ended.send(());
    });
    let _ = end.await;
}
