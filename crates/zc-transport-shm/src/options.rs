//! What the user of the transport chooses.

use zc_core::transport::PeerCred;

use crate::limits::{MAX_ARENA_BYTES, RING_SLOTS};

/// Whom to talk to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PeerPolicy {
    /// Processes of our own user, and root's.
    #[default]
    SameUserOrRoot,
    /// Processes of these users.
    Uids(Vec<u32>),
    /// Everyone who reaches us.
    Anyone,
}

/// Whether a peer's messages are lent where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Trust {
    /// Lent, when the peer is of our own user: it could write our memory anyway. It must not write
    /// what it has sent. From all others messages are copied out before anything sees them.
    #[default]
    SameUser,
    /// Always copied out.
    Nobody,
}

/// How connections over shared memory are made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShmOptions {
    /// Whom to talk to.
    pub peers: PeerPolicy,
    /// Whose messages are lent.
    pub trust: Trust,
    /// Slots of the ring, rounded up to a power of two.
    pub ring_slots: u32,
    /// Most bytes of memory that one direction of a connection may use, and so the longest message.
    pub max_arena_bytes: u64,
}

impl Default for ShmOptions {
    fn default() -> Self {
        Self {
            peers: PeerPolicy::default(),
            trust: Trust::default(),
            ring_slots: RING_SLOTS,
            max_arena_bytes: MAX_ARENA_BYTES,
        }
    }
}

impl ShmOptions {
    pub(crate) fn accepts(&self, peer: &PeerCred) -> bool {
        match &self.peers {
            PeerPolicy::SameUserOrRoot => peer.uid == own_uid() || peer.uid == 0,
            PeerPolicy::Uids(uids) => uids.contains(&peer.uid),
            PeerPolicy::Anyone => true,
        }
    }
}

/// Who we are to a peer.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
