//! The balancer: from one interface to another one, by moving frames.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use zc_transport_xdp::device::{
    Device, DeviceOptions, OpenError, Outgoing, Packet, Queue, Umem, UmemOptions,
};
use zc_transport_xdp::netlink::{Interface, Neighbour};
use zc_transport_xdp::program::Rules;

use crate::maglev::Maglev;
use crate::packet::{flow, leave_checksum, pass_on};

/// What it balances.
pub(crate) struct Service {
    /// The interface on which packets for the virtual address arrive.
    pub(crate) from: String,
    /// The interface behind which the backends are.
    pub(crate) to: String,
    /// What clients talk to. Every backend has this address, too, and answers from it directly.
    pub(crate) address: SocketAddr,
    /// The backends, by addresses of their own.
    pub(crate) backends: Vec<IpAddr>,
    /// Whether the UDP checksum is computed anew: that of a sender behind a veth is not there yet.
    pub(crate) checksums: bool,
}

/// What it has done.
#[derive(Default)]
pub(crate) struct Counts {
    /// Packets for each backend.
    pub(crate) backends: Vec<AtomicU64>,
    /// Packets that could not be passed on: nonsense, too old, or no room.
    pub(crate) dropped: AtomicU64,
}

impl Counts {
    pub(crate) fn of(backends: usize) -> Self {
        Self { backends: (0..backends).map(|_| AtomicU64::new(0)).collect(), dropped: AtomicU64::new(0) }
    }
}

/// Packets taken at a time.
const BATCH: usize = 64;
/// How long a backend may take to answer who he is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why it could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0} has no Ethernet address")]
    NoAddress(String),
}

/// Both interfaces, over the same memory.
pub(crate) struct Balancer {
    incoming: Vec<Queue>,
    outgoing: Queue,
    own: [u8; 6],
    next: Vec<[u8; 6]>,
    table: Maglev,
}

impl Balancer {
    pub(crate) fn open(service: &Service) -> Result<Self, Error> {
        let umem = Umem::new(&UmemOptions::default())?;
        let rules = Rules {
            ports: vec![service.address.port()],
            addresses: vec![service.address.ip()],
            ..Rules::default()
        };
        let incoming =
            Device::open(&service.from, &umem, &DeviceOptions { rules, ..DeviceOptions::default() })?;
        // Takes nothing from the kernel there: it only sends.
        let sending =
            DeviceOptions { fill_frames: Some(16), checksums: service.checksums, ..DeviceOptions::default() };
        let outgoing = Device::open(&service.to, &umem, &sending)?;
        let Interface { index, address, .. } = outgoing.report().interface.clone();
        let own = address.ok_or_else(|| Error::NoAddress(service.to.clone()))?;
        let next = service.backends.iter().map(|backend| find(index, *backend)).collect::<Result<_, _>>()?;
        let table = Maglev::new(&service.backends);
        let first = outgoing.into_queues().into_iter().next();
        let outgoing = first.ok_or_else(|| Error::NoAddress(service.to.clone()))?;
        Ok(Self { incoming: incoming.into_queues(), outgoing, own, next, table })
    }

    /// Until told to end.
    pub(crate) fn run(&mut self, counts: &Counts, end: &AtomicBool) -> io::Result<()> {
        let mut packets: Vec<Packet> = Vec::with_capacity(BATCH);
        while !end.load(Relaxed) {
            let mut taken = 0;
            // Each in its turn, and as much: a busy one does not starve the others.
            for queue in &mut self.incoming {
                taken += queue.receive(BATCH, &mut packets)?;
                for packet in packets.drain(..) {
                    let chosen = pass(packet, self.own, &self.next, &self.table, &mut self.outgoing);
                    let count = chosen.map_or(&counts.dropped, |backend| &counts.backends[backend]);
                    count.fetch_add(1, Relaxed);
                }
            }
            if taken == 0 {
                std::hint::spin_loop();
            }
            self.outgoing.flush()?;
            self.outgoing.reap()?;
        }
        Ok(())
    }
}

/// Puts the frame that a packet came in on the other interface's ring. The number of the backend that gets it.
fn pass(
    mut packet: Packet,
    own: [u8; 6],
    next: &[[u8; 6]],
    table: &Maglev,
    out: &mut Queue,
) -> Option<usize> {
    let backend = table.backend(flow(packet.head())?);
    if !pass_on(packet.head_mut(), own, next[backend]) {
        return None;
    }
    let packet = match out.attachment().report().checksums {
        true => with_checksum(packet)?,
        false => packet.into(),
    };
    out.send(packet).is_ok().then_some(backend)
}

/// `None` if it is no such packet, or does not lie in one frame.
fn with_checksum(mut packet: Packet) -> Option<Outgoing> {
    let udp = leave_checksum(packet.head_mut())?;
    let mut frames = packet.into_frames();
    let (frame, None) = (frames.next()?, frames.next()) else { return None };
    Outgoing::with_checksum(frame, udp, 6)
}

/// The Ethernet address of a backend; the kernel finds it out if we send something there.
fn find(interface: u32, backend: IpAddr) -> io::Result<[u8; 6]> {
    const DISCARD: u16 = 9;
    let any: IpAddr = if backend.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    let start = Instant::now();
    loop {
        if let Ok(Neighbour::Known(address)) = Neighbour::of(interface, backend) {
            return Ok(address);
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{backend} does not answer")));
        }
        let _ = socket.send_to(&[], (backend, DISCARD));
        std::thread::sleep(Duration::from_millis(20));
    }
}
