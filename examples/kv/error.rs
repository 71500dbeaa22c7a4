//! Why something could not be done.

use std::io;

use zc::{ConnectionError, GrantError, RemoteError, SendError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum KvError {
    /// Of one neighbourhood: others may have room.
    #[error("all slots in which this key may be have other keys")]
    Full,
    #[error("a key of {key} and a value of {value} bytes are none for a table with room for {room}")]
    Size { key: usize, value: usize, room: u32 },
    #[error("no table has {slots} slots with room for {room} bytes each: none, or too many")]
    Shape { slots: u64, room: u32 },
    /// Somebody wrote what is no table. A put mends the slot, what was in it is lost.
    #[error("a slot in which this key may be was damaged")]
    Damaged,
    /// Others are at it, and stay so.
    #[error("it was locked, or changed, each time")]
    Busy,
    /// Those of clients that went could not be ended, for want of memory.
    #[error("there are too many leases")]
    Leases,
    /// What a peer said made no sense.
    #[error("the peer does not keep to the protocol: {0}")]
    Peer(&'static str),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Connect(#[from] zc::Error),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Memory(#[from] zc::memory::RegionError),
    #[error(transparent)]
    Export(#[from] zc::memory::ExportError),
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}
