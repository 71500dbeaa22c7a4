//! A test program that starts itself again, to be killed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

use super::{End, Setup, TokioReactor, try_end};

/// The other process is told by this where to connect to.
pub const CHILD: &str = "ZC_SHM_TEST_CHILD";

/// ... and by this where to say how much it has done.
const TALLY: &str = "ZC_SHM_TEST_TALLY";

/// A number that a child counts up, and that is here still when it has been killed.
pub struct Tally(File);

impl Tally {
    pub fn new() -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        Self(rustix::fs::memfd_create("tally", flags).unwrap().into())
    }

    /// For this child, from 0 on.
    pub fn give(&self, command: &mut Command) {
        self.set(0);
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        command.env(TALLY, path);
    }

    /// The one that this process was given.
    pub fn given() -> Self {
        let path = std::env::var_os(TALLY).expect("a tally");
        Self(File::options().write(true).open(path).unwrap())
    }

    /// In one call: there is no half of it.
    pub fn set(&self, to: u64) {
        self.0.write_all_at(&to.to_ne_bytes(), 0).unwrap();
    }

    pub fn count(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

/// Killed at the latest when it is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program again, of which only the test `child` runs.
pub fn again(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--test-threads=1"]).env(CHILD, name);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What the other process does; in the first one nothing.
pub fn as_child<F: Future<Output = ()>>(setup: &Setup, talk: impl FnOnce(End) -> F) {
    let Ok(name) = std::env::var(CHILD) else { return };
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let link = StreamLinks.connect(&LinkAddr::UnixAbstract(name), &reactor).await.unwrap();
        talk(try_end(link, Role::Client, setup, None).await.unwrap()).await;
    });
}

/// Of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Of this process, of shared memory.
pub fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| l.contains("zc-shm")).count()
}
