//! Places of which there are only so many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many are free.
pub(super) struct Places {
    free: Arc<AtomicUsize>,
    count: usize,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(count)), count }
    }

    /// How many are not free.
    pub(super) fn taken(&self) -> usize {
        self.count - self.free.load(Relaxed)
    }

    /// A free one, if there is any.
    pub(super) fn take(&self) -> Option<Place> {
        let taken = self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Place(self.free.clone()))
    }
}

/// Is free again when this is dropped.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Places that one takes and gives back by the byte.
pub(crate) struct Spilled {
    free: Arc<AtomicUsize>,
    bytes: usize,
}

impl Spilled {
    pub(super) fn of(places: &Places) -> Self {
        Self { free: places.free.clone(), bytes: 0 }
    }

    /// Has so many from now on; false: there are not as many, and it has what it had.
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(more)).is_err() {
            return false;
        }
        self.free.fetch_add(self.bytes.saturating_sub(bytes), Relaxed);
        self.bytes = bytes;
        true
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shared_and_come_back() {
        let places = Places::new(100);
        let (mut one, mut other) = (Spilled::of(&places), Spilled::of(&places));
        assert!(one.set(60) && !other.set(41) && other.set(40) && !one.set(61));
        assert!(one.set(10) && other.set(90));
        assert_eq!(places.taken(), 100);
        drop(other);
        assert_eq!(places.taken(), 10);
        drop(one);
        assert_eq!(places.taken(), 0);
    }
}
