//! The unsafe part: sockets and their rings, memory that the kernel uses, and bpf(2).
//!
//! The kernel writes into whatever is put on a fill ring, and reads whatever is put on a transmit ring. Both happen in
//! here only, with frames whose state says that nobody else has them ([`Umem`], M1), and a frame is let go of when the
//! kernel has given it back (M2). What is read from a ring is checked (M6). So the rest of the crate is safe code.
//!
//! The checks keep a broken driver from leading anybody out of bounds. They are no defence against somebody who has a copy
//! of the socket: he can map its rings, and have the kernel write into any frame at any time. That nobody has is what
//! `Grant::from_parts` asks its caller to vouch for; sockets that are opened here have been in no other hands.
//!
//! ```text
//! ring      one ring of a socket: atomics in memory that the kernel writes as well
//! socket    the socket: options, binding, waking the kernel
//! umem      frames, and who has them
//! stock     how many frames a fill ring has
//! port      a socket, its rings, and frames on their way
//! udp       ordinary sockets
//! bpf       maps, programs, links
//! ```

mod bpf;
mod port;
mod ring;
mod socket;
mod stock;
pub(crate) mod udp;
mod umem;

#[cfg(test)]
pub(crate) use bpf::Verdict;
pub(crate) use bpf::{Array, Link, PortMap, Program, XskMap, load};
pub(crate) use port::{Port, Received, RingSizes, Segments, TX_METADATA_BYTES, Unsent};
pub(crate) use socket::{Bind, BusyPoll, Checksums, Socket, prefer_busy_poll};
pub(crate) use umem::Umem;
