//! The system's interface: libibverbs as its headers describe it, loaded at run time.
//!
//! ```text
//! abi       structures and constants of `infiniband/verbs.h`, as far as they are used
//! library   the library's functions, and why they can't be had
//! layout    (a test) every offset, size and constant, compared with the C compiler's
//! ```
//!
//! What runs for every message goes through the operation table of the context, as the header's inline functions do.

mod abi;
#[cfg(test)]
mod layout;
mod library;

pub(crate) use abi::*;
pub(crate) use library::{Verbs, verbs};
