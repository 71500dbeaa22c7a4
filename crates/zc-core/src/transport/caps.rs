//! What a transport can do.

/// How far a transport reaches.
///
/// ```
/// use zc_core::transport::{Caps, Scope};
///
/// assert_eq!(Caps::stream().scope, Scope::Network);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Inside one process.
    Process,
    /// Between processes of one host.
    Host,
    /// Between hosts on one link or fabric.
    Fabric,
    /// Wherever IP goes.
    Network,
}

/// Whether payload is moved without a copy.
///
/// ```
/// use zc_core::transport::{Caps, ZeroCopy};
///
/// match Caps::stream().zero_copy_tx {
///     ZeroCopy::Always => println!("never copies"),
///     ZeroCopy::Conditional(when) => println!("copies nothing for {when}"),
///     _ => println!("always copies"),
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ZeroCopy {
    /// Every message.
    Always,
    /// When the condition, in words, holds.
    Conditional(&'static str),
    /// Never.
    Never,
}

/// How one-sided operations ([RDMA-style](https://www.rfc-editor.org/rfc/rfc5040) read and write) are done.
///
/// ```
/// use zc_core::transport::{Caps, OneSided};
///
/// assert_eq!(Caps::stream().one_sided, OneSided::None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OneSided {
    /// By the device or directly in shared memory.
    Native,
    /// Over frames: the lane carries [`FrameKind::Remote`](super::FrameKind::Remote), and the peer's session layer
    /// does the work.
    Emulated,
    /// Not at all.
    None,
}

/// Who else can see the memory of a connection as it was made. Whoever admits it to a group later shows it, or the group's
/// memory, to more: see [`MemoryGroup`](crate::memory::MemoryGroup).
///
/// ```
/// use zc_core::transport::{Caps, Isolation};
///
/// assert_eq!(Caps::stream().isolation, Isolation::PerConnection);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// Only the two ends.
    PerConnection,
    /// Every member of a group, which the transport itself puts its connections in.
    Group,
}

/// Which sources of a buffer are sent without a copy by us.
///
/// ```
/// use zc_core::transport::SourceMatrix;
///
/// // A transport whose peers see nothing but the memory of their connection.
/// let shared_memory = SourceMatrix { connection: true, pool: false, foreign: false };
/// assert!(!shared_memory.foreign); // copied, and counted
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceMatrix {
    /// Memory from the connection's own `alloc`.
    pub connection: bool,
    /// Memory of any pool of zc.
    pub pool: bool,
    /// Memory that zc has never seen (`Bytes` from elsewhere).
    pub foreign: bool,
}

/// What a transport can do, as found by its probe or granted to a lane.
///
/// ```
/// use zc_core::transport::{Caps, Scope, ZeroCopy};
///
/// let mut caps = Caps::stream(); // then what is different
/// caps.scope = Scope::Host;
/// caps.zero_copy_rx = ZeroCopy::Always;
/// assert!(caps.sources.connection);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// How far it reaches.
    pub scope: Scope,
    /// Largest message, bytes.
    pub max_message: u32,
    /// Most segments of one message that are sent as they are.
    pub max_segments: usize,
    /// Bytes in front of the payload that the transport writes its own header into, if a buffer leaves them free. 0:
    /// headers travel apart, and headroom is wasted.
    pub headroom: usize,
    /// Alignment of memory from `poll_alloc`, bytes, unless the pool was made with a headroom, which shifts it.
    pub alignment: usize,
    /// Messages up to this many bytes travel inline with their descriptor.
    pub inline_size: usize,
    /// Messages up to this many bytes go at once; longer ones are announced, and the peer fetches them.
    pub eager_max: u32,
    /// Below this many bytes a copy is cheaper than avoiding it.
    pub zero_copy_min: usize,
    /// On the way out.
    pub zero_copy_tx: ZeroCopy,
    /// On the way in.
    pub zero_copy_rx: ZeroCopy,
    /// Whether looking for a message takes no system call. Then a receiver that does not sleep looks several times before other
    /// tasks get their turn.
    pub user_polled: bool,
    /// What may be sent as it is.
    pub sources: SourceMatrix,
    /// One-sided operations.
    pub one_sided: OneSided,
    /// Who sees the memory.
    pub isolation: Isolation,
    /// Of a lane: which of several ways it goes, where the transport has several; reports say it.
    pub variant: Option<&'static str>,
}

impl Caps {
    /// Caps of a plain copying stream; a transport changes what it does better.
    pub fn stream() -> Self {
        Self {
            scope: Scope::Network,
            max_message: 1 << 30,
            max_segments: 16,
            headroom: 0,
            alignment: 64,
            inline_size: 0,
            eager_max: u32::MAX,
            zero_copy_min: 16 * 1024,
            zero_copy_tx: ZeroCopy::Never,
            zero_copy_rx: ZeroCopy::Never,
            user_polled: false,
            sources: SourceMatrix { connection: true, pool: true, foreign: true },
            one_sided: OneSided::None,
            isolation: Isolation::PerConnection,
            variant: None,
        }
    }
}
