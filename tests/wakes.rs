//! No wake-up is lost: many tasks wait for each other over two connections' worth of races, with timers that never
//! go off, so that nothing but wake-ups can move them on.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt};
use zc::transport::{LaneLimits, Reactor, Readiness, TaskHandle, Timer};
use zc::{Completion, Connection, ConnectionOptions, Fabric, Polling, Receiver, Sender, TokioReactor};

const GUARD: Duration = Duration::from_secs(60);
const SENDERS: usize = 4;
const MESSAGES: usize = 1500;
/// Above it the sender waits for credit.
const WINDOW: u32 = 32 << 10;

struct NoTimers(TokioReactor);

struct Never;

impl Timer for Never {
    fn reset(&mut self, _deadline: Instant) {}
    fn poll_expired(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Reactor for NoTimers {
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        self.0.register(fd)
    }
    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        Ok(Box::new(Never))
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        self.0.spawn(task)
    }
    fn now(&self) -> Instant {
        self.0.now()
    }
}

async fn pair(uri: &str, polling: Polling) -> (Connection, Connection) {
    let mut options = ConnectionOptions::default();
    options.polling = polling;
    let mut limits = LaneLimits::default();
    limits.recv_window = WINDOW;
    let fabric = Fabric::auto_builder()
        .options(options)
        .limits(limits)
        .reactor(Arc::new(NoTimers(TokioReactor::new())))
        .build()
        .unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap()
}

async fn send_all(mut sender: Sender, id: usize) {
    for n in 0..MESSAGES {
        let message = vec![id as u8; if n % 16 == 0 { 9000 } else { n % 700 }];
        match (n + id) % 7 {
            0 => sender.send_with(message, Completion::Delivered).await.unwrap(),
            1 => sender.send_with(message, Completion::Sent).await.unwrap(),
            2 => sender.reserve(message.len()).await.unwrap().send(message).unwrap(),
            3 => {
                sender.feed(message).await.unwrap();
                sender.flush().await.unwrap();
            }
            4 => SinkExt::send(&mut sender, message.into()).await.unwrap(),
            5 => {
                // Given up at once, perhaps; then again.
                let sent = sender.send(vec![id as u8; 1]).now_or_never();
                assert!(sent.is_none_or(|sent| sent.is_ok()));
                sender.send(message).await.unwrap();
            }
            _ => sender.send(message).await.unwrap(),
        }
    }
}

async fn receive_all(mut receiver: Receiver) -> usize {
    let mut count = 0;
    loop {
        // A dropped `recv` in front of one that waits.
        let got = match receiver.recv().now_or_never() {
            Some(got) => got,
            None if count % 3 == 0 => receiver.recv().await,
            None => {
                tokio::task::yield_now().await;
                receiver.recv().await
            }
        };
        if got.unwrap().is_none() {
            return count;
        }
        count += 1;
    }
}

async fn both_ways(uri: &str, polling: Polling) {
    let (client, server) = pair(uri, polling).await;
    let mut ends = Vec::new();
    for mut end in [client, server] {
        let (sender, receiver) = end.split();
        let receiving = tokio::spawn(receive_all(receiver));
        let sending: Vec<_> = (0..SENDERS).map(|id| tokio::spawn(send_all(sender.clone(), id))).collect();
        let finishing = tokio::spawn(async move {
            for task in sending {
                task.await.unwrap();
            }
            end.drain(GUARD).await.unwrap();
            end
        });
        ends.push((receiving, finishing));
    }
    for (receiving, finishing) in ends {
        let (count, _end) = (receiving.await.unwrap(), finishing.await.unwrap());
        assert!(count >= SENDERS * MESSAGES, "{count}");
    }
}

async fn guarded(uri: &str, polling: Polling) {
    tokio::time::timeout(GUARD, both_ways(uri, polling)).await.expect("a wake-up was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn none_is_lost_in_process() {
    guarded("zc+mem://wakes", Polling::Interrupt).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn none_is_lost_over_tcp() {
    guarded("zc+tcp://127.0.0.1:0", Polling::Interrupt).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn none_is_lost_while_spinning() {
    guarded("zc+tcp://127.0.0.1:0", Polling::Adaptive { spin: Duration::from_micros(20) }).await;
}

#[tokio::test]
async fn none_is_lost_on_one_thread() {
    guarded("zc+mem://wakes-alone", Polling::Interrupt).await;
}

/// Both ends' rings and bells, in each way of waiting; a sleeper that is not rung for sleeps for ever.
#[cfg(feature = "shm")]
mod over_shared_memory {
    use super::*;

    const WAYS: [Polling; 4] = [
        Polling::Interrupt,
        Polling::Busy,
        Polling::Adaptive { spin: Duration::ZERO },
        Polling::Adaptive { spin: Duration::from_micros(20) },
    ];

    async fn in_each_way(name: &str) {
        for (at, polling) in WAYS.into_iter().enumerate() {
            guarded(&format!("zc+shm://wakes-{name}-{at}-{}", std::process::id()), polling).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn none_is_lost() {
        in_each_way("many").await;
    }

    #[tokio::test]
    async fn none_is_lost_on_one_thread() {
        in_each_way("one").await;
    }
}
