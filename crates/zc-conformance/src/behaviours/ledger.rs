//! The ledger counts every byte, and its zero is true.

use std::time::{Duration, Instant};

use zc::Connection;
use zc::transport::{Caps, ZeroCopy};

use crate::data::{bytes, echo};
use crate::run::{Skipped, Verdict};
use crate::setup::Bench;

const LARGE: usize = 1 << 20;
/// Messages after which a transport has seen the size.
const WARM_UP: usize = 5;
const COUNTED: usize = 20;

/// Both ends count the same payload, in both directions, and no more copies than it can take.
pub async fn the_ledger_adds_up(bench: &Bench) -> Verdict {
    const SIZES: [usize; 8] = [0, 1, 100, 512, 5000, 70_000, 300_000, 1 << 20];
    let (mut client, mut server) = bench.pair().await;
    let before = (client.ledger(), server.ledger());
    let mut total = 0;
    for (seed, size) in SIZES.into_iter().enumerate() {
        client.send(bytes(seed, size)).await.unwrap();
        let message = server.recv().await.unwrap().unwrap();
        server.send(message).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap().len(), size);
        total += 2 * size as u64;
    }
    for (end, before) in [(&client, before.0), (&server, before.1)] {
        let since = end.ledger().since(&before);
        assert_eq!(since.moved_bytes, total);
        let copied = since.copied_bytes() + since.inline_bytes;
        assert!(copied <= 2 * total, "{copied} bytes copied of {total}");
    }
    Ok(())
}

/// What is claimed under a condition is tried under one that any should meet: memory of the connection, one message at a
/// time between two ends of one user, dropped or sent back at once.
fn zero_copy_both_ways(caps: &Caps) -> Result<(), Skipped> {
    match (caps.zero_copy_tx, caps.zero_copy_rx) {
        (ZeroCopy::Never, _) | (_, ZeroCopy::Never) => {
            let (tx, rx) = (caps.zero_copy_tx, caps.zero_copy_rx);
            Err(Skipped(format!("zero copy is not claimed both ways: {tx:?}, {rx:?}")))
        }
        _ => Ok(()),
    }
}

/// Large messages in memory of the connection; what is received is sent back as it is.
pub async fn nothing_is_copied_where_zero_copy_is_claimed(bench: &Bench) -> Verdict {
    let (mut client, server) = bench.pair().await;
    zero_copy_both_ways(client.caps())?;
    let echoing = tokio::spawn(echo(server));
    touch_ends(&mut client, LARGE, WARM_UP).await;
    let before = client.ledger();
    touch_ends(&mut client, LARGE, COUNTED).await;
    assert_eq!(client.ledger().since(&before).copied_bytes(), 0);
    drop(client);
    echoing.await.unwrap();
    Ok(())
}

/// Seen from outside: 64 times the size, first and last byte touched, must not cost 64 times as much.
pub async fn cost_does_not_grow_with_size(bench: &Bench) -> Verdict {
    const GROWTH: usize = 64;
    const MAX_RATIO: u32 = 16;
    const MAX_ROUNDS: usize = 50;
    let (mut client, server) = bench.pair().await;
    zero_copy_both_ways(client.caps())?;
    let echoing = tokio::spawn(echo(server));
    let mut best = [Duration::MAX; 2];
    // The best of several: whatever else runs on the machine only adds.
    for _ in 0..MAX_ROUNDS {
        for (best, size) in best.iter_mut().zip([LARGE / GROWTH, LARGE]) {
            touch_ends(&mut client, size, WARM_UP).await;
            let began = Instant::now();
            touch_ends(&mut client, size, COUNTED).await;
            *best = (*best).min(began.elapsed());
        }
        if best[1] < MAX_RATIO * best[0] {
            break;
        }
    }
    assert!(best[1] < MAX_RATIO * best[0], "{best:?} for {GROWTH} times the size");
    drop(client);
    echoing.await.unwrap();
    Ok(())
}

async fn touch_ends(client: &mut Connection, size: usize, count: usize) {
    for n in 0..count {
        let mut buf = client.alloc(size).await.unwrap();
        buf.set_len(size);
        (buf[0], buf[size - 1]) = (n as u8, !(n as u8));
        client.send(buf.freeze()).await.unwrap();
        let back = client.recv().await.unwrap().unwrap();
        let (first, last) = (back.segments().first().unwrap(), back.segments().last().unwrap());
        assert_eq!((first[0], last[last.len() - 1]), (n as u8, !(n as u8)));
    }
}
