//! Why a transport can't be used, and what to do about it.

use std::fmt;

/// The typed reason why a transport does not carry a connection. [`Unavailable::remedy`] says what would help.
///
/// ```
/// use zc_core::transport::Unavailable;
///
/// let why = Unavailable::Memlock { need: 1 << 20, soft: 64 << 10, hard: 64 << 10 };
/// println!("{why}: {}", why.remedy()); // for people
/// assert_eq!(why.code(), "memlock"); // for programs
/// assert!(!why.is_expected());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The Cargo feature is off.
    NotCompiled {
        /// The feature's name.
        feature: &'static str,
    },
    /// Policy, the URI or `ZC_TRANSPORTS` excludes it.
    ForbiddenByPolicy,
    /// The other side does not offer it.
    PeerLacks,
    /// Both sides offer it, and the other side's policy, which decides, puts something else first.
    OutrankedByPeer,
    /// The kernel is older than needed.
    KernelTooOld {
        /// First kernel version that has what is needed.
        needed: &'static str,
    },
    /// A seccomp filter refuses a system call.
    Seccomp {
        /// The call.
        syscall: &'static str,
    },
    /// A sysctl turns it off.
    SysctlDisabled {
        /// The sysctl's name.
        sysctl: &'static str,
    },
    /// Too little memory may be locked; bytes.
    Memlock {
        /// Needed in all.
        need: u64,
        /// `RLIMIT_MEMLOCK`, soft.
        soft: u64,
        /// `RLIMIT_MEMLOCK`, hard.
        hard: u64,
    },
    /// A shared library can't be loaded.
    LibraryMissing {
        /// Its name.
        library: &'static str,
    },
    /// The kernel, or this container, lacks a part that is not loaded or not there.
    NoKernelSupport {
        /// What it needs.
        needs: &'static str,
    },
    /// No such device.
    NoDevice,
    /// No GID of the device can be used.
    NoUsableGid,
    /// The process lacks a capability.
    MissingCapability {
        /// `CAP_…`.
        capability: &'static str,
    },
    /// The driver has no zero-copy mode.
    DriverNoZeroCopy,
    /// The peer is on another host.
    DifferentHost,
    /// The peer is on this host in another network namespace.
    DifferentNetns,
    /// The peer has not proved that it is on this host, and nothing says why.
    HostNotProved,
    /// The peer's user is not accepted.
    PeerUid {
        /// Its uid.
        uid: u32,
    },
    /// The peer does not accept our user.
    UidRefused {
        /// Our uid.
        uid: u32,
    },
    /// The link or the address lacks what the transport needs: no defect, it is made for others.
    NotApplicable {
        /// What it needs.
        needs: &'static str,
    },
    /// Encryption was required.
    NoEncryption,
    /// A stage ran out of time.
    Timeout {
        /// The stage.
        stage: crate::wire::Stage,
    },
    /// The operating system refused.
    Os {
        /// `errno`.
        errno: i32,
        /// What was tried.
        operation: &'static str,
    },
    /// The peer's side of the lane failed; its own words.
    PeerFailed {
        /// What it said.
        reason: String,
    },
    /// For transports from elsewhere.
    Other {
        /// A short stable code.
        code: &'static str,
        /// What would help.
        remedy: String,
    },
}

/// What can be done about an error of the system, where it is known.
pub(super) fn os_remedy(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EMFILE => Some("raise the limit of open files (`ulimit -n`)"),
        libc::ENFILE => Some("raise the sysctl fs.file-max"),
        _ => None,
    }
}

impl Unavailable {
    /// The reason for an error of the operating system.
    pub fn os(operation: &'static str, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::Os { errno, operation },
            None => Self::Other { code: "io", remedy: format!("{operation}: {error}") },
        }
    }

    /// True when nothing is wrong with this setup: the transport is made for other links, or for a
    /// peer on this host. Falling back from it is no news, unless it was asked for by name.
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::DifferentHost | Self::NotApplicable { .. })
    }

    /// A short stable code for reports and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotCompiled { .. } => "not_compiled",
            Self::ForbiddenByPolicy => "forbidden_by_policy",
            Self::PeerLacks => "peer_lacks",
            Self::OutrankedByPeer => "outranked_by_peer",
            Self::KernelTooOld { .. } => "kernel_too_old",
            Self::Seccomp { .. } => "seccomp",
            Self::SysctlDisabled { .. } => "sysctl_disabled",
            Self::Memlock { .. } => "memlock",
            Self::LibraryMissing { .. } => "library_missing",
            Self::NoKernelSupport { .. } => "no_kernel_support",
            Self::NoDevice => "no_device",
            Self::NoUsableGid => "no_usable_gid",
            Self::MissingCapability { .. } => "missing_capability",
            Self::DriverNoZeroCopy => "driver_no_zero_copy",
            Self::DifferentHost => "different_host",
            Self::DifferentNetns => "different_netns",
            Self::HostNotProved => "host_not_proved",
            Self::PeerUid { .. } => "peer_uid",
            Self::UidRefused { .. } => "uid_refused",
            Self::NotApplicable { .. } => "not_applicable",
            Self::NoEncryption => "no_encryption",
            Self::Timeout { .. } => "timeout",
            Self::Os { .. } => "os",
            Self::PeerFailed { .. } => "peer_failed",
            Self::Other { code, .. } => code,
        }
    }

    /// What the reader can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::NotCompiled { feature } => format!("build with the Cargo feature `{feature}`"),
            Self::ForbiddenByPolicy => "allow it in the policy, the URI and ZC_TRANSPORTS".into(),
            Self::PeerLacks => {
                "enable the transport at the other end, or look there at why it is not offered to us".into()
            }
            Self::OutrankedByPeer => "rank the transport as high in the peer's policy as in ours".into(),
            Self::KernelTooOld { needed } => format!("run Linux {needed} or newer"),
            Self::Seccomp { syscall } => format!("allow `{syscall}` in the seccomp profile"),
            Self::SysctlDisabled { sysctl } => format!("set the sysctl {sysctl}"),
            Self::Memlock { need, .. } => format!("raise `ulimit -l` to {} KiB or more", need.div_ceil(1024)),
            Self::LibraryMissing { library } => format!("install {library}"),
            Self::NoKernelSupport { needs } => {
                format!("have the kernel load, and the container see, {needs}")
            }
            Self::NoDevice => "attach a device, or name one in the URI".into(),
            Self::NoUsableGid => "give the device's port an IP address".into(),
            Self::MissingCapability { capability } => format!("grant {capability} to the process"),
            Self::DriverNoZeroCopy => "use a NIC whose driver supports it, or accept copy mode".into(),
            Self::DifferentHost => "run both ends on one host".into(),
            Self::DifferentNetns => "share a network namespace, or a socket path both can reach".into(),
            Self::HostNotProved => "look at the peer's own report".into(),
            Self::PeerUid { .. } => "run both ends as one user, or accept the uid in the policy".into(),
            Self::UidRefused { .. } => {
                "run both ends as one user, or accept our uid in the peer's policy".into()
            }
            Self::NotApplicable { needs } => format!("use an address with {needs}"),
            Self::NoEncryption => "drop the requirement, or put the link inside an encrypted tunnel".into(),
            Self::Timeout { .. } => "raise the stage's deadline, or look at why the peer is slow".into(),
            Self::Os { errno, .. } => os_remedy(*errno)
                .map_or_else(|| std::io::Error::from_raw_os_error(*errno).to_string(), str::to_owned),
            Self::PeerFailed { .. } => "look at the peer's own report".into(),
            Self::Other { remedy, .. } => remedy.clone(),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memlock { need, soft, hard } => {
                write!(f, "memlock (need {need} bytes, soft limit {soft}, hard limit {hard})")
            }
            Self::PeerUid { uid } | Self::UidRefused { uid } => write!(f, "{} ({uid})", self.code()),
            Self::Timeout { stage } => write!(f, "timeout (stage {stage})"),
            Self::Os { errno, operation } => write!(f, "os ({operation}: errno {errno})"),
            Self::PeerFailed { reason } => write!(f, "peer_failed ({reason})"),
            other => f.write_str(other.code()),
        }?;
        write!(f, "; remedy: {}", self.remedy())
    }
}

impl std::error::Error for Unavailable {}
