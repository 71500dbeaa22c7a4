//! Whoever does not receive holds up the sender, and does not fill memory.

use std::time::Duration;

use tokio::time::timeout;

use crate::data::{lent, number, numbered};
use crate::run::Verdict;
use crate::setup::{Bench, window};

/// A send that takes this long waits for room. Sooner than needed does no harm: only upper bounds follow.
const STALLED: Duration = Duration::from_millis(500);
const SIZE: usize = 64 << 10;
/// Far above every window and queue.
const OFFERED: usize = 4096;
/// What a lane may hold at both ends together while its receiver does nothing, bytes.
const MAX_STALLED_BYTES: u64 = 32 << 20;

/// Either direction: the sender is held back, its memory is bounded, and it goes on later.
pub async fn a_stalled_receiver_bounds_its_sender(bench: &Bench) -> Verdict {
    for backwards in [false, true] {
        let (client, server) = bench.pair_within(window(64 << 10)).await;
        let (from, mut to) = if backwards { (server, client) } else { (client, server) };
        let sender = from.sender();
        let mut sent = 0;
        while sent < OFFERED {
            let message = lent(&sender, sent, SIZE).await;
            match timeout(STALLED, sender.send(message)).await {
                Ok(done) => done.unwrap(),
                Err(_) => break,
            }
            sent += 1;
        }
        assert!(sent > 0 && sent < OFFERED, "{sent} messages were taken");
        let bytes = bench.in_use_bytes();
        assert!(bytes <= MAX_STALLED_BYTES, "{bytes} bytes are held for {sent} messages");
        for n in 0..sent {
            let message = to.recv().await.unwrap().unwrap();
            crate::data::assert_is(&message, n, SIZE);
        }
        from.send(numbered(0, 1, SIZE)).await.unwrap();
        assert_eq!(number(&to.recv().await.unwrap().unwrap()), (0, 1), "room came back");
    }
    Ok(())
}

/// A window bounds what is under way, not the size of a message.
pub async fn a_window_smaller_than_a_message_lets_it_through(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair_within(window(16 << 10)).await;
    let sending = async {
        for n in 0..20 {
            client.send(numbered(0, n, 300_000)).await.unwrap();
            client.send(numbered(1, n, 10)).await.unwrap();
        }
    };
    let receiving = async {
        for n in 0..20 {
            assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
            assert_eq!(number(&server.recv().await.unwrap().unwrap()), (1, n));
        }
    };
    tokio::join!(sending, receiving);
    Ok(())
}
