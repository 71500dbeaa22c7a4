//! The way of REMOTE records through the sending half.

use std::task::{Context, Poll};

use smallvec::SmallVec;
use zc_core::memory::Message;
use zc_core::transport::{Frame, FrameKind};
use zc_core::wire::{REMOTE_REQUEST_BYTES, RemoteRequest};

use crate::connection::ConnectionError;
use crate::connection::core::{Core, TxState, control_bytes};

impl Core {
    pub(super) fn remote_frame(&self, request: &RemoteRequest, payload: Message) -> Frame {
        let mut front = SmallVec::<[u8; REMOTE_REQUEST_BYTES]>::new();
        request.encode(&mut front);
        let mut record = control_bytes(&self.pool, &front, 0, |_| ());
        // There is room: `record_len` saw to it.
        payload.into_segments().for_each(|segment| drop(record.push(segment)));
        Frame { kind: FrameKind::Remote, ack: false, seq: 0, payload: record }
    }

    /// Hands over the answers to the peer's requests, and serves those that waited for room.
    pub(in crate::connection) fn push_answers(&self, tx: &mut TxState) -> Result<(), ConnectionError> {
        if !self.remote.is_serving() || tx.failed.is_some() || tx.close_sent {
            return Ok(());
        }
        loop {
            while let Some(payload) = self.remote.next_answer() {
                let frame = Frame { kind: FrameKind::Remote, ack: false, seq: 0, payload };
                let token = tx.lane.start_send(frame, true).map_err(|rejected| rejected.error)?;
                self.remote.handed_over(token);
            }
            if !self.remote.wants_reports() {
                return Ok(());
            }
            // What is in the lane must get out, for what waits to get in.
            if let Poll::Ready(flushed) = tx.lane.poll_flush(&mut Context::from_waker(&self.tx_waker)) {
                flushed?;
            }
            tx.collect(&mut Context::from_waker(&self.tx_waker))?;
            if !self.remote.serve_waiting() {
                return Ok(());
            }
        }
    }
}

impl TxState {
    /// Why no record can be sent, if so.
    pub(super) fn closed(&self) -> Option<ConnectionError> {
        self.failed.clone().or_else(|| self.close_sent.then_some(ConnectionError::ClosedHere))
    }
}
