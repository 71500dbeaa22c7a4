//! Messages on their way out, kept by reference until each is acknowledged (M2).
//!
//! A message is cut into chunks of equal length, but for its last. All chunks of a session have numbers, in the order
//! of the messages, so a packet carries runs of them.

use std::collections::VecDeque;

use zc_core::memory::{Message, PinnedBuf};
use zc_core::transport::{Frame, FrameKind, SendToken};

use super::limits::{MAX_CHUNK_SPAN, MAX_PACKET_SLICES};
use super::packet::ChunkEntry;
use super::sent::{Run, Runs};

// What a chunk that no packet carries has in its place.
// Not on its way: to be sent again.
const QUEUED: u64 = u64::MAX;
// Came through.
const ACKNOWLEDGED: u64 = u64::MAX - 1;

#[derive(Debug)]
struct Outgoing {
    kind: FrameKind,
    ack: bool,
    seq: u64,
    total: u32,
    payload: Message,
    token: Option<SendToken>,
    first_chunk: u64,
    chunks: u64,
    /// Not acknowledged.
    left: u64,
}

#[derive(Debug)]
pub(super) struct Outbox {
    chunk_bytes: usize,
    messages: VecDeque<Outgoing>,
    /// The number of the first of them.
    first_message: u64,
    /// Of each chunk that was sent, from the first not acknowledged: the packet that carried it last.
    carried: VecDeque<u64>,
    first_chunk: u64,
    /// The next message that was not wholly sent, and all chunks so far.
    next_message: u64,
    end_chunk: u64,
    again: VecDeque<Run>,
    bytes: usize,
    completed: VecDeque<SendToken>,
    /// Parts of longer messages that came through.
    pub(super) parts: u64,
}

impl Outbox {
    pub(super) fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes,
            messages: VecDeque::new(),
            first_message: 0,
            carried: VecDeque::new(),
            first_chunk: 0,
            next_message: 0,
            end_chunk: 0,
            again: VecDeque::new(),
            bytes: 0,
            completed: VecDeque::new(),
            parts: 0,
        }
    }

    /// Messages, and completions that nobody took.
    pub(super) fn len(&self) -> usize {
        self.messages.len() + self.completed.len()
    }

    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All messages were acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many messages were taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.first_message + self.messages.len() as u64
    }

    /// Takes a message of at most `u32::MAX` bytes.
    pub(super) fn push(&mut self, frame: Frame, token: Option<SendToken>) {
        let total = frame.payload.len();
        let chunks = total.div_ceil(self.chunk_bytes).max(1) as u64;
        self.bytes += total;
        self.messages.push_back(Outgoing {
            kind: frame.kind,
            ack: frame.ack,
            seq: frame.seq,
            total: total as u32,
            payload: frame.payload,
            token,
            first_chunk: self.end_chunk,
            chunks,
            left: chunks,
        });
        self.end_chunk += chunks;
    }

    #[inline]
    fn next_chunk(&self) -> u64 {
        self.first_chunk + self.carried.len() as u64
    }

    /// All messages were sent at least once.
    pub(super) fn is_sent(&self) -> bool {
        self.next_chunk() == self.end_chunk
    }

    /// Whether there is anything to send that has not been sent before, and may be now.
    fn has_new(&self) -> bool {
        !self.is_sent() && self.carried.len() < MAX_CHUNK_SPAN
    }

    /// Whether there is anything to send.
    pub(super) fn has_more(&mut self) -> bool {
        self.next_again().is_some() || self.has_new()
    }

    /// The next chunk to send again; drops those that came through meanwhile.
    fn next_again(&mut self) -> Option<u64> {
        while let Some((start, end)) = self.again.front_mut() {
            if start == end {
                self.again.pop_front();
            } else if *start >= self.first_chunk
                && self.carried.get((*start - self.first_chunk) as usize) == Some(&QUEUED)
            {
                return Some(*start);
            } else {
                *start += 1;
            }
        }
        None
    }

    /// Which message a chunk belongs to, as an index.
    fn message_of(&self, chunk: u64) -> Option<usize> {
        // Mostly it belongs to the message that is being sent.
        let near = self.next_message.saturating_sub(self.first_message) as usize;
        let holds = |at: usize| {
            self.messages.get(at).is_some_and(|m| (m.first_chunk..m.first_chunk + m.chunks).contains(&chunk))
        };
        if holds(near) {
            return Some(near);
        }
        let at = self.messages.partition_point(|m| m.first_chunk + m.chunks <= chunk);
        holds(at).then_some(at)
    }

    /// The next chunk, if it fits: `room` bytes for entry and payload together, and what is left of the slices.
    pub(super) fn fill(
        &mut self,
        packet: u64,
        room: usize,
        slices: &mut Vec<PinnedBuf>,
        runs: &mut Runs,
        max_runs: usize,
    ) -> Option<ChunkEntry> {
        let (chunk, again) = match self.next_again() {
            Some(chunk) => (chunk, true),
            None if self.has_new() => (self.next_chunk(), false),
            None => return None,
        };
        let at = self.message_of(chunk)?;
        let message = &self.messages[at];
        let start = (chunk - message.first_chunk) as usize * self.chunk_bytes;
        let len = self.chunk_bytes.min(message.total as usize - start);
        let follows = runs.last().is_some_and(|(_, end)| *end == chunk);
        let full = !follows && runs.len() >= max_runs;
        if full || super::packet::CHUNK_ENTRY_BYTES + len > room {
            return None;
        }
        if !push_slices(slices, &message.payload, start, len) {
            return None;
        }
        let entry = ChunkEntry {
            kind: message.kind,
            ack: message.ack,
            len: len as u16,
            offset: start as u32,
            total: message.total,
            message: self.first_message + at as u64,
            seq: message.seq,
        };
        let is_last = chunk + 1 == message.first_chunk + message.chunks;
        if again {
            if let Some((start, _)) = self.again.front_mut() {
                *start += 1;
            }
            self.carried[(chunk - self.first_chunk) as usize] = packet;
        } else {
            self.carried.push_back(packet);
            self.next_message = entry.message + u64::from(is_last);
        }
        match runs.last_mut() {
            Some((_, end)) if follows => *end += 1,
            _ => runs.push((chunk, chunk + 1)),
        }
        Some(entry)
    }

    /// Chunks came through. Messages that are complete let go of their memory.
    pub(super) fn acknowledged(&mut self, runs: &[Run]) {
        for (start, end) in runs {
            for chunk in (*start).max(self.first_chunk)..*end {
                let Some(carried) = self.carried.get_mut((chunk - self.first_chunk) as usize) else { break };
                if std::mem::replace(carried, ACKNOWLEDGED) == ACKNOWLEDGED {
                    continue;
                }
                if let Some(at) = self.message_of(chunk) {
                    let message = &mut self.messages[at];
                    message.left -= 1;
                    self.parts += u64::from(message.left > 0);
                    if message.left == 0 {
                        self.bytes -= message.total as usize;
                        message.payload = Message::new();
                    }
                }
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.carried.front() == Some(&ACKNOWLEDGED) {
            self.carried.pop_front();
            self.first_chunk += 1;
        }
        while self.messages.front().is_some_and(|message| message.left == 0) {
            let done = self.messages.pop_front();
            self.first_message += 1;
            self.completed.extend(done.and_then(|message| message.token));
        }
    }

    /// A packet was lost, or must be sent again in case that it was: those of its chunks go again that no later packet
    /// carries.
    pub(super) fn send_again(&mut self, packet: u64, runs: &[Run]) {
        for (start, end) in runs {
            for chunk in (*start).max(self.first_chunk)..*end {
                let Some(carried) = self.carried.get_mut((chunk - self.first_chunk) as usize) else { break };
                if *carried != packet {
                    continue;
                }
                *carried = QUEUED;
                match self.again.back_mut() {
                    Some((_, last)) if *last == chunk => *last += 1,
                    _ => self.again.push_back((chunk, chunk + 1)),
                }
            }
        }
    }

    /// The next send that is complete and whose completion was asked for, oldest first.
    pub(super) fn completed(&mut self) -> Option<SendToken> {
        self.completed.pop_front()
    }

    /// Whether there is such a send.
    pub(super) fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    /// Gives up all that was not acknowledged whole, oldest first. What was, behind some that was not, is complete now.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = (Frame, Option<SendToken>)> + '_ {
        let whole = self.messages.iter_mut().filter(|message| message.left == 0);
        self.completed.extend(whole.filter_map(|message| message.token.take()));
        self.bytes = 0;
        self.again.clear();
        self.carried.clear();
        self.first_message += self.messages.len() as u64;
        (self.first_chunk, self.next_message) = (self.end_chunk, self.first_message);
        let undone = self.messages.drain(..).filter(|message| message.left > 0);
        undone.map(|m| (Frame { kind: m.kind, ack: m.ack, seq: m.seq, payload: m.payload }, m.token))
    }
}

/// Adds `len` bytes of a message as slices; false, and nothing added, if there would be too many.
fn push_slices(out: &mut Vec<PinnedBuf>, message: &Message, mut start: usize, mut len: usize) -> bool {
    let before = out.len();
    for segment in message.segments() {
        if len == 0 {
            break;
        }
        if start >= segment.len() {
            start -= segment.len();
            continue;
        }
        if out.len() >= MAX_PACKET_SLICES {
            out.truncate(before);
            return false;
        }
        let take = len.min(segment.len() - start);
        out.push(segment.slice(start..start + take));
        (start, len) = (0, len - take);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(seq: u64, len: usize) -> Frame {
        let payload = Message::from(vec![seq as u8; len]);
        Frame { kind: FrameKind::Data, ack: false, seq, payload }
    }

    fn packet(outbox: &mut Outbox, number: u64) -> (Vec<ChunkEntry>, Runs) {
        let (mut slices, mut runs, mut entries, mut room) = (Vec::new(), Runs::new(), Vec::new(), 128);
        while let Some(entry) = outbox.fill(number, room, &mut slices, &mut runs, 2) {
            room -= super::super::packet::CHUNK_ENTRY_BYTES + usize::from(entry.len);
            entries.push(entry);
        }
        assert_eq!(
            slices.iter().map(|s| s.len()).sum::<usize>(),
            entries.iter().map(|e| usize::from(e.len)).sum::<usize>()
        );
        (entries, runs)
    }

    #[test]
    fn what_has_to_wait_is_not_sent() {
        let mut outbox = Outbox::new(1);
        outbox.push(frame(1, MAX_CHUNK_SPAN + 1), None);
        let mut fill = |number| outbox.fill(number, 64, &mut Vec::new(), &mut Runs::new(), 1);
        (0..MAX_CHUNK_SPAN as u64).for_each(|number| assert!(fill(number).is_some()));
        assert!(fill(0).is_none());
        assert!(!outbox.has_more() && !outbox.is_sent());
        outbox.acknowledged(&[(0, 1)]);
        assert!(outbox.has_more());
        assert!(outbox.fill(0, 64, &mut Vec::new(), &mut Runs::new(), 1).is_some() && outbox.is_sent());
    }

    #[test]
    fn cuts_packs_and_lets_go() {
        let mut outbox = Outbox::new(100);
        outbox.push(frame(1, 250), Some(SendToken(1)));
        outbox.push(frame(2, 0), Some(SendToken(2)));
        outbox.push(frame(3, 10), None);
        let packets: Vec<_> = (0..4).map(|number| packet(&mut outbox, number)).collect();
        let seen: Vec<Vec<_>> =
            packets.iter().map(|(e, _)| e.iter().map(|e| (e.message, e.offset, e.len)).collect()).collect();
        assert_eq!(seen[..2], [[(0, 0, 100)], [(0, 100, 100)]]);
        assert_eq!(seen[2], [(0, 200, 50), (1, 0, 0)]);
        assert_eq!(seen[3], [(2, 0, 10)]);
        assert!(!outbox.has_more());
        outbox.acknowledged(&packets[2].1);
        outbox.acknowledged(&packets[0].1);
        assert!(outbox.completed().is_none(), "in order");
        outbox.send_again(1, &packets[1].1);
        outbox.send_again(1, &packets[1].1);
        let (entries, runs) = packet(&mut outbox, 4);
        assert_eq!((entries.len(), entries[0].offset, outbox.has_more()), (1, 100, false));
        outbox.send_again(1, &packets[1].1);
        assert!(!outbox.has_more(), "a later packet carries it");
        outbox.acknowledged(&runs);
        outbox.acknowledged(&runs);
        assert_eq!((outbox.bytes(), outbox.len()), (10, 3));
        assert_eq!([outbox.completed(), outbox.completed()], [Some(SendToken(1)), Some(SendToken(2))]);
        let undone: Vec<_> = outbox.abandon().map(|(frame, _)| frame.seq).collect();
        assert_eq!((undone, outbox.is_empty(), outbox.taken()), (vec![3], true, 3));
    }

    /// Every token comes out in the end: with its frame, or as a completion.
    #[test]
    fn no_token_is_lost() {
        let mut outbox = Outbox::new(100);
        (1..=4).for_each(|seq| outbox.push(frame(seq, 100), Some(SendToken(seq))));
        let packets: Vec<_> = (0..4).map(|number| packet(&mut outbox, number).1).collect();
        [&packets[0], &packets[2]].into_iter().for_each(|runs| outbox.acknowledged(runs));
        let undone: Vec<_> = outbox.abandon().map(|(frame, token)| (frame.seq, token)).collect();
        assert_eq!(undone, [(2, Some(SendToken(2))), (4, Some(SendToken(4)))]);
        let completed: Vec<_> = std::iter::from_fn(|| outbox.completed()).collect();
        assert_eq!(completed, [SendToken(1), SendToken(3)]);
    }
}
