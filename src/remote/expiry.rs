//! When grants of one connection end by themselves. Its task asks.

use std::sync::Weak;
use std::time::Instant;

use zc_core::transport::RemoteKey;

use super::export::Shared;

/// At most as many as the connection has grants.
#[derive(Default)]
pub(super) struct Expiries(Vec<Expiry>);

struct Expiry {
    at: Instant,
    key: RemoteKey,
    export: Weak<Shared>,
}

impl Expiries {
    pub(super) fn add(&mut self, at: Instant, key: RemoteKey, export: Weak<Shared>) {
        self.0.push(Expiry { at, key, export });
    }

    /// The key has ended otherwise.
    pub(super) fn forget(&mut self, key: &RemoteKey) {
        self.0.retain(|expiry| expiry.key != *key);
    }

    /// It could not be ended.
    pub(super) fn postpone(&mut self, key: &RemoteKey, until: Instant) {
        self.0.iter_mut().filter(|expiry| expiry.key == *key).for_each(|expiry| expiry.at = until);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// When the next one ends.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|expiry| expiry.at).min()
    }

    /// Those whose time has come. They are there until they are forgotten.
    pub(super) fn due(&self, now: Instant) -> Vec<(RemoteKey, Weak<Shared>)> {
        let due = self.0.iter().filter(|expiry| expiry.at <= now);
        due.map(|expiry| (expiry.key, expiry.export.clone())).collect()
    }
}
