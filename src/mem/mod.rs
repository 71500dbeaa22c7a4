//! `zc+mem://`: control links inside one process, for tests and examples.

mod pipe;
mod registry;
mod transport;

#[cfg(test)]
pub(crate) use self::pipe::{PipeLink, duplex};
pub use self::registry::{MEM_BACKLOG, MemLinks};
pub use self::transport::MemTransport;
