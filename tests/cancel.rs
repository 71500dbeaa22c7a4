//! Every public future is dropped at every point at which it waits, and nothing is lost, halved or stuck.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use zc::transport::LaneLimits;
use zc::{Completion, Connection, Fabric, Message, SendError, TrySendError};

const GUARD: Duration = Duration::from_secs(60);
/// More polls than any of the futures needs when nobody disturbs it.
const MOST_POLLS: usize = 12;
const LEN: usize = 40_000;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls up to `polls` times, each after a wake-up or, if none comes, after the others ran for a while;
/// then drops the future.
async fn poll_then_drop<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    for _ in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
            if flag.0.swap(false, Ordering::SeqCst) {
                break;
            }
        }
    }
    None
}

fn small_window() -> Fabric {
    let mut limits = LaneLimits::default();
    limits.recv_window = 64 << 10;
    Fabric::auto_builder().limits(limits).build().unwrap()
}

fn numbered(n: u32) -> Message {
    let mut bytes = Vec::from(n.to_le_bytes());
    bytes.resize(LEN, 0x5a);
    bytes.into()
}

fn number(message: &Message) -> u32 {
    assert_eq!(message.len(), LEN, "a message is whole");
    let flat: Vec<u8> = message.segments().iter().flat_map(|segment| segment.iter().copied()).collect();
    assert!(flat[4..].iter().all(|byte| *byte == 0x5a));
    u32::from_le_bytes(*flat.first_chunk().unwrap())
}

/// Fills the connection until it takes no more; the numbers that it took.
async fn fill(conn: &Connection, next: &mut u32) -> Vec<u32> {
    // Room for one may be on its way.
    conn.send(numbered(*next)).await.unwrap();
    let mut taken = vec![*next];
    loop {
        *next += 1;
        match conn.sender().try_send(numbered(*next)) {
            Ok(()) => taken.push(*next),
            Err(TrySendError::Full(_)) => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn expect(server: &mut Connection, numbers: &[u32]) {
    for n in numbers {
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), *n);
    }
}

/// Drops sends of one kind at every point, on a full and on an empty connection, with room coming back
/// meanwhile or not. `start` sends message `n` and is dropped after `polls` polls: was it taken?
async fn sends(start: impl AsyncFn(&Connection, u32, usize) -> Option<bool>) {
    sends_or_parks(false, start).await;
}

async fn sends_or_parks(parks: bool, start: impl AsyncFn(&Connection, u32, usize) -> Option<bool>) {
    let (client, mut server) = zc::testing::pair(&small_window()).await.unwrap();
    let mut next = 0;
    for polls in 0..MOST_POLLS {
        for (full, make_room) in [(false, false), (true, false), (true, true)] {
            let mut sent = if full { fill(&client, &mut next).await } else { Vec::new() };
            let before = client.stats().sent_messages;
            let n = next;
            next += 1;
            let attempt = start(&client, n, polls);
            let said = if make_room {
                let room = async {
                    let first = sent.remove(0);
                    expect(&mut server, &[first]).await;
                };
                tokio::join!(attempt, room).0
            } else {
                attempt.await
            };
            tokio::task::yield_now().await;
            // A sink's message may be taken and wait for its turn.
            let waiting = client.stats().waiting_senders;
            assert!(waiting == 0 || parks, "the place is given up");
            let taken = client.stats().sent_messages > before || waiting > 0;
            assert!(said.is_none_or(|said| said == taken), "{polls} polls: said {said:?}, taken {taken}");
            if taken {
                sent.push(n);
            }
            assert_eq!(client.stats().awaited_sends, 0, "nobody is waited for");
            // The queue is not stuck, and nothing else arrives in between.
            expect(&mut server, &sent).await;
            client.send(numbered(next)).await.unwrap();
            expect(&mut server, &[next]).await;
            next += 1;
        }
    }
}

async fn guarded(test: impl Future<Output = ()>) {
    tokio::time::timeout(GUARD, test).await.expect("it hangs");
}

fn was_sent(result: Option<Result<(), SendError>>) -> Option<bool> {
    // Not polled to its end, it may or may not have been handed over.
    result.map(|result| result.is_ok())
}

#[tokio::test]
async fn send() {
    guarded(sends(async |conn, n, polls| was_sent(poll_then_drop(conn.send(numbered(n)), polls).await)))
        .await;
}

#[tokio::test]
async fn send_with_timeout() {
    guarded(sends(async |conn, n, polls| {
        was_sent(poll_then_drop(conn.send(numbered(n)).timeout(GUARD), polls).await)
    }))
    .await;
}

#[tokio::test]
async fn feed_and_flush() {
    guarded(sends(async |conn, n, polls| {
        let sender = conn.sender();
        let fed = async {
            sender.feed(numbered(n)).await?;
            sender.flush().await.map_err(|error| panic!("{error}"))
        };
        was_sent(poll_then_drop(fed, polls).await)
    }))
    .await;
}

#[tokio::test]
async fn send_with_sent() {
    guarded(sends(async |conn, n, polls| {
        let sender = conn.sender();
        was_sent(poll_then_drop(sender.send_with(numbered(n), Completion::Sent), polls).await)
    }))
    .await;
}

#[tokio::test]
async fn send_with_delivered() {
    guarded(sends(async |conn, n, polls| {
        let sender = conn.sender();
        was_sent(poll_then_drop(sender.send_with(numbered(n), Completion::Delivered), polls).await)
    }))
    .await;
}

#[tokio::test]
async fn reserve() {
    guarded(sends(async |conn, n, polls| {
        let sender = conn.sender();
        let permit = poll_then_drop(sender.reserve(LEN), polls).await;
        // Every other permit is dropped unused.
        let permit = permit.filter(|_| n % 2 == 0);
        Some(permit.is_some_and(|permit| permit.unwrap().send(numbered(n)).is_ok()))
    }))
    .await;
}

#[tokio::test]
async fn sink() {
    use futures::SinkExt;
    guarded(sends_or_parks(true, async |conn, n, polls| {
        let mut sender = conn.sender();
        was_sent(poll_then_drop(SinkExt::send(&mut sender, numbered(n)), polls).await)
    }))
    .await;
}

#[tokio::test]
async fn recv() {
    guarded(async {
        let (client, mut server) = zc::testing::pair(&small_window()).await.unwrap();
        let sending = tokio::spawn(async move {
            for n in 0..400 {
                client.send(numbered(n)).await.unwrap();
            }
            client.sender().finish().await.unwrap();
            client
        });
        let mut next = 0;
        'all: loop {
            for polls in 0..MOST_POLLS {
                match poll_then_drop(server.recv(), polls).await {
                    Some(Ok(Some(message))) => {
                        assert_eq!(number(&message), next);
                        next += 1;
                    }
                    Some(Ok(None)) => break 'all,
                    Some(Err(error)) => panic!("{error}"),
                    None => {}
                }
            }
        }
        assert_eq!(next, 400);
        sending.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn alloc() {
    guarded(async {
        let pool = zc::BufPool::builder().max_bytes(4 << 20).build();
        let fabric = Fabric::auto_builder().pool(pool).build().unwrap();
        let (client, mut server) = zc::testing::pair(&fabric).await.unwrap();
        let sender = client.sender();
        let mut held = Vec::new();
        while let Some(Ok(buf)) = poll_then_drop(sender.alloc(256 << 10), 1).await {
            held.push(buf);
        }
        for polls in 0..MOST_POLLS {
            assert!(poll_then_drop(sender.alloc(256 << 10), polls).await.is_none());
        }
        held.clear();
        sender.alloc(256 << 10).await.unwrap();
        client.send(numbered(1)).await.unwrap();
        expect(&mut server, &[1]).await;
    })
    .await;
}

#[tokio::test]
async fn drain() {
    guarded(async {
        for polls in 0..MOST_POLLS {
            let (client, mut server) = zc::testing::pair(&small_window()).await.unwrap();
            let mut next = 0;
            let sent = fill(&client, &mut next).await;
            poll_then_drop(client.drain(GUARD), polls).await;
            assert_eq!(client.stats().awaited_sends, 0);
            let draining = tokio::spawn(async move { client.drain(GUARD).await });
            expect(&mut server, &sent).await;
            assert!(server.recv().await.unwrap().is_none());
            draining.await.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn connect_and_accept() {
    guarded(async {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen("zc+mem://cancel-connect").await.unwrap();
        for polls in 0..MOST_POLLS {
            poll_then_drop(fabric.connect("zc+mem://cancel-connect"), polls).await;
            poll_then_drop(listener.accept(), polls).await;
        }
        loop {
            let (connected, mut accepted) =
                tokio::try_join!(fabric.connect("zc+mem://cancel-connect"), listener.accept()).unwrap();
            connected.send(numbered(9)).await.unwrap();
            drop(connected);
            // What was accepted may still belong to an attempt that was dropped.
            if let Ok(Some(message)) = accepted.recv().await {
                assert_eq!(number(&message), 9);
                break;
            }
        }
    })
    .await;
}
