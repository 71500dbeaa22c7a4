//! Two queue pairs of one device, connected to each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zc_core::memory::{BufPool, Message, PinnedBufMut};
use zc_transport_rdma::*;

/// A hang guard.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const ALL: RemoteAccess = RemoteAccess { read: true, write: true, atomic: true };

/// The device, on the test machine. Elsewhere there is none to be had: it could be in use, and tests take its port down.
pub(crate) fn device() -> Option<Arc<Context>> {
    if std::env::var_os("ZC_RDMA_MACHINE").is_none() {
        println!("not the test machine, so this tests nothing");
        return None;
    }
    Some(Device::all().unwrap()[0].open().unwrap())
}

/// Has the port's link go up or down, for everybody.
pub(crate) fn port_is(state: &str) {
    let done = std::process::Command::new("ip").args(["link", "set", "veth0", state]).status().unwrap();
    assert!(done.success());
}

pub(crate) struct Rig {
    pub(crate) context: Arc<Context>,
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) completions: Arc<CompletionQueue>,
    pub(crate) receives: Arc<SharedReceiveQueue>,
    pub(crate) pool: BufPool,
}

impl Rig {
    pub(crate) fn new() -> Option<Self> {
        let context = device()?;
        let domain = ProtectionDomain::new(&context).unwrap();
        let completions = CompletionQueue::new(&context, 1024).unwrap();
        let receives = SharedReceiveQueue::new(&domain, &completions, 64).unwrap();
        let pool = BufPool::builder().max_bytes(16 << 20).build();
        Some(Self { context, domain, completions, receives, pool })
    }

    pub(crate) fn post_receives(&self, count: usize) {
        let mut buffers: Vec<_> = (0..count).map(|_| self.pool.try_alloc(4096).unwrap()).collect();
        assert_eq!(self.receives.post(&mut buffers).unwrap() as usize, count);
    }

    pub(crate) fn queue_pair(&self) -> QueuePair {
        QueuePair::new(&self.domain, &self.receives, QueuePairCaps { depth: 32, ..QueuePairCaps::default() })
            .unwrap()
    }

    pub(crate) fn one_sided(&self) -> QueuePair {
        let caps = QueuePairCaps { depth: 8, ..QueuePairCaps::default() };
        QueuePair::one_sided(&self.domain, &self.completions, caps).unwrap()
    }

    pub(crate) fn connect_both(&self, a: &QueuePair, b: &QueuePair) {
        let (of_a, of_b) = (Psn::new(7), Psn::new(70_000));
        self.connect(a, of_a, b.number(), of_b);
        self.connect(b, of_b, a.number(), of_a);
    }

    pub(crate) fn gid(&self) -> GidEntry {
        let gids = self.context.gids().unwrap();
        DeviceChoice::default().choose(gids.into_iter().map(|gid| ((), gid))).unwrap().1
    }

    /// Two that are connected to each other.
    pub(crate) fn pair(&self) -> (QueuePair, QueuePair) {
        let (a, b) = (self.queue_pair(), self.queue_pair());
        let (of_a, of_b) = (Psn::new(1000), Psn::new(0x00ff_fffe));
        self.connect(&a, of_a, b.number(), of_b);
        self.connect(&b, of_b, a.number(), of_a);
        (a, b)
    }

    pub(crate) fn connect(&self, queue_pair: &QueuePair, psn: Psn, peer: QueuePairNumber, peer_psn: Psn) {
        self.connect_for_reads(queue_pair, psn, peer, peer_psn, 8);
    }

    /// With so many reads and atomics at a time.
    pub(crate) fn connect_for_reads(
        &self,
        queue_pair: &QueuePair,
        psn: Psn,
        peer: QueuePairNumber,
        peer_psn: Psn,
        reads: u8,
    ) {
        let local = self.gid();
        queue_pair.init(local.port, ALL).unwrap();
        let mtu = self.context.port(local.port).unwrap().mtu;
        let path = Path { local, gid: local.gid, number: peer, psn: peer_psn, mtu, reads: 8 };
        queue_pair.receive(&path).unwrap();
        queue_pair.send(psn, reads).unwrap();
    }

    pub(crate) fn buffer(&self, bytes: &[u8]) -> PinnedBufMut {
        let mut buf = self.pool.try_alloc(bytes.len()).unwrap();
        buf.put_slice(bytes);
        buf
    }

    pub(crate) fn message(&self, bytes: &[u8]) -> Message {
        Message::from(self.buffer(bytes).freeze())
    }

    pub(crate) fn post(&self, queue_pair: &QueuePair, work: Work) {
        queue_pair.prepare(&work).unwrap();
        let mut queue = VecDeque::from([work]);
        assert_eq!(queue_pair.post(&mut queue).unwrap(), 1);
    }

    /// Looks until there are so many completions.
    pub(crate) fn completions(&self, count: usize) -> Vec<Completion> {
        let (mut found, until) = (Vec::new(), Instant::now() + LIMIT);
        while found.len() < count {
            self.completions.poll(&mut found).unwrap();
            assert!(Instant::now() < until, "{found:?}");
        }
        assert_eq!(found.len(), count, "{found:?}");
        found
    }
}

/// What was received, of those that are receives, in order.
pub(crate) fn received(completions: &[Completion]) -> Vec<(Vec<u8>, Received)> {
    let received = completions.iter().filter_map(|one| match one {
        Completion::Received { buf, result, .. } => Some((buf.to_vec(), result.unwrap())),
        Completion::Sent { .. } => None,
    });
    received.collect()
}

/// The tags of what was sent, and how that ended, in order.
pub(crate) fn sent(completions: &[Completion]) -> Vec<(u64, Result<(), WorkFault>)> {
    let sent = completions.iter().filter_map(|one| match one {
        Completion::Sent { work, result, .. } => Some((work.tag, result.map_err(|error| error.fault()))),
        Completion::Received { .. } => None,
    });
    sent.collect()
}
