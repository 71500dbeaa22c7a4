//! How a file is sent, and what was done.

use zc_core::transport::Completion;

/// The default of [`SendFileOptions::chunk_bytes`].
pub const FILE_CHUNK_BYTES: usize = 512 << 10;
/// Which way a file takes to the connection.
///
/// ```
/// let mut options = zc::SendFileOptions::default();
/// options.way = zc::FileWay::Direct; // a large file that is sent once shall not drive others out of the cache
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FileWay {
    /// Spliced where the connection is a socket, else read. [`FileSent::spliced_bytes`] tells.
    #[default]
    Auto,
    /// Read into memory of the connection, out of the page cache.
    Read,
    /// Read into memory of the connection, past the page cache (`O_DIRECT`). [`FileFault::NoDirect`](crate::FileFault::NoDirect) where the file
    /// system refuses.
    Direct,
}

/// How a file is sent.
///
/// ```
/// use zc::{Completion, SendFileOptions};
///
/// let mut options = SendFileOptions::default();
/// options.unchanged = true; // a file that is written to meanwhile is an error
/// options.completion = Completion::Delivered;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendFileOptions {
    /// The longest message that is made of it, bytes; the peer's limit applies, too. Default: [`FILE_CHUNK_BYTES`].
    pub chunk_bytes: usize,
    /// Which way it takes.
    pub way: FileWay,
    /// A file whose length or time of modification changes before its last message has completed is an
    /// error: [`FileFault::Changed`](crate::FileFault::Changed), perhaps after all of it was sent. The time may be as coarse as the kernel's clock
    /// tick. Default: false.
    pub unchanged: bool,
    /// When it counts as sent: the completion of the last message.
    pub completion: Completion,
}

impl Default for SendFileOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: FILE_CHUNK_BYTES,
            way: FileWay::Auto,
            unchanged: false,
            completion: Completion::Accepted,
        }
    }
}

/// What [`Sender::send_file`](crate::Sender::send_file) did.
///
/// ```
/// fn say(sent: zc::FileSent) -> String {
///     format!("{} bytes, {} of them spliced, in {} messages", sent.bytes, sent.spliced_bytes, sent.messages)
/// }
/// # let _ = say;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FileSent {
    /// Bytes sent: the length of the range.
    pub bytes: u64,
    /// How many of them went from the page cache to the socket, not through our memory.
    pub spliced_bytes: u64,
    /// Messages that they went in.
    pub messages: u64,
}
