//! An ordinary UDP socket.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use smallvec::SmallVec;
use zc_core::memory::{BufPool, PinnedBufMut};
use zc_core::transport::{Interest, Reactor, Readiness};

use crate::engine::{Datagram, Destination, Port, Sink};
use crate::limits::{
    UDP_BUFFER_BYTES, UDP_LENT_MIN_BYTES, UDP_RECEIVE_BYTES, UDP_RECEIVES_PER_CALL, UDP_SEND_BYTES,
    UDP_SEND_PACKETS,
};
use crate::protocol::Transmit;
use crate::sys::udp::{self, Came};

pub(super) struct UdpPort {
    socket: Box<dyn Readiness>,
    local: SocketAddr,
    /// The kernel cuts what is sent into datagrams.
    cuts: AtomicBool,
    pool: BufPool,
    /// Whoever receives; what it receives into when the pool has no memory.
    receiving: Mutex<Vec<u8>>,
}

fn nonblocking(local: SocketAddr) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    rustix::net::bind(&socket, &local)?;
    Ok(socket)
}

fn local_of(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(rustix::net::getsockname(socket)?.try_into()?)
}

/// The longest datagram that goes from here to there in one piece, as far as is known.
pub(super) fn path_bytes(local: SocketAddr, to: SocketAddr) -> io::Result<usize> {
    let socket = nonblocking(local)?;
    rustix::net::connect(&socket, &to)?;
    // Headers of IP and UDP.
    let (mtu, heads) = match to {
        SocketAddr::V4(_) => (sockopt::ip_mtu(&socket)?, 28),
        SocketAddr::V6(_) => (sockopt::ipv6_mtu(&socket)?, 48),
    };
    Ok((mtu as usize).saturating_sub(heads))
}

impl UdpPort {
    /// `together`: several datagrams per system call, where the kernel can.
    pub(super) fn open(
        local: SocketAddr,
        together: bool,
        reactor: &dyn Reactor,
        pool: BufPool,
    ) -> io::Result<Self> {
        let socket = nonblocking(local)?;
        let local = local_of(&socket)?;
        // As much as we may have; what overflows counts as lost on the way.
        if sockopt::set_socket_recv_buffer_size_force(&socket, UDP_BUFFER_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, UDP_BUFFER_BYTES)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, UDP_BUFFER_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, UDP_BUFFER_BYTES)?;
        }
        let cuts = AtomicBool::new(together && udp::cuts(socket.as_fd()));
        if together {
            // Without it they come one by one.
            let _ = udp::receive_together(socket.as_fd());
        }
        let socket = reactor.register(socket)?;
        Ok(Self { socket, local, cuts, pool, receiving: Mutex::default() })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// `WouldBlock`: nothing came.
    fn receive_some(&self, fd: BorrowedFd<'_>, heap: &mut Vec<u8>, sink: &mut Sink<'_>) -> io::Result<usize> {
        let mut buf: Option<PinnedBufMut> = None;
        for count in 0..UDP_RECEIVES_PER_CALL {
            if buf.is_none() {
                buf = self.pool.try_alloc_spare(UDP_RECEIVE_BYTES).ok();
            }
            let into = match &mut buf {
                Some(buf) => buf.unfilled_mut(),
                None => {
                    heap.resize(UDP_RECEIVE_BYTES, 0);
                    &mut heap[..]
                }
            };
            match udp::receive(fd, into) {
                Ok(came) => hand_out(came, &mut buf, heap, sink),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && count > 0 => return Ok(count),
                Err(error) if is_of_one_datagram(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(UDP_RECEIVES_PER_CALL)
    }

    /// Sends packets of one length, and one that is shorter behind them; how many they are.
    fn send_together(&self, to: &Destination, packets: &[Transmit]) -> io::Result<usize> {
        let count = if self.cuts.load(Relaxed) { together(packets) } else { 1 };
        let packets = &packets[..count];
        let pieces = packets.iter().flat_map(|packet| {
            let payload = packet.payload().iter().map(|slice| IoSlice::new(slice));
            std::iter::once(IoSlice::new(packet.head())).chain(payload)
        });
        let pieces: SmallVec<[IoSlice<'_>; 32]> = pieces.collect();
        let each = (count > 1).then(|| packets[0].len() as u16);
        let Destination::Kernel(addr) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
        match udp::send(self.socket.fd(), addr, &pieces, each) {
            Ok(()) => Ok(count),
            Err(error) if count > 1 && cannot_cut(&error) => {
                self.cuts.store(false, Relaxed);
                self.send_together(to, &packets[..1])
            }
            Err(error) if is_of_one_datagram(&error) => Ok(count),
            Err(error) => Err(error),
        }
    }
}

/// How many of these packets can go in one call.
fn together(packets: &[Transmit]) -> usize {
    let (each, mut bytes, mut pieces) = (packets[0].len(), 0, 0);
    let mut count = 0;
    for packet in packets.iter().take(UDP_SEND_PACKETS) {
        bytes += packet.len();
        pieces += 1 + packet.payload().len();
        let fits = packet.len() <= each && bytes <= UDP_SEND_BYTES && pieces <= libc::UIO_MAXIOV as usize;
        if count > 0 && !fits {
            break;
        }
        count += 1;
        if packet.len() < each {
            break;
        }
    }
    count
}

/// The device can't, whatever the kernel says.
fn cannot_cut(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

/// It says nothing about the socket: no route now, no room in the device's queue, a filter, an answer to what was sent before.
fn is_of_one_datagram(error: &io::Error) -> bool {
    let errnos = [
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::ENETDOWN,
        libc::EMSGSIZE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
        libc::EACCES,
        libc::EINTR,
    ];
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

/// Short ones are shown: who keeps one of many would keep the buffer of all, and a peer decides which are kept.
fn hand_out(came: Came, buf: &mut Option<PinnedBufMut>, heap: &[u8], sink: &mut Sink<'_>) {
    let Came { bytes, each_bytes } = came;
    if bytes == 0 {
        return;
    }
    match buf.take() {
        Some(mut all) if each_bytes >= UDP_LENT_MIN_BYTES => {
            all.set_len(bytes);
            let all = all.freeze();
            for start in (0..bytes).step_by(each_bytes) {
                sink(Datagram::Lent(all.slice(start..bytes.min(start + each_bytes))));
            }
        }
        Some(mut all) => {
            all.set_len(bytes);
            all.chunks(each_bytes).for_each(|datagram| sink(Datagram::Shown(datagram)));
            all.clear();
            *buf = Some(all);
        }
        None => heap[..bytes].chunks(each_bytes).for_each(|datagram| sink(Datagram::Shown(datagram))),
    }
}

impl Port for UdpPort {
    fn receive(&self, patient: bool, sink: &mut Sink<'_>) -> io::Result<bool> {
        let heap = if patient { Some(self.receiving.lock()) } else { self.receiving.try_lock() };
        let Some(mut heap) = heap else { return Ok(false) };
        match self.receive_some(self.socket.fd(), &mut heap, sink) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn poll_receive(&self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<io::Result<()>> {
        let mut heap = self.receiving.lock();
        let received =
            self.socket.poll_io(cx, Interest::Read, &mut |fd| self.receive_some(fd, &mut heap, sink));
        received.map_ok(drop)
    }

    fn send(&self, to: &Destination, packets: &[Transmit]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < packets.len() {
            match self.send_together(to, &packets[sent..]) {
                Ok(count) => sent += count,
                Err(error) if sent > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: &mut dyn FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_io(cx, Interest::Write, &mut |_| send())
    }
}
