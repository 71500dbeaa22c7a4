//! Finding frames in received bytes.

use zc_core::wire::{
    FRAME_HEADER_BYTES, FrameHeader, FrameLimits, WireError, check_frame_ext, frame_ext_len,
};

/// A frame's header and where its parts lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) header: FrameHeader,
    /// Bytes in front of the payload.
    pub(super) payload_at: usize,
}

impl Head {
    /// All bytes of the frame.
    pub(super) fn total(&self) -> usize {
        self.payload_at + self.header.length as usize
    }
}

/// The head of the frame that `bytes` begins with; `None`: more bytes are needed.
pub(super) fn head(bytes: &[u8], limits: FrameLimits) -> Result<Option<Head>, WireError> {
    let Some((raw, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let header = FrameHeader::decode(raw, limits)?;
    if !header.flags.ext {
        return Ok(Some(Head { header, payload_at: FRAME_HEADER_BYTES }));
    }
    let Some((len, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    let len = frame_ext_len(*len)?;
    let Some(block) = rest.get(..len) else { return Ok(None) };
    check_frame_ext(block)?;
    Ok(Some(Head { header, payload_at: FRAME_HEADER_BYTES + 2 + len }))
}
