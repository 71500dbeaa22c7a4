//! Why an operation or a grant did not succeed.

use zc_core::memory::AllocError;
use zc_core::transport::LaneError;
use zc_core::wire::{Delivery, RemoteStatus};

use crate::connection::ConnectionError;

/// What went wrong with an operation.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://remote-fault").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://remote-fault"), listener.accept())?;
/// use zc::RemoteFault;
/// use zc::transport::Access;
///
/// let key = fabric.export(4096)?.grant(&server, Access::ALL, ..)?; // and the export is dropped
/// let error = client.remote().read(&key, 0, 8).await.unwrap_err();
/// assert!(matches!(error.fault, RemoteFault::Revoked));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteFault {
    /// The key is not valid on this connection: it was revoked, its export was dropped, or it never was.
    #[error("the key is not valid on this connection, or not any more")]
    Revoked,
    /// Outside the range that was granted.
    #[error("outside the range that was granted")]
    OutOfBounds,
    /// The key does not allow this kind of operation.
    #[error("the key does not allow this")]
    Denied,
    /// An atomic operation at an offset that is no multiple of 8.
    #[error("an atomic operation at an offset that is no multiple of 8")]
    Misaligned,
    /// More than one operation may read.
    #[error("an operation on {len} bytes is above the limit of {max}")]
    TooLarge {
        /// Bytes asked for.
        len: usize,
        /// Most bytes of one operation.
        max: usize,
    },
    /// The owner has not taken earlier notifications; try again later.
    #[error("too many notifications wait to be taken by the owner")]
    Busy,
    /// The lane or the peer knows no one-sided operations.
    #[error("this connection carries no one-sided operations")]
    Unsupported,
    /// No memory for what was read.
    #[error("no memory for what was read: {0}")]
    Memory(String),
    /// The connection ended.
    #[error(transparent)]
    Connection(ConnectionError),
}

/// An operation did not succeed.
///
/// The fault alone does not say what was done: a long write is refused as a whole if it is out of bounds,
/// but it can be revoked, or the connection can end, when part of it is written already.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://remote-error").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://remote-error"), listener.accept())?;
/// use zc::transport::Access;
///
/// let export = fabric.export(4096)?;
/// let key = export.grant(&server, Access::READ, ..)?;
/// let error = client.remote().write(&key, 0, &b"hello"[..]).await.unwrap_err();
/// println!("{error}");
/// assert!(!error.may_have_happened());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{fault} ({delivery:?})")]
pub struct RemoteError {
    /// Why.
    pub fault: RemoteFault,
    delivery: Delivery,
}

impl RemoteError {
    pub(crate) fn new(fault: RemoteFault, delivery: Delivery) -> Self {
        Self { fault, delivery }
    }

    /// Nothing was done.
    pub(crate) fn not_done(fault: RemoteFault) -> Self {
        Self::new(fault, Delivery::NotSent)
    }

    /// `NotSent`: the memory was not touched. `Unknown`: it may have been, wholly or in part.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Whether the memory may have been changed (or, for a read, looked at).
    pub fn may_have_happened(&self) -> bool {
        self.delivery != Delivery::NotSent
    }
}

impl RemoteFault {
    pub(crate) fn of(status: RemoteStatus) -> Option<Self> {
        match status {
            RemoteStatus::Done => None,
            RemoteStatus::Revoked => Some(Self::Revoked),
            RemoteStatus::OutOfBounds => Some(Self::OutOfBounds),
            RemoteStatus::Denied => Some(Self::Denied),
            RemoteStatus::Misaligned => Some(Self::Misaligned),
            RemoteStatus::Busy => Some(Self::Busy),
        }
    }
}

impl From<AllocError> for RemoteFault {
    fn from(error: AllocError) -> Self {
        Self::Memory(error.to_string())
    }
}

/// Memory could not be granted.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://grant-error").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://grant-error"), listener.accept())?;
/// use zc::GrantError;
/// use zc::transport::Access;
///
/// let refused = fabric.export(4096)?.grant(&server, Access::READ, 4000..5000);
/// assert!(matches!(refused, Err(GrantError::BadRange { size: 4096, .. })));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// The lane or the peer knows no one-sided operations.
    #[error("this connection carries no one-sided operations")]
    Unsupported,
    /// The range is empty, leaves the export, or does not begin at a multiple of 8.
    #[error(
        "the range {start}..{end} is empty, leaves the export of {size} bytes, or begins at no multiple of 8"
    )]
    BadRange {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
        /// Bytes of the export.
        size: u64,
    },
    /// The connection has as many grants as it may.
    #[error("the connection has {max} grants already")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The connection ended.
    #[error("the connection has ended")]
    Ended,
    /// The device does no atomics.
    #[error("the connection's device does no atomics")]
    NoAtomics,
    /// Others that have been granted atomics of this export do them elsewhere: in a device, or another one, or with processors. No
    /// word would be changed atomically with regard to both.
    #[error("atomics of this export are done elsewhere for others, and would not be atomic together")]
    MixedAtomics,
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
    /// The lane refused.
    #[error(transparent)]
    Lane(#[from] LaneError),
}
