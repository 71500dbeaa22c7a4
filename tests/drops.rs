//! The owner of foreign bytes may do anything when it is dropped, also use the connection that sent them:
//! no lock is held then, wherever the last of its bytes went.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use zc::transport::LaneLimits;
use zc::{CloseCode, Completion, Connection, Fabric, Message, Receiver, Sender};

/// What an application might do in a destructor.
struct Owner {
    bytes: Vec<u8>,
    conn: Arc<Connection>,
    sender: Sender,
    dropped: Arc<AtomicUsize>,
    /// Only one of them has it.
    _receiver: Option<Receiver>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _stats = self.conn.stats();
        let _full_or_over = self.sender.try_send(&b"from a destructor"[..]);
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whatever a task owns goes with the last waker of it, on some runtimes.
impl Wake for Owner {
    fn wake(self: Arc<Self>) {}
}

struct Near {
    conn: Arc<Connection>,
    dropped: Arc<AtomicUsize>,
    receiver: Option<Receiver>,
}

impl Near {
    fn new(mut conn: Connection) -> Self {
        let receiver = conn.take_receiver();
        Self { conn: Arc::new(conn), dropped: Arc::default(), receiver }
    }

    fn owner(&mut self, len: usize) -> Owner {
        Owner {
            bytes: vec![7; len],
            conn: self.conn.clone(),
            sender: self.conn.sender(),
            dropped: self.dropped.clone(),
            _receiver: self.receiver.take(),
        }
    }

    fn owned(&mut self, len: usize) -> Message {
        Message::from(Bytes::from_owner(self.owner(len)))
    }

    async fn all_dropped(&self, count: usize) {
        while self.dropped.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// On a thread of its own, because what goes wrong here hangs it.
fn guarded<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("it hangs, or it failed");
}

async fn pair(uri: String) -> (Near, Connection) {
    let mut limits = LaneLimits::default();
    limits.recv_window = 64 << 10;
    let fabric = Fabric::auto_builder().limits(limits).build().unwrap();
    let mut listener = fabric.listen(&uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let (client, server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    (Near::new(client), server)
}

/// Messages of several sizes, so that they leave in every way that the lane has.
async fn sends_and_lets_go(uri: String) {
    let (mut near, mut far) = pair(uri).await;
    tokio::spawn(async move { while let Ok(Some(_)) = far.recv().await {} });
    const SIZES: [usize; 6] = [1, 1000, 20_000, 100_000, 1 << 20, 4 << 20];
    for len in SIZES {
        let message = near.owned(len);
        near.conn.send(message).await.unwrap();
    }
    near.all_dropped(SIZES.len()).await;
}

#[test]
fn a_message_that_was_sent_in_process() {
    guarded(|| sends_and_lets_go("zc+mem://drops".into()));
}

#[test]
fn a_message_that_was_sent_over_tcp() {
    guarded(|| sends_and_lets_go("zc+tcp://127.0.0.1:0".into()));
}

#[test]
fn a_message_that_was_sent_over_a_unix_socket() {
    guarded(|| sends_and_lets_go(format!("zc+unix://@drops-{}", std::process::id())));
}

#[cfg(feature = "shm")]
#[test]
fn a_message_that_was_copied_into_shared_memory() {
    guarded(|| sends_and_lets_go(format!("zc+shm://drops-{}", std::process::id())));
}

#[test]
fn messages_that_wait_when_the_connection_ends() {
    guarded(|| async {
        let (mut near, far) = pair("zc+mem://drops-parked".into()).await;
        // More than the peer takes, and more than once in a queue.
        const COUNT: usize = 1000;
        for _ in 0..COUNT {
            let mut sink = near.conn.sender();
            let message = near.owned(1000);
            SinkExt::feed(&mut sink, message).await.unwrap();
        }
        far.close(CloseCode::NORMAL, "enough").await;
        near.all_dropped(COUNT).await;
    });
}

#[test]
fn wakers_that_are_replaced_or_left_behind() {
    guarded(|| async {
        let (mut near, _far) = pair("zc+mem://drops-wakers".into()).await;
        let (conn, mut receiver) = (near.conn.clone(), near.receiver.take().unwrap());
        let sender = conn.sender();
        let mut twice = |future: &mut dyn FnMut(&mut Context<'_>) -> bool| {
            for noop in [false, true, false] {
                let waker = if noop { Waker::noop().clone() } else { Arc::new(near.owner(1)).into() };
                assert!(future(&mut Context::from_waker(&waker)));
            }
        };
        {
            let mut acknowledged = pin!(sender.send_with(&b"one"[..], Completion::Delivered));
            twice(&mut |cx| acknowledged.as_mut().poll(cx).is_pending());
            while sender.try_send(vec![0; 1000]).is_ok() {}
            let mut sent = pin!(sender.send(vec![0; 1000]));
            twice(&mut |cx| sent.as_mut().poll(cx).is_pending());
            let mut received = pin!(receiver.recv());
            twice(&mut |cx| received.as_mut().poll(cx).is_pending());
        }
        near.all_dropped(2 * 3).await;
    });
}
