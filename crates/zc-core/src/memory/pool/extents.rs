//! Which parts of a region are free.

use std::collections::BTreeMap;

/// The free parts of `0..len`: start to length, never touching each other.
#[derive(Debug)]
pub(super) struct Extents(BTreeMap<usize, usize>);

impl Extents {
    /// All of `0..len` is free.
    pub(super) fn all(len: usize) -> Self {
        Self(BTreeMap::from([(0, len)]))
    }

    /// Takes the first free part of `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let (start, free) = self.0.iter().find(|(_, free)| **free >= len).map(|(s, f)| (*s, *f))?;
        self.0.remove(&start);
        if free > len {
            self.0.insert(start + len, free - len);
        }
        Some(start)
    }

    /// Gives back a part that was taken, and joins it with its free neighbours.
    pub(super) fn give(&mut self, start: usize, len: usize) {
        let (mut start, mut end) = (start, start + len);
        if let Some(after) = self.0.remove(&end) {
            end += after;
        }
        if let Some((&before, &free)) = self.0.range(..start).next_back() {
            debug_assert!(before + free <= start, "given back twice");
            if before + free == start {
                start = before;
            }
        }
        self.0.insert(start, end - start);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn never_overlap_and_join_again(steps in prop::collection::vec((any::<bool>(), 1usize..9), 0..60)) {
            const LEN: usize = 32;
            let (mut extents, mut taken, mut used) = (Extents::all(LEN), Vec::new(), [false; LEN]);
            for (take, n) in steps {
                if take {
                    let fits = (0..=LEN - n).find(|at| used[*at..at + n].iter().all(|u| !u));
                    let at = extents.take(n);
                    prop_assert_eq!(at, fits);
                    let Some(at) = at else { continue };
                    used[at..at + n].fill(true);
                    taken.push((at, n));
                } else if !taken.is_empty() {
                    let (at, n) = taken.swap_remove(n % taken.len());
                    used[at..at + n].fill(false);
                    extents.give(at, n);
                }
            }
            for (at, n) in taken {
                extents.give(at, n);
            }
            prop_assert_eq!(extents.0.into_iter().collect::<Vec<_>>(), [(0, LEN)]);
        }
    }
}
