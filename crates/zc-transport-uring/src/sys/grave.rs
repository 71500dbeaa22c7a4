//! Closed rings that the kernel has not let go of, and the memory that it may still use (M4).
//!
//! Closing a ring cancels what is in flight, but not at once. When the kernel is done, it lets go of the files that
//! are registered with the ring, among them the write end of a pipe: its read end then ends. One thread of the
//! process waits for that, as long as there is anything to wait for, at most [`GRAVE_MS`]. Then it cuts connections whose
//! peers do not acknowledge what was sent out of the memory itself, and waits [`ABORT_MS`] more; what is still there is leaked.
//!
//! Other people's code runs here: owners of foreign bytes, wakers, subscribers of the log. What it throws must not let
//! go of other memory, so all of it is [`Kept`].

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zc_core::memory::Deferral;

use super::buffers::Buffers;
use super::fixed::Locked;
use super::request::Request;
use crate::limits::{ABORT_MS, GRAVE_MS, MAX_GRAVES};

/// Memory that the kernel may still read and write: let go of on purpose, or never, whatever unwinds (M4).
pub(crate) struct Kept(ManuallyDrop<(Vec<Request>, Option<Buffers>, Vec<Locked>)>);

impl Kept {
    pub(crate) fn new(buffers: Option<Buffers>, locked: Vec<Locked>) -> Self {
        Self(ManuallyDrop::new((Vec::new(), buffers, locked)))
    }

    pub(crate) fn push(&mut self, request: Request) {
        self.0.0.push(request);
    }

    /// How many operations are among it.
    pub(crate) fn operations(&self) -> usize {
        self.0.0.len()
    }

    /// Whether nothing of it is the kernel's, now that no operation begins any more.
    pub(crate) fn is_over(&self) -> bool {
        self.0.0.is_empty() && self.0.2.is_empty()
    }

    /// Nothing is received any more.
    pub(crate) fn let_go_of_buffers(&mut self) {
        let _deferral = Deferral::begin();
        drop(self.0.1.take());
    }

    /// See [`Request::hang_up`].
    pub(crate) fn hang_up(&self) {
        self.0.0.iter().for_each(Request::hang_up);
    }

    /// See [`Request::abort`].
    fn abort(&self) -> bool {
        self.0.0.iter().filter(|request| request.abort()).count() > 0
    }

    /// The memory stays for ever, the descriptors do not. Without operations it is locked pages, which go on to count.
    fn leak(mut self, why: &str) {
        self.0.0.iter_mut().for_each(Request::close_files);
        tracing::warn!(operations = self.operations(), why, "memory of an io_uring is leaked");
    }

    /// The kernel is done with it. What owners and wakers do runs at the end of a deferral, each by itself.
    pub(crate) fn let_go(self) {
        let _deferral = Deferral::begin();
        drop(ManuallyDrop::into_inner(self.0));
    }
}

/// Memory, and the pipe that ends when the kernel is done with it.
struct Grave {
    gone: OwnedFd,
    kept: Kept,
    until: Instant,
    is_aborted: bool,
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
pub(crate) fn bury(gone: OwnedFd, kept: Kept) {
    bury_until(gone, kept, Instant::now() + Duration::from_millis(GRAVE_MS));
}

fn bury_until(gone: OwnedFd, kept: Kept, until: Instant) {
    let grave = Grave { gone, kept, until, is_aborted: false };
    let mut yard = YARD.lock();
    if yard.count >= MAX_GRAVES {
        drop(yard);
        return grave.kept.leak("too many rings wait for their end");
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
        new.into_iter().for_each(|grave| grave.kept.leak("no thread to wait for its end"));
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
            let grave: &mut Grave = &mut graves[index];
            if grave.is_over() {
                let grave = graves.swap_remove(index);
                survive(|| grave.kept.let_go());
            } else if now >= grave.until && !grave.is_aborted && grave.kept.abort() {
                grave.is_aborted = true;
                grave.until = now + Duration::from_millis(ABORT_MS);
            } else if now >= grave.until {
                let grave = graves.swap_remove(index);
                survive(|| grave.kept.leak("the kernel still holds a closed ring"));
            }
        }
    }
}

/// Runs other people's code. The thread goes on: nobody else would look after what is left.
fn survive(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        // It was shown when it was thrown; dropping what was thrown could throw again.
        std::mem::forget(panic);
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
}

#[cfg(test)]
mod tests {
    use super::super::flights::Flights;
    use super::super::ring::{Opcode, Ring, Setup};
    use super::*;
    use bytes::Bytes;
    use std::sync::Arc;
    use zc_core::memory::BufPool;

    fn kept(request: Request) -> Kept {
        let mut kept = Kept::new(None, Vec::new());
        kept.push(request);
        kept
    }

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
            bury(gone, kept(request));
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
    /// A peer that acknowledges nothing keeps the memory of a send from being let go of, until its connection is cut.
    #[test]
    fn a_peer_that_does_not_read_keeps_no_memory_for_ever() {
        let setup = Setup { single_issuer: false, defer_taskrun: false, coop_taskrun: false, wide: false };
        let Ok(ring) = Ring::new(setup, 4, 8) else { return };
        let has = ring.opcodes().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_peer, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let file = Arc::new(OwnedFd::from(socket));
        // More than the peer takes in by itself, less than the kernel takes from here.
        rustix::net::sockopt::set_socket_send_buffer_size(&file, 4 << 20).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&_peer, 4 << 10).unwrap();
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        let mut buf = pool.try_alloc(3 << 20).unwrap();
        buf.set_len(3 << 20);
        let mut flights = Flights::new(ring, None, 1);
        if !has(Opcode::SendZc) {
            return;
        }
        let request = Request::send_zero_copy(&file, buf.freeze(), false, None);
        flights.start(false, request, ()).unwrap();
        let (mut sent, until) = (false, Instant::now() + Duration::from_secs(60));
        while !sent {
            assert!(Instant::now() < until, "it was not sent");
            flights.submit().unwrap();
            flights.reap(|event| {
                assert!(event.result > 0 && event.more, "{}", event.result);
                sent = true;
            });
        }
        let (gone, kept) = flights.close_for_test();
        bury_until(gone, kept, Instant::now() + Duration::from_millis(3 * LOOK_MS));
        let until = Instant::now() + Duration::from_secs(60);
        while pool.stats().in_use_bytes > 0 {
            assert!(Instant::now() < until, "the memory was leaked");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Descriptors of what is leaked are closed: nothing of theirs is memory.
    #[test]
    fn only_memory_is_leaked() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = Arc::new(OwnedFd::from(socket));
        kept(Request::recv(&file, pool.try_alloc(1000).unwrap(), 1000, false)).leak("as the test wants it");
        assert_eq!(Arc::strong_count(&file), 1);
        assert!(pool.stats().in_use_bytes >= 1000);
    }

    /// An owner that panics in one grave takes nothing out of another, and that one is still looked after.
    #[test]
    fn a_panic_lets_go_of_nothing_else() {
        struct PanicsOnDrop;
        impl AsRef<[u8]> for PanicsOnDrop {
            fn as_ref(&self) -> &[u8] {
                b"bytes"
            }
        }
        impl Drop for PanicsOnDrop {
            fn drop(&mut self) {
                panic!("an owner panics, as the test wants it");
            }
        }
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (file, of_first) = (Arc::new(OwnedFd::from(one)), Arc::new(OwnedFd::from(other)));
        let (first, end_first) = rustix::pipe::pipe().unwrap();
        let (second, end_second) = rustix::pipe::pipe().unwrap();
        bury(second, kept(Request::recv(&file, pool.try_alloc(1000).unwrap(), 1000, false)));
        let foreign = Bytes::from_owner(PanicsOnDrop).into();
        bury(first, kept(Request::send(&of_first, foreign, true)));
        let wait = |what: &str, is_so: &dyn Fn() -> bool| {
            let until = Instant::now() + Duration::from_secs(60);
            while !is_so() {
                assert!(Instant::now() < until, "not yet: {what}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        drop(end_first);
        wait("the first has ended", &|| Arc::strong_count(&of_first) == 1);
        std::thread::sleep(Duration::from_millis(3 * LOOK_MS));
        assert!(pool.stats().in_use_bytes >= 1000, "the kernel's memory was let go of");
        drop(end_second);
        wait("the second has ended", &|| pool.stats().in_use_bytes == 0);
    }
}
