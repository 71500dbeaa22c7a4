//! Offers that wait for the peer's, with what was opened for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::interface::Face;
use crate::engine::Engine;
use crate::limits::{MAX_OFFERED, OFFERED_MS};
use crate::protocol::SessionOptions;

/// How packets go.
pub(super) enum Way {
    Kernel,
    Device { face: Arc<Face>, next_hop: [u8; 6], queue: usize },
}

/// What an offer stands for.
pub(super) struct Offered {
    pub(super) engine: Arc<Engine>,
    pub(super) way: Way,
    pub(super) options: SessionOptions,
    at: Instant,
}

/// By the number of the session.
#[derive(Default)]
pub(super) struct Pending(HashMap<u32, Offered>);

impl Pending {
    pub(super) fn has(&self, session: u32) -> bool {
        self.0.contains_key(&session)
    }

    /// Keeps one, and forgets those whose peer has chosen another transport.
    pub(super) fn keep(
        &mut self,
        session: u32,
        engine: Arc<Engine>,
        way: Way,
        options: SessionOptions,
        now: Instant,
    ) {
        let age = Duration::from_millis(OFFERED_MS);
        self.0.retain(|_, offered| now.saturating_duration_since(offered.at) < age);
        if self.0.len() >= MAX_OFFERED
            && let Some(oldest) = self.0.iter().min_by_key(|(_, offered)| offered.at).map(|(id, _)| *id)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(session, Offered { engine, way, options, at: now });
    }

    pub(super) fn take(&mut self, session: u32) -> Option<Offered> {
        self.0.remove(&session)
    }
}
