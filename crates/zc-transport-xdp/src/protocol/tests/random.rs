//! Arbitrary packets, from a peer that has the key: no panic, and bounds that hold.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use zc_core::memory::PinnedBuf;
use zc_core::transport::FrameKind;

use super::peer::{content, data, memory, random};
use crate::protocol::codec::Reader;
use crate::protocol::packet::{self, ChunkEntry, Entry, Head};
use crate::protocol::*;

/// An entry as somebody may write it, right or wrong.
#[derive(Debug, Clone)]
enum Said {
    Raw(Vec<u8>),
    Ack { delay: u32, delivered: u64, ranges: Vec<(u64, u64)> },
    Credit { messages: u64, bytes: u64 },
    Ping,
    Fin(u64),
    Close(u32),
    Chunk(ChunkEntry),
}

/// Mostly small, sometimes anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..20_u64, 1 => 0..100_000_u64, 1 => any::<u64>()]
}

fn chunk() -> impl Strategy<Value = ChunkEntry> {
    let kind =
        prop_oneof![4 => Just(FrameKind::Data), 1 => Just(FrameKind::Session), 1 => Just(FrameKind::Remote)];
    let full = 1200 - HEAD_BYTES - CHUNK_ENTRY_BYTES;
    let total = prop_oneof![0..3000_u32, 0..200_000_u32, any::<u32>()];
    (kind, any::<bool>(), 0..40_u32, total, number(), number(), 0..20_u8).prop_map(
        move |(kind, ack, index, total, message, seq, odd)| {
            let offset = index.saturating_mul(full as u32).min(total);
            let len = (full as u32).min(total - offset) as u16;
            // Mostly as an honest sender would; the oddest are left to be refused.
            let seq = if odd == 0 {
                seq
            } else if kind == FrameKind::Data {
                message.saturating_add(1)
            } else {
                0
            };
            let ack = ack && (odd == 1 || kind == FrameKind::Data);
            ChunkEntry { kind, ack, len: if odd == 2 { len / 2 } else { len }, offset, total, message, seq }
        },
    )
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        1 => vec(any::<u8>(), 0..40).prop_map(Said::Raw),
        3 => (any::<u32>(), number(), vec((0..4_u64, 0..4_u64), 1..80), number()).prop_map(|(delay, delivered, steps, top)| {
            let mut high = top;
            let mut ranges = Vec::new();
            for (len, gap) in steps {
                let low = high.saturating_sub(len);
                ranges.push((low, high));
                if low < gap + 2 {
                    break;
                }
                high = low - gap - 2;
            }
            Said::Ack { delay, delivered, ranges }
        }),
        1 => (number(), number()).prop_map(|(messages, bytes)| Said::Credit { messages, bytes }),
        1 => Just(Said::Ping),
        1 => number().prop_map(Said::Fin),
        1 => any::<u32>().prop_map(Said::Close),
        6 => chunk().prop_map(Said::Chunk),
    ]
}

fn write(said: &Said, out: &mut Vec<u8>) -> usize {
    match said {
        Said::Raw(bytes) => out.extend(bytes),
        Said::Ack { delay, delivered, ranges } => {
            packet::put_ack(out, *delay, *delivered, 64, ranges.iter().copied());
        }
        Said::Credit { messages, bytes } => packet::put_credit(out, *messages, *bytes),
        Said::Ping => packet::put_ping(out),
        Said::Fin(messages) => packet::put_fin(out, *messages),
        Said::Close(code) => packet::put_close(out, *code),
        Said::Chunk(chunk) => {
            chunk.write(out);
            return chunk.len.into();
        }
    }
    0
}

#[derive(Debug, Clone)]
enum Step {
    /// A packet with this number ahead of the last.
    Packet(u64, Vec<Said>),
    Send(usize),
    Take,
    Wait(u64),
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (prop_oneof![6 => Just(1), 2 => 0..5_u64, 1 => any::<u64>()], vec(said(), 0..3)).prop_map(|(n, s)| Step::Packet(n, s)),
        2 => (0..20_000_usize).prop_map(Step::Send),
        2 => Just(Step::Take),
        2 => (0..3_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_decoders(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Head::decode(&bytes);
        let _ = Offer::decode(&bytes);
        let mut reader = Reader::new(&bytes);
        while let Ok(Some(entry)) = Entry::decode(&mut reader) {
            if let Entry::Ack { ranges, .. } = entry {
                prop_assert!(ranges.iter().count() <= MAX_ACK_RANGES);
                prop_assert!(ranges.iter().all(|(low, high)| low <= high));
            }
        }
    }

    #[test]
    fn fuzz_entries_round_trip(said in vec(said().prop_filter("known", |said| !matches!(said, Said::Raw(_))), 1..5)) {
        let mut out = Vec::new();
        said.iter().for_each(|said| _ = write(said, &mut out));
        let mut reader = Reader::new(&out);
        for said in &said {
            let entry = Entry::decode(&mut reader).unwrap().unwrap();
            match (said, entry) {
                (Said::Ack { delivered, ranges, .. }, Entry::Ack { delivered: d, ranges: r, .. }) => {
                    prop_assert_eq!(*delivered, d);
                    prop_assert_eq!(r.iter().collect::<Vec<_>>(), ranges.iter().copied().take(64).collect::<Vec<_>>());
                }
                (Said::Chunk(chunk), Entry::Chunk(read)) => prop_assert_eq!(*chunk, read),
                (Said::Credit { messages, bytes }, entry) => {
                    prop_assert_eq!(Entry::Credit { messages: *messages, bytes: *bytes }, entry);
                }
                (Said::Fin(messages), entry) => prop_assert_eq!(Entry::Fin { messages: *messages }, entry),
                (Said::Close(code), entry) => prop_assert_eq!(Entry::Close { code: *code }, entry),
                (_, entry) => prop_assert_eq!(Entry::Ping, entry),
            }
        }
        prop_assert!(reader.is_empty());
    }

    #[test]
    fn fuzz_session(steps in vec(step(), 1..30)) {
        let mut now = Instant::now();
        let options = SessionOptions {
            datagram_bytes: 1200, window_bytes: 20_000, window_messages: 16, max_message: 100_000, ..SessionOptions::default()
        };
        let offers = [Side::Client, Side::Server].map(|side| Offer::new(&options, &random(side, 1)));
        let key = offer::Agreed::new(Side::Client, &offers[0], &offers[1]).unwrap().send_key;
        let memory = memory();
        let mut session =
            Session::new(Side::Server, &offers[1], &offers[0], &options, memory.clone(), 1, now).unwrap();
        let (mut out, mut number, mut seq, mut ended) = (Transmit::default(), 0_u64, 0, 0);
        for step in steps {
            match step {
                Step::Packet(ahead, said) => {
                    number = number.wrapping_add(ahead);
                    let mut bytes = Vec::new();
                    packet::begin(&mut bytes);
                    let payload: usize = said.iter().map(|said| write(said, &mut bytes)).sum();
                    let head = Head { ack_now: false, len: bytes.len(), session: offers[1].session(), number, settled_below: number.saturating_sub(3) };
                    head.write(&mut bytes);
                    let payload = content(1, payload);
                    packet::seal(&key, &mut bytes, [&payload[..]], payload.len());
                    bytes.extend(&payload[..]);
                    let _ = session.handle(now, PinnedBuf::from(bytes));
                }
                Step::Send(len) => {
                    seq += 1;
                    let _ = session.send(data(seq, len), None);
                }
                Step::Take => while let Some(frame) = session.recv() {
                    session.release(frame.payload.len());
                },
                Step::Wait(us) => {
                    now += Duration::from_micros(us * us / 50);
                    session.handle_timeout(now);
                }
                Step::Finish => session.finish(),
            }
            let mut packets = 0;
            while session.poll_transmit(now, &mut out) {
                prop_assert!(out.len() <= 1200 && out.payload().len() <= MAX_PACKET_SLICES);
                packets += 1;
                prop_assert!(packets < 1000, "it goes on for ever");
            }
            while let Some(event) = session.poll_event() {
                ended += u32::from(matches!(event, Event::Ended(_)));
            }
            prop_assert!(ended <= 1);
            // The window, one message of the greatest length, and what records may take.
            prop_assert!(memory.pool.stats().in_use_bytes < 40 << 20);
        }
        drop((session, out));
        prop_assert_eq!(memory.pool.stats().in_use_bytes, 0);
    }
}
