//! What the facade costs: a connection against the same lane driven directly, over TCP on loopback.
//!
//! One thread plays both ends and nobody sleeps, so that the figures are processor time and little else.
//!
//! ```text
//! cargo bench --bench dispatch            nothing else should run
//! ```

#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::noop_waker_ref;
use zc::memory::{BufPool, CopyLedger, Message};
use zc::transport::{
    Batch, Frame, FrameKind, Lane, LaneLimits, LinkAddr, LinkProvider, Offer, OfferContext, Reactor, Role,
    Transport,
};
use zc::{Connection, Fabric, Receiver, Sender, TokioReactor};
use zc_transport_tcp::{StreamLinks, TcpTransport};

const ROUNDS: usize = 21;
const EACH: Duration = Duration::from_millis(150);
const SIZE: usize = 64;

/// One end, however it is driven.
trait End {
    fn send(&mut self, messages: usize) -> impl Future<Output = ()>;
    /// Takes at least one message, if one is there.
    fn take(&mut self) -> usize;
}

struct Bare {
    lane: Lane,
    pool: BufPool,
    seq: u64,
    batch: Batch<Frame>,
}

impl End for Bare {
    async fn send(&mut self, messages: usize) {
        let mut cx = Context::from_waker(noop_waker_ref());
        for _ in 0..messages {
            assert!(self.lane.tx.poll_ready(&mut cx, SIZE).is_ready());
            self.seq += 1;
            let frame =
                Frame { kind: FrameKind::Data, ack: false, seq: self.seq, payload: message(&self.pool) };
            self.lane.tx.start_send(frame, false).unwrap();
        }
        assert!(self.lane.tx.poll_flush(&mut cx).is_ready());
    }

    fn take(&mut self) -> usize {
        let mut taken = 0;
        if self.lane.rx.try_recv(&mut self.batch).unwrap().is_some() {
            for frame in self.batch.drain() {
                taken += 1;
                self.lane.rx.release(frame.payload.len());
            }
        }
        taken
    }
}

struct Facade {
    tx: Sender,
    rx: Receiver,
    pool: BufPool,
    _connection: Connection,
}

impl End for Facade {
    async fn send(&mut self, messages: usize) {
        if messages == 1 {
            return self.tx.send(message(&self.pool)).await.unwrap();
        }
        for _ in 0..messages {
            self.tx.feed(message(&self.pool)).await.unwrap();
        }
        self.tx.flush().await.unwrap();
    }

    fn take(&mut self) -> usize {
        // One more than there are would cost a system call that the bare lane is not asked for.
        usize::from(self.rx.try_recv().unwrap().is_some())
    }
}

fn message(pool: &BufPool) -> Message {
    let mut buf = pool.try_alloc(SIZE).unwrap();
    buf.set_len(SIZE);
    buf.freeze().into()
}

/// Nanoseconds per message, when `batch` messages go one way and then as many back.
async fn ping_pong(a: &mut impl End, b: &mut impl End, batch: usize) -> f64 {
    let (started, mut messages) = (Instant::now(), 0);
    while started.elapsed() < EACH {
        a.send(batch).await;
        drain(b, batch).await;
        b.send(batch).await;
        drain(a, batch).await;
        messages += 2 * batch;
        // Both variants let other tasks run: the connections' drivers have their say.
        tokio::task::yield_now().await;
    }
    started.elapsed().as_nanos() as f64 / messages as f64
}

async fn drain(end: &mut impl End, mut left: usize) {
    while left > 0 {
        left -= end.take();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (mut bare_a, mut bare_b) = bare_pair().await;
    let (mut facade_a, mut facade_b) = facade_pair().await;
    println!("{:<30} {:>11} {:>11} {:>7}", "case", "facade ns", "lane ns", "ratio");
    for (name, batch) in [("64 B, one by one", 1), ("64 B, batches of 64", 64)] {
        let (mut facade, mut lane, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let f = ping_pong(&mut facade_a, &mut facade_b, batch).await;
            let l = ping_pong(&mut bare_a, &mut bare_b, batch).await;
            facade.push(f);
            lane.push(l);
            ratio.push(f / l);
        }
        let (f, l, r) = (median(facade), median(lane), median(ratio));
        println!("{name:<30} {f:>11.0} {l:>11.0} {r:>7.3}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn facade_pair() -> (Facade, Facade) {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    let (a, b) = futures::join!(fabric.connect(&uri), listener.accept());
    let end = |connection: zc::Connection| {
        let mut connection = connection;
        let (tx, rx) = connection.split();
        Facade { tx, rx, pool: BufPool::builder().build(), _connection: connection }
    };
    (end(a.unwrap()), end(b.unwrap()))
}

async fn bare_pair() -> (Bare, Bare) {
    let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
    let at = LinkAddr::Tcp("127.0.0.1:0".into());
    let mut listener = StreamLinks.bind(&at, &reactor).await.unwrap();
    let at = listener.local();
    let accepted = std::future::poll_fn(|cx| listener.poll_accept(cx));
    let (a, b) = futures::join!(StreamLinks.connect(&at, &reactor), accepted);
    (bare(a.unwrap(), Role::Client, &reactor).await, bare(b.unwrap(), Role::Server, &reactor).await)
}

async fn bare(link: Box<dyn zc::transport::ControlLink>, role: Role, reactor: &Arc<dyn Reactor>) -> Bare {
    let pool = BufPool::builder().build();
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(reactor.clone(), pool.clone(), ledger, LaneLimits::default());
    let offer = Offer { version: 1, bytes: Vec::new() };
    let lane = TcpTransport.join(role, offer.clone(), offer, &mut Some(link), cx).await.unwrap();
    Bare { lane, pool, seq: 0, batch: Batch::new() }
}
