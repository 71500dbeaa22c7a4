//! Pages of files on their way to a socket: they wait in a pipe, by reference.
//!
//! What a pipe holds has a length that nobody changes any more, whatever becomes of the file. So a frame can be promised
//! before its payload is sent.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::memory::{Deferral, ReadFileError};
use crate::transport::LaneError;

/// Empty pipes that a pool keeps open; further ones are closed.
pub const MAX_IDLE_PIPES: usize = 8;
/// The smallest pipe that is used. The system gives smaller ones to a user who has very many.
pub const MIN_PIPE_BYTES: usize = 64 << 10;

/// The two ends of an open pipe.
struct Ends {
    source: Arc<OwnedFd>,
    sink: OwnedFd,
    bytes: usize,
}

impl Ends {
    fn open(bytes: usize) -> io::Result<Self> {
        let (source, sink) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused beyond what one user may have: then it is as large as it is.
        let bytes = match rustix::pipe::fcntl_setpipe_size(&sink, bytes) {
            Ok(bytes) => bytes,
            Err(_) => rustix::pipe::fcntl_getpipe_size(&sink)?,
        };
        if bytes < MIN_PIPE_BYTES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { source: Arc::new(source), sink, bytes })
    }
}

/// Pipes for all who send files: a bounded number, opened when they are needed.
///
/// ```
/// use std::sync::Arc;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::transport::{PipePool, PipeShare};
///
/// let pool = Arc::new(PipePool::new(256 << 10, 2));
/// let (one, other) = (PipeShare::new(&pool, 2), PipeShare::new(&pool, 2));
/// let cx = &mut Context::from_waker(Waker::noop());
/// let Poll::Ready(Some(first)) = one.poll_take(cx) else { return }; // none where pipes are refused
/// let second = one.poll_take(cx);
/// assert!(one.poll_take(cx).is_pending(), "its share is on its way");
/// assert!(matches!(other.poll_take(cx), Poll::Ready(None)), "there is none, so go another way");
/// drop((first, second));
/// assert!(matches!(other.poll_take(cx), Poll::Ready(Some(_))));
/// ```
pub struct PipePool {
    /// Size of a pipe.
    bytes: usize,
    most: usize,
    pipes: Mutex<Pipes>,
}

struct Pipes {
    idle: Vec<Ends>,
    /// Those that are open.
    open: usize,
}

impl PipePool {
    /// At most `most` pipes of `bytes` each, or of what the system allows.
    pub const fn new(bytes: usize, most: usize) -> Self {
        Self { bytes, most, pipes: Mutex::new(Pipes { idle: Vec::new(), open: 0 }) }
    }

    /// Pipes that are open now, those that nobody uses among them.
    pub fn open(&self) -> usize {
        self.pipes.lock().open
    }

    /// None if all are in use.
    ///
    /// # Errors
    /// The system refuses another one.
    fn take(&self) -> io::Result<Option<Ends>> {
        {
            let mut pipes = self.pipes.lock();
            if let Some(ends) = pipes.idle.pop() {
                return Ok(Some(ends));
            }
            if pipes.open >= self.most {
                return Ok(None);
            }
            pipes.open += 1;
        }
        // The system has to find memory for it: others need not wait for that.
        let opened = Ends::open(self.bytes);
        if opened.is_err() {
            self.pipes.lock().open -= 1;
        }
        opened.map(Some)
    }

    /// Takes a pipe back; it is kept if it is empty.
    fn put(&self, ends: Ends, is_empty: bool) {
        let mut pipes = self.pipes.lock();
        if is_empty && pipes.idle.len() < MAX_IDLE_PIPES {
            pipes.idle.push(ends);
            return;
        }
        pipes.open -= 1;
        drop(pipes);
        drop(ends);
    }
}

/// One user's share of a [`PipePool`].
///
/// ```
/// use std::sync::Arc;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::transport::{PipePool, PipeShare};
///
/// let share = PipeShare::new(&Arc::new(PipePool::new(256 << 10, 4)), 1);
/// let cx = &mut Context::from_waker(Waker::noop());
/// let Poll::Ready(Some(pipe)) = share.poll_take(cx) else { return }; // none where pipes are refused
/// assert!(share.poll_take(cx).is_pending(), "its one pipe is in use");
/// drop(pipe);
/// assert!(matches!(share.poll_take(cx), Poll::Ready(Some(_))));
/// ```
pub struct PipeShare {
    shared: Arc<Lent>,
    most: usize,
}

struct Lent {
    pool: Arc<PipePool>,
    pipes: AtomicUsize,
    /// The system would not open another one: to ask again each time costs more than a pipe gains.
    refused: AtomicBool,
    /// Who waits for one of them.
    waker: AtomicWaker,
}

impl PipeShare {
    /// At most `most` pipes at a time.
    pub fn new(pool: &Arc<PipePool>, most: usize) -> Self {
        let shared = Lent {
            pool: pool.clone(),
            pipes: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        };
        Self { shared: Arc::new(shared), most }
    }

    /// A pipe of the share. Pending while all of it is on its way, or while the pool has none and one of ours will be back;
    /// none if there is nothing to wait for, and from then on where the system refuses pipes.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Pipe>> {
        // In front of the look: one that comes back in between wakes us.
        self.shared.waker.register(cx.waker());
        let lent = self.shared.pipes.load(Ordering::Acquire);
        if lent >= self.most {
            return Poll::Pending;
        }
        if self.shared.refused.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        let taken = self.shared.pool.take();
        self.shared.refused.store(taken.is_err(), Ordering::Relaxed);
        match taken.ok().flatten() {
            Some(ends) => {
                self.shared.pipes.fetch_add(1, Ordering::AcqRel);
                Poll::Ready(Some(Pipe { ends: Some(ends), is_empty: true, share: self.shared.clone() }))
            }
            None if self.shared.refused.load(Ordering::Relaxed) => Poll::Ready(None),
            None if lent > 0 && self.shared.pipes.load(Ordering::Acquire) > 0 => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// An empty pipe, which goes back to its pool when it is dropped.
///
/// ```
/// use std::sync::Arc;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::memory::ReadFileError;
/// use zc_core::transport::{PipePool, PipeShare};
///
/// let pool = Arc::new(PipePool::new(256 << 10, 1));
/// let share = PipeShare::new(&pool, 1);
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let len = file.metadata()?.len();
/// let cx = &mut Context::from_waker(Waker::noop());
///
/// let Poll::Ready(Some(pipe)) = share.poll_take(cx) else { return Ok(()) };
/// // Before anything of it is promised to anybody, it shows that the file is too short.
/// assert!(matches!(pipe.fill(&file, len - 2, 5), Err(ReadFileError::Truncated { missing: 3 })));
///
/// let Poll::Ready(Some(pipe)) = share.poll_take(cx) else { return Ok(()) };
/// assert_eq!(pipe.fill(&file, len - 2, 2).map_err(std::io::Error::other)?.len(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Pipe {
    /// Only taken by `drop`.
    ends: Option<Ends>,
    is_empty: bool,
    share: Arc<Lent>,
}

impl Pipe {
    /// Puts up to `len` bytes of the file from `offset` on into the pipe: its pages, by reference. Fewer where the pipe takes
    /// no more. Blocks while the file is read from its device.
    ///
    /// # Errors
    /// The file ends in front of that, or the system refused: `InvalidInput` where the file system can't do it.
    pub fn fill(mut self, file: &File, offset: u64, len: usize) -> Result<Piped, ReadFileError> {
        let (mut at, mut done) = (offset, 0);
        self.is_empty = false;
        while done < len
            && let Some(ends) = &self.ends
        {
            match rustix::pipe::splice(
                file,
                Some(&mut at),
                &ends.sink,
                None,
                len - done,
                SpliceFlags::NONBLOCK,
            ) {
                Ok(0) => return Err(ReadFileError::Truncated { missing: len - done }),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if done > 0 => break,
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(Piped { pipe: self, len: done })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(ends) = self.ends.take() {
            self.share.pool.put(ends, self.is_empty);
        }
        self.share.pipes.fetch_sub(1, Ordering::AcqRel);
        if let Some(waker) = self.share.waker.take() {
            Deferral::wake(waker);
        }
    }
}

/// Bytes that wait in a pipe.
///
/// The pipe goes back to its pool when this is dropped; if it was not emptied ([`Piped::emptied`]), it is closed.
///
/// ```
/// use std::io::Read;
/// use std::sync::Arc;
/// use std::task::{Context, Poll, Waker};
/// use zc_core::transport::{PipePool, PipeShare};
///
/// let share = PipeShare::new(&Arc::new(PipePool::new(256 << 10, 1)), 1);
/// let Poll::Ready(Some(pipe)) = share.poll_take(&mut Context::from_waker(Waker::noop())) else { return Ok(()) };
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let piped = pipe.fill(&file, 1, 3).map_err(std::io::Error::other)?;
/// let mut magic = [0; 3];
/// assert_eq!(rustix::io::read(piped.source(), &mut magic)?, piped.len()); // or spliced to a socket
/// assert_eq!(&magic, b"ELF");
/// piped.emptied();
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Piped {
    pipe: Pipe,
    len: usize,
}

impl Piped {
    /// How many bytes were put into it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None were.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are read. Whoever lets the kernel read it keeps a clone until the kernel is done (M2).
    ///
    /// # Panics
    /// Never: the ends are there until this is dropped.
    pub fn source(&self) -> &Arc<OwnedFd> {
        let Some(ends) = &self.pipe.ends else { unreachable!("taken by drop only") };
        &ends.source
    }

    /// How much the pipe may hold.
    pub fn pipe_bytes(&self) -> usize {
        self.pipe.ends.as_ref().map_or(0, |ends| ends.bytes)
    }

    /// All of it has been read: the pipe can be used again.
    pub fn emptied(mut self) {
        self.pipe.is_empty = true;
    }
}

impl std::fmt::Debug for Piped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Piped").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A data frame whose payload waits in a pipe; see [`LaneTx::start_send_piped`](super::LaneTx::start_send_piped).
///
/// ```
/// use zc_core::transport::{Piped, PipedFrame};
///
/// fn frame(payload: Piped, seq: u64) -> PipedFrame {
///     PipedFrame { ack: false, seq, payload }
/// }
/// # let _ = frame;
/// ```
#[derive(Debug)]
pub struct PipedFrame {
    /// As in [`Frame`](super::Frame).
    pub ack: bool,
    /// As in [`Frame`](super::Frame).
    pub seq: u64,
    /// The bytes.
    pub payload: Piped,
}

/// A frame that a lane did not take: it comes back.
///
/// ```
/// use zc_core::transport::PipedRejected;
///
/// fn say(PipedRejected { frame, error }: &PipedRejected) -> String {
///     format!("message {} was not taken: {error}", frame.seq)
/// }
/// # let _ = say;
/// ```
#[derive(Debug)]
pub struct PipedRejected {
    /// What was to be sent.
    pub frame: PipedFrame,
    /// Why it was not.
    pub error: LaneError,
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use std::io::Write;
    use std::task::Waker;

    fn taken(share: &PipeShare) -> Pipe {
        match share.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(pipe)) => pipe,
            _ => panic!("no pipe"),
        }
    }

    fn file(len: usize) -> (File, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        (file, content)
    }

    #[test]
    fn what_is_in_a_pipe_survives_a_file_that_is_cut() {
        let (pool, (file, content)) = (Arc::new(PipePool::new(128 << 10, 2)), file(100_000));
        let piped = taken(&PipeShare::new(&pool, 1)).fill(&file, 5, 70_000).unwrap();
        assert_eq!(piped.len(), 70_000);
        file.set_len(0).unwrap();
        let (mut all, mut buf) = (Vec::<u8>::new(), [0; 4096]);
        while all.len() < 70_000 {
            let n = rustix::io::read(piped.source(), &mut buf).unwrap();
            all.extend(&buf[..n]);
        }
        // The kernel clears the rest of the page that the cut goes through; that page is in front here.
        assert!(all[4096..] == content[5..70_005][4096..]);
        piped.emptied();
        assert_eq!((pool.open(), pool.pipes.lock().idle.len()), (1, 1));
    }

    #[test]
    fn a_file_that_ends_early_is_an_error_and_its_pipe_is_closed() {
        let (pool, (file, _)) = (Arc::new(PipePool::new(128 << 10, 2)), file(10_000));
        let share = PipeShare::new(&pool, 1);
        let error = taken(&share).fill(&file, 4000, 7000).unwrap_err();
        assert!(matches!(error, ReadFileError::Truncated { missing: 1000 }));
        assert!(matches!(taken(&share).fill(&file, 10_000, 1), Err(ReadFileError::Truncated { missing: 1 })));
        assert_eq!(pool.open(), 0);
    }

    #[test]
    fn a_full_pipe_takes_a_part() {
        let (pool, (file, _)) = (Arc::new(PipePool::new(64 << 10, 1)), file(1 << 20));
        let piped = taken(&PipeShare::new(&pool, 1)).fill(&file, 100, 1 << 20).unwrap();
        // An end that is not on a page's takes a place as a whole page does.
        assert_eq!(piped.len(), piped.pipe_bytes() - 100);
    }

    #[test]
    fn a_share_asks_once_where_the_system_refuses() {
        // Pipes as small as what a user gets who has very many.
        let pool = Arc::new(PipePool::new(4096, 2));
        let share = PipeShare::new(&pool, 2);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(matches!(share.poll_take(cx), Poll::Ready(None)));
        assert_eq!(pool.open(), 0);
        assert!(share.shared.refused.load(Ordering::Relaxed));
        // One that others gave back is not asked for either: the next file looks again.
        pool.pipes.lock().idle.push(Ends::open(64 << 10).unwrap());
        assert!(matches!(share.poll_take(cx), Poll::Ready(None)));
        assert_eq!(pool.pipes.lock().idle.len(), 1);
        pool.pipes.lock().open += 1;
        assert!(matches!(PipeShare::new(&pool, 1).poll_take(cx), Poll::Ready(Some(_))));
    }

    #[test]
    fn whoever_has_some_on_their_way_waits_for_them() {
        let pool = Arc::new(PipePool::new(64 << 10, 2));
        let (one, other) = (PipeShare::new(&pool, 2), PipeShare::new(&pool, 2));
        let (a, b) = (taken(&one), taken(&other));
        let (waker, count) = futures_test_waker();
        assert!(one.poll_take(&mut Context::from_waker(&waker)).is_pending());
        drop(b);
        assert_eq!(count.load(Ordering::SeqCst), 0, "that was another's");
        drop(a);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let kept = (taken(&one), taken(&one));
        assert!(matches!(other.poll_take(&mut Context::from_waker(&waker)), Poll::Ready(None)));
        drop(kept);
        assert_eq!(pool.open(), 2);
    }

    fn futures_test_waker() -> (Waker, Arc<AtomicUsize>) {
        struct Count(Arc<AtomicUsize>);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(AtomicUsize::new(0));
        (Arc::new(Count(count.clone())).into(), count)
    }
}
