//! Received messages may be held: past a soft budget they pin little, past a hard one they hold up their
//! own connection and no other.

use std::time::Duration;

use tokio::time::timeout;
use zc::memory::CopyPlace;
use zc::transport::{LaneLimits, ZeroCopy};

use crate::data::{NUMBER_BYTES, ask, echo, number, numbered};
use crate::run::Verdict;
use crate::setup::Bench;

const SMALL: usize = 4 << 10;
/// One message of so many is held.
const KEPT: u32 = 16;
const SOFT: usize = 256 << 10;
const HARD: usize = 2 << 20;
const LARGE: usize = 64 << 10;
const WINDOW: u32 = 1 << 20;
/// A receive that takes this long gets nothing. Sooner than needed does no harm: only upper bounds follow.
const STALLED: Duration = Duration::from_millis(500);

/// Holding a few of many small messages must not pin all the memory that they came in.
pub async fn past_the_soft_lease_little_memory_is_pinned(bench: &Bench) -> Verdict {
    const MESSAGES: u32 = 512 * KEPT;
    let mut limits = LaneLimits::default();
    limits.lease_soft = SOFT;
    let (client, mut server) = bench.pair_within(limits).await;
    // Such as come with others, not such as are fetched into memory of their own.
    let small = SMALL.min((client.caps().eager_max as usize).saturating_sub(NUMBER_BYTES));
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            client.send(numbered(0, n, small)).await.unwrap();
        }
        client
    });
    let mut held = Vec::new();
    for n in 0..MESSAGES {
        let message = server.recv().await.unwrap().unwrap();
        assert_eq!(number(&message), (0, n));
        if n % KEPT == 0 {
            held.push(message);
        }
    }
    let client = sending.await.unwrap();
    let payload: usize = held.iter().map(zc::Message::len).sum();
    let pinned = bench.server_pool().stats().in_use_bytes as usize;
    assert!(pinned <= 2 * (SOFT + payload) + (1 << 20), "{pinned} bytes are pinned by {payload} held ones");
    // Who shares receive memory between messages can only have kept to that by copying, which counts.
    let shares = client.caps().zero_copy_rx != ZeroCopy::Never || shares_memory(&held);
    let copied = server.ledger().copied_at(CopyPlace::CopyOut);
    assert!(!shares || copied > 0, "nothing was counted as copied out");
    for (n, message) in held.iter().enumerate() {
        assert_eq!(number(message), (0, n as u32 * KEPT), "held messages stay as they were");
    }
    Ok(())
}

/// Whether the first held messages lie closer together than buffers of their own would.
fn shares_memory(held: &[zc::Message]) -> bool {
    let starts = held.iter().filter_map(|message| message.segments().first());
    // A buffer of its own begins at an aligned address; a slice behind a header does not.
    starts.take(4).any(|segment| segment.as_ptr().addr() % 64 != 0)
}

/// The holder's own sender waits; a second connection of the same fabrics does not notice.
pub async fn past_the_hard_lease_only_its_own_connection_waits(bench: &Bench) -> Verdict {
    const MESSAGES: u32 = 512;
    let mut limits = LaneLimits::default();
    limits.recv_window = WINDOW;
    limits.lease_soft = HARD / 2;
    limits.lease_hard = HARD;
    let mut listener = bench.listen(bench.server().limits(limits)).await;
    let uri = listener.local_uri().to_string();
    let fabric = bench.client().limits(limits).build().unwrap();
    let (one, mut held_up) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    let (mut other, free) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    let echoing = tokio::spawn(echo(free));
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            one.send(numbered(0, n, LARGE)).await.unwrap();
        }
        one
    });
    let mut held = Vec::new();
    while let Ok(message) = timeout(STALLED, held_up.recv()).await {
        held.push(message.unwrap().unwrap());
        assert!(held.len() < MESSAGES as usize, "nothing holds up who holds everything");
    }
    let bytes: usize = held.iter().map(zc::Message::len).sum();
    // What was granted in front of the last message that was allowed comes on top.
    let most = HARD + WINDOW as usize + LARGE + NUMBER_BYTES;
    assert!(bytes <= most, "{bytes} bytes are lent; {most} are allowed");
    for n in 0..100 {
        ask(&mut other, n, 1000).await;
    }
    for (n, message) in held.drain(..).enumerate() {
        assert_eq!(number(&message), (0, n as u32));
    }
    for n in bytes / (LARGE + NUMBER_BYTES)..MESSAGES as usize {
        assert_eq!(number(&held_up.recv().await.unwrap().unwrap()), (0, n as u32), "it goes on");
    }
    drop((sending.await.unwrap(), other));
    echoing.await.unwrap();
    Ok(())
}

/// Who sends back what it holds must come to send it, however much of the budget one message takes.
pub async fn an_echo_of_messages_as_large_as_the_lease_goes_on(bench: &Bench) -> Verdict {
    let mut limits = LaneLimits::default();
    limits.recv_window = 64 << 10;
    limits.lease_soft = HARD;
    limits.lease_hard = HARD;
    let (mut client, server) = bench.pair_within(limits).await;
    let echoing = tokio::spawn(echo(server));
    let (sender, mut receiver) = client.split();
    let sending = async {
        for n in 0..20 {
            sender.send(numbered(0, n, 2 * HARD)).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let receiving = async {
        for n in 0..20 {
            assert_eq!(number(&receiver.recv().await.unwrap().unwrap()), (0, n));
        }
    };
    tokio::join!(sending, receiving);
    echoing.await.unwrap();
    Ok(())
}
