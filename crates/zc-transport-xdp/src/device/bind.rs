//! Sockets to queues, in the best way that works.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use zc_core::transport::Unavailable;

use super::grant::open_sockets;
use super::refused::{REGISTER, Refused};
use super::{DeviceOptions, Grant, Mode, OpenError, Refusal, Umem};
use crate::limits::{BIND_PATIENCE_MS, DEFAULT_FILL_FRAMES, MIN_RING_ENTRIES};
use crate::netlink::Interface;
use crate::sys::{Bind, Checksums, Port, RingSizes, Socket, TX_METADATA_BYTES};

/// What came up.
pub(super) struct Bound {
    pub(super) ports: Vec<Port>,
    pub(super) mode: Mode,
    pub(super) tried: Vec<Refusal>,
    pub(super) multi_buffer: bool,
}

// Bytes that the kernel keeps in front of a received packet.
const KERNEL_HEADROOM: u32 = 256;
// Bytes of a packet that its MTU does not count: Ethernet header and one VLAN tag.
const LINK_HEADER: u32 = 18;
const RETRY: Duration = Duration::from_millis(5);

/// Whether a frame takes the longest packet of an interface.
pub(super) fn fits_a_frame(mtu: u32, frame_bytes: u32) -> bool {
    mtu.saturating_add(LINK_HEADER) <= frame_bytes - KERNEL_HEADROOM
}

/// Why one way did not come up: the system, or something that no other way would change.
enum Failed {
    Refused(Refused),
    Final(OpenError),
}

fn refused(operation: &'static str) -> impl Fn(std::io::Error) -> Failed {
    move |error| Failed::Refused(Refused { operation, error })
}

/// The ways that are left, best first, and why others did not come up.
struct Ladder {
    left: VecDeque<Mode>,
    tried: Vec<Refusal>,
    umem_bytes: u64,
}

impl Ladder {
    fn of(grant: &mut Grant, umem: &Umem, options: &DeviceOptions) -> Self {
        let umem_bytes = u64::from(umem.stats().frames) * umem.frame_bytes() as u64;
        let (left, tried) = (VecDeque::new(), std::mem::take(&mut grant.tried));
        let mut ladder = Self { left, tried, umem_bytes };
        let features = &grant.interface.features;
        for mode in [Mode::ZeroCopy, Mode::Copy, Mode::Generic] {
            let is_attached_so = (mode == Mode::Generic) == grant.is_generic;
            if !options.allows(mode) || !is_attached_so {
                continue;
            }
            if mode == Mode::ZeroCopy && features.known && !features.zero_copy {
                ladder.tried.push(Refusal { mode, why: Unavailable::DriverNoZeroCopy });
                continue;
            }
            ladder.left.push_back(mode);
        }
        ladder
    }

    /// The next one. It was not this.
    fn refuse(&mut self, why: &Refused) {
        if let Some(mode) = self.left.pop_front() {
            self.tried.push(Refusal { mode, why: why.why(mode, self.umem_bytes) });
        }
    }
}

/// Binds the grant's sockets. The ways are tried with the first one, which a refusal leaves as it was, so that no rights are
/// needed. Only if a way that it takes is refused to another one, all are used up, and the next way takes new ones.
pub(super) fn bind(grant: &mut Grant, umem: &Umem, options: &DeviceOptions) -> Result<Bound, OpenError> {
    let mut sockets = Some(std::mem::take(&mut grant.sockets));
    let mut ladder = Ladder::of(grant, umem, options);
    let interface = &grant.interface;
    let fits = fits_a_frame(interface.mtu, umem.frame_bytes() as u32);
    let multi_buffer = options.multi_buffer.unwrap_or(!fits);
    if !fits && !multi_buffer {
        return Err(OpenError::FramesTooShort { mtu: interface.mtu });
    }
    while let Some(mode) = ladder.left.front().copied() {
        let fresh = match sockets.take() {
            Some(sockets) => Ok(sockets),
            None => open_sockets(interface.rx_queues, options.busy_poll()),
        };
        // In copy mode the kernel would sum up what it copies, which is no gain, and with some drivers (virtio_net) it
        // forgets about it, or refuses to bind. A driver that can't do it sends the packet as it is.
        let by_device = options.checksums && mode == Mode::ZeroCopy && interface.features.tx_checksum;
        let checksums = if by_device { Checksums::Device } else { Checksums::Off };
        let free = umem.frames().unclaimed();
        let attempt = Attempt { interface, umem, options, multi_buffer, checksums, free };
        let bound = fresh.map_err(Failed::Refused).and_then(|sockets| attempt.bind(sockets, &mut ladder));
        match bound {
            Ok((ports, mode)) => return Ok(Bound { ports, mode, tried: ladder.tried, multi_buffer }),
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Refused(why)) => ladder.refuse(&why),
        }
    }
    Err(OpenError::Refused { tried: ladder.tried })
}

/// One set of sockets.
struct Attempt<'a> {
    interface: &'a Interface,
    umem: &'a Umem,
    options: &'a DeviceOptions,
    multi_buffer: bool,
    checksums: Checksums,
    /// Frames of the memory that nobody had at first.
    free: u32,
}

impl Attempt<'_> {
    /// The first socket makes the memory known, and finds the way; the others share both.
    fn bind(&self, sockets: Vec<OwnedFd>, ladder: &mut Ladder) -> Result<(Vec<Port>, Mode), Failed> {
        let mut sockets = sockets.into_iter();
        let missing = || refused("bind(AF_XDP)")(std::io::ErrorKind::InvalidInput.into());
        let mut socket = Socket::from(sockets.next().ok_or_else(missing)?);
        self.register(&mut socket)?;
        let first = self.port(socket)?;
        let mode = self.bind_first(&first, ladder)?;
        let is_zero_copy = first.socket().is_zero_copy().map_err(refused("getsockopt(XDP_OPTIONS)"))?;
        if is_zero_copy != (mode == Mode::ZeroCopy) {
            return Err(refused("bind(AF_XDP)")(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        }
        let mut ports = Vec::with_capacity(1 + sockets.len());
        ports.push(first);
        for (queue, fd) in (1..).zip(sockets) {
            let port = self.port(Socket::from(fd))?;
            self.patiently(queue, || {
                port.socket().bind_shared(ports[0].socket(), self.interface.index, queue)
            })?;
            ports.push(port);
        }
        // A device that receives into the frames by itself takes as many as it has places, and asks to be called while it lacks some.
        if mode != Mode::ZeroCopy && self.options.fill_frames.is_none() {
            ports.iter_mut().for_each(Port::stock_as_needed);
        }
        ports.iter_mut().try_for_each(|port| port.refill().map_err(refused("recv(AF_XDP)")))?;
        Ok((ports, mode))
    }

    /// Binds it in the best way that is left. After the last refusal that way is still in front.
    fn bind_first(&self, port: &Port, ladder: &mut Ladder) -> Result<Mode, Failed> {
        loop {
            let missing = || refused("bind(AF_XDP)")(std::io::ErrorKind::InvalidInput.into());
            let mode = ladder.left.front().copied().ok_or_else(missing)?;
            let bind = Bind { zero_copy: mode == Mode::ZeroCopy, multi_buffer: self.multi_buffer };
            match self.patiently(0, || port.socket().bind(bind, self.interface.index, 0)) {
                Ok(()) => return Ok(mode),
                Err(Failed::Refused(why)) if ladder.left.len() > 1 => ladder.refuse(&why),
                Err(failed) => return Err(failed),
            }
        }
    }

    fn register(&self, socket: &mut Socket) -> Result<(), Failed> {
        let frames = self.umem.frames();
        let len = frames.count() as usize * frames.chunk_bytes() as usize;
        let registered =
            socket.register(frames.region(), len, frames.chunk_bytes(), self.checksums, TX_METADATA_BYTES);
        registered.map_err(refused(REGISTER))
    }

    fn port(&self, socket: Socket) -> Result<Port, Failed> {
        let DeviceOptions { rx_entries, tx_entries, .. } = *self.options;
        let fill_frames = self.fill_frames();
        let sizes = RingSizes { rx: rx_entries, tx: tx_entries, fill: fill_frames };
        let made = Port::new(socket, self.umem.frames(), sizes, self.checksums);
        made.map_err(refused("mmap(AF_XDP)"))?.ok_or_else(|| {
            let needed = fill_frames.saturating_mul(self.interface.rx_queues);
            Failed::Final(OpenError::TooFewFrames { needed, free: self.free })
        })
    }

    /// Of each queue: what was asked for, or a share of half of what is left.
    fn fill_frames(&self) -> u32 {
        let share = || (self.free / 2 / self.interface.rx_queues).checked_ilog2().map_or(0, |bits| 1 << bits);
        self.options.fill_frames.unwrap_or_else(|| share().clamp(MIN_RING_ENTRIES, DEFAULT_FILL_FRAMES))
    }

    /// A queue may be busy for a moment after its socket was closed.
    fn patiently(&self, queue: u32, bind: impl Fn() -> std::io::Result<()>) -> Result<(), Failed> {
        let until = Instant::now() + Duration::from_millis(BIND_PATIENCE_MS);
        loop {
            match bind() {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if Instant::now() >= until {
                        let interface = self.interface.name.clone();
                        return Err(Failed::Final(OpenError::QueueInUse { interface, queue }));
                    }
                    std::thread::sleep(RETRY);
                }
                bound => return bound.map_err(refused("bind(AF_XDP)")),
            }
        }
    }
}
