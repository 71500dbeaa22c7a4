//! Finding frames in received bytes.

use smallvec::SmallVec;

use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameLimits, WireError, check_frame_ext, frame_ext_len};

/// A frame's header and where its payload begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) header: FrameHeader,
    /// Bytes in front of the payload.
    pub(super) payload_at: usize,
}

impl Head {
    #[inline]
    pub(super) fn payload_bytes(&self) -> usize {
        self.header.length as usize
    }
}

/// The beginning of a head that is not whole, outside of the pool.
#[derive(Default)]
pub(super) struct Front {
    bytes: SmallVec<[u8; 2 * FRAME_HEADER_BYTES]>,
    /// So many of them are there; the others are space.
    filled_bytes: usize,
}

impl Front {
    #[inline]
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled_bytes]
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.filled_bytes == 0
    }

    /// Room for `n` more bytes.
    #[inline]
    pub(super) fn space(&mut self, n: usize) -> &mut [u8] {
        self.bytes.resize(self.filled_bytes + n, 0);
        &mut self.bytes[self.filled_bytes..]
    }

    /// Of the room that was made, at most `n` bytes are filled; how many.
    #[inline]
    pub(super) fn advance(&mut self, n: usize) -> usize {
        let n = n.min(self.bytes.len() - self.filled_bytes);
        self.filled_bytes += n;
        n
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.filled_bytes = 0;
    }
}

/// What the beginning of a frame says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scan {
    /// The head is whole.
    Head(Head),
    /// At least so many more bytes belong to the head.
    Missing(usize),
}

/// Looks at the frame that `bytes` begins with.
#[inline]
pub(super) fn scan(bytes: &[u8], limits: FrameLimits) -> Result<Scan, WireError> {
    let Some((raw, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(Scan::Missing(FRAME_HEADER_BYTES - bytes.len()));
    };
    let header = FrameHeader::decode(raw, limits)?;
    if !header.flags.ext {
        return Ok(Scan::Head(Head { header, payload_at: FRAME_HEADER_BYTES }));
    }
    let Some((len, rest)) = rest.split_first_chunk::<2>() else { return Ok(Scan::Missing(2 - rest.len())) };
    let len = frame_ext_len(*len)?;
    let Some(block) = rest.get(..len) else { return Ok(Scan::Missing(len - rest.len())) };
    check_frame_ext(block)?;
    Ok(Scan::Head(Head { header, payload_at: FRAME_HEADER_BYTES + 2 + len }))
}
