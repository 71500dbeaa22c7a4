//! Where everything lies in the memory that one side makes; `docs/shm.md` has the pictures.

use zc_core::wire::WireError;

use crate::lie::lie;
use crate::limits::{
    FIRST_BLOCK_BYTES, FIRST_BLOCKS, MAX_BLOCKS, MAX_FRAMES, MAX_HALF_BYTES, MAX_RING_SLOTS, MAX_SLABS,
    MIN_RING_SLOTS, REMOTE_SLOTS, SLOT_BYTES,
};
use crate::offer::VERSION;
use crate::words::{OwnWords, PeerWords, ReadWords, WriteWords};

/// `zc.shm` and the version in the last byte.
const MAGIC: u64 = u64::from_le_bytes(*b"zc.shm\0\0") | (VERSION as u64) << 56;
const _: () = assert!(VERSION <= 0xff);
/// The page of the header and the control words, bytes.
const HEAD_BYTES: usize = 4096;
/// Bytes of a page, on every machine this runs on or a divisor of it.
const PAGE_BYTES: usize = 4096;

/// Word: slots of the peer's ring that we are done with.
pub(crate) const CONSUMED: usize = 128 / 8;
/// Word: payload bytes that our application took.
pub(crate) const TAKEN: usize = CONSUMED + 1;
/// Word: not 0 once others than we may read what the peer sends us, for a forwarding group. Never 0 again.
pub(crate) const PASSED_ON: usize = CONSUMED + 2;
/// Word: our receiving half's sleep epoch.
pub(crate) const RX_SLEEP: usize = 256 / 8;
/// Word: our sending half's sleep epoch.
pub(crate) const TX_SLEEP: usize = 384 / 8;
/// Word: our one-sided half's sleep epoch.
pub(crate) const REMOTE_SLEEP: usize = 512 / 8;
/// Word: records of the peer's one-sided half that we are done with.
pub(crate) const REMOTE_CONSUMED: usize = REMOTE_SLEEP + 1;
/// Word: notifications of the peer that no longer wait here.
pub(crate) const NOTIFIED: usize = REMOTE_SLEEP + 2;
/// Word: how often our one-sided half had something for the peer's.
pub(crate) const REMOTE_CALLS: usize = REMOTE_SLEEP + 3;
/// Word: how many revocations our one-sided half has decided; their records may follow later.
pub(crate) const REMOTE_REVOKED: usize = REMOTE_SLEEP + 4;
/// First word of the ring of our one-sided half's records.
pub(crate) const REMOTE_RING: usize = 1024 / 8;
const _: () = assert!(8 * REMOTE_RING + REMOTE_SLOTS as usize * SLOT_BYTES <= HEAD_BYTES);
/// Words of a slot.
pub(crate) const SLOT_WORDS: usize = SLOT_BYTES / 8;

/// The sizes of one side's memory; both sides know both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Slots of the ring, a power of two.
    pub(crate) slots: u32,
    /// Entries of the return ring, a power of two.
    pub(crate) returns: u32,
    /// Bytes of a block of the arena, a multiple of 64.
    pub(crate) block_len: u32,
    /// Blocks of the arena.
    pub(crate) blocks: u32,
}

impl Geometry {
    pub(crate) fn new(slots: u32) -> Self {
        let slots = slots.clamp(MIN_RING_SLOTS, MAX_RING_SLOTS).next_power_of_two();
        Self { slots, returns: MAX_BLOCKS, block_len: FIRST_BLOCK_BYTES, blocks: FIRST_BLOCKS }
    }

    /// Whether the sizes are allowed; nothing else may be asked of them before.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        let slots = self.slots.is_power_of_two() && (MIN_RING_SLOTS..=MAX_RING_SLOTS).contains(&self.slots);
        if !slots {
            return Err(lie("shm ring slots"));
        }
        if self.returns != MAX_BLOCKS {
            return Err(lie("shm return ring"));
        }
        let len = self.block_len as usize;
        if len == 0 || len > MAX_HALF_BYTES || !len.is_multiple_of(64) {
            return Err(lie("shm block length"));
        }
        let blocks = self.blocks > 0 && self.blocks <= MAX_BLOCKS;
        if !blocks || self.frames() > MAX_FRAMES || self.bytes() > MAX_HALF_BYTES {
            return Err(lie("shm blocks"));
        }
        Ok(())
    }

    /// First word of the return ring.
    pub(crate) fn returns_at(&self) -> usize {
        HEAD_BYTES / 8
    }

    /// First word of the ring.
    pub(crate) fn ring_at(&self) -> usize {
        self.returns_at() + self.returns as usize
    }

    /// Bytes in front of the arena.
    pub(crate) fn control_bytes(&self) -> usize {
        self.ring_at() * 8 + self.slots as usize * SLOT_BYTES
    }

    /// Index of the first block: those before it overlap the control words and are never used.
    pub(crate) fn first_block(&self) -> u32 {
        self.control_bytes().div_ceil(self.block_len as usize) as u32
    }

    /// Blocks, counting those that are never used.
    pub(crate) fn frames(&self) -> u32 {
        self.first_block() + self.blocks
    }

    /// All bytes: whole pages.
    pub(crate) fn bytes(&self) -> usize {
        (self.frames() as usize * self.block_len as usize).next_multiple_of(PAGE_BYTES)
    }

    fn words(&self) -> [u64; 4] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [MAGIC, self.bytes() as u64, pair(self.slots, self.returns), pair(self.block_len, self.blocks)]
    }

    /// Writes the header of our memory.
    pub(crate) fn write(&self, words: &OwnWords) {
        self.words().into_iter().enumerate().for_each(|(at, word)| words.store(at, word));
    }

    /// Checks the header of the peer's memory against what it offered.
    pub(crate) fn verify(&self, words: &PeerWords) -> Result<(), WireError> {
        let same = self.words().into_iter().enumerate().all(|(at, word)| words.load(at) == word);
        if same { Ok(()) } else { Err(lie("shm header")) }
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Data = 1,
    Session = 2,
    /// A further arena; its descriptor went over the link before.
    Grow = 3,
    /// An arena is gone.
    Retire = 4,
    /// Nothing follows.
    Close = 5,
    /// A one-sided request or answer.
    Remote = 6,
    /// A message longer than all arenas begins: its length. Its parts follow.
    Large = 7,
    /// The next part of it.
    Part = 8,
    /// A region of a group; its descriptor went over the link before.
    Share = 9,
}

/// The payload is in blocks, the slot holds descriptors.
pub(crate) const BY_REFERENCE: u8 = 1;
/// The next slot goes on with the same frame.
pub(crate) const MORE: u8 = 2;
/// The sender asks for an acknowledgement.
pub(crate) const ACK: u8 = 4;

/// The first word of a slot, without the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// A [`Kind`], not checked yet.
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Payload bytes in the slot, or descriptors.
    pub(crate) count: u8,
}

impl Head {
    pub(crate) fn new(kind: Kind, flags: u8, count: usize) -> Self {
        Self { kind: kind as u8, flags, count: count as u8 }
    }

    #[inline]
    pub(crate) fn pack(self, turn: u32) -> u64 {
        u64::from(turn)
            | u64::from(self.kind) << 32
            | u64::from(self.flags) << 40
            | u64::from(self.count) << 48
    }

    #[inline]
    pub(crate) fn unpack(word: u64) -> (u32, Self) {
        let head = Self { kind: (word >> 32) as u8, flags: (word >> 40) as u8, count: (word >> 48) as u8 };
        (word as u32, head)
    }
}

/// In the number of an arena: it is a region of a group, and blocks are loans.
pub(crate) const SHARED: u8 = 128;
/// In the number of an arena: it is one of the receiver's own, of which he lent us a block that goes back to him as a message.
pub(crate) const BACK: u8 = 64;
const _: () = assert!(MAX_SLABS <= BACK as usize && BACK & SHARED == 0);

/// Where a piece of payload lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) slab: u8,
    pub(crate) generation: u16,
    pub(crate) block: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Descriptor {
    /// Whether it names memory of whoever reads it.
    #[inline]
    pub(crate) fn is_back(&self) -> bool {
        self.slab & (SHARED | BACK) == BACK
    }

    pub(crate) fn pack(self) -> [u64; 2] {
        [
            u64::from(self.slab) | u64::from(self.generation) << 16 | u64::from(self.block) << 32,
            u64::from(self.offset) | u64::from(self.len) << 32,
        ]
    }

    pub(crate) fn unpack([a, b]: [u64; 2]) -> Self {
        Self {
            slab: a as u8,
            generation: (a >> 16) as u16,
            block: (a >> 32) as u32,
            offset: b as u32,
            len: (b >> 32) as u32,
        }
    }
}

/// A further arena, as its entry in the ring says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grow {
    pub(crate) slab: u8,
    pub(crate) block_len: u32,
    pub(crate) blocks: u32,
}

impl Grow {
    pub(crate) fn pack(self) -> [u64; 2] {
        [u64::from(self.slab), u64::from(self.block_len) | u64::from(self.blocks) << 32]
    }

    pub(crate) fn unpack([a, b]: [u64; 2]) -> Self {
        Self { slab: a as u8, block_len: b as u32, blocks: (b >> 32) as u32 }
    }

    /// All bytes: whole pages. Two 32-bit factors fit in 64 bits.
    pub(crate) fn bytes(&self) -> u64 {
        (u64::from(self.block_len) * u64::from(self.blocks)).next_multiple_of(PAGE_BYTES as u64)
    }
}

/// A region of a group, as its entry in the ring says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// With [`SHARED`].
    pub(crate) region: u8,
    pub(crate) bytes: u64,
}

impl Share {
    pub(crate) fn pack(self) -> [u64; 2] {
        [self.region.into(), self.bytes]
    }

    pub(crate) fn unpack([a, bytes]: [u64; 2]) -> Self {
        Self { region: a as u8, bytes }
    }
}

/// An entry of the return ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Return {
    pub(crate) slab: u8,
    /// How often messages sent it back before; of a group never.
    pub(crate) sent_back: u8,
    pub(crate) generation: u16,
    pub(crate) block: u16,
}

impl Return {
    pub(crate) fn pack(self, turn: u16) -> u64 {
        u64::from(turn)
            | u64::from(self.slab) << 16
            | u64::from(self.sent_back) << 24
            | u64::from(self.block) << 32
            | u64::from(self.generation) << 48
    }

    pub(crate) fn unpack(word: u64) -> (u16, Self) {
        let back = Self {
            slab: (word >> 16) as u8,
            sent_back: (word >> 24) as u8,
            block: (word >> 32) as u16,
            generation: (word >> 48) as u16,
        };
        (word as u16, back)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_magic_names_the_version() {
        assert_eq!(MAGIC.to_le_bytes(), *b"zc.shm\0\x03");
    }

    /// The bytes of docs/shm.md.
    #[test]
    fn golden() {
        let bytes = |words: [u64; 2]| words.map(u64::to_le_bytes).concat();
        let name = Descriptor { slab: BACK | 3, generation: 0x0201, block: 0x17, offset: 0x40, len: 0x1000 };
        assert!(name.is_back() && !Descriptor { slab: SHARED | BACK, ..name }.is_back());
        assert_eq!(bytes(name.pack()), *b"\x43\0\x01\x02\x17\0\0\0\x40\0\0\0\0\x10\0\0");
        let back = Return { slab: 3, sent_back: 2, generation: 0x0201, block: 0x17 };
        assert_eq!(back.pack(5).to_le_bytes(), *b"\x05\0\x03\x02\x17\0\x01\x02");
    }

    /// A message in parts: what it is, and where or what its parts are.
    #[test]
    fn slots_of_a_message_in_parts_are_as_documented() {
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let begin = [Head::new(Kind::Large, ACK, 8).pack(3), 9, 5 << 20];
        assert_eq!(bytes(&begin), *b"\x03\0\0\0\x07\x04\x08\0\x09\0\0\0\0\0\0\0\0\0\x50\0\0\0\0\0");
        let at = Descriptor { slab: 2, generation: 0x102, block: 5, offset: 64, len: 256 << 10 };
        let [place, piece] = at.pack();
        let part = [Head::new(Kind::Part, BY_REFERENCE, 1).pack(3), 9, place, piece];
        let named = b"\x03\0\0\0\x08\x01\x01\0\x09\0\0\0\0\0\0\0\x02\0\x02\x01\x05\0\0\0\x40\0\0\0\0\0\x04\0";
        assert_eq!(bytes(&part), *named);
        assert_eq!(bytes(&[Head::new(Kind::Part, 0, 112).pack(3)]), *b"\x03\0\0\0\x08\0\x70\0");
    }

    #[test]
    fn an_idle_connection_is_small() {
        let g = Geometry::new(crate::limits::RING_SLOTS);
        g.check().unwrap();
        assert_eq!(g.bytes(), 102_400);
        assert!(2 * g.bytes() < 256 << 10);
        assert!(g.first_block() as usize * g.block_len as usize >= g.control_bytes());
    }

    /// Every block has a number that an entry of the return ring can hold.
    #[test]
    fn blocks_that_cannot_be_named_are_refused() {
        let longest = Geometry::new(u32::MAX >> 1);
        longest.check().unwrap();
        assert_eq!((longest.slots, longest.frames()), (MAX_RING_SLOTS, 2033));
        assert!(Geometry { block_len: 64, ..longest }.check().is_err());
        assert!(u16::try_from(MAX_FRAMES.max(MAX_BLOCKS)).is_ok());
    }

    proptest! {
        #[test]
        fn fuzz_sizes_are_checked_before_use(slots: u32, returns: u32, block_len: u32, blocks in 0u32..2000) {
            let g = Geometry { slots, returns, block_len, blocks };
            if g.check().is_ok() {
                prop_assert!(g.bytes() <= MAX_HALF_BYTES && g.frames() <= MAX_FRAMES);
            }
        }

        #[test]
        fn packs_both_ways(turn: u32, a: u64, b: u64, generation: u16) {
            let (t, head) = Head::unpack(a);
            prop_assert_eq!(Head::unpack(head.pack(turn)), (turn, head));
            prop_assert!(t == a as u32);
            let d = Descriptor { generation, ..Descriptor::unpack([a, b]) };
            prop_assert_eq!(Descriptor::unpack(d.pack()), d);
            let g = Grow::unpack([a, b]);
            prop_assert_eq!(Grow::unpack(g.pack()), g);
            let s = Share::unpack([a, b]);
            prop_assert_eq!(Share::unpack(s.pack()), s);
            let (t, r) = Return::unpack(a);
            prop_assert_eq!(Return::unpack(r.pack(t)), (t, r));
        }
    }
}
