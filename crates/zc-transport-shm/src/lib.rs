//! Shared memory between two processes of one host: rings, arenas, and bells for who sleeps.

mod layout;
mod limits;
mod ring;
mod sleep;
mod sync;
mod words;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
mod testing;

pub use limits::*;
