//! A runtime that polls a task inside `wake`, on the waking thread: no lock of ours may be held then.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use zc::transport::{Reactor, Readiness, TaskHandle, Timer};
use zc::{Completion, Connection, ConnectionOptions, Fabric, Polling};

/// Polls its future whenever it is woken, at once, unless it is being polled: then once more after that.
struct Inline {
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    again: AtomicBool,
    nested: Arc<AtomicUsize>,
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        while self.again.load(Ordering::SeqCst) {
            let Ok(mut future) = self.future.try_lock() else { return };
            if !self.again.swap(false, Ordering::SeqCst) {
                return;
            }
            self.nested.fetch_add(1, Ordering::Relaxed);
            let waker = Waker::from(self.clone());
            if let Some(running) = &mut *future
                && running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
            {
                *future = None;
            }
        }
    }
}

#[derive(Default)]
struct InlineReactor {
    polls: Arc<AtomicUsize>,
}

impl InlineReactor {
    fn run(&self, future: BoxFuture<'static, ()>) {
        let (future, again) = (Mutex::new(Some(future)), AtomicBool::new(false));
        Arc::new(Inline { future, again, nested: self.polls.clone() }).wake();
    }
}

/// Nothing here waits for time to pass.
struct Never;

impl Timer for Never {
    fn reset(&mut self, _deadline: Instant) {}
    fn poll_expired(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

struct Detached;

impl TaskHandle for Detached {
    fn detach(self: Box<Self>) {}
}

impl Reactor for InlineReactor {
    fn register(&self, _fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        Ok(Box::new(Never))
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        self.run(task);
        Ok(Box::new(Detached))
    }
    fn now(&self) -> Instant {
        Instant::now()
    }
}

async fn serve(mut conn: Connection) {
    while let Some(message) = conn.recv().await.unwrap() {
        conn.send(message).await.unwrap();
    }
}

async fn work(fabric: Fabric, reactor: Arc<InlineReactor>) {
    let mut listener = fabric.listen("zc+mem://inline").await.unwrap();
    let accepting = async move { serve(listener.accept().await.unwrap()).await };
    reactor.run(Box::pin(accepting));
    let mut client = fabric.connect("zc+mem://inline").await.unwrap();
    for n in 0..500_usize {
        // Above the pipe's size now and then, so that room and credit have to come back.
        let len = if n % 50 == 0 { 600_000 } else { n };
        let sender = client.sender();
        match n % 4 {
            0 => sender.send(vec![7; len]).await.unwrap(),
            1 => sender.send_with(vec![7; len], Completion::Delivered).await.unwrap(),
            2 => sender.reserve(len).await.unwrap().send(vec![7; len]).unwrap(),
            _ => {
                sender.feed(vec![7; len]).await.unwrap();
                sender.flush().await.unwrap();
            }
        }
        assert_eq!(client.recv().await.unwrap().unwrap().len(), len);
    }
    client.drain(Duration::from_secs(60)).await.unwrap();
    assert!(client.recv().await.unwrap().is_none(), "the server has finished, too");
}

#[test]
fn a_waker_may_poll_at_once() {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let reactor = Arc::new(InlineReactor::default());
        let mut options = ConnectionOptions::default();
        options.polling = Polling::Interrupt;
        let fabric = Fabric::auto_builder().reactor(reactor.clone()).options(options).build().unwrap();
        let polls = reactor.polls.clone();
        let again = reactor.clone();
        reactor.run(Box::pin(async move {
            work(fabric, again).await;
            done.send(polls.load(Ordering::Relaxed)).unwrap();
        }));
    });
    let polls = finished.recv_timeout(Duration::from_secs(60)).expect("it hangs, or it failed");
    assert!(polls > 500, "{polls} polls");
}
