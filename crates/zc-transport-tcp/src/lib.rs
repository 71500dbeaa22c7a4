//! TCP and Unix streams: the control links of zc, and the lane that works everywhere.
//!
//! [`StreamLinks`] opens control links; [`TcpTransport`] carries messages over one of them. All
//! readiness comes from a [`Reactor`](zc_core::transport::Reactor): no runtime is named here.

mod addr;
mod io;
mod lane;
mod limits;
mod link;
mod socket;
mod sys;
mod transport;

pub use limits::{BACKLOG, CHUNK_BYTES, LINGER_MS, MAX_DESCRIPTORS, MAX_HELD_SENDS, ZERO_COPY_MIN};
pub use link::StreamLink;
pub use socket::StreamLinks;
pub use transport::TcpTransport;
pub use zc_core::stream::{
    COALESCE_MAX, DIRECT_MIN, MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, MAX_QUEUED_RECORD_BYTES, STAGE_BYTES,
};
