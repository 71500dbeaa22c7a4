//! The core of zc: pinned memory, the transport traits, and the sans-I/O protocols.
//!
//! Transports depend on this crate and on nothing else of zc; this crate knows no transport.

pub mod memory;
pub mod stream;
pub mod transport;
pub mod wire;
