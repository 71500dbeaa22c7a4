//! Clones of a sender share the room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::data::{number, numbered};
use crate::run::Verdict;
use crate::setup::{Bench, window};

const SENDERS: usize = 16;
const TAKEN: usize = 250 * SENDERS;
/// Nobody gets less than the mean divided by this, or more than the mean times this.
const FACTOR: usize = 3;

/// A machine that is busy keeps one of them from running now and then.
const WINDOWS: usize = 5;

fn is_fair(shares: &[u32; SENDERS]) -> bool {
    let (mean, factor) = ((TAKEN / SENDERS) as u32, FACTOR as u32);
    shares.iter().all(|share| (mean / factor..=mean * factor).contains(share))
}

/// Each gets its share while all want everything; each keeps its own order.
pub async fn every_sender_gets_its_turn(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair_within(window(16 << 10)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for id in 0..SENDERS as u32 {
        let (sender, stop) = (client.sender(), stop.clone());
        senders.push(tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                sender.send(numbered(id, n, 2000)).await.unwrap();
                n += 1;
            }
        }));
    }
    let (mut got, mut shares) = ([0; SENDERS], Vec::new());
    for _ in 0..WINDOWS {
        let before = got;
        for _ in 0..TAKEN {
            let (id, n) = number(&server.recv().await.unwrap().unwrap());
            assert_eq!(n, got[id as usize], "sender {id}");
            got[id as usize] += 1;
        }
        shares.push(std::array::from_fn::<_, SENDERS, _>(|id| got[id] - before[id]));
        if shares.last().is_some_and(is_fair) {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    // A queue that prefers some does so every time.
    assert!(shares.last().is_some_and(is_fair), "of {TAKEN} each time: {shares:?}");
    client.sender().finish().await.unwrap();
    while let Some(message) = server.recv().await.unwrap() {
        let (id, n) = number(&message);
        assert_eq!(n, got[id as usize], "sender {id}");
        got[id as usize] += 1;
    }
    for sender in senders {
        // It may have been waiting when sending was finished.
        let _ = sender.await;
    }
    Ok(())
}
