//! One-sided operations: a side exports memory, and its peer reads, writes and swaps in it.
//!
//! ```text
//! owner                                          peer
//! Fabric::export -> Export
//! Export::grant(&connection) -> RemoteKey -----> RemoteKey       in an ordinary message
//!        memory  <------------------------------ Connection::remote() -> RemoteMemory
//!        Export::notified  <-------------------- RemoteMemory::write_with_notify
//! ```
//!
//! A lane may do the operations itself ([`LaneRemote`](zc_core::transport::LaneRemote)); otherwise they travel in
//! REMOTE frames and the owner's session layer does them while it reads, without its application
//! ([`Caps::one_sided`](zc_core::transport::Caps) says which). The state of one connection:
//!
//! ```text
//! state      Remote: both halves, and who is woken
//! target     the grants of this side, and the peer's requests on them
//! expiry     when grants end by themselves
//! window     our own requests that have no answer yet, and who waits for a place among them
//! ```

mod atomics;
mod error;
mod expiry;
mod export;
mod notify;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod window;

pub use self::error::{GrantError, RemoteError, RemoteFault};
pub use self::export::Export;
pub use self::notify::{MAX_NOTIFICATIONS, MAX_NOTIFICATIONS_PER_CONNECTION, Notification};
pub use self::target::MAX_GRANTS;

pub(crate) use self::export::Shared;
pub(crate) use self::state::Remote;
pub(crate) use self::window::{Expected, Operation};
