//! Verbs in safe code: nothing that a device uses can be freed, whatever is dropped in whatever order.
//!
//! ```text
//! Context <- ProtectionDomain <- ExportedMemory
//!    ^            ^-- SharedReceiveQueue <--.
//!    '-- CompletionQueue <------'-----------+-- QueuePair        (<- is an Arc)
//! ```
//!
//! Every work request, with the memory it is about, is owned by the *completion queue* until its completion was taken
//! out (M1, M2): a queue that is destroyed without having been drained gives the rest back, because the device is done with
//! it then, and one that can't be destroyed keeps all of it for ever (M4). Requests are named by index and generation (M3).
//! In a forked child nothing is destroyed: the objects are the parent's (M8).

mod completion_queue;
mod context;
mod error;
mod exported;
mod flights;
mod protection_domain;
mod queue_pair;
mod refusals;
mod shared_receive_queue;
mod slab;
mod windows;
mod work;

pub use completion_queue::CompletionQueue;
pub use context::{AsyncEvent, AtomicScope, Context, Device, DeviceCaps, Port};
pub(crate) use error::unavailable;
pub use error::{PostError, VerbsError, WorkError, WorkFault};
pub use exported::{ExportedMemory, RemoteAccess, Showable};
pub use flights::{Completion, QueueId, Received};
pub use protection_domain::ProtectionDomain;
pub use queue_pair::{Path, QueuePair, QueuePairCaps, QueuePairState};
pub use shared_receive_queue::SharedReceiveQueue;
pub use windows::WindowId;
pub use work::{Operation, RemotePlace, Unfit, Work};
