//! The size classes: powers of two and the sizes half way between.

/// The smallest block.
pub const MIN_CLASS_BYTES: usize = 256;
/// The largest block of a class. A larger buffer gets a block cut for itself, in steps of 1 MiB, which is
/// reused for similar lengths.
pub const MAX_CLASS_BYTES: usize = 4 << 20;
/// How many classes there are: 256, 384, 512, 768, ... 4 MiB.
pub const CLASS_COUNT: usize = 29;

/// The block length of a class.
#[inline]
pub(super) const fn class_len(class: usize) -> usize {
    let base = MIN_CLASS_BYTES << (class / 2);
    if class.is_multiple_of(2) { base } else { base + base / 2 }
}

/// The smallest class that holds `len` bytes.
#[inline]
pub(super) fn class_of(len: usize) -> Option<usize> {
    if len <= MIN_CLASS_BYTES {
        return Some(0);
    }
    if len > MAX_CLASS_BYTES {
        return None;
    }
    let up = len.next_power_of_two();
    let class = 2 * (up.trailing_zeros() - MIN_CLASS_BYTES.trailing_zeros()) as usize;
    Some(if class_len(class - 1) >= len { class - 1 } else { class })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn smallest_that_fits() {
        assert_eq!(class_len(CLASS_COUNT - 1), MAX_CLASS_BYTES);
        for len in (0..100_000).chain([MAX_CLASS_BYTES - 1, MAX_CLASS_BYTES]) {
            let c = class_of(len).unwrap();
            assert!(class_len(c) >= len && (c == 0 || class_len(c - 1) < len), "{len}");
        }
        assert_eq!(class_of(MAX_CLASS_BYTES + 1), None);
    }
}
