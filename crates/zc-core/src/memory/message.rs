//! A message: a short rope of buffers.

use super::buf::bounds;
use super::{AllocError, BufPool, CopyLedger, CopyPlace, PinnedBuf, PinnedBufMut, copy_payload};
use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use std::io::IoSlice;
use std::ops::RangeBounds;

/// The most segments a message can have.
pub const MAX_SEGMENTS: usize = 64;

/// The message has [`MAX_SEGMENTS`] already; the segment is handed back.
#[derive(Debug, thiserror::Error)]
#[error("a message has at most {MAX_SEGMENTS} segments")]
pub struct TooManySegments(pub PinnedBuf);

/// A rope of [`PinnedBuf`]s, none of them empty; one is stored inline.
#[derive(Clone, Default)]
pub struct Message {
    segments: SmallVec<[PinnedBuf; 1]>,
    len: usize,
}

impl Message {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a segment; an empty one vanishes.
    pub fn push(&mut self, segment: impl Into<PinnedBuf>) -> Result<(), TooManySegments> {
        let segment = segment.into();
        if segment.is_empty() {
            return Ok(());
        }
        let total = self.len.checked_add(segment.len());
        match total {
            Some(len) if self.segments.len() < MAX_SEGMENTS => {
                self.len = len;
                self.segments.push(segment);
                Ok(())
            }
            _ => Err(TooManySegments(segment)),
        }
    }

    /// The segments, none of them empty.
    pub fn segments(&self) -> &[PinnedBuf] {
        &self.segments
    }

    /// The segments, taken.
    pub fn into_segments(self) -> impl ExactSizeIterator<Item = PinnedBuf> {
        self.segments.into_iter()
    }

    /// The bytes in all segments.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes, if they lie in one segment.
    pub fn as_contiguous(&self) -> Option<&[u8]> {
        match &self.segments[..] {
            [] => Some(&[]),
            [one] => Some(one),
            _ => None,
        }
    }

    /// A part of the message, without a copy.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let (mut start, end) = bounds(range, self.len);
        let mut left = end - start;
        let mut part = Self { segments: SmallVec::new(), len: left };
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            if start >= segment.len() {
                start -= segment.len();
                continue;
            }
            let take = left.min(segment.len() - start);
            part.segments.push(segment.slice(start..start + take));
            left -= take;
            start = 0;
        }
        part
    }

    /// One buffer with all bytes: moved if there is one segment, otherwise copied and counted.
    pub fn gather(mut self, pool: &BufPool, ledger: &CopyLedger) -> Result<PinnedBuf, AllocError> {
        if self.segments.len() <= 1 {
            return Ok(self.segments.pop().unwrap_or_default());
        }
        let mut whole = pool.try_alloc(self.len)?;
        for segment in &self.segments {
            let n = segment.len();
            copy_payload(&mut whole.unfilled_mut()[..n], segment, ledger, CopyPlace::Gather);
            whole.advance(n);
        }
        Ok(whole.freeze())
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("Message");
        s.field("len", &self.len).field("segments", &self.segments.len()).finish()
    }
}

impl From<PinnedBuf> for Message {
    fn from(buf: PinnedBuf) -> Self {
        let len = buf.len();
        let mut segments = SmallVec::new();
        if len > 0 {
            segments.push(buf);
        }
        Self { segments, len }
    }
}

impl From<PinnedBufMut> for Message {
    fn from(buf: PinnedBufMut) -> Self {
        buf.freeze().into()
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        PinnedBuf::from(bytes).into()
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        PinnedBuf::from(bytes).into()
    }
}

impl From<&'static [u8]> for Message {
    fn from(bytes: &'static [u8]) -> Self {
        PinnedBuf::from_static(bytes).into()
    }
}

impl PartialEq<[u8]> for Message {
    fn eq(&self, other: &[u8]) -> bool {
        let mut rest = other;
        self.len == other.len()
            && self.segments.iter().all(|s| {
                let (head, tail) = rest.split_at(s.len());
                rest = tail;
                s[..] == *head
            })
    }
}

impl Buf for Message {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.segments.first().map_or(&[], |s| s)
    }

    fn advance(&mut self, mut n: usize) {
        assert!(n <= self.len, "advance past the end");
        self.len -= n;
        let whole = self.segments.iter().take_while(|s| {
            let gone = s.len() <= n;
            n -= if gone { s.len() } else { 0 };
            gone
        });
        let whole = whole.count();
        self.segments.drain(..whole);
        if let Some(first) = self.segments.first_mut() {
            first.advance(n);
        }
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let pairs = dst.iter_mut().zip(&self.segments);
        pairs.map(|(slot, segment)| *slot = IoSlice::new(segment)).count()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rope(parts: &[Vec<u8>]) -> Message {
        let mut m = Message::new();
        assert!(parts.iter().all(|p| m.push(p.clone()).is_ok()));
        m
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_vec(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..8),
            steps in prop::collection::vec(0usize..12, 0..12),
            a in 0usize..80, b in 0usize..80,
        ) {
            let mut oracle = parts.concat();
            let mut m = rope(&parts);
            prop_assert!(m == oracle[..]);
            let (a, b) = (a.min(oracle.len()), b.min(oracle.len()));
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(m.slice(a..b) == oracle[a..b]);
            let pool = BufPool::builder().max_bytes(1 << 20).build();
            let ledger = CopyLedger::new();
            let whole = m.clone().gather(&pool, &ledger).unwrap();
            prop_assert_eq!(&whole[..], &oracle[..]);
            let copied = if m.segments().len() > 1 { oracle.len() } else { 0 };
            prop_assert_eq!(ledger.snapshot().copied_bytes(), copied as u64);
            for n in steps {
                let n = n.min(m.remaining());
                let mut slices = [IoSlice::new(&[]); 4];
                let k = m.chunks_vectored(&mut slices);
                let seen: Vec<u8> = slices[..k].iter().flat_map(|s| s.iter().copied()).collect();
                prop_assert!(oracle.starts_with(&seen));
                prop_assert!(m.remaining() == 0 || !m.chunk().is_empty());
                m.advance(n);
                oracle.drain(..n);
                prop_assert!(m == oracle[..]);
                prop_assert_eq!(m.len(), oracle.len());
            }
        }
    }

    #[test]
    fn is_bounded() {
        let mut m = Message::from(&b"x"[..]);
        for _ in 1..MAX_SEGMENTS {
            m.push(&b"y"[..]).unwrap();
        }
        assert_eq!(m.push(&b"z"[..]).unwrap_err().0[..], *b"z");
        assert!(m.as_contiguous().is_none());
    }
}
