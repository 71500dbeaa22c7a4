//! Files to connections.
//!
//! ```text
//! file --splice--> pipe -> LaneTx::start_send_piped --splice--> socket     lanes that take pipes
//! file --read--> memory of the connection -> LaneTx::start_send            all others
//! ```
//!
//! A chunk is got while the one before it is handed over and goes out. It has its length before anything of it
//! is promised, so a file that is cut is an error of the file and not of the connection.

mod chunks;
mod fault;
mod give;
mod options;
mod source;
mod threads;

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt;
use zc_core::transport::BoxFuture;
use zc_core::wire::Delivery;

pub use self::chunks::{MAX_PIPES, MAX_PIPES_PER_FILE, SPLICE_MIN_BYTES};
pub use self::fault::{FileFault, SendFileError};
pub use self::options::{FILE_CHUNK_BYTES, FileSent, FileWay, SendFileOptions};
pub use self::threads::{MAX_FILE_READS, MAX_FILE_THREADS};

use self::chunks::Chunks;
use super::sender::Sender;

/// A file that is being sent, made by [`Sender::send_file`], which has an example.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://half-a-file").await?;
/// # let (client, mut server) = tokio::try_join!(fabric.connect("zc+mem://half-a-file"), listener.accept())?;
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let (sender, mut options) = (client.sender(), zc::SendFileOptions::default());
/// options.chunk_bytes = 1000;
/// let mut sending = sender.send_file(file, 0..100_000, options);
/// tokio::select! {
///     sent = &mut sending => println!("{} messages", sent?.messages),
///     _ = server.recv() => println!("the first is there; to go on with: {}..", sending.sent()),
/// }
/// # Ok(()) }
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct SendFile<'a> {
    progress: Arc<AtomicU64>,
    run: BoxFuture<'a, Result<FileSent, SendFileError>>,
}

impl SendFile<'_> {
    /// Bytes of the range that the connection has taken so far: those are on their way, whatever becomes of this future.
    pub fn sent(&self) -> u64 {
        self.progress.load(Ordering::Acquire)
    }
}

impl Future for SendFile<'_> {
    type Output = Result<FileSent, SendFileError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.run.poll_unpin(cx)
    }
}

impl Sender {
    /// Sends a range of a file as messages of at most [`chunk_bytes`](SendFileOptions::chunk_bytes) each, in order. For the
    /// receiver they are messages like others; it has to know how long the range is. Other senders' messages may come in between.
    ///
    /// Where the connection is a TCP or Unix socket, the file's pages go to the socket by reference, not through memory of
    /// this process; elsewhere each chunk is read into memory of the connection, with no further copy ([`FileWay`]). The file
    /// is read on a few threads of their own, never on the caller's, except for what is in the page cache.
    ///
    /// *A file that others change:* one that is cut before its last chunk has been got is [`FileFault::Truncated`]; never a signal,
    /// and the connection goes on. What is overwritten may arrive as it was or as it is (what is cut off, as zeroes), and of
    /// spliced pages that is open until the peer has them: only after [`Completion::Delivered`](crate::Completion::Delivered) may the file be changed
    /// without a trace. [`SendFileOptions::unchanged`] finds changes until the completion that was asked for, so together
    /// with `Delivered` all that matter. Who replaces files should write new ones and rename them.
    ///
    /// *Signals:* splicing to a socket that the peer has closed raises `SIGPIPE`. Programs of Rust ignore it; where it has its
    /// default action when a chunk is got, that chunk is read instead. So don't restore the default while files are sent.
    ///
    /// Cancel-safe: dropped at any point, whole messages were sent, [`SendFile::sent`] bytes of the range.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let fabric = zc::Fabric::auto()?;
    /// # let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await?;
    /// # let uri = listener.local_uri().to_string();
    /// # let (client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept())?;
    /// let file = std::fs::File::open(std::env::current_exe()?)?;
    /// let range = 1000..file.metadata()?.len();
    ///
    /// let mut left = range.end - range.start;
    /// let receiving = async {
    ///     while left > 0 {
    ///         left -= server.recv().await?.ok_or("it ended early")?.len() as u64;
    ///     }
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// };
    /// let sender = client.sender();
    /// let sending = async { Ok(sender.send_file(file, range.clone(), Default::default()).await?) };
    /// let (sent, ()) = tokio::try_join!(sending, receiving)?;
    /// assert_eq!(sent.bytes, range.end - range.start);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`SendFileError::sent`] says how far it got.
    pub fn send_file<'a>(
        &'a self,
        file: impl Into<Arc<File>>,
        range: Range<u64>,
        options: SendFileOptions,
    ) -> SendFile<'a> {
        let (file, progress) = (file.into(), Arc::new(AtomicU64::new(0)));
        let run = run(self, file, range, options, progress.clone());
        SendFile { progress, run: Box::pin(run) }
    }
}

async fn run(
    sender: &Sender,
    file: Arc<File>,
    range: Range<u64>,
    options: SendFileOptions,
    progress: Arc<AtomicU64>,
) -> Result<FileSent, SendFileError> {
    // What was handed over last, and first.
    let seqs = [const { AtomicU64::new(0) }; 2];
    let done = match Chunks::begin(sender, file, &range, &options).await {
        Ok(chunks) => chunks.send(range.start, options.completion, &progress, &seqs).await,
        Err(fault) => Err(fault),
    };
    done.map_err(|fault| {
        let sent = progress.load(Ordering::Acquire);
        let tx = sender.core().lock_tx();
        let [first, last] = seqs.each_ref().map(|seq| tx.delivery(seq.load(Ordering::Relaxed)));
        let delivery = match (first, last) {
            _ if sent == 0 => Delivery::NotSent,
            (_, Delivery::Delivered) => Delivery::Delivered,
            (Delivery::NotSent, _) => Delivery::NotSent,
            _ => Delivery::Unknown,
        };
        drop(tx);
        SendFileError::new(fault, sent, delivery)
    })
}
