//! Shared memory between two processes of one host: rings, arenas, and bells for who sleeps.
//!
//! Each side makes one piece of memory for everything that it writes, seals it, and lets the peer map it
//! read-only: no page has two writers. Small messages travel in the slots of a ring, larger ones where
//! they were written, and neither costs a system call while both sides are awake. `docs/shm.md` shows the
//! layout and the protocol.
//!
//! Whatever a peer writes is read once, checked, and used (M6); a lie ends the lane with a typed error.

mod abandoned;
mod arena;
mod bell;
mod borrowed;
mod free_list;
mod group;
mod kept;
mod lane;
mod lap;
mod layout;
mod lie;
mod limits;
mod offer;
mod options;
mod out;
mod peer;
mod remote;
mod returns;
mod ring;
mod sleep;
mod small;
mod spare;
mod sync;
mod sys;
mod transport;
mod words;

#[cfg(all(test, not(loom)))]
extern crate self as zc_transport_shm;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod bell_tests;
#[cfg(all(test, not(loom)))]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod hostile_tests;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod namespace_tests;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod path_tests;
#[cfg(test)]
mod testing;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod unused_tests;

pub use limits::*;
pub use options::ShmOptions;
pub use transport::ShmTransport;
