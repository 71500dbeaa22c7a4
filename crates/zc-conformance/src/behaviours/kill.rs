//! The peer's process is killed: what arrived stays, then there is an error, and memory comes back.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use zc::transport::Scope;
use zc::{Completion, Connection, ConnectionError, Delivery};

use crate::data::{ask, number, numbered};
use crate::peer::{FROM_HOLDER, HELD, Part, Peer};
use crate::run::Verdict;
use crate::setup::Bench;

/// Long enough for an acknowledgement that must not come.
const NOTHING_COMES: Duration = Duration::from_millis(300);

async fn with_peer(bench: &Bench, part: Part) -> (Connection, Peer) {
    let mut listener = bench.listen(bench.server()).await;
    let peer = Peer::start(bench, part, &listener.local_uri().to_string());
    (listener.accept().await.unwrap(), peer)
}

/// Sends until it fails, which it must.
async fn send_fails(connection: &Connection) {
    while connection.send(numbered(0, 0, 2000)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

/// It holds some messages, or is about to; what it sent before is not lost.
pub async fn a_peer_killed_while_holding_buffers(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Hold).await;
    for n in 0..2 * HELD {
        connection.sender().send_with(numbered(0, n, 2000), Completion::Delivered).await.unwrap();
    }
    for n in 0..FROM_HOLDER / 2 {
        assert_eq!(number(&connection.recv().await.unwrap().unwrap()), (1, n));
    }
    peer.kill();
    // What was queued here before is still returned, in order; "ready" is the last there can be.
    let mut next = FROM_HOLDER / 2;
    let error = loop {
        match connection.recv().await {
            Ok(message) if next == FROM_HOLDER => assert_eq!(message.unwrap(), b"ready"[..]),
            Ok(message) => assert_eq!(number(&message.expect("a killed peer has not finished")), (1, next)),
            Err(error) => break error,
        }
        next += 1;
    };
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
    assert_eq!(connection.recv().await.unwrap_err().to_string(), error.to_string(), "it stays");
    send_fails(&connection).await;
    Ok(())
}

/// Messages come whole and in order up to some point, never a part of one.
pub async fn a_peer_killed_while_sending(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Flood).await;
    for n in 0..30 {
        assert_eq!(number(&connection.recv().await.unwrap().unwrap()), (2, n));
    }
    peer.kill();
    let mut next = 30;
    let error = loop {
        match connection.recv().await {
            Ok(message) => assert_eq!(number(&message.expect("a killed peer has not finished")), (2, next)),
            Err(error) => break error,
        }
        next += 1;
    };
    assert!(matches!(error, ConnectionError::Lane(_)), "{error}");
    send_fails(&connection).await;
    Ok(())
}

/// Who waits for room learns of it.
pub async fn a_send_that_waits_when_the_peer_is_killed(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let (mut connection, mut peer) = with_peer(bench, Part::Hold).await;
    for n in 0..HELD {
        connection.send(numbered(0, n, 2000)).await.unwrap();
    }
    while connection.recv().await.unwrap().unwrap() != b"ready"[..] {}
    let sender = connection.sender();
    let waiting = tokio::spawn(async move {
        // The peer takes nothing more: soon there is no room.
        while sender.send(numbered(0, 0, 1 << 20)).await.is_ok() {}
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    peer.kill();
    waiting.await.unwrap();
    assert!(connection.recv().await.is_err());
    Ok(())
}

/// Nobody acknowledges any more: a send that waits for it fails, and says that it can't know or that nothing went.
pub async fn a_delivered_send_that_waits_when_the_peer_dies(bench: &Bench) -> Verdict {
    let (probe, _server) = bench.pair().await;
    let one_process = bench.claims(&probe).scope == Scope::Process;
    drop((probe, _server));
    if one_process {
        let (connection, peer) = Stopped::start(bench).await;
        return delivered_fails(&connection, || peer.end()).await;
    }
    let (mut connection, mut peer) = with_peer(bench, Part::Echo).await;
    ask(&mut connection, 0, 100).await;
    peer.stop();
    delivered_fails(&connection, || peer.kill()).await
}

/// Some that fit in, and one behind them that does not; the peer acknowledges nothing.
async fn delivered_fails(connection: &Connection, kill: impl FnOnce()) -> Verdict {
    const SIZES: [usize; 5] = [0, 100, 2000, 100_000, 1 << 20];
    const COPIES: u32 = 8;
    let mut sends = JoinSet::new();
    for n in 0..COPIES {
        for size in SIZES {
            let sender = connection.sender();
            sends.spawn(async move { sender.send_with(numbered(0, n, size), Completion::Delivered).await });
        }
    }
    let early = timeout(NOTHING_COMES, sends.join_next()).await;
    assert!(early.is_err(), "nobody can have acknowledged it: {early:?}");
    kill();
    let mut unknown = 0;
    while let Some(sent) = sends.join_next().await {
        let error = sent.unwrap().expect_err("who is dead has queued nothing");
        match error.delivery() {
            Delivery::Unknown => unknown += 1,
            Delivery::NotSent => {}
            delivery => panic!("{delivery:?}: {error}"),
        }
    }
    // The first were out: whether the peer had queued them is what nobody can say.
    assert!(unknown > 0, "what the lane had was not sent?");
    let late = connection.sender().send_with(numbered(0, 0, 100), Completion::Delivered).await.unwrap_err();
    assert_eq!(late.delivery(), Delivery::NotSent, "{late}");
    Ok(())
}

/// An end in this process that stands still, as a stopped process does: nothing runs its runtime.
struct Stopped {
    end: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Stopped {
    async fn start(bench: &Bench) -> (Connection, Self) {
        let mut listener = bench.listen(bench.server()).await;
        let uri = listener.local_uri().to_string();
        let fabric = bench.client();
        let (end, ended) = mpsc::channel();
        let (stands, still) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let connection = runtime.block_on(async {
                let mut connection = fabric.build().unwrap().connect(&uri).await.unwrap();
                let message = connection.recv().await.unwrap().unwrap();
                connection.sender().send_with(message, Completion::Delivered).await.unwrap();
                connection
            });
            let _ = stands.send(());
            let _ = ended.recv();
            // Without a word: what would say it is gone before the connection is.
            runtime.shutdown_background();
            drop(connection);
        });
        let mut connection = listener.accept().await.unwrap();
        ask(&mut connection, 0, 100).await;
        still.await.unwrap();
        (connection, Self { end, thread })
    }

    fn end(self) {
        self.end.send(()).unwrap();
        self.thread.join().unwrap();
    }
}
