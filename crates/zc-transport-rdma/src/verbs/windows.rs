//! Memory windows of one queue pair: a peer reads so much of registered memory, over this queue pair alone, for so long.
//!
//! ```text
//! free --aim: memory, a new key--> aimed --Bind--> the peer may read --Invalidate--> --let_go--> free
//! ```
//!
//! What a window shows is held here until the window is let go of, which its user does when the device has said that the key
//! is invalid; or until the windows are gone, in front of the queue pair, which has failed then and answers nobody (M2).

use std::ptr::NonNull;
use std::sync::Arc;

use zc_core::memory::PinnedBuf;

use super::error::VerbsError;
use super::protection_domain::ProtectionDomain;
use super::work::RemotePlace;
use crate::sys;

/// Names a window of its queue pair.
///
/// ```
/// use zc_transport_rdma::{Operation, QueuePair, Work};
/// # use zc_core::memory::PinnedBuf;
///
/// fn show(pair: &QueuePair, memory: PinnedBuf) -> Result<(), Box<dyn std::error::Error>> {
///     let window = pair.add_window()?;
///     let place = pair.aim(window, memory)?; // What the peer has to know,
///     let bind = Work::new(0, Operation::Bind { window }); // and what has to be done before it does.
///     # let _ = (place, bind);
///     Ok(())
/// }
/// # let _ = show;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowId(pub(crate) u32);

struct Window {
    raw: NonNull<sys::ibv_mw>,
    /// As it will be once it is bound, or is.
    key: u32,
    memory: Option<PinnedBuf>,
}

/// All of a queue pair.
pub(super) struct Windows {
    domain: Arc<ProtectionDomain>,
    all: Vec<Window>,
}

// SAFETY: names for memory of the library, whose objects may be used from any thread (its manual); used under a lock.
unsafe impl Send for Windows {}

impl Windows {
    pub(super) fn new(domain: &Arc<ProtectionDomain>) -> Self {
        Self { domain: domain.clone(), all: Vec::new() }
    }

    pub(super) fn add(&mut self) -> Result<WindowId, VerbsError> {
        let none = VerbsError { operation: "ibv_alloc_mw", errno: libc::EOPNOTSUPP };
        let alloc = self.domain.context().operations().alloc_mw.ok_or(none)?;
        // SAFETY: the domain exists (M4).
        let raw = unsafe { alloc(self.domain.raw(), sys::IBV_MW_TYPE_2) };
        let raw = VerbsError::non_null("ibv_alloc_mw", raw)?;
        // SAFETY: just made, and laid out so in all versions.
        let key = unsafe { (*raw.as_ptr()).rkey };
        self.all.push(Window { raw, key, memory: None });
        Ok(WindowId(self.all.len() as u32 - 1))
    }

    /// Has the window show that memory, when it is bound; under another key than before. None: it shows something, or is not ours.
    pub(super) fn aim(&mut self, window: WindowId, memory: PinnedBuf) -> Option<RemotePlace> {
        let window = self.all.get_mut(window.0 as usize).filter(|window| window.memory.is_none())?;
        window.key = next_key(window.key);
        let address = memory.as_ptr().expose_provenance() as u64;
        window.memory = Some(memory);
        Some(RemotePlace { address, key: window.key })
    }

    /// The key that a window shows its memory under.
    pub(super) fn key(&self, window: WindowId) -> Option<u32> {
        self.all.get(window.0 as usize).filter(|window| window.memory.is_some()).map(|window| window.key)
    }

    pub(super) fn let_go(&mut self, window: WindowId) -> Option<PinnedBuf> {
        self.all.get_mut(window.0 as usize)?.memory.take()
    }

    /// What a request binds, for reading.
    pub(super) fn description(
        &self,
        window: WindowId,
        mr: impl FnOnce(&PinnedBuf) -> Option<NonNull<sys::ibv_mr>>,
    ) -> Option<sys::send_wr_bind_mw> {
        let window = self.all.get(window.0 as usize)?;
        let memory = window.memory.as_ref()?;
        Some(sys::send_wr_bind_mw {
            mw: window.raw.as_ptr(),
            rkey: window.key,
            bind_info: sys::ibv_mw_bind_info {
                mr: mr(memory)?.as_ptr(),
                addr: memory.as_ptr().expose_provenance() as u64,
                length: memory.len() as u64,
                mw_access_flags: sys::IBV_ACCESS_REMOTE_READ as u32,
            },
        })
    }

    /// A request that binds it was handed over: the next one starts from the key that it has then.
    pub(super) fn was_bound(&mut self, window: WindowId) {
        if let Some(window) = self.all.get(window.0 as usize) {
            // SAFETY: allocated, and not freed before `self`; the lock around `self` keeps others away (M4). The library's
            // manual leaves the field to the user for this type of windows.
            unsafe { (*window.raw.as_ptr()).rkey = window.key };
        }
    }
}

/// The low byte is the user's to change.
fn next_key(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}

impl Drop for Windows {
    /// Before the queue pair, which devices keep while a window is bound to it.
    fn drop(&mut self) {
        let context = self.domain.context();
        if !context.is_ours() {
            return;
        }
        let Some(dealloc) = context.operations().dealloc_mw else { return };
        for window in self.all.drain(..) {
            // SAFETY: freed once; nothing is posted any more that names it (M4).
            let returned = unsafe { dealloc(window.raw.as_ptr()) };
            if let Err(error) = VerbsError::check("ibv_dealloc_mw", returned) {
                tracing::error!(%error, "a memory window and what it shows are leaked (M4)");
                std::mem::forget((window.memory, self.domain.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_low_byte_of_a_key_changes_and_it_always_does() {
        assert_eq!(next_key(0x1234_5600), 0x1234_5601);
        assert_eq!(next_key(0x1234_56ff), 0x1234_5600);
    }
}
