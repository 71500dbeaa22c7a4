//! The levels of completion mean what they say.

use std::time::Duration;

use tokio::time::timeout;
use zc::{Completion, Message};

use crate::data::{ask, number, numbered};
use crate::peer::{Part, Peer};
use crate::run::Verdict;
use crate::setup::Bench;

/// Long enough for an acknowledgement that must not come.
const NOTHING_COMES: Duration = Duration::from_millis(500);

/// With room, a send is done at once, whatever the peer does.
pub async fn accepted_means_that_the_lane_has_it(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    for n in 0..50 {
        sender.send_with(numbered(0, n, 500), Completion::Accepted).await.unwrap();
    }
    drop((sender, client));
    for n in 0..50 {
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
    }
    Ok(())
}

/// The sender is the only owner again, so it can write into it.
pub async fn sent_means_that_the_buffer_is_free(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    for size in [10, 600, 20_000, 200_000, 3 << 20] {
        if size > bench.max_message() {
            continue;
        }
        let mut buf = sender.alloc(size).await.unwrap();
        buf.resize(size, 1);
        let buf = buf.freeze();
        let taking = async {
            let got = server.recv().await.unwrap().unwrap();
            assert_eq!(got.len(), size);
        };
        let sending = async {
            sender.send_with(Message::from(buf.clone()), Completion::Sent).await.unwrap();
            assert!(buf.try_into_mut().is_ok(), "{size} bytes are still held");
        };
        tokio::join!(taking, sending);
    }
    Ok(())
}

/// When it is done, the peer's application finds the message without waiting.
pub async fn delivered_means_queued_by_the_peer(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    for n in 0..100 {
        let len = if n % 10 == 0 { 100_000 } else { 10 };
        sender.send_with(numbered(0, n, len), Completion::Delivered).await.unwrap();
        let queued = server.try_recv().unwrap().expect("queued before the send was done");
        assert_eq!(number(&queued), (0, n));
    }
    Ok(())
}

/// A stopped process has room in its kernel, so `Sent` may come; `Delivered` must not before it goes on.
pub async fn delivered_waits_for_a_peer_that_does_not_read(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let mut listener = bench.listen(bench.server()).await;
    let peer = Peer::start(bench, Part::Echo, &listener.local_uri().to_string());
    let mut connection = listener.accept().await.unwrap();
    ask(&mut connection, 0, 100).await;
    peer.stop();
    let sender = connection.sender();
    sender.send(numbered(0, 1, 100)).await.unwrap();
    let mut delivered = Box::pin(sender.send_with(numbered(0, 2, 100), Completion::Delivered));
    let early = timeout(NOTHING_COMES, &mut delivered).await;
    assert!(early.is_err(), "a stopped peer has queued nothing: {early:?}");
    peer.go_on();
    delivered.await.unwrap();
    for n in [1, 2] {
        assert_eq!(number(&connection.recv().await.unwrap().unwrap()), (0, n));
    }
    Ok(())
}
