//! Zero-copy receive: a NIC that splits headers off puts payload straight into memory of ours, without the kernel's
//! copy (Linux 6.15 and newer). What is here is the question whether an interface can do that.
//!
//! **There is no data path.** A NIC that can was not at hand, and one that nothing has ever run on would be no promise: the
//! kernel of the development machine refuses every interface there (EOPNOTSUPP). The engine receives as
//! always, whatever the answer is. What could be run: the registration as such, up to the driver's refusal, and each of
//! the refusals in front of it (no right, no such interface). What could not: a registration that succeeds, and the refusals
//! that only a capable driver gives (header split off, a queue in use); how those are told follows the kernel's source.
//!
//! What a data path would stand on: the registration in `sys/zcrx.rs`; an area out of regions of the pool
//! ([`Engine::register`](crate::Engine::register) shows how a ring and a region know each other); a ring with completions of 32
//! bytes; pieces that go back on the refill ring when the application drops them (a home for blocks, as
//! `zc_core::memory::WindowTable` has it); and flow steering of a connection to the queue, which is the administrator's.

use zc_core::memory::MemlockBudget;
use zc_core::transport::Unavailable;

use crate::ladder::{Machine, kernel_version};
use crate::probe::probe;
use crate::sys::{Refused, locked_bytes, try_queue};

/// The first kernel that has it.
const NEEDED: &str = "6.15";

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
    if !probe()?.has("recv_zc") {
        return Err(Unavailable::KernelTooOld { needed: NEEDED });
    }
    let index = index_of(interface)?;
    try_queue(index, queue).map_err(|refused| why(&refused, interface, queue, may_configure_networks()))
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

fn why(refused: &Refused, interface: &str, queue: u32, is_admin: bool) -> Unavailable {
    let budget = MemlockBudget::process();
    let other = |code, remedy| Unavailable::Other { code, remedy };
    match (refused.call, refused.error.raw_os_error()) {
        ("io_uring_register", Some(libc::EPERM)) if !is_admin => {
            Unavailable::MissingCapability { capability: "CAP_NET_ADMIN" }
        }
        ("io_uring_register", Some(libc::ENODEV)) => Unavailable::NoDevice,
        ("io_uring_register", Some(libc::EOPNOTSUPP)) => Unavailable::DriverNoZeroCopy,
        ("io_uring_register", Some(libc::ERANGE)) => {
            other("no_such_queue", format!("{interface} has no receive queue {queue}: name another"))
        }
        ("io_uring_register", Some(libc::EEXIST | libc::EBUSY)) => {
            let remedy = format!(
                "stop what uses queue {queue} of {interface} (a socket of AF_XDP, another ring, an XDP program on any \
                 queue), or name another"
            );
            other("queue_in_use", remedy)
        }
        ("io_uring_register", Some(libc::ENOMEM)) if budget.soft_bytes() < u64::MAX => {
            let (soft, hard) = (budget.soft_bytes(), budget.hard_bytes());
            Unavailable::Memlock { need: locked_bytes() as u64, soft, hard }
        }
        ("io_uring_register", Some(libc::EINVAL)) if kernel_version() >= (6, 15) => {
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
        let code = |call, errno, is_admin| {
            let refused = Refused::of(call)(io::Error::from_raw_os_error(errno));
            why(&refused, "eth7", 3, is_admin).code()
        };
        let register = |errno| code("io_uring_register", errno, true);
        assert_eq!(code("io_uring_register", libc::EPERM, false), "missing_capability");
        assert_eq!(register(libc::EPERM), "seccomp");
        assert_eq!(register(libc::ENODEV), "no_device");
        assert_eq!(register(libc::EOPNOTSUPP), "driver_no_zero_copy");
        assert_eq!(register(libc::ERANGE), "no_such_queue");
        assert_eq!(register(libc::EBUSY), "queue_in_use");
        assert_eq!(register(libc::EEXIST), "queue_in_use");
        let is_bounded = MemlockBudget::process().soft_bytes() < u64::MAX;
        assert_eq!(register(libc::ENOMEM), if is_bounded { "memlock" } else { "os" });
        assert_eq!(code("mmap", libc::ENOMEM, true), "os");
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
}
