//! A packet of one frame or several.

use super::checksum::checksum;
use smallvec::{SmallVec, smallvec};
use zc_core::memory::{Message, PinnedBuf, PinnedBufMut, TooManySegments};

use crate::sys::{Segments, TX_METADATA_BYTES};

/// A packet as it came in: from the Ethernet header on, nearly always in one frame. Its bytes are ours alone, to be
/// read, changed in place, sent on, or kept.
///
/// ```
/// use zc_transport_xdp::device::{Packet, Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions::default())?;
/// let mut frame = umem.allocate(256).unwrap();
/// frame.put_slice(&[0; 60]);
/// let mut packet = Packet::from(frame);
/// packet.head_mut()[..6].swap_with_slice(&mut [2, 0, 0, 0, 0, 1]); // To somebody else.
/// assert_eq!((packet.len(), packet.frames().len()), (60, 1));
/// # Ok::<(), zc_transport_xdp::device::OpenError>(())
/// ```
#[derive(Debug)]
pub struct Packet {
    frames: SmallVec<[PinnedBufMut; 1]>,
}

impl From<PinnedBufMut> for Packet {
    fn from(frame: PinnedBufMut) -> Self {
        Self { frames: smallvec![frame] }
    }
}

impl Packet {
    pub(super) fn of(frames: SmallVec<[PinnedBufMut; 1]>) -> Self {
        Self { frames }
    }

    /// All bytes.
    pub fn len(&self) -> usize {
        self.frames.iter().map(PinnedBufMut::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the first frame, in which all headers lie.
    pub fn head(&self) -> &[u8] {
        self.frames.first().map_or(&[], |frame| frame)
    }

    /// The bytes of the first frame, to be changed.
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.frames.first_mut().map_or(&mut [], |frame| frame)
    }

    /// All frames.
    pub fn frames(&self) -> &[PinnedBufMut] {
        &self.frames
    }

    /// All frames, to be taken.
    pub fn into_frames(self) -> impl ExactSizeIterator<Item = PinnedBufMut> {
        self.frames.into_iter()
    }

    /// Shared and immutable from here on. Nothing is copied.
    pub fn into_message(self) -> Result<Message, TooManySegments> {
        let mut message = Message::new();
        self.frames.into_iter().try_for_each(|frame| message.push(frame.freeze()))?;
        Ok(message)
    }
}

/// A packet to be sent: segments that lie in frames, one after the other. Nothing is copied, so a payload that must be
/// kept for a while stays where it is, and only its headers are in a frame of their own.
///
/// ```
/// use zc_transport_xdp::device::{Outgoing, Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions::default())?;
/// let mut payload = umem.allocate(256).unwrap();
/// payload.put_slice(b"kept until it is acknowledged");
/// let payload = payload.freeze();
/// let mut headers = umem.allocate(256).unwrap();
/// headers.put_slice(&[0; 42]);
/// let mut packet = Outgoing::from(headers);
/// packet.push(payload.clone());
/// assert_eq!(packet.len(), 42 + payload.len());
/// # Ok::<(), zc_transport_xdp::device::OpenError>(())
/// ```
#[derive(Debug, Default)]
pub struct Outgoing {
    pub(super) segments: Segments,
    /// In the metadata in front of the first segment, too.
    pub(super) order: Option<Order>,
}

/// A checksum that somebody is to compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    start: u16,
    offset: u16,
}

// In the metadata: a checksum is wanted.
const WANTS_CHECKSUM: u64 = 1 << 1;

impl Outgoing {
    /// A packet whose checksum is computed on its way: by the device, if it was opened with
    /// [`checksums`](super::DeviceOptions::checksums) and can do that, else by [`Queue::send`](super::Queue::send). The sum goes over all bytes of all segments from `start` on, and to
    /// `start + offset`, where that of the pseudo header lies already.
    ///
    /// `None`: there are less than 24 bytes in front, or the place for the checksum does not lie in `head`.
    pub fn with_checksum(mut head: PinnedBufMut, start: u16, offset: u16) -> Option<Self> {
        // The kernel would stop at such an order, and send nothing any more.
        if usize::from(start) + usize::from(offset) + size_of::<u16>() > head.len() {
            return None;
        }
        let room = head.headroom_mut();
        let at = room.len().checked_sub(TX_METADATA_BYTES as usize)?;
        let ([a, b], [c, d]) = (start.to_ne_bytes(), offset.to_ne_bytes());
        let words = WANTS_CHECKSUM.to_ne_bytes().into_iter().chain([a, b, c, d]).chain(std::iter::repeat(0));
        room[at..].iter_mut().zip(words).for_each(|(to, from)| *to = from);
        let order = Some(Order { start, offset });
        Some(Self { segments: smallvec![head.freeze()], order })
    }

    /// Computes the checksum here, if one is wanted: nobody else will. The order is gone then.
    pub(super) fn sum_up(&mut self) {
        let (Some(order), Some(first)) = (self.order, self.segments.first_mut()) else { return };
        let mut head = match std::mem::take(first).try_into_mut() {
            Ok(head) => head,
            Err(shared) => return *first = shared, // Can't be: nobody has got at it.
        };
        let (start, offset) = (usize::from(order.start), usize::from(order.offset));
        let rest = self.segments.iter().skip(1).map(|segment| &segment[..]);
        let sum = checksum(std::iter::once(&head[start..]).chain(rest)).to_be_bytes();
        head[start + offset..].iter_mut().zip(sum).for_each(|(to, byte)| *to = byte);
        self.segments[0] = head.freeze();
        self.order = None;
    }

    /// Appends a segment. It must lie in a frame of the queue's memory.
    pub fn push(&mut self, segment: PinnedBuf) {
        self.segments.push(segment);
    }

    /// All bytes.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment[..].len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<PinnedBuf> for Outgoing {
    fn from(segment: PinnedBuf) -> Self {
        Self { segments: smallvec![segment], order: None }
    }
}

impl From<PinnedBufMut> for Outgoing {
    fn from(frame: PinnedBufMut) -> Self {
        frame.freeze().into()
    }
}

impl From<Packet> for Outgoing {
    fn from(packet: Packet) -> Self {
        let segments = packet.frames.into_iter().map(PinnedBufMut::freeze).collect();
        Self { segments, order: None }
    }
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        Self { segments: message.into_segments().collect(), order: None }
    }
}
