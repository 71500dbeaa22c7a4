//! A host of the simulated network that runs a session: it sends messages of known content and checks those that come.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use zc_core::memory::{BufPool, CopyLedger, Message, PinnedBuf};
use zc_core::transport::{Frame, FrameKind, SendToken};

use super::sim::Host;
use crate::protocol::*;

const PATTERN_BYTES: usize = 4 << 20;

/// What messages are made of: each begins at a place of its own.
static PATTERN: LazyLock<PinnedBuf> = LazyLock::new(|| {
    let mut rng = super::sim::Rng(1);
    let words = std::iter::repeat_with(|| rng.next().to_le_bytes());
    PinnedBuf::from(words.take(PATTERN_BYTES / 8).flatten().collect::<Vec<_>>())
});

pub(super) fn content(seq: u64, len: usize) -> PinnedBuf {
    let start = (seq * 7919) as usize % (PATTERN_BYTES - len);
    PATTERN.slice(start..start + len)
}

pub(super) fn data(seq: u64, len: usize) -> Frame {
    Frame { kind: FrameKind::Data, ack: false, seq, payload: Message::from(content(seq, len)) }
}

pub(super) fn memory() -> Memory {
    Memory { pool: BufPool::builder().max_bytes(64 << 20).build(), ledger: Arc::new(CopyLedger::new()) }
}

pub(super) fn random(side: Side, seed: u64) -> [u8; OFFER_RANDOM_BYTES] {
    std::array::from_fn(|i| {
        (seed as u8).wrapping_mul(31) ^ (i as u8) ^ if side == Side::Client { 0x55 } else { 0 }
    })
}

/// The sessions of both sides.
pub(super) fn sessions(options: [&SessionOptions; 2], seed: u64, now: Instant) -> [(Session, Memory); 2] {
    let offers = [
        Offer::new(options[0], &random(Side::Client, seed)),
        Offer::new(options[1], &random(Side::Server, seed)),
    ];
    [(Side::Client, 0), (Side::Server, 1)].map(|(side, i)| {
        let (mine, theirs) = (&offers[i], &offers[1 - i]);
        let memory = memory();
        (Session::new(side, mine, theirs, options[i], memory.clone(), seed + i as u64, now).unwrap(), memory)
    })
}

/// Where only the rate counts: without the MAC over payload, most of what a packet costs here.
pub(super) fn options(congestion: Congestion) -> SessionOptions {
    SessionOptions { congestion, authenticate_payload: false, ..SessionOptions::default() }
}

/// The length of a message, by its number.
pub(super) type Lengths = fn(u64) -> usize;

pub(super) struct Peer {
    pub(super) session: Session,
    lengths: Lengths,
    /// How many to send, and how many were.
    pub(super) to_send: u64,
    pub(super) sent: u64,
    pub(super) completed: u64,
    pub(super) received: u64,
    pub(super) received_bytes: u64,
    pub(super) events: Vec<Event>,
    pub(super) dead: bool,
    out: Transmit,
}

impl Peer {
    pub(super) fn new((session, _): (Session, Memory), to_send: u64, lengths: Lengths) -> Self {
        Self {
            session,
            lengths,
            to_send,
            sent: 0,
            completed: 0,
            received: 0,
            received_bytes: 0,
            events: Vec::new(),
            dead: false,
            out: Transmit::default(),
        }
    }

    pub(super) fn pair(
        options: &SessionOptions,
        seed: u64,
        now: Instant,
        to_send: [u64; 2],
        lengths: Lengths,
    ) -> [Self; 2] {
        let [a, b] = sessions([options, options], seed, now);
        [Self::new(a, to_send[0], lengths), Self::new(b, to_send[1], lengths)]
    }

    fn exchange(&mut self) {
        while let Some(frame) = self.session.recv() {
            let seq = self.received + 1;
            let len = (self.lengths)(seq);
            assert_eq!((frame.seq, frame.payload.len()), (seq, len), "in order, once");
            assert!(frame.payload == content(seq, len)[..], "message {seq} of {len} bytes is damaged");
            self.session.release(len);
            (self.received, self.received_bytes) = (seq, self.received_bytes + len as u64);
        }
        while let Some(SendToken(seq)) = self.session.poll_completion() {
            self.completed += 1;
            assert_eq!(seq, self.completed);
        }
        while self.sent < self.to_send {
            let seq = self.sent + 1;
            let len = (self.lengths)(seq);
            if self.session.may_send(FrameKind::Data, len) != Ok(true) {
                break;
            }
            self.session.send(data(seq, len), Some(SendToken(seq))).unwrap();
            self.sent = seq;
        }
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }
}

impl Host for Peer {
    fn arrive(&mut self, now: Instant, datagram: Vec<u8>) {
        if !self.dead {
            let _ = self.session.handle(now, PinnedBuf::from(datagram));
        }
    }

    fn timeout(&self) -> Option<Instant> {
        if self.dead { None } else { self.session.poll_timeout() }
    }

    fn poll(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        if self.dead {
            return;
        }
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
        }
        self.exchange();
        while self.session.poll_transmit(now, &mut self.out) {
            assert!(self.out.len() <= self.session.datagram_bytes());
            out.push(self.out.to_datagram());
        }
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }
}
