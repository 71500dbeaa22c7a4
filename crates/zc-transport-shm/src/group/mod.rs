//! Memory that goes to many connections: regions that are shown to the peer beside our own arenas.
//!
//! ```text
//! a sender   Shown     which regions the peer maps, under which number (a registrar of groups)
//!            Loans     which buffers of them the peer holds
//! a receiver Seen      the mappings, and what of them is lent
//! a hub      Circle    whose peers' arenas may be shown to whom: messages that are forwarded as they lie
//! ```

mod chores;
mod circle;
mod loans;
mod seen;
mod shown;

pub(crate) use chores::Chores;
pub(crate) use circle::Opened;
pub(crate) use loans::Left;
pub(crate) use seen::Seen;
pub(crate) use shown::{Place, Planned, Shown};
