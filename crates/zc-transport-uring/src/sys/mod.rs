//! The unsafe part: the ring, memory that the kernel uses, and its end.
//!
//! Everything that the kernel may touch is owned in here until it is done ([`Flights`]), so the rest of the crate is
//! safe code: it hands in a [`Request`], which owns its memory and descriptors, and gets it back with the last
//! completion (M1, M2). What is in flight when a ring closes goes to the undertaker (M4).
//!
//! ```text
//! ring      the ring itself: set-up, entering, the eventfd and its mask
//! request   an operation, and what it owns
//! buffers   the ring of receive buffers: pool memory that the kernel chooses from
//! area/     memory into which a NIC puts what it receives
//! fixed     memory that the ring knows ahead
//! flights   ring + slab + buffers: what is in flight
//! grave     closed rings that the kernel has not let go of
//! sigpipe   what becomes of that signal
//! steer     rules of a NIC: which queue a connection comes by
//! ```

mod area;
mod buffers;
mod fixed;
mod flights;
mod grave;
mod request;
mod ring;
mod sigpipe;
mod steer;

pub(crate) use area::{Area, Source, locked_bytes};
pub(crate) use buffers::{Buffers, Piece, Pieces};
pub(crate) use fixed::{Fixed, Settled};
pub(crate) use flights::{Event, Flights};
pub(crate) use request::{Known, Parts, Request};
pub(crate) use ring::{Opcode, Refused, Ring, Setup};
pub(crate) use sigpipe::survives_sigpipe;
pub(crate) use steer::{Flow, Rule};
