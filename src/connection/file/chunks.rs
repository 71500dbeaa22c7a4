//! A file's chunks: got one after the other, and handed over.

use std::fs::File;
use std::future::{Future, poll_fn, ready};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use futures::FutureExt;
use zc_core::memory::{KernelCopied, PinnedBuf};
use zc_core::transport::{AllocFailure, Completion, Pipe, PipePool, PipeShare, Piped};

use super::fault::FileFault;
use super::give::Give;
use super::options::{FILE_CHUNK_BYTES, FileSent, FileWay, SendFileOptions};
use super::source::Source;
use super::threads;
use crate::connection::error::ConnectionError;
use crate::connection::sender::Sender;

/// Pipes that are open at a time, for all files that are sent; files that find none are read.
pub const MAX_PIPES: usize = 64;
/// Pipes that one file has on their way.
pub const MAX_PIPES_PER_FILE: usize = 3;
/// Shorter ranges are read: that costs less than a pipe.
pub const SPLICE_MIN_BYTES: u64 = 64 << 10;

/// What chunks end on, so that they have whole pages.
const PAGE: u64 = 4096;

static PIPES: LazyLock<Arc<PipePool>> =
    LazyLock::new(|| Arc::new(PipePool::new(FILE_CHUNK_BYTES, MAX_PIPES)));

/// A part of the file, got.
pub(super) enum Chunk {
    Bytes(PinnedBuf),
    Piped(Piped),
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Piped(piped) => piped.len(),
        }
    }
}

/// The chunks of a file, and where they go.
pub(super) struct Chunks<'a> {
    sender: &'a Sender,
    source: Arc<Source>,
    end: u64,
    chunk_bytes: usize,
    /// Where chunks are spliced.
    share: Option<PipeShare>,
    /// The file system turned out not to do that.
    refused: AtomicBool,
}

impl<'a> Chunks<'a> {
    /// Looks at the file and at the connection.
    pub(super) async fn begin(
        sender: &'a Sender,
        file: Arc<File>,
        range: &Range<u64>,
        options: &SendFileOptions,
    ) -> Result<Self, FileFault> {
        let core = sender.core();
        let mut source = Source::open(file, range, options.unchanged)?;
        if options.way == FileWay::Direct {
            source = threads::run(|| source.past_the_cache()).await.map_err(FileFault::Io)??;
        }
        let splices = options.way == FileWay::Auto
            && range.end - range.start >= SPLICE_MIN_BYTES
            && core.lock_tx().lane.takes_pipes();
        Ok(Self {
            sender,
            source: Arc::new(source),
            end: range.end,
            chunk_bytes: options.chunk_bytes.min(core.limits.send_max_message as usize).max(1),
            share: splices.then(|| PipeShare::new(&PIPES, MAX_PIPES_PER_FILE)),
            refused: AtomicBool::new(false),
        })
    }

    /// Sends all of them, from `at` on.
    pub(super) async fn send(
        &self,
        mut at: u64,
        completion: Completion,
        progress: &AtomicU64,
        [first, last]: &[AtomicU64; 2],
    ) -> Result<FileSent, FileFault> {
        let mut sent = FileSent::default();
        let mut closed = pin!(self.sender.closed());
        if at == self.end {
            // What was fed before it goes out as before a chunk.
            self.sender.flush().await.map_err(FileFault::Connection)?;
            return Ok(sent);
        }
        let first_chunk = alongside(ready(Ok(())), self.get(at), closed.as_mut(), false);
        let mut next = first_chunk.await.map_err(FileFault::Connection)?.1?;
        while let Some(chunk) = next {
            let len = chunk.len();
            at += len as u64;
            let spliced = matches!(chunk, Chunk::Piped(_));
            let completion = if at == self.end { completion } else { Completion::Accepted };
            let give = async {
                let given = Give::new(self.sender.core(), chunk, completion).await?;
                sent.bytes += len as u64;
                sent.messages += 1;
                sent.spliced_bytes += if spliced { len as u64 } else { 0 };
                if sent.messages == 1 {
                    first.store(given.seq, Ordering::Relaxed);
                }
                last.store(given.seq, Ordering::Relaxed);
                progress.store(sent.bytes, Ordering::Release);
                given.pushed?;
                Ok(given.rest)
            };
            let (rest, got) = alongside(give, self.get(at), closed.as_mut(), spliced)
                .await
                .map_err(FileFault::Connection)?;
            next = got?;
            if let Some(rest) = rest {
                rest.await.map_err(|error| FileFault::Connection(error.error))?;
            }
        }
        self.source.is_unchanged().await?;
        Ok(sent)
    }

    /// The chunk at `at`; none at the end.
    async fn get(&self, at: u64) -> Result<Option<Chunk>, FileFault> {
        let len = self.chunk_len(at);
        if len == 0 {
            return Ok(None);
        }
        if let Some(pipe) = self.pipe().await {
            match self.source.splice(pipe, at, len).await? {
                Some(piped) => return Ok(Some(Chunk::Piped(piped))),
                None => self.refused.store(true, Ordering::Relaxed),
            }
        }
        let buf = self.sender.alloc(self.source.room(len)).await.map_err(|error| self.no_memory(error))?;
        let bytes = self.source.read(buf, at, len).await?;
        if !self.source.is_direct() {
            self.sender.core().ledger.kernel_copied(KernelCopied::Known(len as u64));
        }
        Ok(Some(Chunk::Bytes(bytes)))
    }

    /// Chunks end with a page of the file, if they are long enough, so that later ones consist of whole ones.
    fn chunk_len(&self, at: u64) -> usize {
        let mut len = self.chunk_bytes as u64;
        if len > PAGE {
            len -= (at + len) % PAGE;
        }
        len.min(self.end - at) as usize
    }

    /// A pipe for the next chunk; none where it has to be read.
    async fn pipe(&self) -> Option<Pipe> {
        let share = self.share.as_ref()?;
        // The lane is asked each time: what the process does about SIGPIPE may have changed.
        if self.refused.load(Ordering::Relaxed) || !self.sender.core().lock_tx().lane.takes_pipes() {
            return None;
        }
        poll_fn(|cx| share.poll_take(cx)).await
    }

    /// A lane that has failed has no memory either.
    fn no_memory(&self, error: AllocFailure) -> FileFault {
        match (error, self.sender.core().lock_tx().refusal()) {
            (_, Some(ended)) => FileFault::Connection(ended),
            (AllocFailure::Lane(error), None) => FileFault::Connection(error.into()),
            (error, None) => FileFault::Memory(error),
        }
    }
}

/// Both, or what handing over failed with: nobody needs the next chunk then. Others fill a pipe while this thread empties one,
/// so that begins first; what is read is perhaps copied here and now, so that comes second. The next chunk may wait for what the
/// lane of a connection that has ended will never give back: so the end counts, too.
async fn alongside<T, U>(
    give: impl Future<Output = Result<T, ConnectionError>>,
    get: impl Future<Output = U>,
    mut closed: Pin<&mut impl Future<Output = ConnectionError>>,
    get_first: bool,
) -> Result<(T, U), ConnectionError> {
    let (mut give, mut get) = (pin!(give.fuse()), pin!(get.fuse()));
    let (mut given, mut got) = (None, None);
    poll_fn(|cx| {
        if get_first && let Poll::Ready(done) = get.as_mut().poll(cx) {
            got = Some(done);
        }
        if let Poll::Ready(done) = give.as_mut().poll(cx) {
            given = Some(done?);
        }
        if !get_first && let Poll::Ready(done) = get.as_mut().poll(cx) {
            got = Some(done);
        }
        match (given.take(), got.take()) {
            (Some(given), Some(got)) => return Poll::Ready(Ok((given, got))),
            not_yet => (given, got) = not_yet,
        }
        if given.is_some()
            && let Poll::Ready(end) = closed.as_mut().poll(cx)
        {
            return Poll::Ready(Err(end));
        }
        Poll::Pending
    })
    .await
}
