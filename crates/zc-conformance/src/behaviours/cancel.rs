//! Any future may be dropped after any number of polls.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use zc::{BufPool, Completion};

use crate::data::{ask, echo, number, numbered};
use crate::run::{GUARD, Verdict};
use crate::setup::{Bench, window};

/// More polls than any operation needs to come to its end.
const MANY_POLLS: usize = 2000;

/// Polls a future at most so many times, then drops it.
pub(super) async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The listener goes on, and nothing of the attempt is left.
pub async fn connecting_can_be_given_up_anywhere(bench: &Bench) -> Verdict {
    let mut listener = bench.listen(bench.server()).await;
    let uri = listener.local_uri().to_string();
    let accepting = tokio::spawn(async move {
        loop {
            tokio::spawn(echo(listener.accept().await.unwrap()));
        }
    });
    let fabric = bench.client().build().unwrap();
    let mut connected = 0;
    for polls in 0..MANY_POLLS {
        if let Some(connection) = polled(polls, fabric.connect(&uri)).await {
            ask(&mut connection.unwrap(), 1, 100).await;
            connected += 1;
            if connected == 3 {
                break;
            }
        }
    }
    assert_eq!(connected, 3, "connecting takes more than {MANY_POLLS} polls");
    accepting.abort();
    let _ = accepting.await;
    Ok(())
}

/// No connection is lost by it.
pub async fn accepting_can_be_given_up_anywhere(bench: &Bench) -> Verdict {
    let mut listener = bench.listen(bench.server()).await;
    let uri = listener.local_uri().to_string();
    for polls in 0..6 {
        let fabric = bench.client().build().unwrap();
        let to = uri.clone();
        let asking = tokio::spawn(async move {
            let mut connection = fabric.connect(&to).await.unwrap();
            ask(&mut connection, 1, 100).await;
        });
        let accepted = loop {
            match polled(polls.max(1), listener.accept()).await {
                Some(accepted) => break accepted.unwrap(),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
            let _ = polled(0, listener.accept()).await;
        };
        echo(accepted).await;
        asking.await.unwrap();
    }
    assert_eq!(listener.failed_handshakes(), 0);
    Ok(())
}

/// What is sent is exactly what was told to be sent.
pub async fn a_send_given_up_sends_nothing(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair_within(window(64 << 10)).await;
    let receiving = tokio::spawn(async move {
        let mut got = Vec::new();
        while let Some(message) = server.recv().await.unwrap() {
            got.push(number(&message).1);
            if got.len() % 3 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        got
    });
    let sender = client.sender();
    let (mut sent, mut given_up) = (Vec::new(), 0);
    for n in 0..600 {
        let polls = n as usize % 4;
        match polled(polls, sender.send(numbered(0, n, 30_000))).await {
            Some(done) => {
                done.unwrap();
                sent.push(n);
            }
            None => given_up += u32::from(polls > 0),
        }
    }
    sender.finish().await.unwrap();
    assert!(given_up > 0, "no send ever waited");
    assert_eq!(receiving.await.unwrap(), sent);
    Ok(())
}

/// Giving up gives up the waiting: the message arrives whole, once, in order, or not at all.
pub async fn a_tracked_send_given_up_sends_once_or_not(bench: &Bench) -> Verdict {
    for completion in [Completion::Sent, Completion::Delivered] {
        let (client, mut server) = bench.pair_within(window(64 << 10)).await;
        let receiving = tokio::spawn(async move {
            let mut got = Vec::new();
            while let Some(message) = server.recv().await.unwrap() {
                got.push(number(&message).1);
            }
            got
        });
        let sender = client.sender();
        let mut told = Vec::new();
        for n in 0..200 {
            let polls = n as usize % 5;
            if let Some(done) = polled(polls, sender.send_with(numbered(0, n, 20_000), completion)).await {
                done.unwrap();
                told.push(n);
            }
        }
        sender.finish().await.unwrap();
        let got = receiving.await.unwrap();
        assert!(got.is_sorted_by(|a, b| a < b), "{completion:?}: {got:?}");
        let lost: Vec<_> = told.iter().filter(|n| !got.contains(n)).collect();
        assert!(lost.is_empty(), "{completion:?}: {lost:?} were told to be sent");
    }
    Ok(())
}

/// The next receive has what the dropped one would have had.
pub async fn a_recv_given_up_loses_nothing(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sending = tokio::spawn(async move {
        for n in 0..500 {
            client.send(numbered(0, n, 50)).await.unwrap();
            if n % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        client.sender().finish().await.unwrap();
        client
    });
    let mut next = 0;
    for polls in (0..4).cycle() {
        match polled(polls, server.recv()).await {
            None => tokio::task::yield_now().await,
            Some(Ok(None)) => break,
            Some(message) => {
                assert_eq!(number(&message.unwrap().unwrap()), (0, next));
                next += 1;
            }
        }
    }
    assert_eq!(next, 500);
    drop(sending.await.unwrap());
    Ok(())
}

/// Once nobody receives, somebody still reads: acknowledgements go on.
pub async fn a_recv_given_up_leaves_somebody_reading(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    for n in 0..60 {
        // Time enough for the lane to be left waiting before it is looked at, and after.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(polled(n as usize % 3, server.recv()).await.is_none(), "nothing was sent");
        tokio::time::sleep(Duration::from_millis(1)).await;
        sender.send_with(numbered(0, n, 100), Completion::Delivered).await.unwrap();
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
    }
    Ok(())
}

/// A drain given up has finished sending; another one waits for the same.
pub async fn a_drain_given_up_can_be_repeated(bench: &Bench) -> Verdict {
    for polls in 0..6 {
        let (client, mut server) = bench.pair().await;
        for n in 0..50 {
            client.send(numbered(0, n, 1000)).await.unwrap();
        }
        let _ = polled(polls, client.drain(GUARD)).await;
        client.drain(GUARD).await.unwrap();
        for n in 0..50 {
            assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
        }
        assert!(server.recv().await.unwrap().is_none());
    }
    Ok(())
}

/// What was fed goes out whether or not a flush was waited for.
pub async fn a_flush_given_up_can_be_repeated(bench: &Bench) -> Verdict {
    let (client, mut server) = bench.pair().await;
    let sender = client.sender();
    for turn in 0..20 {
        for n in 0..20 {
            sender.feed(numbered(turn, n, 100)).await.unwrap();
        }
        let _ = polled(turn as usize % 3, sender.flush()).await;
        sender.flush().await.unwrap();
        for n in 0..20 {
            assert_eq!(number(&server.recv().await.unwrap().unwrap()), (turn, n));
        }
    }
    Ok(())
}

/// Waiting for memory may be given up; who waits on gets what comes back.
pub async fn an_alloc_given_up_leaks_nothing(bench: &Bench) -> Verdict {
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    let (client, mut server) = bench.pair_of(bench.client().pool(pool.clone()), bench.server()).await;
    let sender = client.sender();
    let mut held = Vec::new();
    // Through the connection: its memory may be the lane's own instead of the pool's.
    while let Some(buf) = sender.alloc(100_000).now_or_never() {
        held.push(buf.unwrap());
    }
    for polls in 0..5 {
        let wait = || tokio::time::timeout(Duration::from_millis(20), sender.alloc(100_000));
        // What the lane itself gives back meanwhile is held as well.
        while let Some(Ok(buf)) = polled(polls, wait()).await {
            held.push(buf.unwrap());
        }
    }
    let waiting = tokio::spawn(async move { sender.alloc(100_000).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(20)).await;
    held.clear();
    drop(waiting.await.unwrap());
    client.send(numbered(0, 1, 1000)).await.unwrap();
    assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, 1));
    drop((client, server));
    while pool.stats().in_use_buffers != 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
