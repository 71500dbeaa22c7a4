//! The protocol without I/O: both ends are the same state machine in two roles, time is handed in.
//! `docs/http.md` says what goes over the wire.

mod block;
mod bucket;
mod call;
mod code;
mod endpoint;
mod error;
mod field;
mod frame;
mod head;
mod limits;
mod receive;
mod slab;
mod table;
mod transmit;

#[cfg(test)]
mod tests;

pub use self::code::Code;
pub use self::error::Violation;
pub use self::limits::Limits;

pub(crate) use self::call::{BodyItem, Key, SendRoom};
pub(crate) use self::endpoint::{Endpoint, Event, OpenError, Role};
pub(crate) use self::error::Ended;
#[cfg(feature = "hyper")]
pub(crate) use self::frame::is_settings;
