//! Copies of foreign payload into the arena.

use std::time::Instant;

use zc_core::memory::{CopyLedger, CopyPlace, STREAMS_PAYLOAD, copy_payload, stream_payload};

use super::chooser::{Chooser, Way};
use crate::limits::STREAM_MIN_BYTES;

/// Copies what is not of the arena: long payload past the caches, where that is much faster.
pub(super) struct Copies {
    chooser: Option<Chooser>,
}

impl Copies {
    /// That `may_stream`, where this architecture can.
    pub(super) fn new(may_stream: bool) -> Self {
        Self { chooser: (may_stream && STREAMS_PAYLOAD).then(Chooser::default) }
    }

    /// Copies, and counts it as foreign. What is published afterwards comes after it, however it was done.
    pub(super) fn copy(&mut self, to: &mut [u8], from: &[u8], ledger: &CopyLedger) {
        match &mut self.chooser {
            Some(chooser) if from.len() >= STREAM_MIN_BYTES => copy_long(chooser, to, from, ledger),
            _ => copy_payload(to, from, ledger, CopyPlace::Foreign),
        }
    }
}

fn copy_long(chooser: &mut Chooser, to: &mut [u8], from: &[u8], ledger: &CopyLedger) {
    let choice = chooser.choose(from.len());
    let start = choice.timed.then(Instant::now);
    match choice.way {
        Way::Plain => copy_payload(to, from, ledger, CopyPlace::Foreign),
        Way::Streamed => stream_payload(to, from, ledger, CopyPlace::Foreign),
    }
    if let Some(start) = start {
        chooser.took(from.len(), choice.way, start.elapsed());
    }
}
