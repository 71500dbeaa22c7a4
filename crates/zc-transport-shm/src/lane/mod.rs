//! The lane: two rings, two arenas, and bells for who sleeps.

mod credit;
mod drive;
mod link;
mod rx;
mod shared;
mod tx;

pub(crate) use link::{Link, Readers};
pub(crate) use shared::Shared;

use std::sync::Arc;

use zc_core::memory::{LeaseBudget, Region};
use zc_core::transport::{Caps, Lane, LaneError, LaneRemote, OfferContext};

use crate::bell::{Bell, PeerBell};
use crate::borrowed::Borrowed;
use crate::group::Opened;
use crate::layout::{Geometry, REMOTE_CALLS, TX_SLEEP};
use crate::peer::{Bounds, PeerArena};
use crate::remote::{Calls, Remote};
use crate::returns::{Returning, Returns};
use crate::sleep::Ringer;
use crate::spare::Reserve;
use crate::words::{OwnWords, PeerWords};

/// One side's memory.
pub(crate) struct Half {
    pub(crate) region: Region,
    pub(crate) geometry: Geometry,
    /// Most bytes of its arenas.
    pub(crate) max_arena_bytes: u64,
}

/// Everything that the two sides exchanged.
pub(crate) struct Joined {
    pub(crate) mine: Half,
    pub(crate) theirs: Half,
    pub(crate) bell: Bell,
    pub(crate) peer_bell: PeerBell,
    /// Messages are lent where they are.
    pub(crate) cooperative: bool,
    /// One-sided operations are done in the peer's memory itself.
    pub(crate) native: bool,
    /// What is longer than all our arenas is sent in parts.
    pub(crate) longer_in_parts: bool,
    /// Long copies into our arenas may go past the caches.
    pub(crate) streaming_copies: bool,
}

/// A lane over what was exchanged.
pub(crate) fn start(joined: Joined, mut caps: Caps, cx: OfferContext) -> Result<Lane, LaneError> {
    let Joined { mine, theirs, bell, peer_bell, cooperative, native, longer_in_parts, streaming_copies } =
        joined;
    crate::abandoned::sweep();
    let leases = LeaseBudget::new(cx.limits.lease_soft, cx.limits.lease_hard);
    let peer_bell = Arc::new(peer_bell);
    let reader = Arc::new(Readers(Arc::default()));
    let own = OwnWords::new(&mine.region, mine.geometry.control_bytes());
    let peer = PeerWords::new(&theirs.region, theirs.geometry.control_bytes());
    let calls = Calls::new(peer.clone(), REMOTE_CALLS);
    let reserve = Reserve::new();
    let shared = Shared::new(bell, peer_bell.clone(), reader.clone(), calls, reserve);
    let remote = native.then(|| Remote::new(shared.clone(), own.clone(), peer.clone(), cx.ledger.clone()));
    let sender = Arc::new(Ringer::new(peer.clone(), TX_SLEEP));
    let credit = credit::Credit::new(cx.limits.recv_window, leases.clone(), own.clone(), sender.clone());
    let credit = Arc::new(credit);
    let returns = Arc::new(Returns {
        ring: Returning::new(own.clone(), mine.geometry.returns_at(), theirs.geometry.returns),
        waiter: sender.clone(),
        bell: peer_bell,
        _reader: reader,
    });
    let Half { region, geometry, max_arena_bytes } = theirs;
    let opened = Arc::new(Opened::new(max_arena_bytes));
    let borrowed = Arc::new(Borrowed::default());
    let bounds = Bounds { max_bytes: max_arena_bytes, lease_hard: cx.limits.lease_hard };
    let known = (opened.clone(), borrowed.clone());
    let arena = PeerArena::new(region, geometry, bounds, cooperative, returns, known)?;
    let returns_at = geometry.returns_at();
    let memory = tx::Memory {
        own: own.clone(),
        peer: peer.clone(),
        returns_at,
        mine,
        opened,
        borrowed,
        longer_in_parts,
        streaming_copies,
    };
    let tx = tx::Tx::new(shared.clone(), memory, &cx);
    caps.max_message = tx.max_message();
    let rx = rx::Rx::new(
        shared.clone(),
        rx::Memory { own, peer, geometry, arena, out: tx.out(), sender, credit: credit.clone() },
        leases.clone(),
        &cx,
    );
    let drive = drive::Drive::new(shared, credit);
    let remote = remote.map(|remote| Box::new(remote) as Box<dyn LaneRemote>);
    Ok(Lane { tx: Box::new(tx), rx: Box::new(rx), drive: Some(Box::new(drive)), remote, caps, leases })
}
