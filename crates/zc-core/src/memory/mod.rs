//! Pinned memory: regions, pools, buffers, messages, and the ledger that counts copies.
//!
//! A [`Region`] is one mapping. A [`BufPool`] carves regions into blocks and lends them as
//! [`PinnedBufMut`], which freezes into a shared [`PinnedBuf`]; a [`Message`] is a short rope of
//! those. Reference counts and all other metadata live on the heap, never in a region, because a
//! peer may be able to write a region. Memory that a pool lends again may hold stale content.
//!
//! ```text
//! region/   Region and its kinds: own, a peer's, a file; registrations; locked memory
//! pool/     BufPool: size classes, thread caches, waiters, bounds
//! block     who owns a block, and where it goes afterwards (the small unsafe core)
//! frames    FrameTable: memory that a transport lends itself
//! windows   WindowTable: any part of a region that a transport lends
//! holder    Holder: parts of blocks that connections share
//! group     MemoryGroup: memory that goes to many connections
//! export    ExportMemory: memory that peers read and write (atomic words, no references)
//! deferral  owners of foreign bytes are dropped where no lock is held
//! streaming copies of payload past the caches
//! buf, buf_mut, message, file, lease, ledger
//! ```

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod alone;
mod block;
mod buf;
mod buf_mut;
mod deferral;
mod export;
mod file;
mod frames;
mod group;
mod holder;
mod lease;
mod ledger;
mod message;
mod pool;
mod refcount;
mod region;
mod streaming;
mod sync;
mod windows;

pub use buf::PinnedBuf;
pub use buf_mut::PinnedBufMut;
pub use deferral::Deferral;
pub use export::{EXPORT_WORD_BYTES, ExportError, ExportMemory, WordAtomics};
pub use file::{DirectFile, ReadFileError};
pub use frames::{FrameTable, LendError, Reclaim};
pub use group::{GroupId, LentBytes, Membership, MemoryGroup, Place};
pub use holder::Holder;
pub(crate) use lease::lend_from_heap;
pub use lease::{LeaseBudget, Pressure};
pub use ledger::{CopyLedger, CopyPlace, KernelCopied, LedgerSnapshot, copy_inline, copy_payload};
pub use message::{MAX_SEGMENTS, Message, TooManySegments};
pub use pool::{
    AllocError, AllocWaiter, BufPool, BufPoolBuilder, CLASS_COUNT, DEFAULT_POOL_DIVISOR,
    DEFAULT_POOL_MAX_BYTES, DEFAULT_POOL_MIN_BYTES, LARGE_CACHE_BYTES, MAX_CLASS_BYTES, MAX_MISSED,
    MAX_ORIGINS, MAX_OVERTAKEN, MIN_CLASS_BYTES, PoolStats, SPARED_DIVISOR, Usage,
};
pub use region::{
    Backing, MAX_REGISTRARS, MemlockBudget, MemlockExceeded, MemlockGrant, PageKind, PeerMapping, Region,
    RegionBuilder, RegionError, RegionFallback, RegionId, RegionInfo, RegionKind, RegisterError, Registrar,
    RegistrarId, RegistrarSlot, Sealing, region_of,
};
pub use streaming::{STREAMS_PAYLOAD, stream_payload};
pub use windows::WindowTable;
