//! Why a file was not sent, and how much of it was.

use std::io;
use std::ops::Range;

use zc_core::memory::ReadFileError;
use zc_core::transport::AllocFailure;
use zc_core::wire::Delivery;

use crate::connection::error::ConnectionError;

/// What is wrong.
///
/// ```
/// use zc::FileFault;
///
/// /// Whether it is about the file; the connection goes on then.
/// fn is_about_the_file(fault: &FileFault) -> bool {
///     !matches!(fault, FileFault::Connection(_) | FileFault::Memory(_))
/// }
/// assert!(is_about_the_file(&FileFault::Changed));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// The file ends in front of the end of the range: it is shorter than was thought, or was cut meanwhile.
    #[error("the file ends {missing} bytes before the end of the range")]
    Truncated {
        /// How many bytes are missing.
        missing: u64,
    },
    /// The file was written to or cut while it was sent ([`SendFileOptions::unchanged`](crate::SendFileOptions)).
    #[error("the file was changed while it was sent")]
    Changed,
    /// A directory, a device, a pipe or a socket.
    #[error("not a regular file")]
    NotRegular,
    /// The descriptor is not open for reading.
    #[error("the file is not open for reading")]
    NotReadable,
    /// The range runs backwards, or reaches beyond what a file can hold.
    #[error("not a range of a file: {0:?}")]
    BadRange(Range<u64>),
    /// The file can't be read past the page cache ([`FileWay::Direct`](crate::FileWay)).
    #[error("the file system does not read past the page cache: {0}")]
    NoDirect(#[source] io::Error),
    /// The system could not read it.
    #[error("reading the file: {0}")]
    Io(#[source] io::Error),
    /// No memory of the connection to read into.
    #[error(transparent)]
    Memory(AllocFailure),
    /// The connection took no more.
    #[error(transparent)]
    Connection(ConnectionError),
}

impl FileFault {
    /// Why the first part of `rest` bytes, one of `len`, could not be had.
    pub(super) fn of_read(error: ReadFileError, len: usize, rest: u64, direct: bool) -> Self {
        match error {
            ReadFileError::Truncated { missing } => {
                Self::Truncated { missing: missing as u64 + rest.saturating_sub(len as u64) }
            }
            ReadFileError::BadRange(range) => Self::BadRange(range),
            ReadFileError::Alloc(error) => Self::Memory(error.into()),
            ReadFileError::Io(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                Self::NoDirect(error)
            }
            ReadFileError::Io(error) => Self::Io(error),
            _ => Self::Io(io::Error::other(error)),
        }
    }
}

/// A file was not sent whole. What was sent is whole messages, and the first bytes of the range.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://file-error").await?;
/// # let (client, mut server) = tokio::try_join!(fabric.connect("zc+mem://file-error"), listener.accept())?;
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let len = file.metadata()?.len();
/// let sent = client.sender().send_file(file, 0..len + 7, Default::default()).await;
///
/// let error = sent.unwrap_err();
/// assert!(matches!(error.fault, zc::FileFault::Truncated { missing: 7 }));
/// assert_eq!((error.sent(), error.delivery()), (0, zc::Delivery::NotSent));
/// # let _ = &mut server;
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("a file was not sent whole, only {sent} bytes ({delivery:?}): {fault}")]
pub struct SendFileError {
    /// Why.
    #[source]
    pub fault: FileFault,
    sent: u64,
    delivery: Delivery,
}

impl SendFileError {
    pub(super) fn new(fault: FileFault, sent: u64, delivery: Delivery) -> Self {
        Self { fault, sent, delivery }
    }

    /// How many bytes of the range the connection took before that, from its first on. While the connection lives they are on
    /// their way: go on with the range behind them.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What is known about those bytes: `NotSent` if none of them got to the peer, `Delivered` if its session layer has
    /// queued them all, else `Unknown`. Then only the peer knows how many it has.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// True when sending the file again on a new connection can't duplicate anything.
    pub fn is_retryable(&self) -> bool {
        let fits = !matches!(self.fault, FileFault::Connection(ConnectionError::TooLarge { .. }));
        self.delivery == Delivery::NotSent && matches!(self.fault, FileFault::Connection(_)) && fits
    }
}

impl From<SendFileError> for io::Error {
    fn from(error: SendFileError) -> Self {
        let kind = match &error.fault {
            FileFault::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            FileFault::NotRegular | FileFault::BadRange(_) => io::ErrorKind::InvalidInput,
            FileFault::NotReadable => io::ErrorKind::PermissionDenied,
            FileFault::NoDirect(_) => io::ErrorKind::Unsupported,
            FileFault::Io(error) => error.kind(),
            FileFault::Memory(_) => io::ErrorKind::OutOfMemory,
            FileFault::Connection(error) => io::Error::from(error.clone()).kind(),
            FileFault::Changed => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
