//! Copies of payload past the caches, for memory that another core has in its own.

use super::{CopyLedger, CopyPlace};

/// Whether [`stream_payload`] streams on this architecture; elsewhere it is [`copy_payload`](super::copy_payload).
///
/// ```
/// assert_eq!(zc_core::memory::STREAMS_PAYLOAD, cfg!(target_arch = "x86_64"));
/// ```
pub const STREAMS_PAYLOAD: bool = cfg!(target_arch = "x86_64");

/// Copies and counts as [`copy_payload`](super::copy_payload) does, with stores that go past the caches. It is faster where another core has
/// the lines of `dst` in its cache: an ordinary store fetches each of them from there first. But who reads
/// `dst` next has them from memory.
///
/// Whatever is stored after the return, with Release or by a lock, is seen after the copy, as with every other copy.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use zc_core::memory::{CopyLedger, CopyPlace, stream_payload};
///
/// let ledger = CopyLedger::new();
/// let mut shared = vec![0; 1 << 16];
/// stream_payload(&mut shared, &[7; 1 << 16], &ledger, CopyPlace::Foreign);
/// assert!(shared.iter().all(|byte| *byte == 7));
/// assert_eq!(ledger.snapshot().copied_at(CopyPlace::Foreign), 1 << 16);
/// ```
#[inline]
pub fn stream_payload(dst: &mut [u8], src: &[u8], ledger: &CopyLedger, place: CopyPlace) {
    #[cfg(target_arch = "x86_64")]
    {
        x86_64::stream(dst, src);
        ledger.copied(place, src.len());
    }
    #[cfg(not(target_arch = "x86_64"))]
    super::copy_payload(dst, src, ledger, place);
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// A cache line: what is streamed in whole ones goes to memory in one piece.
    const LINE_BYTES: usize = 64;
    const VECTOR_BYTES: usize = size_of::<__m128i>();

    /// Whole lines of `dst` are streamed, what is in front of them and behind is copied.
    #[allow(clippy::disallowed_methods, reason = "counted by the caller")]
    pub(super) fn stream(dst: &mut [u8], src: &[u8]) {
        assert_eq!(dst.len(), src.len(), "a copy between different lengths");
        let front = (dst.as_ptr().addr().wrapping_neg() % LINE_BYTES).min(dst.len());
        let (dst_front, dst) = dst.split_at_mut(front);
        let (src_front, src) = src.split_at(front);
        let (dst_lines, dst_behind) = dst.as_chunks_mut::<LINE_BYTES>();
        let (src_lines, src_behind) = src.as_chunks::<LINE_BYTES>();
        dst_front.copy_from_slice(src_front);
        dst_behind.copy_from_slice(src_behind);
        stream_lines(dst_lines, src_lines);
    }

    /// `to` begins at a line.
    fn stream_lines(to: &mut [[u8; LINE_BYTES]], from: &[[u8; LINE_BYTES]]) {
        assert!(to.is_empty() || to.as_ptr().addr().is_multiple_of(LINE_BYTES));
        for (to, from) in to.iter_mut().zip(from) {
            let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
            for part in 0..LINE_BYTES / VECTOR_BYTES {
                // SAFETY: inside of both lines, of which we have one alone and nobody writes the other (M5). `to` is
                // aligned, as the first line is and all are of one length; `from` need not be. SSE2 is part of x86-64. Nothing
                // touches the line again before the fence below.
                unsafe { _mm_stream_si128(to.add(part), _mm_loadu_si128(from.add(part))) }
            }
        }
        // Non-temporal stores are weakly ordered, also among themselves: they may become visible after later ordinary ones, a
        // Release among these, which is an ordinary store on x86. Only this fence puts them in front of whatever tells others of the
        // payload, and of our own next access to it.
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::copy_payload;
    use super::*;
    use proptest::prelude::*;

    const LINE_BYTES: usize = 64;
    /// What lies around the copy, and must stay.
    const AROUND: u8 = 0xee;

    fn bytes(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
    }

    /// Streams `len` bytes between places that are `to_at` and `from_at` bytes behind the begin of a line.
    fn check(len: usize, to_at: usize, from_at: usize) {
        let whole = 3 * LINE_BYTES + len;
        let (mut to, mut from) = (vec![AROUND; whole], bytes(whole, len));
        let place = |bytes: &[u8], at| bytes.as_ptr().addr().wrapping_neg() % LINE_BYTES + at;
        let (to_at, from_at) = (place(&to, to_at), place(&from, from_at));
        let (mut expected, ledger) = (to.clone(), CopyLedger::new());
        let (to_part, from_part) = (&mut to[to_at..to_at + len], &mut from[from_at..from_at + len]);
        stream_payload(to_part, from_part, &ledger, CopyPlace::Foreign);
        copy_payload(&mut expected[to_at..to_at + len], from_part, &CopyLedger::new(), CopyPlace::Foreign);
        assert!(to == expected, "{len} bytes from {from_at} to {to_at}");
        assert_eq!(ledger.snapshot().copied_at(CopyPlace::Foreign), len as u64);
    }

    #[test]
    fn it_copies_at_all_alignments() {
        for to_at in 0..LINE_BYTES {
            for from_at in 0..LINE_BYTES {
                for len in [0, 1, 63, 64, 65, 4 * LINE_BYTES - 1] {
                    check(len, to_at, from_at);
                }
            }
        }
    }

    #[test]
    fn it_copies_all_short_lengths() {
        for len in 0..5 * LINE_BYTES {
            for at in [0, 1, 16, 63] {
                check(len, at, 0);
                check(len, 64 - at, at);
            }
        }
    }

    proptest! {
        #[test]
        fn it_copies_what_memcpy_does(len in 0usize..20_000, to_at in 0..LINE_BYTES, from_at in 0..LINE_BYTES) {
            check(len, to_at, from_at);
        }
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    #[cfg(target_arch = "x86_64")]
    fn lengths_must_be_equal() {
        stream_payload(&mut [0; 3], b"ab", &CopyLedger::new(), CopyPlace::Foreign);
    }
}
