//! Why not.

use std::io;

use rustix::process::Resource;
use rustix::thread::{CapabilitySet, capabilities};
use zc_core::memory::RegionError;
use zc_core::transport::Unavailable;

use super::Mode;
use crate::limits::MAPS_BYTES;
use crate::netlink::NetlinkError;
use crate::program::{MAP_CREATE, RulesError};

/// A way that was tried, and why it did not come up.
///
/// ```
/// use zc_core::transport::Unavailable;
/// use zc_transport_xdp::device::{Mode, Refusal};
///
/// let refusal = Refusal { mode: Mode::ZeroCopy, why: Unavailable::DriverNoZeroCopy };
/// println!("no {}: {}", refusal.mode, refusal.why); // ... with a remedy
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The way.
    pub mode: Mode,
    /// Why not.
    pub why: Unavailable,
}

/// Why there is no device.
///
/// ```
/// use zc_core::transport::Unavailable;
/// use zc_transport_xdp::device::{Device, DeviceOptions, OpenError, Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions::default())?;
/// let refused = Device::open("no-such-device", &umem, &DeviceOptions::default()).unwrap_err();
/// assert_eq!(Unavailable::from(refused), Unavailable::NoDevice);
/// # Ok::<(), OpenError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The options contradict themselves.
    #[error("{0}")]
    Options(&'static str),
    /// The rules do.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The interface has an XDP program already: of another process, or of another device in this one.
    #[error("{interface} has an XDP program (number {program:?}): it belongs to somebody else")]
    InUse {
        /// The interface.
        interface: String,
        /// The number of the program, as `bpftool prog` shows it.
        program: Option<u32>,
    },
    /// One of its queues has an AF_XDP socket of somebody else.
    #[error("queue {queue} of {interface} belongs to somebody else")]
    QueueInUse {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// The queues would reserve all frames, or some that others have.
    #[error("{needed} frames would be reserved, and there are {free} that nobody has")]
    TooFewFrames {
        /// For the queues of this device.
        needed: u32,
        /// That no other queue has reserved, and that are not out.
        free: u32,
    },
    /// Packets of the interface's MTU do not fit a frame, and may not span several.
    #[error("packets of {mtu} bytes do not fit a frame")]
    FramesTooShort {
        /// Of the interface.
        mtu: u32,
    },
    /// There is no memory.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The interface could not be looked up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No way that was allowed came up; the last reason counts.
    #[error("{}", .tried.last().map_or_else(|| Unavailable::NoDevice.to_string(), |last| last.why.to_string()))]
    Refused {
        /// What was tried, in that order.
        tried: Vec<Refusal>,
    },
    /// What was passed is no [`Grant`](super::Grant).
    #[error("what was passed is no grant of an interface: {0}")]
    NotAGrant(&'static str),
}

impl From<OpenError> for Unavailable {
    fn from(error: OpenError) -> Self {
        let other = |code, remedy: &str| Self::Other { code, remedy: remedy.into() };
        match error {
            OpenError::InUse { interface, program } => {
                let id = program.map_or_else(String::new, |id| format!(" (`bpftool prog show id {id}`)"));
                let remedy =
                    format!("stop the owner of {interface}'s XDP program{id}, or get its sockets from it");
                Self::Other { code: "interface_in_use", remedy }
            }
            OpenError::QueueInUse { interface, queue } => {
                let remedy =
                    format!("stop the program with an AF_XDP socket on queue {queue} of {interface}");
                Self::Other { code: "queue_in_use", remedy }
            }
            OpenError::Refused { tried } => tried.into_iter().last().map_or(Self::NoDevice, |last| last.why),
            OpenError::Netlink(error) if error.errno() == Some(libc::ENODEV) => Self::NoDevice,
            OpenError::Netlink(error) => match error.errno() {
                Some(errno) => Self::Os { errno, operation: "netlink" },
                None => other("netlink", "look at the kernel's log"),
            },
            OpenError::Region(error) => other("no_memory", &error.to_string()),
            OpenError::TooFewFrames { .. } => other("too_few_frames", "give the UMEM more frames"),
            OpenError::FramesTooShort { .. } => other(
                "frames_too_short",
                "lower the MTU, take frames of 4096 bytes, or allow several for a packet",
            ),
            OpenError::Options(what) | OpenError::NotAGrant(what) => other("options", what),
            OpenError::Rules(error) => other("rules", &error.to_string()),
        }
    }
}

/// A system call that was refused, and for what it was made.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) operation: &'static str,
    pub(super) error: io::Error,
}

impl Refused {
    pub(super) fn of(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self { operation, error }
    }

    pub(super) fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }

    /// The typed reason.
    pub(super) fn why(&self, mode: Mode, umem_bytes: u64) -> Unavailable {
        let os = || Unavailable::os(self.operation, &self.error);
        let Some(errno) = self.errno() else { return os() };
        let is_bpf = self.operation.starts_with("bpf");
        match errno {
            libc::EPERM | libc::EACCES if is_bpf => {
                let why = not_permitted(&[
                    (CapabilitySet::BPF, "CAP_BPF"),
                    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
                ]);
                let limited = || memlock(MAPS_BYTES).filter(|_| self.operation == MAP_CREATE);
                // Until Linux 5.11 maps count as locked memory, whatever rights one has.
                if matches!(why, Unavailable::Seccomp { .. }) { limited().unwrap_or(why) } else { why }
            }
            libc::EPERM if self.operation == BUSY_POLL => {
                not_permitted(&[(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN")])
            }
            libc::EPERM => not_permitted(&[(CapabilitySet::NET_RAW, "CAP_NET_RAW")]),
            libc::ENOBUFS if self.operation == REGISTER => {
                let (soft, hard) = memlock_limits();
                Unavailable::Memlock { need: umem_bytes, soft, hard }
            }
            libc::ENOSYS if is_bpf => Unavailable::Seccomp { syscall: "bpf" },
            libc::EAFNOSUPPORT => Unavailable::KernelTooOld { needed: "5.9 with CONFIG_XDP_SOCKETS" },
            libc::EINVAL if self.operation == REGISTER => {
                Unavailable::KernelTooOld { needed: "6.8 (checksums by metadata)" }
            }
            libc::EOPNOTSUPP | libc::EINVAL | ENOTSUPP if mode == Mode::ZeroCopy && !is_bpf => {
                Unavailable::DriverNoZeroCopy
            }
            libc::EOPNOTSUPP | ENOTSUPP if is_bpf && mode != Mode::Generic => driver_no_xdp(),
            libc::ENODEV => Unavailable::NoDevice,
            _ => os(),
        }
    }
}

// The kernel's own number, which no header for programs has.
const ENOTSUPP: i32 = 524;
pub(super) const REGISTER: &str = "setsockopt(XDP_UMEM_REG)";
pub(super) const BUSY_POLL: &str = "setsockopt(SO_PREFER_BUSY_POLL)";

/// How much may be locked.
fn memlock_limits() -> (u64, u64) {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// If less than that may be locked.
fn memlock(need: u64) -> Option<Unavailable> {
    let (soft, hard) = memlock_limits();
    (soft < need).then_some(Unavailable::Memlock { need, soft, hard })
}

fn driver_no_xdp() -> Unavailable {
    let remedy = "use a NIC whose driver runs XDP programs, or accept the generic mode".into();
    Unavailable::Other { code: "driver_no_xdp", remedy }
}

/// Which capability is missing; or why they do not help.
fn not_permitted(needed: &[(CapabilitySet, &'static str)]) -> Unavailable {
    let effective = capabilities(None).map_or_else(|_| CapabilitySet::empty(), |sets| sets.effective);
    if let Some((_, capability)) = needed.iter().find(|(one, _)| !effective.contains(*one)) {
        return Unavailable::MissingCapability { capability };
    }
    if in_user_namespace() {
        let remedy = "capabilities of a user namespace do not suffice for XDP programs: run in the first one, or \
                      have a privileged process pass a grant";
        return Unavailable::Other { code: "user_namespace", remedy: remedy.into() };
    }
    Unavailable::Seccomp { syscall: "bpf" }
}

fn in_user_namespace() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return false };
    let mut numbers = map.split_whitespace();
    (numbers.next(), numbers.next(), numbers.next()) != (Some("0"), Some("0"), Some("4294967295"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(operation: &'static str, errno: i32, mode: Mode) -> Unavailable {
        Refused { operation, error: io::Error::from_raw_os_error(errno) }.why(mode, 4096)
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let bind = "bind(AF_XDP)";
        assert_eq!(why(bind, libc::EOPNOTSUPP, Mode::ZeroCopy), Unavailable::DriverNoZeroCopy);
        assert_eq!(why(bind, libc::EOPNOTSUPP, Mode::Copy).code(), "os");
        assert_eq!(why("bpf(BPF_LINK_CREATE)", libc::EOPNOTSUPP, Mode::Copy).code(), "driver_no_xdp");
        assert_eq!(why("bpf(BPF_PROG_LOAD)", libc::ENOSYS, Mode::Copy).code(), "seccomp");
        assert_eq!(why(bind, libc::ENODEV, Mode::Copy), Unavailable::NoDevice);
        assert_eq!(why("socket(AF_XDP)", libc::EAFNOSUPPORT, Mode::Copy).code(), "kernel_too_old");
        assert!(memlock(0).is_none());
        assert!(matches!(why(REGISTER, libc::ENOBUFS, Mode::Copy), Unavailable::Memlock { need: 4096, .. }));
        let tried = vec![
            Refusal { mode: Mode::ZeroCopy, why: Unavailable::DriverNoZeroCopy },
            Refusal { mode: Mode::Copy, why: Unavailable::NoDevice },
        ];
        assert_eq!(Unavailable::from(OpenError::Refused { tried }), Unavailable::NoDevice);
        let used = OpenError::InUse { interface: "eth0".into(), program: Some(7) };
        let why = Unavailable::from(used);
        assert!(why.code() == "interface_in_use" && why.remedy().contains("id 7"), "{why}");
    }
}
