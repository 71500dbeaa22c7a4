//! The order of the wire-up, as two mirrored state machines without I/O, time or policy.
//!
//! The caller moves bytes and decides; a machine only enforces the order and writes the messages.

mod machine;
mod sides;

use std::fmt;

pub use sides::{ClientHandshake, ServerHandshake};

/// The most AUTH messages that one side may send.
pub const MAX_AUTH_ROUNDS: u8 = 8;
/// The most JOIN messages that one side may send per lane.
pub const MAX_JOIN_MESSAGES: u16 = 256;

/// How far a connection has come; each stage has its own deadline.
///
/// ```
/// use zc_core::wire::Stage;
///
/// assert!(Stage::Hello < Stage::Join); // in the order in which they come
/// println!("stopped in {}", Stage::Offers);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The control link is being connected.
    Connect,
    /// HELLOs are exchanged.
    Hello,
    /// The authentication method runs.
    Authenticate,
    /// OFFERS and PLAN are exchanged.
    Offers,
    /// A lane is being tried.
    Join,
    /// The choice of the lane is being confirmed, or is.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Authenticate => "authenticate",
            Self::Offers => "offers",
            Self::Join => "join",
            Self::Commit => "commit",
        })
    }
}

/// Where a handshake stands.
///
/// ```
/// use zc_core::wire::{CONTROL_LANE, HandshakeState, Stage};
///
/// let state = HandshakeState::Committed { index: CONTROL_LANE }; // the link itself carries the data
/// assert_eq!(state.stage(), Stage::Commit);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeState {
    /// The peer's HELLO is awaited.
    Hello,
    /// Authentication; `our_turn` says who speaks next.
    Authenticate {
        /// Whether this side is to send.
        our_turn: bool,
    },
    /// OFFERS and PLAN are under way.
    Offers,
    /// This plan entry is being tried.
    Join {
        /// The plan entry.
        index: u8,
    },
    /// The client is to commit to this plan entry, or to [`CONTROL_LANE`](super::CONTROL_LANE).
    Commit {
        /// The plan entry.
        index: u8,
    },
    /// No lane came up, and one side does not let the control link carry the data: the server is to
    /// reject.
    Exhausted,
    /// Done: this plan entry, or [`CONTROL_LANE`](super::CONTROL_LANE), carries the data.
    Committed {
        /// The plan entry.
        index: u8,
    },
    /// Ended without a connection, in this stage.
    Failed {
        /// The stage.
        stage: Stage,
    },
}

impl HandshakeState {
    /// The stage it belongs to.
    pub fn stage(self) -> Stage {
        match self {
            Self::Hello => Stage::Hello,
            Self::Authenticate { .. } => Stage::Authenticate,
            Self::Offers => Stage::Offers,
            Self::Join { .. } | Self::Exhausted => Stage::Join,
            Self::Commit { .. } | Self::Committed { .. } => Stage::Commit,
            Self::Failed { stage } => stage,
        }
    }
}
