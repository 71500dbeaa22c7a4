//! What has come and was not handed out: messages, in order, and those of them that are still to be fetched. No I/O.
//!
//! ```text
//! ANNOUNCE -> Large: memory? -> read, read ... -> whole
//! DATA ...         waits behind it, as it must be handed out in order
//! ```
//!
//! A peer announces at most [`MAX_PIECES`] pieces that were not read, so that no more than that can be asked for.

use std::collections::VecDeque;

use zc_core::memory::PinnedBufMut;
use zc_core::transport::{Frame, FrameKind};
use zc_core::wire::WireError;

use super::record::{Announce, Piece};
use crate::limits::{MAX_PIECES, MAX_UNCREDITED, READ_BYTES};
use crate::verbs::RemotePlace;

/// A part of a message to be read.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// Of which message.
    pub(crate) id: u64,
    pub(crate) from: RemotePlace,
    pub(crate) len: usize,
    /// Where to, behind what is in it.
    pub(crate) into: PinnedBufMut,
}

struct Large {
    id: u64,
    kind: FrameKind,
    ack: bool,
    seq: u64,
    len: usize,
    announced: usize,
    /// Lent while it is read into.
    memory: Option<PinnedBufMut>,
    has_memory: bool,
    /// Bytes of the read under way.
    reading: Option<usize>,
    /// Their numbers, and what is left of each.
    pieces: VecDeque<(u64, Piece)>,
}

impl Large {
    fn is_whole(&self) -> bool {
        self.announced == self.len && self.pieces.is_empty()
    }
}

enum Item {
    Frame(Frame),
    Large(Large),
}

impl Item {
    fn kind(&self) -> FrameKind {
        match self {
            Self::Frame(frame) => frame.kind,
            Self::Large(large) => large.kind,
        }
    }
}

pub(crate) struct Inbound {
    items: VecDeque<Item>,
    /// Of those, the ones that no credit bounds.
    uncredited: u32,
    next_id: u64,
    max_message: usize,
    /// Pieces from the first that is not read on: whether they are.
    read: VecDeque<bool>,
    /// Pieces before those.
    done: u64,
    reads: usize,
    max_reads: usize,
    /// Bytes of one.
    max_read: usize,
    /// Nothing is handed out any more.
    is_closed: bool,
    /// Reads under way for what nobody wants any more, and the numbers of their pieces.
    unwanted: Vec<(u64, u64)>,
}

fn lie(field: &'static str) -> WireError {
    WireError::BadValue { field }
}

impl Inbound {
    pub(crate) fn new(max_message: usize, max_reads: usize, max_read: usize) -> Self {
        let (max_reads, max_read) = (max_reads.max(1), max_read.clamp(1, READ_BYTES));
        let (items, read) = (VecDeque::new(), VecDeque::new());
        Self {
            items,
            uncredited: 0,
            next_id: 0,
            max_message,
            read,
            done: 0,
            reads: 0,
            max_reads,
            max_read,
            is_closed: false,
            unwanted: Vec::new(),
        }
    }

    /// Nothing more is wanted of it. What was announced, and what will be, counts as read: its sender waits for that. What is just being
    /// read does so only then: the read would fail, and both queue pairs with it.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        let reading = self.larges().filter(|large| large.reading.is_some());
        let reading: Vec<_> = reading.filter_map(|large| Some((large.id, large.pieces.front()?.0))).collect();
        self.unwanted.extend(reading);
        self.items.clear();
        self.uncredited = 0;
        for (number, read) in (self.done..).zip(&mut self.read) {
            *read |= self.unwanted.iter().all(|(_, unwanted)| *unwanted != number);
        }
        self.count();
    }

    /// Counts what was read in order.
    fn count(&mut self) {
        while self.read.front() == Some(&true) {
            self.read.pop_front();
            self.done += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Messages that no credit bounds, beyond those that are kept: each is worth the slot that it came in.
    pub(crate) fn excess(&self) -> u32 {
        self.uncredited.saturating_sub(MAX_UNCREDITED)
    }

    /// The last one announced lacks pieces that were not announced.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.items.back(), Some(Item::Large(large)) if large.announced < large.len)
    }

    /// How many pieces were read, in order.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn frame(&mut self, frame: Frame) -> Result<(), WireError> {
        if self.is_closed {
            return Ok(());
        }
        if self.is_open() {
            return Err(lie("rdma frame inside of a message"));
        }
        self.push(Item::Frame(frame));
        Ok(())
    }

    fn push(&mut self, item: Item) {
        self.uncredited += u32::from(item.kind() != FrameKind::Data);
        self.items.push_back(item);
    }

    /// Takes an announcement; the number is that of the next data message.
    pub(crate) fn announce(&mut self, announce: &Announce, ack: bool, seq: u64) -> Result<(), WireError> {
        let len = announce.len as usize;
        let kind = if announce.is_remote { FrameKind::Remote } else { FrameKind::Data };
        if self.read.len() + announce.pieces.len() > MAX_PIECES {
            return Err(lie("rdma pieces"));
        }
        if self.is_closed {
            self.read.extend(announce.pieces.iter().map(|_| true));
            self.count();
            return Ok(());
        }
        if announce.is_first == self.is_open() {
            return Err(lie("rdma announcement out of order"));
        }
        if announce.is_first {
            if len > kind.max_bytes(self.max_message) {
                return Err(lie("rdma message too long"));
            }
            self.next_id += 1;
            self.push(Item::Large(Large {
                id: self.next_id,
                kind,
                ack,
                seq,
                len,
                announced: 0,
                memory: None,
                has_memory: false,
                reading: None,
                pieces: VecDeque::new(),
            }));
        }
        let Some(Item::Large(large)) = self.items.back_mut() else {
            return Err(lie("rdma announcement out of order"));
        };
        let sum: usize = announce.pieces.iter().map(|piece| piece.len as usize).sum();
        if len != large.len || kind != large.kind || sum > large.len - large.announced {
            return Err(lie("rdma announcement of another length"));
        }
        for piece in &announce.pieces {
            large.pieces.push_back((self.done + self.read.len() as u64, *piece));
            self.read.push_back(false);
        }
        large.announced += sum;
        Ok(())
    }

    fn larges(&mut self) -> impl Iterator<Item = &mut Large> {
        self.items.iter_mut().filter_map(|item| match item {
            Item::Large(large) => Some(large),
            Item::Frame(_) => None,
        })
    }

    /// How long the first message is that has no memory, and whether it is the next to be handed out.
    pub(crate) fn wants_memory(&mut self) -> Option<usize> {
        self.larges().find(|large| !large.has_memory).map(|large| large.len)
    }

    /// That message gets some.
    pub(crate) fn give(&mut self, memory: PinnedBufMut) {
        if let Some(large) = self.larges().find(|large| !large.has_memory) {
            debug_assert!(memory.capacity() >= large.len && memory.is_empty());
            (large.memory, large.has_memory) = (Some(memory), true);
        }
    }

    /// The next read, if one may begin.
    pub(crate) fn next_fetch(&mut self) -> Option<Fetch> {
        if self.reads >= self.max_reads {
            return None;
        }
        let max_read = self.max_read;
        let large = self
            .larges()
            .find(|large| large.memory.is_some() && !large.pieces.is_empty() && large.reading.is_none())?;
        let (_, piece) = large.pieces.front()?;
        let (from, len) = (piece.place, (piece.len as usize).min(max_read));
        let into = large.memory.take()?;
        large.reading = Some(len);
        let id = large.id;
        self.reads += 1;
        Some(Fetch { id, from, len, into })
    }

    /// A read is over, and has filled what it was to fill.
    pub(crate) fn fetched(&mut self, id: u64, memory: PinnedBufMut) {
        self.reads = self.reads.saturating_sub(1);
        let unwanted = self.unwanted.iter().position(|(unwanted, _)| *unwanted == id);
        let mut over = unwanted.map(|at| self.unwanted.swap_remove(at).1);
        if let Some(large) = self.larges().find(|large| large.id == id)
            && let Some(len) = large.reading.take()
        {
            large.memory = Some(memory);
            if let Some((number, piece)) = large.pieces.front_mut() {
                piece.place = piece.place.at(len as u64);
                piece.len -= len as u32;
                if piece.len == 0 {
                    over = Some(*number);
                    large.pieces.pop_front();
                }
            }
        }
        let at = over.and_then(|number: u64| number.checked_sub(self.done));
        if let Some(read) = at.and_then(|at| self.read.get_mut(at as usize)) {
            *read = true;
        }
        self.count();
    }

    /// The next message, if it is whole. `finish` makes a payload of fetched memory.
    pub(crate) fn next(
        &mut self,
        finish: impl FnOnce(PinnedBufMut) -> zc_core::memory::Message,
    ) -> Option<Frame> {
        match self.items.front()? {
            Item::Large(large) if !large.is_whole() => return None,
            _ => {}
        }
        let item = self.items.pop_front()?;
        self.uncredited -= u32::from(item.kind() != FrameKind::Data);
        match item {
            Item::Frame(frame) => Some(frame),
            Item::Large(large) => {
                let payload = large.memory.map(finish).unwrap_or_default();
                Some(Frame { kind: large.kind, ack: large.ack, seq: large.seq, payload })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RECORD_PIECES;
    use proptest::prelude::*;
    use zc_core::memory::{BufPool, Message};

    fn piece(address: u64, len: u32) -> Piece {
        Piece { place: RemotePlace { address, key: 1 }, len }
    }

    fn announce(len: u32, is_first: bool, pieces: &[Piece]) -> Announce {
        Announce { len, is_first, is_remote: false, pieces: pieces.iter().copied().collect() }
    }

    fn frame(seq: u64) -> Frame {
        Frame { kind: FrameKind::Data, ack: false, seq, payload: Message::new() }
    }

    fn whole(buf: PinnedBufMut) -> Message {
        buf.freeze().into()
    }

    /// As a device would: the byte at an address is the address.
    fn read(fetch: Fetch) -> (u64, PinnedBufMut) {
        let mut into = fetch.into;
        for at in 0..fetch.len as u64 {
            into.put_slice(&[(fetch.from.address + at) as u8]);
        }
        (fetch.id, into)
    }

    #[test]
    fn order_holds_and_pieces_count_in_order() {
        let pool = BufPool::builder().build();
        let mut inbound = Inbound::new(1 << 20, 2, READ_BYTES);
        inbound.announce(&announce(300, true, &[piece(0, 100), piece(500, 100)]), true, 1).unwrap();
        assert!(inbound.frame(frame(2)).is_err(), "the message is not all announced");
        inbound.announce(&announce(300, false, &[piece(900, 100)]), false, 0).unwrap();
        inbound.frame(frame(2)).unwrap();
        inbound.announce(&announce(50, true, &[piece(7, 50)]), false, 3).unwrap();
        assert!(inbound.next_fetch().is_none());
        for len in [300, 50] {
            assert_eq!(inbound.wants_memory(), Some(len));
            inbound.give(pool.try_alloc(len).unwrap());
        }
        let (first, second) = (inbound.next_fetch().unwrap(), inbound.next_fetch().unwrap());
        assert!(inbound.next_fetch().is_none() && inbound.next(whole).is_none());
        let (id, memory) = read(second);
        inbound.fetched(id, memory);
        assert_eq!(inbound.done(), 0, "the first is not read");
        let (id, memory) = read(first);
        inbound.fetched(id, memory);
        while let Some(fetch) = inbound.next_fetch() {
            let (id, memory) = read(fetch);
            inbound.fetched(id, memory);
        }
        assert_eq!(inbound.done(), 4);
        let got = inbound.next(whole).unwrap();
        let expect: Vec<u8> = (0..100).chain(500..600).chain(900..1000).map(|at| at as u8).collect();
        assert!(got.ack && got.seq == 1 && got.payload == expect[..]);
        assert_eq!(inbound.next(whole).unwrap().seq, 2);
        assert_eq!(inbound.next(whole).unwrap().payload.len(), 50);
        assert!(inbound.next(whole).is_none() && inbound.is_empty());
    }

    #[test]
    fn what_nobody_wants_counts_as_read() {
        let mut inbound = Inbound::new(1 << 20, 2, READ_BYTES);
        inbound.announce(&announce(300, true, &[piece(0, 100), piece(500, 100)]), false, 1).unwrap();
        inbound.give(BufPool::builder().build().try_alloc(300).unwrap());
        let fetch = inbound.next_fetch().unwrap();
        inbound.close();
        assert_eq!((inbound.done(), inbound.is_empty()), (0, true), "it is being read");
        let (id, memory) = read(fetch);
        inbound.fetched(id, memory);
        assert_eq!(inbound.done(), 2);
        inbound.announce(&announce(300, false, &[piece(900, 100)]), false, 0).unwrap();
        inbound.frame(frame(2)).unwrap();
        assert_eq!((inbound.done(), inbound.is_empty(), inbound.next_fetch().is_none()), (3, true, true));
    }

    #[test]
    fn what_no_credit_bounds_is_counted_until_it_is_handed_out() {
        let mut inbound = Inbound::new(1 << 20, 2, READ_BYTES);
        inbound.announce(&announce(50, true, &[piece(0, 50)]), false, 1).unwrap();
        let record = |kind| Frame { kind, ack: false, seq: 0, payload: Message::new() };
        for _ in 0..MAX_UNCREDITED / 2 {
            inbound.frame(record(FrameKind::Session)).unwrap();
            inbound.frame(record(FrameKind::Remote)).unwrap();
            inbound.frame(frame(2)).unwrap();
        }
        assert_eq!(inbound.excess(), 0);
        let remote = Announce { is_remote: true, ..announce(60, true, &[piece(0, 60)]) };
        inbound.announce(&remote, false, 0).unwrap();
        inbound.frame(record(FrameKind::Session)).unwrap();
        assert_eq!((inbound.excess(), inbound.next(whole).is_none()), (2, true));
        while let Some(len) = inbound.wants_memory() {
            inbound.give(BufPool::builder().build().try_alloc(len).unwrap());
            let (id, memory) = read(inbound.next_fetch().unwrap());
            inbound.fetched(id, memory);
        }
        let excess = std::iter::from_fn(|| inbound.next(whole).map(|_| inbound.excess()));
        // The long one and the data are bounded by credit.
        assert_eq!(excess.take(4).collect::<Vec<_>>(), [2, 1, 0, 0]);
        while inbound.next(whole).is_some() {}
        inbound.frame(record(FrameKind::Session)).unwrap();
        inbound.close();
        assert_eq!((inbound.uncredited, inbound.excess()), (0, 0));
    }

    proptest! {
        /// Any announcements in any order: an error, or a message that is as long as was said; never more pieces than may be.
        #[test]
        fn hostile_announcements_do_no_harm(
            steps in prop::collection::vec(
                (0..4u8, 1..5000u32, any::<bool>(), prop::collection::vec(1..2000u32, 1..=RECORD_PIECES)),
                0..60,
            ),
        ) {
            let pool = BufPool::builder().max_bytes(8 << 20).build();
            let mut inbound = Inbound::new(4000, 2, 700);
            let (mut flying, mut told, mut lens) = (Vec::new(), 0, VecDeque::new());
            for (step, len, is_first, pieces) in steps {
                match step {
                    0 | 1 => {
                        let sum: u32 = pieces.iter().sum();
                        // As it comes out of the codec.
                        let len = if step == 0 { sum } else { len.max(sum) };
                        let pieces: Vec<_> = pieces.into_iter().map(|len| piece(9, len)).collect();
                        let is_new = inbound.announce(&announce(len, is_first, &pieces), false, 1).is_ok();
                        if is_new {
                            told += pieces.len() as u64;
                            if is_first { lens.push_back(len as usize) }
                        } else {
                            // The connection ends here.
                            return Ok(());
                        }
                    }
                    2 => {
                        if let Some(len) = inbound.wants_memory() { inbound.give(pool.try_alloc(len).unwrap()) }
                        flying.extend(inbound.next_fetch());
                    }
                    _ => {
                        if let Some(fetch) = flying.pop() {
                            let (id, memory) = read(fetch);
                            inbound.fetched(id, memory);
                        }
                    }
                }
                prop_assert!(told - inbound.done() <= MAX_PIECES as u64);
                while let Some(frame) = inbound.next(whole) {
                    prop_assert_eq!(Some(frame.payload.len()), lens.pop_front());
                }
            }
        }
    }
}
