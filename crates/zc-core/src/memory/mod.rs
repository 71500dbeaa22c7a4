//! Pinned memory: regions, pools, buffers, messages, and the ledger that counts copies.
//!
//! A [`Region`] is one mapping. A [`BufPool`] carves regions into blocks and lends them as
//! [`PinnedBufMut`], which freezes into a shared [`PinnedBuf`]; a [`Message`] is a short rope of
//! those. Reference counts and all other metadata live on the heap, never in a region, because a
//! peer may be able to write a region. Memory that a pool lends again may hold stale content.

mod block;
mod buf;
mod buf_mut;
mod cache;
mod classes;
mod directory;
mod frames;
mod lease;
mod ledger;
mod limits;
mod message;
mod pool;
mod refcount;
mod region;
mod registration;
mod stats;
mod sys;
mod waiters;

pub use buf::PinnedBuf;
pub use buf_mut::PinnedBufMut;
pub use classes::{CLASS_COUNT, MAX_CLASS_BYTES, MIN_CLASS_BYTES};
pub use directory::region_of;
pub use frames::{FrameTable, LendError, Reclaim};
pub use lease::{LeaseBudget, Pressure};
pub use ledger::{
    CopyLedger, CopyPlace, KernelCopied, LedgerSnapshot, copy_inline, copy_payload,
};
pub use limits::{DEFAULT_POOL_DIVISOR, DEFAULT_POOL_MAX_BYTES, DEFAULT_POOL_MIN_BYTES};
pub use message::{MAX_SEGMENTS, Message, TooManySegments};
pub use pool::{AllocError, BufPool, BufPoolBuilder, LARGE_CACHE_BYTES};
pub use region::{
    Backing, PageKind, Region, RegionBuilder, RegionError, RegionFallback, RegionId, RegionInfo,
};
pub use registration::{
    MAX_REGISTRARS, MemlockBudget, MemlockExceeded, MemlockGrant, RegisterError, Registrar,
    RegistrarId,
};
pub use stats::{MAX_ORIGINS, PoolStats, Usage};
pub use waiters::AllocWaiter;
