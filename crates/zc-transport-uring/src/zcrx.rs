//! Zero-copy receive: a NIC that splits headers off puts payload straight into memory of ours, without the kernel's
//! copy (ZCRX, Linux 6.19 and newer). How it is asked for, and why not.
//!
//! ```text
//! NIC --DMA--> area --completion (offset, length)--> piece, lent --dropped--> refill ring --> NIC
//! ```
//!
//! The data path is that of every socket which receives by itself ([`SocketRx`](crate::SocketRx)); `sys/area` lends the
//! pieces. Without a NIC that can, the kernel has a mode in which it fills the area itself, by a copy
//! ([`ZcrxSource::NoDevice`]): with that the path as such is tested. `docs/uring.md` says what was run, what was not, and what the
//! administrator has to set up.

use zc_core::memory::MemlockBudget;
use zc_core::transport::Unavailable;

use crate::ladder::{self, Flavour, Machine, kernel_version};
use crate::limits::{ZCRX_AREA_BYTES, ZCRX_PROBE_BYTES};
use crate::probe::probe;
use crate::sys::{Area, Refused, Ring, Source, locked_bytes};

/// The first kernel that has it, and takes back at once what comes back. It is also the first one that takes the queue from the
/// NIC before it looks for what is still lent when an area is given back: older ones might fill pages of ours after that (M5).
const NEEDED: &str = "6.19";
/// The first one that does without a device.
const NEEDED_WITHOUT_DEVICE: &str = "7.1";

/// Who fills the memory that is received into.
///
/// ```
/// use zc_transport_uring::ZcrxSource;
///
/// let nic = ZcrxSource::Queue { interface: "eth1".to_owned(), queue: 3 };
/// assert_ne!(nic, ZcrxSource::NoDevice);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZcrxSource {
    /// A receive queue of a NIC, as long as the ring has it. What comes for its sockets by another queue, the kernel copies there.
    Queue {
        /// The interface's name
        interface: String,
        /// The queue's number
        queue: u32,
    },
    /// The kernel, which copies everything: for tests where there is no such NIC
    NoDevice,
}

/// Zero-copy receive, see `docs/uring.md`.
///
/// ```
/// use zc_transport_uring::{UringOptions, ZcrxOptions};
///
/// let mut options = UringOptions::default();
/// options.zero_copy_receive = Some(ZcrxOptions::queue("eth1", 3));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZcrxOptions {
    /// Who fills the memory
    pub source: ZcrxSource,
    /// Memory to receive into, bytes, all of which is locked
    pub area_bytes: usize,
    /// Whether the engine has the NIC send what comes for its connections to the queue, by a rule for each (`ethtool -N`) for as long
    /// as its socket receives; nobody else can in time, see `docs/uring.md`
    pub steers: bool,
}

impl ZcrxOptions {
    /// By a receive queue of a NIC.
    pub fn queue(interface: impl Into<String>, queue: u32) -> ZcrxOptions {
        let source = ZcrxSource::Queue { interface: interface.into(), queue };
        ZcrxOptions { source, area_bytes: ZCRX_AREA_BYTES, steers: true }
    }

    /// By the kernel, which copies.
    pub fn without_device() -> Self {
        Self { source: ZcrxSource::NoDevice, steers: false, ..Self::queue("", 0) }
    }
}

/// Whether queue `queue` of an interface can put what it receives straight into memory of ours. It is registered for that, and
/// given back: where that works, the driver restarts the queue twice, and what comes for it in between may be lost.
/// So this is never asked unless an interface is named. The kernel gives the queue back in the background, so whoever asks
/// again right after a success may hear `queue_in_use`; and it counts 1 MiB as locked meanwhile.
///
/// ```
/// match zc_transport_uring::probe_zero_copy_receive("lo", 0) {
///     Ok(()) => println!("this NIC could"),
///     Err(why) => println!("{why}: {}", why.remedy()),
/// }
/// ```
///
/// # Errors
/// The typed reason why not, with a remedy.
pub fn probe_zero_copy_receive(interface: &str, queue: u32) -> Result<(), Unavailable> {
    let mut options = ZcrxOptions::queue(interface, queue);
    options.area_bytes = ZCRX_PROBE_BYTES;
    open(Flavour::OneThread, &options).map(drop)
}

/// A ring, and an area that is registered with it.
pub(crate) fn open(
    flavour: Flavour,
    options: &ZcrxOptions,
) -> Result<(Ring, &'static ladder::Rung, Area), Unavailable> {
    if flavour != Flavour::OneThread {
        let remedy = "a ring that receives so is for one thread: use a runtime of one thread, or `UringOptions::thread`";
        return Err(Unavailable::Other { code: "needs_one_thread", remedy: remedy.to_owned() });
    }
    if !probe()?.has("recv_zc") {
        return Err(Unavailable::KernelTooOld { needed: NEEDED });
    }
    let (source, name) = match &options.source {
        ZcrxSource::Queue { interface, queue } => {
            (Source::Queue { interface: index_of(interface)?, queue: *queue }, &interface[..])
        }
        ZcrxSource::NoDevice => (Source::NoDevice, ""),
    };
    let (ring, rung) = ladder::open_wide()?;
    let area = Area::register(&ring, source, options.area_bytes);
    let area = area.map_err(|refused| {
        let bytes = locked_bytes(options.area_bytes) as u64;
        why(&refused, (source, name), bytes, may_configure_networks())
    })?;
    Ok((ring, rung, area))
}

fn index_of(interface: &str) -> Result<u32, Unavailable> {
    let any =
        std::net::UdpSocket::bind(("127.0.0.1", 0)).map_err(|error| Unavailable::os("socket", &error))?;
    rustix::net::netdevice::name_to_index(&any, interface).map_err(|_| Unavailable::NoDevice)
}

fn may_configure_networks() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

fn why(refused: &Refused, (source, interface): (Source, &str), bytes: u64, is_admin: bool) -> Unavailable {
    let budget = MemlockBudget::process();
    let other = |code, remedy| Unavailable::Other { code, remedy };
    let errno = refused.error.raw_os_error();
    match (refused.call, errno, source) {
        ("io_uring_register", Some(libc::EPERM), _) if !is_admin => {
            Unavailable::MissingCapability { capability: "CAP_NET_ADMIN" }
        }
        ("io_uring_register", Some(libc::ENOMEM), _) if budget.soft_bytes() < u64::MAX => {
            Unavailable::Memlock { need: bytes, soft: budget.soft_bytes(), hard: budget.hard_bytes() }
        }
        ("io_uring_register", Some(libc::EINVAL | libc::EOPNOTSUPP), Source::NoDevice) => {
            Unavailable::KernelTooOld { needed: NEEDED_WITHOUT_DEVICE }
        }
        ("flushing the refill ring", Some(libc::EINVAL), _) => Unavailable::KernelTooOld { needed: NEEDED },
        ("io_uring_register", Some(libc::ENODEV), _) => Unavailable::NoDevice,
        ("io_uring_register", Some(libc::EOPNOTSUPP), _) => Unavailable::DriverNoZeroCopy,
        ("io_uring_register", Some(libc::ERANGE), Source::Queue { queue, .. }) => {
            other("no_such_queue", format!("{interface} has no receive queue {queue}: name another"))
        }
        ("io_uring_register", Some(libc::EEXIST | libc::EBUSY), Source::Queue { queue, .. }) => {
            let remedy = format!(
                "stop what uses queue {queue} of {interface} (a socket of AF_XDP, another ring, an XDP program on any \
                 queue), or name another"
            );
            other("queue_in_use", remedy)
        }
        ("io_uring_register", Some(libc::EINVAL), _) if kernel_version() >= (6, 15) => {
            let remedy =
                format!("`ethtool -G {interface} tcp-data-split on hds-thresh 0`, if the driver can");
            other("no_header_split", remedy)
        }
        _ => Machine::look().why(refused, NEEDED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn every_refusal_has_its_reason() {
        let of = |call, errno, source, is_admin| {
            let refused = Refused::of(call)(io::Error::from_raw_os_error(errno));
            why(&refused, (source, "eth7"), 1 << 20, is_admin).code()
        };
        let queue = Source::Queue { interface: 7, queue: 3 };
        let register = |errno| of("io_uring_register", errno, queue, true);
        assert_eq!(of("io_uring_register", libc::EPERM, queue, false), "missing_capability");
        assert_eq!(register(libc::EPERM), "seccomp");
        assert_eq!(register(libc::ENODEV), "no_device");
        assert_eq!(register(libc::EOPNOTSUPP), "driver_no_zero_copy");
        assert_eq!(register(libc::ERANGE), "no_such_queue");
        assert_eq!(register(libc::EBUSY), "queue_in_use");
        assert_eq!(register(libc::EEXIST), "queue_in_use");
        let is_bounded = MemlockBudget::process().soft_bytes() < u64::MAX;
        assert_eq!(register(libc::ENOMEM), if is_bounded { "memlock" } else { "os" });
        assert_eq!(of("mmap", libc::ENOMEM, queue, true), "os");
        assert_eq!(of("flushing the refill ring", libc::EINVAL, queue, true), "kernel_too_old");
        let without = |errno, is_admin| of("io_uring_register", errno, Source::NoDevice, is_admin);
        assert_eq!(without(libc::EINVAL, true), "kernel_too_old");
        assert_eq!(without(libc::EPERM, false), "missing_capability");
        if kernel_version() >= (6, 15) {
            assert_eq!(register(libc::EINVAL), "no_header_split");
        }
    }

    #[test]
    fn interfaces_of_this_machine_refuse() {
        if !probe().is_ok_and(|features| features.has("recv_zc")) {
            return;
        }
        assert_eq!(probe_zero_copy_receive("no-such-if0", 0), Err(Unavailable::NoDevice));
        // Loopback has no device behind it.
        let why = probe_zero_copy_receive("lo", 0).unwrap_err();
        let expected = if may_configure_networks() { "driver_no_zero_copy" } else { "missing_capability" };
        assert_eq!(why.code(), expected, "{why}");
        assert!(!why.remedy().is_empty());
    }

    #[test]
    fn a_ring_that_any_thread_may_enter_has_none() {
        let why = open(Flavour::ManyThreads, &ZcrxOptions::without_device()).err();
        assert_eq!(why.map(|why| why.code()), Some("needs_one_thread"));
    }
}
