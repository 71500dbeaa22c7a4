//! Closed rings that the kernel has not let go of, and the memory that it may still use (M4).
//!
//! Closing a ring cancels what is in flight, but not at once. When the kernel is done, it lets go of the files that
//! are registered with the ring, among them the write end of a pipe: its read end then ends. One thread of the
//! process waits for that, as long as there is anything to wait for, at most [`GRAVE_MS`]; then the memory is leaked.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::buffers::Buffers;
use super::request::Request;
use crate::limits::{GRAVE_MS, MAX_GRAVES};

/// Memory, and the pipe that ends when the kernel is done with it.
struct Grave {
    gone: OwnedFd,
    requests: Vec<Request>,
    buffers: Option<Buffers>,
    until: Instant,
}

/// What the thread looks after.
struct Yard {
    new: Vec<Grave>,
    /// In all, with those that the thread has taken over.
    count: usize,
    is_watched: bool,
}

static YARD: Mutex<Yard> = Mutex::new(Yard { new: Vec::new(), count: 0, is_watched: false });
/// How long the thread sleeps at most before it looks for new graves.
const LOOK_MS: u64 = 10;

/// Keeps the memory until the pipe ends.
pub(crate) fn bury(gone: OwnedFd, requests: Vec<Request>, buffers: Option<Buffers>) {
    let until = Instant::now() + Duration::from_millis(GRAVE_MS);
    let grave = Grave { gone, requests, buffers, until };
    let mut yard = YARD.lock();
    if yard.count >= MAX_GRAVES {
        drop(yard);
        return grave.leak("too many rings wait for their end");
    }
    yard.count += 1;
    yard.new.push(grave);
    if yard.is_watched {
        return;
    }
    yard.is_watched = true;
    drop(yard);
    let watcher = std::thread::Builder::new().name("zc-uring-end".into()).spawn(watch);
    if watcher.is_err() {
        let mut yard = YARD.lock();
        let new = std::mem::take(&mut yard.new);
        yard.count -= new.len();
        yard.is_watched = false;
        drop(yard);
        new.into_iter().for_each(|grave| grave.leak("no thread to wait for its end"));
    }
}

/// Until there is nothing to wait for.
fn watch() {
    let mut graves = Vec::new();
    loop {
        {
            let mut yard = YARD.lock();
            graves.append(&mut yard.new);
            yard.count = graves.len();
            if graves.is_empty() {
                yard.is_watched = false;
                return;
            }
        }
        wait(&graves);
        let now = Instant::now();
        for index in (0..graves.len()).rev() {
            let grave: &Grave = &graves[index];
            if grave.is_over() {
                drop(graves.swap_remove(index));
            } else if now >= grave.until {
                graves.swap_remove(index).leak("the kernel still holds a closed ring");
            }
        }
    }
}

/// Until one ends, or for a moment.
fn wait(graves: &[Grave]) {
    let mut pipes: Vec<_> = graves.iter().map(|grave| PollFd::new(&grave.gone, PollFlags::empty())).collect();
    let moment = Timespec { tv_sec: 0, tv_nsec: (LOOK_MS * 1_000_000) as i64 };
    if poll(&mut pipes, Some(&moment)).is_err() {
        std::thread::sleep(Duration::from_millis(LOOK_MS));
    }
}

impl Grave {
    fn is_over(&self) -> bool {
        let mut pipe = [PollFd::new(&self.gone, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut pipe, Some(&now)).is_ok() && pipe[0].revents().contains(PollFlags::HUP)
    }

    fn leak(self, why: &str) {
        let Self { requests, buffers, .. } = self;
        tracing::warn!(operations = requests.len(), why, "memory of an io_uring is leaked");
        // The kernel may still read and write it (M4).
        std::mem::forget((requests, buffers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use zc_core::memory::BufPool;

    /// Memory that the kernel may use is nobody's until the ring is gone, however long that takes.
    #[test]
    fn memory_is_kept_until_the_pipe_ends() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = Arc::new(OwnedFd::from(socket));
        let mut held = Vec::new();
        for _ in 0..3 {
            let (gone, write) = rustix::pipe::pipe().unwrap();
            let request = Request::recv(&file, pool.try_alloc(1000).unwrap(), 1000, false);
            bury(gone, vec![request], None);
            held.push(write);
        }
        std::thread::sleep(Duration::from_millis(3 * LOOK_MS));
        let all = pool.stats().in_use_bytes;
        assert!(all >= 3000, "{all}");
        let until = Instant::now() + Duration::from_secs(60);
        while let Some(write) = held.pop() {
            drop(write);
            let left = held.len() as u64 * (all / 3);
            while pool.stats().in_use_bytes > left || Arc::strong_count(&file) > 1 + held.len() {
                assert!(Instant::now() < until, "{} of {left}", pool.stats().in_use_bytes);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!((pool.stats().in_use_bytes, Arc::strong_count(&file)), (left, 1 + held.len()));
        }
    }
}
