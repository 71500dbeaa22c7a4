//! An engine with much in flight.

use std::io;
use std::time::Duration;

use zc_core::memory::BufPool;
use zc_transport_uring::Engine;

use super::*;

/// Operations of every kind, none of which ends by itself.
pub struct Busy {
    pub tasks: Vec<tokio::task::JoinHandle<io::Result<()>>>,
    /// As long as they live, the kernel keeps what was sent out of the memory itself.
    pub peers: Vec<std::os::fd::OwnedFd>,
}

pub async fn busy(engine: &Engine, pool: &BufPool) -> Busy {
    let (mut tasks, mut peers) = (Vec::new(), Vec::new());
    for pair in [unix_pair, tcp_pair] {
        let (a, b) = pair();
        let (tx, mut rx) = engine.socket(a).unwrap();
        tasks.push(tokio::spawn(async move { rx.recv().await.map(drop) }));
        let mut full = pool.try_alloc(16 << 20).unwrap();
        full.set_len(16 << 20);
        let full = full.freeze();
        tasks.push(tokio::spawn(async move { tx.send(full, true).await.and_then(whole(16 << 20)) }));
        peers.push(b);
    }
    let (a, b) = tcp_pair();
    let (tx, _rx) = engine.socket(a).unwrap();
    let mut big = pool.try_alloc(16 << 20).unwrap();
    big.set_len(16 << 20);
    let mut pieces = zc_core::memory::Message::from(big.freeze());
    pieces.push(bytes(100, 0)).unwrap();
    let mut send = tx.send_message_zero_copy(pieces, true);
    tasks.push(tokio::spawn(async move {
        let sent = std::future::poll_fn(|cx| send.poll_sent(cx)).await;
        sent.and_then(whole((16 << 20) + 100))
    }));
    peers.push(b);
    let (a, b) = unix_pair();
    let (_, mut rx) = engine.socket(a).unwrap();
    let op = rx.recv_into(pool.try_alloc(10).unwrap(), 10, true);
    tasks.push(tokio::spawn(async move { op.await.map(drop) }));
    let (read, write) = rustix::pipe::pipe().unwrap();
    let read = engine.file(read);
    let op = read.read_at(pool.try_alloc(10).unwrap(), 10, 0);
    tasks.push(tokio::spawn(async move { op.await.map(drop) }));
    peers.extend([b, write]);
    while engine.stats().in_flight < tasks.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Busy { tasks, peers }
}

/// A send that was cut short is no success.
fn whole(len: usize) -> impl Fn(usize) -> io::Result<()> {
    move |n| if n == len { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

pub fn big_pool() -> BufPool {
    BufPool::builder().max_bytes(128 << 20).build()
}
