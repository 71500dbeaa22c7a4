//! Long payload that is not of the connection: whichever way it is copied, it is whole, and counted.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::*;
use zc_core::memory::{CopyPlace, Message, PinnedBuf};
use zc_transport_shm::{PART_BYTES, STREAM_MIN_BYTES, STREAM_TRIAL_COPIES_AT_FIRST};

/// Among so many copies of a class are some of either kind.
const COPIES: usize = 2 * STREAM_TRIAL_COPIES_AT_FIRST as usize;

/// Sends `count` foreign messages one by one, and looks at what comes.
async fn exchange(setup: &Setup, count: usize, message: impl Fn(usize) -> Message) {
    let (mut a, mut b) = pair(setup).await;
    let mut copied = 0;
    for n in 0..count {
        let message = message(n);
        let expected = message.clone();
        copied += message.len() as u64;
        let got = async {
            loop {
                if let Some(frame) = b.recv().await.unwrap().pop() {
                    b.lane.rx.release(frame.payload.len());
                    return frame;
                }
            }
        };
        let (sent, got) = futures::join!(a.send(data(n as u64 + 1, message)), got);
        sent.unwrap();
        assert!(bytes(&got.payload) == bytes(&expected), "message {n}");
        assert_eq!(a.ledger.snapshot().copied_at(CopyPlace::Foreign), copied);
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

fn setups() -> [Setup; 2] {
    [false, true].map(|streaming_copies| {
        let mut setup = Setup::default();
        setup.options.streaming_copies = streaming_copies;
        setup
    })
}

#[test]
fn long_foreign_messages_are_whole() {
    for setup in setups() {
        run(exchange(&setup, COPIES, |n| {
            let from = PinnedBuf::from(body(STREAM_MIN_BYTES + 200 + n, n));
            from.slice(n..).into()
        }));
    }
}

/// The second segment begins in the block where the first ends.
#[test]
fn several_foreign_segments_are_whole() {
    for setup in setups() {
        run(exchange(&setup, COPIES, |n| {
            let segments = [STREAM_MIN_BYTES + n, 3 * STREAM_MIN_BYTES - n, 77];
            let mut message = Message::new();
            segments.into_iter().for_each(|len| message.push(body(len, n)).unwrap());
            message
        }));
    }
}

#[test]
fn foreign_messages_in_parts_are_whole() {
    for mut setup in setups() {
        setup.options.max_arena_bytes = 2 << 20;
        setup.options.longer_in_parts = true;
        run(exchange(&setup, 2, |n| body((4 << 20) + PART_BYTES / 2 + n, n).into()));
    }
}
