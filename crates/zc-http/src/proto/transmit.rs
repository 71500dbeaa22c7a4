//! What goes out: control frames first, then calls in turn. What ends with its next frame passes the long bodies by; of
//! these each sends a run of frames, so that one is whole, and answered, while the next is still on its way.

use bytes::{BufMut, Bytes};
use smallvec::SmallVec;
use zc::memory::{CopyLedger, CopyPlace, copy_payload};
use zc::{Message, PinnedBufMut};

use super::call::{Head, Key, Queue};
use super::code::Code;
use super::endpoint::{Endpoint, Event, Role};
use super::frame::{CALL_HEADER_BYTES, CallHeader, Control, FLAG_END, FLAG_HEADERS, FLAG_TRAILERS};
use super::head::{put_headers, put_request, put_response};
use super::limits::MAX_BODY_SEGMENTS;

/// A body up to this long goes into the segment of its headers: a copy is cheaper than a segment.
const INLINE_BODY_BYTES: usize = 1 << 10;

/// Body bytes of one call before it is the next one's turn.
const RUN_BYTES: u32 = 512 << 10;

/// Asked for at least, for what goes beside a body: a connection may lend less than this from where small messages are
/// copied from, and would then copy it.
const MIN_BESIDE_BODY_BYTES: usize = 256;

/// Where frames get their memory. None: the heap.
pub(crate) type Alloc<'a> = &'a mut dyn FnMut(usize) -> Option<PinnedBufMut>;

/// A frame's parts, before they are put together.
#[derive(Default)]
struct Parts {
    headers_len: usize,
    trailers_len: usize,
    flags: u8,
    body: SmallVec<[Bytes; 2]>,
    body_len: usize,
}

impl Endpoint {
    /// The next frame, if there is one that may go.
    pub(crate) fn transmit(&mut self, alloc: Alloc<'_>, ledger: &CopyLedger) -> Option<Message> {
        if let Some(control) = self.control.pop_front() {
            self.scratch.clear();
            control.encode(&mut self.scratch);
            return Some(whole(&self.scratch, alloc));
        }
        // Nothing but our SETTINGS before the peer's.
        self.peer?;
        while let Some(key) = self.next_ready() {
            if let Some(message) = self.transmit_call(key, alloc, ledger) {
                return Some(message);
            }
        }
        None
    }

    /// Short ones and long ones take turns, while there are both.
    fn next_ready(&mut self) -> Option<Key> {
        self.short_next = !self.short_next;
        let (first, second) = match self.short_next {
            true => (&mut self.short, &mut self.ready),
            false => (&mut self.ready, &mut self.short),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn transmit_call(&mut self, key: Key, alloc: Alloc<'_>, ledger: &CopyLedger) -> Option<Message> {
        let (max, allowance) = (self.frame_bytes(), self.allowance());
        let call = self.calls.get(key)?;
        call.tx.queue = Queue::None;
        if !call.tx.can_send(allowance) {
            // It lost its turn to others that used the credit up.
            self.enqueue(key);
            return None;
        }
        let tx = &mut call.tx;
        let mut parts = Parts::default();
        self.scratch.clear();
        if let Some(head) = tx.head.take() {
            tx.head_sent = true;
            match head {
                Head::Request(head) => put_request(&mut self.encoder, *head, &mut self.scratch),
                Head::Response(head) => put_response(&mut self.encoder, *head, &mut self.scratch),
            }
            parts.flags |= FLAG_HEADERS;
            parts.headers_len = self.scratch.len();
        }
        let max = max.min(tx.room(allowance) as usize);
        while parts.body_len < max && parts.body.len() < MAX_BODY_SEGMENTS {
            let Some(front) = tx.body.front_mut() else { break };
            let room = max - parts.body_len;
            let piece = if front.len() > room { front.split_to(room) } else { tx.body.pop_front()? };
            parts.body_len += piece.len();
            parts.body.push(piece);
        }
        tx.body_bytes -= parts.body_len;
        tx.credit -= parts.body_len as u32;
        self.tx_credit -= parts.body_len as i64;
        tx.run_bytes += parts.body_len as u32;
        // Who begins queues up behind those that are here.
        if parts.flags & FLAG_HEADERS != 0 || tx.run_bytes >= RUN_BYTES {
            tx.run_bytes = 0;
        }
        if tx.body_bytes == 0 && tx.finished {
            parts.flags |= FLAG_END;
            tx.end_sent = true;
            if let Some(trailers) = tx.trailers.take() {
                put_headers(&mut self.encoder, trailers, &mut self.scratch);
                parts.flags |= FLAG_TRAILERS;
                parts.trailers_len = self.scratch.len() - parts.headers_len;
            }
        }
        let has_room = match tx.finished {
            true => tx.body_bytes == 0,
            false => tx.body_bytes < self.limits.send_buffer_bytes,
        };
        if tx.full && has_room {
            tx.full = false;
            self.events.push_back(Event::Writable(key));
        }
        let message = assemble(key.id, parts, &self.scratch, alloc, ledger);
        self.after_transmit(key);
        Some(message)
    }

    fn after_transmit(&mut self, key: Key) {
        self.enqueue(key);
        let role = self.role;
        let Some(call) = self.calls.get(key) else { return };
        if call.is_complete() {
            self.close(key);
        } else if role == Role::Server && call.tx.end_sent && !call.rx_held {
            // Answered without the whole question: the rest is not wanted.
            self.control.push_back(Control::Reset { call: key.id, code: Code::DONE });
            self.close(key);
        }
    }
}

fn assemble(id: u32, parts: Parts, blocks: &[u8], alloc: Alloc<'_>, ledger: &CopyLedger) -> Message {
    let header = CallHeader {
        flags: parts.flags,
        call: id,
        headers_len: parts.headers_len as u16,
        trailers_len: parts.trailers_len as u16,
    };
    let inline = if parts.body_len <= INLINE_BODY_BYTES { parts.body_len } else { 0 };
    let len = CALL_HEADER_BYTES + blocks.len() + inline;
    let beside_body = parts.body_len > inline;
    let mut message = match alloc(if beside_body { len.max(MIN_BESIDE_BODY_BYTES) } else { len }) {
        Some(mut buf) => {
            header.encode(&mut buf);
            buf.put_slice(blocks);
            if inline > 0 {
                for piece in &parts.body {
                    copy_payload(&mut buf.unfilled_mut()[..piece.len()], piece, ledger, CopyPlace::Coalesce);
                    buf.advance(piece.len());
                }
            }
            Message::from(buf.freeze())
        }
        None => {
            let mut bytes = Vec::with_capacity(len);
            header.encode(&mut bytes);
            bytes.put_slice(blocks);
            if inline > 0 {
                for piece in &parts.body {
                    let at = bytes.len();
                    bytes.resize(at + piece.len(), 0);
                    copy_payload(&mut bytes[at..], piece, ledger, CopyPlace::Coalesce);
                }
            }
            Message::from(bytes)
        }
    };
    if inline == 0 {
        for piece in parts.body {
            // Within the bound: a message takes more segments than a frame has.
            let pushed = message.push(piece);
            debug_assert!(pushed.is_ok());
        }
    }
    message
}

fn whole(bytes: &[u8], alloc: Alloc<'_>) -> Message {
    match alloc(bytes.len()) {
        Some(mut buf) => {
            buf.put_slice(bytes);
            Message::from(buf.freeze())
        }
        None => {
            let mut heap = Vec::with_capacity(bytes.len());
            heap.put_slice(bytes);
            Message::from(heap)
        }
    }
}
