//! The socket: options, binding, waking the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XdpMmapOffsets, XdpOptionsFlags,
    XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use zc_core::memory::Region;

/// Who computes checksums that a transmit frame asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksums {
    /// Nobody: frames carry no metadata.
    Off,
    /// The device, in zero-copy mode.
    Device,
}

/// How a socket is bound to its queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bind {
    pub(crate) zero_copy: bool,
    /// Packets may span frames.
    pub(crate) multi_buffer: bool,
}

/// Polling of the device in the receiving system call instead of by interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BusyPoll {
    pub(crate) micros: u32,
    pub(crate) packets: u32,
}

const UMEM_TX_METADATA_LEN: u32 = 1 << 2;

/// An AF_XDP socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    /// The memory that it was made known; the kernel pins the pages, this keeps the addresses ours (M4).
    umem: Option<Region>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, umem: None }
    }
}

impl Socket {
    pub(crate) fn open() -> io::Result<OwnedFd> {
        Ok(rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
    }

    /// Makes the first `len` bytes of a region known as frames of `chunk_bytes`. What the kernel may do with them
    /// depends on what is put on the rings.
    pub(crate) fn register(
        &mut self,
        region: &Region,
        len: usize,
        chunk_bytes: u32,
        checksums: Checksums,
        metadata_bytes: u32,
    ) -> io::Result<()> {
        assert!(len <= region.len());
        let (flags, tx_metadata_len) = match checksums {
            Checksums::Off => (0, 0),
            Checksums::Device => (UMEM_TX_METADATA_LEN, metadata_bytes),
        };
        let registration = XdpUmemReg {
            addr: region.base().addr() as u64,
            len: len as u64,
            chunk_size: chunk_bytes,
            headroom: 0,
            flags: XdpUmemRegFlags::from_bits_retain(flags),
            tx_metadata_len,
        };
        sockopt::set_xdp_umem_reg(&self.fd, registration)?;
        self.umem = Some(region.clone());
        Ok(())
    }

    pub(crate) fn size_rings(&self, rx: u32, tx: u32, fill: u32, completion: u32) -> io::Result<()> {
        sockopt::set_xdp_umem_fill_ring_size(&self.fd, fill)?;
        sockopt::set_xdp_umem_completion_ring_size(&self.fd, completion)?;
        sockopt::set_xdp_rx_ring_size(&self.fd, rx)?;
        Ok(sockopt::set_xdp_tx_ring_size(&self.fd, tx)?)
    }

    pub(crate) fn ring_offsets(&self) -> io::Result<XdpMmapOffsets> {
        Ok(sockopt::xdp_mmap_offsets(&self.fd)?)
    }

    /// Binds with memory of its own.
    pub(crate) fn bind(&self, bind: Bind, interface: u32, queue: u32) -> io::Result<()> {
        let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        flags |= match bind.zero_copy {
            true => SocketAddrXdpFlags::XDP_ZEROCOPY,
            false => SocketAddrXdpFlags::XDP_COPY,
        };
        if bind.multi_buffer {
            flags |= SocketAddrXdpFlags::XDP_USE_SG;
        }
        Ok(rustix::net::bind(&self.fd, &SocketAddrXdp::new(flags, interface, queue))?)
    }

    /// Binds with the memory, and in the way, of another socket that is bound.
    pub(crate) fn bind_shared(&self, other: &Socket, interface: u32, queue: u32) -> io::Result<()> {
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, interface, queue);
        let addr = SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: other.as_fd() };
        Ok(rustix::net::bind(&self.fd, &addr)?)
    }

    /// Whether the device itself reads and writes the frames.
    pub(crate) fn is_zero_copy(&self) -> io::Result<bool> {
        Ok(sockopt::xdp_options(&self.fd)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    pub(crate) fn statistics(&self) -> io::Result<XdpStatistics> {
        Ok(sockopt::xdp_statistics(&self.fd)?)
    }

    /// Tells the kernel to look at the transmit ring. False: it has not taken all, and wants to be asked again; so it does while
    /// the interface is down.
    #[inline]
    pub(crate) fn wake_tx(&self) -> io::Result<bool> {
        match rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT) {
            Ok(_) => Ok(true),
            Err(error) if is_passing(error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the kernel to look at the fill ring, and at its device if it is polled.
    #[inline]
    pub(crate) fn wake_rx(&self) -> io::Result<()> {
        let none: &mut [u8] = &mut [];
        match rustix::net::recv(&self.fd, none, RecvFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// As `xsk_sendmsg` of the kernel (net/xdp/xsk.c) has them: an interface that is down may come up again, a device that is gone (ENXIO) not.
fn is_passing(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR | Errno::NETDOWN)
}

/// Turns busy polling on; takes CAP_NET_ADMIN.
pub(crate) fn prefer_busy_poll(fd: BorrowedFd<'_>, poll: BusyPoll) -> io::Result<()> {
    set(fd, libc::SO_PREFER_BUSY_POLL, 1)?;
    set(fd, libc::SO_BUSY_POLL, poll.micros)?;
    set(fd, libc::SO_BUSY_POLL_BUDGET, poll.packets)
}

fn set(fd: BorrowedFd<'_>, option: libc::c_int, value: u32) -> io::Result<()> {
    let (at, len) = ((&raw const value).cast(), size_of::<u32>() as libc::socklen_t);
    // SAFETY: setsockopt(2) reads the one integer, which is alive.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, at, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
