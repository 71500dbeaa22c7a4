//! One entry of a region's table of keys: read without a lock, by whoever sends.

use crate::memory::sync::atomic::{AtomicU64, Ordering};

/// The generation of no registrar.
const NOBODY: u64 = 0;

/// The key of the registrar that holds the slot, under its generation.
pub(super) struct KeySlot {
    generation: AtomicU64,
    key: AtomicU64,
}

impl KeySlot {
    pub(super) fn empty() -> Self {
        Self { generation: AtomicU64::new(NOBODY), key: AtomicU64::new(0) }
    }

    /// The key, if it was published under this generation.
    pub(super) fn key_of(&self, generation: u64) -> Option<u64> {
        if self.generation.load(Ordering::Acquire) != generation {
            return None;
        }
        let key = self.key.load(Ordering::Acquire);
        // A key of the next generation is only seen after the end of this one was.
        (self.generation.load(Ordering::Relaxed) == generation).then_some(key)
    }

    /// Publishes a key. Writers take turns.
    pub(super) fn publish(&self, generation: u64, key: u64) {
        self.withdraw();
        self.key.store(key, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
    }

    /// Takes the key back. Writers take turns.
    pub(super) fn withdraw(&self) {
        self.generation.store(NOBODY, Ordering::Relaxed);
    }

    /// Takes the key back, unless it is of another generation already. Writers take turns.
    pub(super) fn withdraw_of(&self, generation: u64) {
        if self.generation.load(Ordering::Relaxed) == generation {
            self.withdraw();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn loom_a_key_belongs_to_its_generation() {
        loom::model(|| {
            let slot = Arc::new(KeySlot::empty());
            slot.publish(1, 10);
            let writer = slot.clone();
            let t = thread::spawn(move || {
                writer.publish(2, 20);
                writer.withdraw();
                writer.publish(3, 30);
            });
            for generation in [1, 2, 3, 1] {
                let key = slot.key_of(generation);
                assert!(key.is_none_or(|k| k == generation * 10));
            }
            t.join().unwrap();
            assert_eq!((slot.key_of(1), slot.key_of(3)), (None, Some(30)));
        });
    }
}
