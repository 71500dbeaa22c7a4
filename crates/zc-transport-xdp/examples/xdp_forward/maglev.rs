//! Consistent hashing: Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016).
//!
//! Each backend has an order of its own in which it likes the places of a table; in turns, each takes the next one that
//! is free. So all have about as many, and when one leaves, few places of the others change hands.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Places: a prime, about a hundred times as many as there are backends.
pub(crate) const PLACES: usize = 4093;

fn hash(value: impl Hash) -> u64 {
    // Its keys are fixed, so every balancer comes to the same table.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Which backend has which flow.
pub(crate) struct Maglev(Vec<u16>);

impl Maglev {
    /// # Panics
    /// Without a backend, or with more than there are places.
    pub(crate) fn new(backends: &[impl Hash]) -> Self {
        const FREE: u16 = u16::MAX;
        assert!(!backends.is_empty() && backends.len() < PLACES);
        let places = PLACES as u64;
        let mut likes: Vec<_> = backends
            .iter()
            .map(|backend| (hash((0, backend)) % places, hash((1, backend)) % (places - 1) + 1))
            .collect();
        let mut table = vec![FREE; PLACES];
        let mut left = PLACES;
        while left > 0 {
            for (number, (next, skip)) in likes.iter_mut().enumerate() {
                while table[*next as usize] != FREE {
                    *next = (*next + *skip) % places;
                }
                table[*next as usize] = number as u16;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Self(table)
    }

    /// The number of the backend that a flow goes to.
    pub(crate) fn backend(&self, flow: impl Hash) -> usize {
        self.0[(hash((2, flow)) % PLACES as u64) as usize].into()
    }
}
