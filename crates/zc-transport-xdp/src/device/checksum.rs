//! The Internet checksum (RFC 1071).

/// Over all parts, as if they were one; as UDP wants it: none is 0.
pub(crate) fn checksum<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u16 {
    let (mut sum, mut is_odd) = (0u64, false);
    for part in parts {
        let folded = fold(words(part));
        // At an odd place each byte is the other half of its word.
        sum += u64::from(if is_odd { folded.swap_bytes() } else { folded });
        is_odd ^= part.len() % 2 == 1;
    }
    match !fold(sum) {
        0 => 0xffff,
        sum => sum,
    }
}

/// The sum of words in network order. Two at a time make the same sum, and 2^32 of them fit.
fn words(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
    pairs.iter().chain([&last]).map(|word| u64::from(u32::from_be_bytes(*word))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum([&bytes[..]].into_iter()), !0xddf2);
        assert_eq!(checksum([&[0xff, 0xff][..]].into_iter()), 0xffff, "0 means that there is none");
    }

    proptest! {
        /// Word by word, as the RFC says it.
        #[test]
        fn fuzz_parts_are_as_good_as_one(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(0..3000usize, 0..6),
        ) {
            let mut sum = 0u32;
            for word in bytes.chunks(2) {
                sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let whole = if sum == 0xffff { 0xffff } else { !(sum as u16) };
            let (mut rest, mut parts) = (&bytes[..], Vec::new());
            for cut in cuts {
                let (part, left) = rest.split_at(cut.min(rest.len()));
                parts.push(part);
                rest = left;
            }
            parts.push(rest);
            prop_assert_eq!(checksum(parts.into_iter()), whole);
        }
    }
}
