//! What each side says of its queue pair before they are connected. No I/O.
//!
//! ```text
//! byte  0          4          8                    24           28           32         36    37      38
//!       | number   | psn      | gid                | recv_bytes | recv_count | inline   | mtu | reads | zero |
//!       | u32      | u32      | 16 bytes           | u32        | u32        | u32      | u8  | u8    | u16  |
//! ```
//!
//! Little-endian, [`END_BYTES`] in all. A peer's word is checked in full before any of it is used (M6).

use zc_core::wire::WireError;

use crate::gid::Gid;
use crate::limits::{MAX_READS, RECEIVE_BYTES};

/// The format, and that of what is said afterwards.
pub const VERSION: u16 = 3;
/// The length of an [`End`].
pub const END_BYTES: usize = 40;
/// The most receive buffers that a peer can say it has.
pub const MAX_RECV_COUNT: u32 = 1 << 20;
/// The longest receive buffers.
pub const MAX_RECV_BYTES: u32 = 1 << 30;
const BITS_24: u32 = (1 << 24) - 1;

/// The number of a queue pair on its device: 24 bits; 0 and 1 are not for users, and the last one is multicast's.
///
/// ```
/// use zc_transport_rdma::QueuePairNumber;
///
/// assert_eq!(QueuePairNumber::new(17).map(|number| number.value()), Some(17));
/// assert!(QueuePairNumber::new(1 << 24).is_none() && QueuePairNumber::new(1).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueuePairNumber(u32);

impl QueuePairNumber {
    /// If it can be one.
    pub fn new(value: u32) -> Option<Self> {
        (value > 1 && value < BITS_24).then_some(Self(value))
    }

    /// As a number.
    pub fn value(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for QueuePairNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a first packet: 24 bits, best at random, so that packets of an earlier queue pair don't fit.
///
/// ```
/// use zc_transport_rdma::Psn;
///
/// assert_eq!(Psn::new(0xff00_0001).value(), 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Psn(u32);

impl Psn {
    /// The low 24 bits.
    pub fn new(value: u32) -> Self {
        Self(value & BITS_24)
    }

    /// As a number.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// The longest packets of a path, without headers.
///
/// ```
/// use zc_transport_rdma::PathMtu;
///
/// let (a, b) = (PathMtu::from_bytes(4096).unwrap(), PathMtu::from_bytes(1024).unwrap());
/// assert_eq!(a.min(b).bytes(), 1024);
/// assert!(PathMtu::from_bytes(1500).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathMtu(u8);

impl PathMtu {
    pub(crate) const SMALLEST: Self = Self(1);

    /// Of 256, 512, 1024, 2048 or 4096 bytes.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        (1..=5).map(Self).find(|mtu| mtu.bytes() == bytes)
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        (1..=5).contains(&code).then_some(Self(code))
    }

    pub(crate) fn code(self) -> u8 {
        self.0
    }

    /// Bytes.
    pub fn bytes(self) -> u32 {
        128 << self.0
    }
}

/// One end of a connection, as it describes itself to the other.
///
/// ```
/// use zc_transport_rdma::{End, Gid, PathMtu, Psn, QueuePairNumber};
///
/// let end = End {
///     number: QueuePairNumber::new(17).unwrap(),
///     psn: Psn::new(0x123456),
///     gid: Gid::from_ip([10, 0, 0, 1].into()),
///     recv_bytes: 4096,
///     recv_count: 64,
///     inline_bytes: 256,
///     mtu: PathMtu::from_bytes(1024).unwrap(),
///     reads: 16,
/// };
/// assert_eq!(End::decode(&end.encode())?, end);
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The queue pair.
    pub number: QueuePairNumber,
    /// The number of its first packet.
    pub psn: Psn,
    /// Its port.
    pub gid: Gid,
    /// The length of its receive buffers: no message is longer.
    pub recv_bytes: u32,
    /// How many of them it has for this connection at first.
    pub recv_count: u32,
    /// Up to how many bytes it sends out of work requests themselves.
    pub inline_bytes: u32,
    /// The longest packets that its port takes.
    pub mtu: PathMtu,
    /// Reads and atomics that it serves at a time.
    pub reads: u8,
}

impl End {
    /// As bytes.
    pub fn encode(&self) -> [u8; END_BYTES] {
        let mut out = [0; END_BYTES];
        let words = [self.number.value(), self.psn.value()]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .chain(self.gid.0)
            .chain(
                [self.recv_bytes, self.recv_count, self.inline_bytes].into_iter().flat_map(u32::to_le_bytes),
            )
            .chain([self.mtu.code(), self.reads]);
        out.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        out
    }

    /// Parses and checks a peer's.
    ///
    /// # Errors
    /// Which field is not as it must be.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bad = |field| WireError::BadValue { field };
        let bytes: &[u8; END_BYTES] = bytes.try_into().map_err(|_| bad("rdma end length"))?;
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
        let bounded = |at, range: std::ops::RangeInclusive<u32>, field| {
            Some(word(at)).filter(|value| range.contains(value)).ok_or(bad(field))
        };
        let mut gid = Gid([0; 16]);
        gid.0.iter_mut().zip(&bytes[8..24]).for_each(|(to, from)| *to = *from);
        let [mtu, reads, zero @ ..] = word(9).to_le_bytes();
        if !gid.is_unicast() {
            return Err(bad("rdma gid"));
        }
        if zero != [0; 2] {
            return Err(bad("rdma reserved"));
        }
        Ok(Self {
            number: QueuePairNumber::new(word(0)).ok_or(bad("rdma queue pair"))?,
            psn: Psn(bounded(1, 0..=BITS_24, "rdma psn")?),
            gid,
            recv_bytes: bounded(6, 1..=MAX_RECV_BYTES, "rdma recv_bytes")?,
            recv_count: bounded(7, 1..=MAX_RECV_COUNT, "rdma recv_count")?,
            inline_bytes: bounded(8, 0..=RECEIVE_BYTES as u32, "rdma inline")?,
            mtu: PathMtu::from_code(mtu).ok_or(bad("rdma mtu"))?,
            reads: Some(reads).filter(|reads| *reads <= MAX_READS).ok_or(bad("rdma reads"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: [u8; END_BYTES] = [
        0x11, 0, 0, 0, // number
        0x56, 0x34, 0x12, 0, // psn
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1, // gid
        0, 0x10, 0, 0, // recv_bytes
        0x40, 0, 0, 0, // recv_count
        0, 1, 0, 0, // inline
        3, 16, 0, 0, // mtu, reads
    ];

    fn golden() -> End {
        End {
            number: QueuePairNumber::new(17).unwrap(),
            psn: Psn::new(0x123456),
            gid: Gid::from_ip([10, 0, 0, 1].into()),
            recv_bytes: 4096,
            recv_count: 64,
            inline_bytes: 256,
            mtu: PathMtu::from_bytes(1024).unwrap(),
            reads: 16,
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(golden().encode(), GOLDEN);
        assert_eq!(End::decode(&GOLDEN), Ok(golden()));
    }

    #[test]
    fn each_field_is_checked() {
        // Where, and what no peer may say there.
        let bad: &[(usize, &[u8])] = &[
            (0, &[0, 0, 0, 0]),
            (0, &[1, 0, 0, 0]),
            (0, &[0xff, 0xff, 0xff, 0]),
            (3, &[1]),
            (7, &[1]),
            (8, &[0; 16]),
            (8, &[0xff]),
            (24, &[0; 4]),
            (27, &[0x80]),
            (28, &[0; 4]),
            (31, &[1]),
            (35, &[1]),
            (36, &[0]),
            (36, &[6]),
            (37, &[17]),
            (38, &[1]),
            (39, &[1]),
        ];
        for (at, wrong) in bad {
            let mut bytes = GOLDEN;
            bytes[*at..].iter_mut().zip(*wrong).for_each(|(to, from)| *to = *from);
            assert!(End::decode(&bytes).is_err(), "{wrong:?} at {at}");
        }
        assert!(End::decode(&GOLDEN[..39]).is_err() && End::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn fuzz_ends(bytes in prop::collection::vec(any::<u8>(), 0..60), at in 0..END_BYTES, byte: u8) {
            let _ = End::decode(&bytes);
            let mut changed = GOLDEN;
            changed[at] = byte;
            for bytes in [&bytes[..], &changed[..]] {
                if let Ok(end) = End::decode(bytes) {
                    prop_assert_eq!(&end.encode()[..], bytes, "what is accepted means one thing");
                }
            }
        }
    }
}
