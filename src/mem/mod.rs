//! `zc+mem://`: control links inside one process, for tests and examples.

mod pipe;
mod registry;
mod transport;

pub use self::registry::{MEM_BACKLOG, MemLinks};
pub use self::transport::MemTransport;
