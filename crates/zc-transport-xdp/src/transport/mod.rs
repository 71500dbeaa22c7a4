//! The transports: offers, and what is open for them.

mod closing;
mod device_port;
mod interface;
mod join;
mod offer;
mod offered;
mod opening;
mod refusals;
mod registry;
mod udp;
mod udp_port;
mod xdp;

pub use udp::{UdpOptions, UdpTransport};
pub use xdp::{XdpOptions, XdpTransport};
