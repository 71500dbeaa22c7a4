//! Every byte arrives, as it was, in order.

use zc::memory::MAX_SEGMENTS;
use zc::{Message, Receiver, Sender};

use crate::data::{Random, assert_is, bytes, echo, lent, number, numbered};
use crate::run::Verdict;
use crate::setup::Bench;

/// Around every boundary that a transport is likely to have.
const SIZES: [usize; 28] = [
    0,
    1,
    2,
    63,
    64,
    65,
    255,
    256,
    257,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    16_383,
    16_384,
    16_385,
    65_535,
    65_536,
    65_537,
    1 << 20,
    (1 << 20) + 1,
    4 << 20,
    (4 << 20) + 1,
    10 << 20,
    (64 << 20) - 1,
    64 << 20,
];
const ROPES: usize = 150;
const IN_ORDER: u32 = 3000;

/// 0 B to 64 MiB there and back, from memory of the connection and from elsewhere.
pub async fn every_size_arrives_whole(bench: &Bench) -> Verdict {
    let (mut client, server) = bench.pair().await;
    let most = bench.max_message().min(client.caps().max_message as usize);
    let echoing = tokio::spawn(echo(server));
    let (sender, mut receiver) = client.split();
    let sizes = || SIZES.into_iter().filter(move |size| *size <= most).enumerate();
    let sending = async {
        for (seed, size) in sizes() {
            sender.send(bytes(seed, size)).await.unwrap();
            sender.send(lent(&sender, seed, size).await).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let receiving = async {
        for (seed, size) in sizes() {
            for _ in 0..2 {
                assert_is(&receiver.recv().await.unwrap().unwrap(), seed, size);
            }
        }
    };
    tokio::join!(sending, receiving);
    echoing.await.unwrap();
    assert!(receiver.recv().await.unwrap().is_none());
    Ok(())
}

/// Messages of many segments, of all sizes and origins, arrive as one.
pub async fn random_ropes_arrive_whole(bench: &Bench) -> Verdict {
    let (mut client, server) = bench.pair().await;
    let echoing = tokio::spawn(echo(server));
    let (sender, mut receiver) = client.split();
    let (said, mut heard) = tokio::sync::mpsc::channel(ROPES);
    let sending = async {
        let mut random = Random(7);
        for seed in 0..ROPES {
            let rope = rope(&sender, &mut random, seed).await;
            said.send(rope.len()).await.unwrap();
            sender.send(rope).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let receiving = async {
        for seed in 0..ROPES {
            let len = heard.recv().await.unwrap();
            assert_is(&receiver.recv().await.unwrap().unwrap(), seed, len);
        }
    };
    tokio::join!(sending, receiving);
    echoing.await.unwrap();
    Ok(())
}

async fn rope(sender: &Sender, random: &mut Random, seed: usize) -> Message {
    let mut rope = Message::new();
    for _ in 0..=random.below(MAX_SEGMENTS) {
        let largest = [1, 16, 700, 5000, 40_000][random.below(5)];
        let (at, len) = (seed + rope.len(), random.below(largest + 1));
        let segment = match random.below(2) {
            0 => bytes(at, len).into(),
            _ => lent(sender, at, len).await,
        };
        for part in segment.into_segments() {
            // At most MAX_SEGMENTS pieces, none of them a rope itself.
            rope.push(part).unwrap();
        }
    }
    rope
}

/// Both ends send at the same time; neither direction reorders.
pub async fn order_holds_in_both_directions(bench: &Bench) -> Verdict {
    let (mut client, mut server) = bench.pair().await;
    let one = exchange(client.split());
    let other = exchange(server.split());
    tokio::join!(one, other);
    Ok(())
}

async fn exchange((sender, mut receiver): (Sender, Receiver)) {
    let sending = async {
        let mut random = Random(11);
        for n in 0..IN_ORDER {
            let largest = if n % 100 == 0 { 100_000 } else { 600 };
            sender.send(numbered(0, n, random.below(largest))).await.unwrap();
        }
        sender.finish().await.unwrap();
    };
    let receiving = async {
        for n in 0..IN_ORDER {
            assert_eq!(number(&receiver.recv().await.unwrap().unwrap()), (0, n));
        }
        assert!(receiver.recv().await.unwrap().is_none());
    };
    tokio::join!(sending, receiving);
}
