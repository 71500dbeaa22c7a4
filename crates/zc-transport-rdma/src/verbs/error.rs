//! What can go wrong.

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

use zc_core::memory::RegisterError;
use zc_core::transport::Unavailable;

use super::work::Unfit;
use crate::sys;

/// A call of the library failed.
///
/// ```
/// use zc_transport_rdma::VerbsError;
///
/// let error = VerbsError { operation: "ibv_create_qp", errno: 12 };
/// assert!(error.to_string().starts_with("ibv_create_qp: "));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {}", io::Error::from_raw_os_error(*.errno))]
pub struct VerbsError {
    /// The call.
    pub operation: &'static str,
    /// The error number.
    pub errno: i32,
}

impl VerbsError {
    /// What `errno` says now.
    pub(super) fn last(operation: &'static str) -> Self {
        Self { operation, errno: io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }

    /// Some calls return the error number, some its negative, and some -1 and set `errno`.
    pub(super) fn check(operation: &'static str, returned: c_int) -> Result<(), Self> {
        match returned {
            0 => Ok(()),
            -1 => match Self::last(operation) {
                Self { errno: 0, .. } => Err(Self { operation, errno: libc::EPERM }),
                error => Err(error),
            },
            _ => Err(Self { operation, errno: returned.saturating_abs() }),
        }
    }

    pub(super) fn non_null<T>(operation: &'static str, returned: *mut T) -> Result<NonNull<T>, Self> {
        NonNull::new(returned).ok_or_else(|| Self::last(operation))
    }

    /// The same as an error of the system.
    pub fn to_io(self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl From<VerbsError> for Unavailable {
    fn from(error: VerbsError) -> Self {
        Self::Os { errno: error.errno, operation: error.operation }
    }
}

/// Why work requests were not handed over.
///
/// ```
/// use zc_transport_rdma::{PostError, VerbsError};
///
/// let error = PostError::Refused(VerbsError { operation: "ibv_post_send", errno: 22 });
/// assert!(error.to_string().contains("ibv_post_send"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The queue pair is not connected, or no more.
    #[error("the queue pair is not ready to send")]
    NotReady,
    /// The first request can't be done by this queue pair at all.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Memory can't be made known to the device.
    #[error(transparent)]
    Memory(#[from] RegisterError),
    /// The device refused.
    #[error(transparent)]
    Refused(#[from] VerbsError),
}

/// What a completion says of work that was not done.
///
/// ```
/// use zc_transport_rdma::{WorkError, WorkFault};
///
/// assert_eq!(WorkError { status: 5, vendor: 0 }.fault(), WorkFault::Flushed);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work completion with status {status} ({:?}, vendor {vendor:#x})", self.fault())]
pub struct WorkError {
    /// `enum ibv_wc_status`.
    pub status: i32,
    /// What only the device's vendor can explain.
    pub vendor: u32,
}

/// The errors that are told apart.
///
/// ```
/// use zc_transport_rdma::WorkFault;
///
/// // The peer is gone, or the way to it.
/// let peer_is_silent = |fault| fault == WorkFault::NotAcknowledged;
/// assert!(!peer_is_silent(WorkFault::Flushed));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkFault {
    /// Not begun: the queue pair had failed before, or was closed.
    Flushed,
    /// The peer does not let us use that memory.
    RemoteAccess,
    /// The peer's device does not do what it was asked for, and has done nothing of it. (One that fails while it does is
    /// [`Other`](Self::Other).)
    RemoteRequest,
    /// Nobody acknowledged.
    NotAcknowledged,
    /// The peer had no receive buffer for too long.
    NoReceiveBuffer,
    /// Another one, see [`WorkError::status`].
    Other,
}

impl WorkError {
    /// Which of those that are told apart.
    pub fn fault(&self) -> WorkFault {
        match self.status {
            sys::IBV_WC_WR_FLUSH_ERR => WorkFault::Flushed,
            sys::IBV_WC_REM_ACCESS_ERR => WorkFault::RemoteAccess,
            sys::IBV_WC_REM_INV_REQ_ERR => WorkFault::RemoteRequest,
            sys::IBV_WC_RETRY_EXC_ERR => WorkFault::NotAcknowledged,
            sys::IBV_WC_RNR_RETRY_EXC_ERR => WorkFault::NoReceiveBuffer,
            _ => WorkFault::Other,
        }
    }
}

/// Why memory that is needed to start could not be registered, as the reason why there is no transport.
pub(crate) fn unavailable(error: RegisterError, need_bytes: usize) -> Unavailable {
    match error {
        RegisterError::Memlock(over) => {
            Unavailable::Memlock { need: need_bytes as u64, soft: over.soft, hard: over.hard }
        }
        RegisterError::Os(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
            match limit.current {
                // Where there is no limit, it was memory itself.
                None => Unavailable::os("ibv_reg_mr", &error),
                Some(soft) => Unavailable::Memlock {
                    need: need_bytes as u64,
                    soft,
                    hard: limit.maximum.unwrap_or(u64::MAX),
                },
            }
        }
        RegisterError::Os(error) => Unavailable::os("ibv_reg_mr", &error),
        other => Unavailable::Other { code: "registration", remedy: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_come_in_three_ways() {
        assert_eq!(VerbsError::check("x", 0), Ok(()));
        for returned in [22, -22] {
            assert_eq!(
                VerbsError::check("x", returned).map_err(|e| e.errno),
                Err(libc::EINVAL),
                "{returned}"
            );
        }
        assert!(VerbsError::check("x", -1).is_err());
        assert_eq!(VerbsError::check("x", c_int::MIN).map_err(|e| e.errno), Err(c_int::MAX));
    }

    #[test]
    fn too_little_lockable_memory_has_a_reason_of_its_own() {
        let over = zc_core::memory::MemlockBudget::new(64, 128).reserve(1000).unwrap_err();
        let why = unavailable(RegisterError::Memlock(over), 1000);
        assert_eq!(why, Unavailable::Memlock { need: 1000, soft: 64, hard: 128 });
    }
}
