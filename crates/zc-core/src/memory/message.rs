//! A message: a short rope of buffers.

use super::buf::bounds;
use super::{AllocError, BufPool, CopyLedger, CopyPlace, PinnedBuf, PinnedBufMut, copy_payload};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use std::io::IoSlice;
use std::ops::RangeBounds;

/// The most segments a message can have.
pub const MAX_SEGMENTS: usize = 64;

/// The message has [`MAX_SEGMENTS`] already; the segment is handed back.
///
/// ```
/// use zc_core::memory::{MAX_SEGMENTS, Message, TooManySegments};
///
/// let mut message = Message::new();
/// (0..MAX_SEGMENTS).for_each(|_| message.push(&b"x"[..]).unwrap());
/// let TooManySegments(back) = message.push(&b"y"[..]).unwrap_err();
/// assert_eq!(&back[..], b"y");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("a message has at most {MAX_SEGMENTS} segments")]
pub struct TooManySegments(pub PinnedBuf);

/// A rope of [`PinnedBuf`]s, none of them empty; one is stored inline.
///
/// It reads as a [`bytes::Buf`]. Slicing and splitting copy nothing; of that trait's methods
/// `copy_to_bytes` copies only what lies in several segments, and nothing otherwise. That trait knows no
/// ledger, so such a copy is not counted; [`gather`](Self::gather) counts.
///
/// ```
/// use bytes::Buf;
/// use zc_core::memory::Message;
///
/// let mut message = Message::from(&b"head"[..]);
/// message.push(b"body".to_vec()).unwrap();
/// assert_eq!(message.segments().len(), 2);
/// let mut head = message.split_to(4);
/// assert_eq!(head.get_u32(), u32::from_be_bytes(*b"head"));
/// assert_eq!(message.as_contiguous(), Some(&b"body"[..]));
/// ```
#[derive(Clone, Default)]
pub struct Message {
    segments: SmallVec<[PinnedBuf; 1]>,
    len: usize,
}

impl Message {
    /// No bytes.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a segment; an empty one vanishes.
    #[inline]
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

    /// Lets go of all segments, and keeps the room for as many.
    #[inline]
    pub fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
    }

    /// The segments, none of them empty.
    #[inline]
    pub fn segments(&self) -> &[PinnedBuf] {
        &self.segments
    }

    /// The segments, taken.
    #[inline]
    pub fn into_segments(self) -> impl ExactSizeIterator<Item = PinnedBuf> {
        self.segments.into_iter()
    }

    /// The bytes in all segments.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes, if they lie in one segment.
    #[inline]
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

    /// Takes the first `n` bytes off, without a copy.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, n: usize) -> Self {
        if n == self.len {
            return std::mem::take(self);
        }
        let head = self.slice(..n);
        self.advance(n);
        head
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
    #[inline]
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
    #[inline]
    fn from(buf: PinnedBufMut) -> Self {
        buf.freeze().into()
    }
}

impl From<Bytes> for Message {
    #[inline]
    fn from(bytes: Bytes) -> Self {
        PinnedBuf::from(bytes).into()
    }
}

impl From<Vec<u8>> for Message {
    #[inline]
    fn from(bytes: Vec<u8>) -> Self {
        PinnedBuf::from(bytes).into()
    }
}

impl From<&'static [u8]> for Message {
    #[inline]
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
    #[inline]
    fn remaining(&self) -> usize {
        self.len
    }

    #[inline]
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

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.segments.first_mut() {
            Some(first) if n < first.len() => {
                self.len -= n;
                first.split_to(n).into_bytes()
            }
            Some(first) if n == first.len() => {
                self.len -= n;
                self.segments.remove(0).into_bytes()
            }
            _ => {
                assert!(n <= self.len, "copy_to_bytes past the end");
                let mut joined = BytesMut::with_capacity(n);
                joined.put(self.take(n));
                joined.freeze()
            }
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

    #[derive(Debug, Clone)]
    enum Step {
        Advance(usize),
        SplitTo(usize),
        Slice(usize, usize),
        CopyToBytes(usize),
        CopyToSlice(usize),
        Push(Vec<u8>),
        Chain(Vec<u8>),
        Gather,
    }

    fn step() -> impl Strategy<Value = Step> {
        let n = || 0usize..20;
        let bytes = || prop::collection::vec(any::<u8>(), 0..9);
        prop_oneof![
            n().prop_map(Step::Advance),
            n().prop_map(Step::SplitTo),
            (n(), n()).prop_map(|(a, b)| Step::Slice(a, b)),
            n().prop_map(Step::CopyToBytes),
            n().prop_map(Step::CopyToSlice),
            bytes().prop_map(Step::Push),
            bytes().prop_map(Step::Chain),
            Just(Step::Gather),
        ]
    }

    /// What must hold of every message, whatever happened to it.
    fn check(m: &Message, oracle: &[u8]) -> Result<(), TestCaseError> {
        prop_assert!(*m == *oracle);
        prop_assert_eq!((m.len(), m.remaining()), (oracle.len(), oracle.len()));
        prop_assert_eq!(m.is_empty(), oracle.is_empty());
        prop_assert!(m.segments().iter().all(|s| !s.is_empty()));
        prop_assert!(oracle.starts_with(m.chunk()) && (oracle.is_empty() || !m.chunk().is_empty()));
        let mut slices = [IoSlice::new(&[]); 4];
        let n = m.chunks_vectored(&mut slices);
        prop_assert_eq!(n, m.segments().len().min(4));
        let seen: Vec<u8> = slices[..n].iter().flat_map(|s| s.iter().copied()).collect();
        prop_assert!(oracle.starts_with(&seen));
        prop_assert!(m.as_contiguous().is_none_or(|all| all == oracle));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn behaves_like_a_vec(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..8),
            steps in prop::collection::vec(step(), 0..16),
        ) {
            let mut oracle = parts.concat();
            let mut m = rope(&parts);
            let pool = BufPool::builder().max_bytes(1 << 20).build();
            check(&m, &oracle)?;
            for step in steps {
                match step {
                    Step::Advance(n) => {
                        let n = n.min(oracle.len());
                        m.advance(n);
                        oracle.drain(..n);
                    }
                    Step::SplitTo(n) => {
                        let n = n.min(oracle.len());
                        let head: Vec<u8> = oracle.drain(..n).collect();
                        check(&m.split_to(n), &head)?;
                    }
                    Step::Slice(a, b) => {
                        let (a, b) = (a.min(oracle.len()), b.min(oracle.len()));
                        let (a, b) = (a.min(b), a.max(b));
                        check(&m.slice(a..b), &oracle[a..b])?;
                    }
                    Step::CopyToBytes(n) => {
                        let n = n.min(oracle.len());
                        let head: Vec<u8> = oracle.drain(..n).collect();
                        prop_assert_eq!(m.copy_to_bytes(n), head);
                    }
                    Step::CopyToSlice(n) => {
                        let mut out = vec![0; n.min(oracle.len())];
                        m.copy_to_slice(&mut out);
                        let head: Vec<u8> = oracle.drain(..out.len()).collect();
                        prop_assert_eq!(out, head);
                    }
                    Step::Push(bytes) => {
                        oracle.extend(&bytes);
                        m.push(bytes).unwrap();
                    }
                    Step::Chain(bytes) => {
                        let mut chained = m.clone().chain(Message::from(bytes.clone()));
                        let all = chained.copy_to_bytes(oracle.len() + bytes.len());
                        prop_assert_eq!(&all[..], [&oracle[..], &bytes[..]].concat());
                    }
                    Step::Gather => {
                        let ledger = CopyLedger::new();
                        let whole = m.clone().gather(&pool, &ledger).unwrap();
                        prop_assert_eq!(&whole[..], &oracle[..]);
                        let copied = if m.segments().len() > 1 { oracle.len() } else { 0 };
                        prop_assert_eq!(ledger.snapshot().copied_bytes(), copied as u64);
                    }
                }
                check(&m, &oracle)?;
            }
        }
    }

    #[test]
    fn bytes_within_one_segment_are_not_copied() {
        let mut m = rope(&[vec![1; 10], vec![2; 10]]);
        let at = m.chunk().as_ptr();
        assert_eq!(m.copy_to_bytes(4).as_ptr(), at);
        assert_eq!(m.copy_to_bytes(6).as_ptr(), at.wrapping_add(4));
        let past = std::panic::AssertUnwindSafe(|| m.copy_to_bytes(11));
        assert!(std::panic::catch_unwind(past).is_err());
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
