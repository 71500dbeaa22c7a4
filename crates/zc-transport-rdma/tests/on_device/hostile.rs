//! Peers with verbs code of their own, which keep no word. Whatever they do, another connection of the same engine goes on.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use zc::Error;
use zc::testing::fabric_over;
use zc_core::memory::{BufPool, Message};
use zc_core::transport::{
    Caps, ControlLink, Lane, Offer, OfferContext, Role, Transport, Unavailable, WireupError,
};
use zc_transport_rdma::*;

use super::engine::within;
use super::lane::{URI, echo, fabric, pair};
use super::rig::{LIMIT, Rig, device};

/// What such a peer does once both queue pairs are connected.
#[derive(Clone, Copy)]
enum Does {
    /// Sends as many messages as the device takes, whatever it was promised.
    Floods,
    /// Posts none of the receive buffers that it has promised.
    PostsNothing,
}

/// In place of the transport: the same words on the control link.
struct Hostile {
    does: Does,
    honest: RdmaTransport,
    /// Messages that were taken from it.
    taken: Arc<AtomicUsize>,
}

/// How long one that posts nothing stays: several times what the other side takes to give it up.
const STAYS: Duration = Duration::from_secs(2);
const PROMISED: u32 = 32;

impl Hostile {
    async fn connect(&self, link: &mut dyn ControlLink) -> (Rig, QueuePair, End) {
        let rig = Rig::new().unwrap();
        let queue_pair = rig.queue_pair();
        let (local, psn) = (rig.gid(), Psn::new(4711));
        let mtu = rig.context.port(local.port).unwrap().mtu;
        let mine = End {
            number: queue_pair.number(),
            psn,
            gid: local.gid,
            recv_bytes: RECEIVE_BYTES as u32,
            recv_count: PROMISED,
            inline_bytes: 0,
            mtu,
            reads: 8,
        };
        write(link, &mine.encode()).await;
        let mut theirs = [0; END_BYTES];
        read(link, &mut theirs).await;
        let theirs = End::decode(&theirs).unwrap();
        queue_pair.init(local.port, RemoteAccess::default()).unwrap();
        let path = Path { local, gid: theirs.gid, number: theirs.number, psn: theirs.psn, mtu, reads: 8 };
        queue_pair.receive(&path).unwrap();
        queue_pair.send(psn, 8).unwrap();
        write(link, &[1]).await;
        read(link, &mut [0]).await;
        (rig, queue_pair, theirs)
    }

    /// Until the other side has had enough.
    async fn flood(&self, rig: &Rig, queue_pair: &QueuePair) {
        let (mut completions, until) = (Vec::new(), Instant::now() + LIMIT);
        loop {
            while queue_pair.room() > 0 {
                // A message of the application: kind 0, and nothing granted.
                let operation = Operation::Send { payload: Message::from(vec![7]), immediate: Some(0) };
                let mut work = VecDeque::from([Work::new(0, operation).signalled()]);
                if queue_pair.post(&mut work).is_err() {
                    return;
                }
            }
            rig.completions.poll(&mut completions).unwrap();
            for done in completions.drain(..) {
                match done {
                    Completion::Sent { result: Ok(()), .. } => self.taken.fetch_add(1, SeqCst),
                    Completion::Sent { .. } => return,
                    Completion::Received { .. } => continue,
                };
            }
            assert!(Instant::now() < until, "nobody cuts it off");
            tokio::task::yield_now().await;
        }
    }
}

impl Transport for Hostile {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn params(&self) -> &'static [&'static str] {
        self.honest.params()
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        self.honest.probe()
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        self.honest.offer(cx)
    }

    fn join<'a>(
        &'a self,
        _role: Role,
        _mine: Offer,
        _peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        _cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let (rig, queue_pair, _) = self.connect(link.as_deref_mut().unwrap()).await;
            match self.does {
                Does::Floods => self.flood(&rig, &queue_pair).await,
                Does::PostsNothing => tokio::time::sleep(STAYS).await,
            }
            Err(Unavailable::PeerFailed { reason: "it is hostile".into() }.into())
        })
    }
}

async fn write(link: &mut dyn ControlLink, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| link.poll_write(cx, bytes)).await.unwrap();
        bytes = &bytes[n..];
    }
}

async fn read(link: &mut dyn ControlLink, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| link.poll_read(cx, bytes)).await.unwrap();
        assert!(n > 0, "it hung up");
        bytes = &mut bytes[n..];
    }
}

/// One connection that keeps its word, with messages of less than `end` bytes, beside several that do not, one after the other; says how many
/// messages those got through.
async fn beside(does: Does, options: RdmaOptions, end: usize) -> usize {
    const ROUNDS: usize = 3;
    let (client, server) = (fabric(RdmaOptions::default()), fabric(options));
    let mut listener = server.listen(URI).await.unwrap();
    let mut good = pair(&client, &mut listener).await.unwrap();
    let uri = listener.local_uri().to_string();
    // Nothing of theirs is ever accepted.
    let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
    let taken = Arc::new(AtomicUsize::new(0));
    let of_task = taken.clone();
    let hostile = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let honest = RdmaTransport::new(RdmaOptions::default());
            let transport = Arc::new(Hostile { does, honest, taken: of_task.clone() });
            let pool = BufPool::builder().max_bytes(16 << 20).build();
            let fabric = fabric_over(transport).pool(pool).build().unwrap();
            let refused = fabric.connect(&uri).await.map(drop);
            assert!(matches!(refused, Err(Error::NoTransport(_))), "{refused:?}");
        }
    });
    let (mut echoes, mut len) = (0, 1);
    while !hostile.is_finished() {
        echo(&mut good, len).await;
        len = (len * 7) % end;
        echoes += 1;
    }
    within(hostile).await.unwrap();
    for len in [1, 4_000, 500_000] {
        echo(&mut good, len).await;
    }
    assert!(echoes > ROUNDS, "{echoes}");
    assert!(!accepting.is_finished(), "one of them was accepted");
    accepting.abort();
    taken.load(SeqCst)
}

/// It takes all receive buffers that the engine has posted, for all connections, before the engine sees that it goes beyond its share;
/// the others send again until there are some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_costs_others_no_message() {
    if device().is_none() {
        return;
    }
    // Few, so that they are used up.
    let options = RdmaOptions { recv_buffers: 4 * MIN_SHARE, ..RdmaOptions::default() };
    // None that is announced: what meets no receive buffer is sent again, and Soft-RoCE does not come back from that when a BIND is behind it
    // (docs/rdma.md).
    assert!(beside(Does::Floods, options, 4097).await > 0, "nothing was sent");
}

/// What is sent to it finds no receive buffer, until the device gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_posts_no_receive_buffers_costs_others_nothing() {
    if device().is_none() {
        return;
    }
    // Short, as long as a receive buffer, and such that are announced.
    beside(Does::PostsNothing, RdmaOptions::default(), 20_011).await;
}
