//! Memory windows of one queue pair: a peer uses so much of registered memory, over this queue pair alone, for so long.
//!
//! ```text
//! free --aim: memory, a new key--> aimed --Bind--> the peer may read --Invalidate--> --let_go--> free
//!                        add --open: exported memory--> aimed --Bind--> the peer may do what is granted --close--> gone
//! ```
//!
//! What a window shows is held here until the window is let go of, which its user does when the device has said that the key
//! is invalid; or until the window is gone, which ends what it shows at once and without a queue (M2). All go in front of the
//! queue pair, which has failed then and answers nobody.

use std::ptr::NonNull;
use std::sync::Arc;

use zc_core::memory::PinnedBuf;

use super::error::VerbsError;
use super::exported::{RemoteAccess, Showable};
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

/// One of them. Its end takes a call, before which nobody else may find it.
pub(super) struct Window {
    raw: NonNull<sys::ibv_mw>,
    /// As it will be once it is bound, or is.
    key: u32,
    shown: Option<Shown>,
}

/// What a window shows.
enum Shown {
    /// To be read.
    Memory(PinnedBuf),
    Export(Arc<Showable>, RemoteAccess),
}

/// All of a queue pair.
pub(super) struct Windows {
    domain: Arc<ProtectionDomain>,
    all: Vec<Option<Window>>,
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
        let at = self.all.iter().position(Option::is_none).unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[at] = Some(Window { raw, key, shown: None });
        Ok(WindowId(at as u32))
    }

    fn window(&self, window: WindowId) -> Option<&Window> {
        self.all.get(window.0 as usize)?.as_ref()
    }

    fn window_mut(&mut self, window: WindowId) -> Option<&mut Window> {
        self.all.get_mut(window.0 as usize)?.as_mut()
    }

    /// Has the window show that memory, when it is bound; under another key than before. None: it shows something, or is not ours.
    pub(super) fn aim(&mut self, window: WindowId, memory: PinnedBuf) -> Option<RemotePlace> {
        let address = memory.as_ptr().expose_provenance() as u64;
        self.show(window, Shown::Memory(memory), address)
    }

    /// The same for exported memory.
    pub(super) fn open(
        &mut self,
        window: WindowId,
        memory: Arc<Showable>,
        access: RemoteAccess,
    ) -> Option<RemotePlace> {
        let address = memory.address();
        self.show(window, Shown::Export(memory, access), address)
    }

    fn show(&mut self, window: WindowId, shown: Shown, address: u64) -> Option<RemotePlace> {
        let window = self.window_mut(window).filter(|window| window.shown.is_none())?;
        window.key = next_key(window.key);
        window.shown = Some(shown);
        Some(RemotePlace { address, key: window.key })
    }

    /// A window that is to be ended, whether it is bound or not. Nobody who hands over requests is between describing one that
    /// names it and the library's answer.
    pub(super) fn take(&mut self, window: WindowId) -> Option<Window> {
        self.all.get_mut(window.0 as usize)?.take()
    }

    /// The key that a window shows its memory under.
    pub(super) fn key(&self, window: WindowId) -> Option<u32> {
        self.window(window).filter(|window| window.shown.is_some()).map(|window| window.key)
    }

    pub(super) fn let_go(&mut self, window: WindowId) -> Option<PinnedBuf> {
        let shown = &mut self.window_mut(window)?.shown;
        match shown.take()? {
            Shown::Memory(memory) => Some(memory),
            export @ Shown::Export(..) => {
                *shown = Some(export);
                None
            }
        }
    }

    /// What a request binds.
    pub(super) fn description(
        &self,
        window: WindowId,
        mr: impl FnOnce(&PinnedBuf) -> Option<NonNull<sys::ibv_mr>>,
    ) -> Option<sys::send_wr_bind_mw> {
        let window = self.window(window)?;
        let (mr, addr, length, flags) = match window.shown.as_ref()? {
            Shown::Memory(memory) => {
                let addr = memory.as_ptr().expose_provenance() as u64;
                (mr(memory)?, addr, memory.len() as u64, sys::IBV_ACCESS_REMOTE_READ)
            }
            // Registered as long as it is held here.
            Shown::Export(memory, access) => {
                (memory.raw(), memory.address(), memory.bytes(), access.remote_flags())
            }
        };
        let (mr, mw_access_flags) = (mr.as_ptr(), flags as u32);
        Some(sys::send_wr_bind_mw {
            mw: window.raw.as_ptr(),
            rkey: window.key,
            bind_info: sys::ibv_mw_bind_info { mr, addr, length, mw_access_flags },
        })
    }

    /// A request that binds it was handed over: the next one starts from the key that it has then.
    pub(super) fn was_bound(&mut self, window: WindowId) {
        if let Some(window) = self.window(window) {
            // SAFETY: allocated, and freed only when it is out of `all` or with it; the lock around `self` keeps others away (M4).
            // The library's manual leaves the field to the user for this type of windows.
            unsafe { (*window.raw.as_ptr()).rkey = window.key };
        }
    }
}

impl Window {
    /// When this returns, the device lets nobody in by it.
    pub(super) fn end(self, domain: &Arc<ProtectionDomain>) -> Result<(), VerbsError> {
        let none = VerbsError { operation: "ibv_dealloc_mw", errno: libc::EOPNOTSUPP };
        let Some(dealloc) = domain.context().operations().dealloc_mw else { return Err(none) };
        // SAFETY: freed once, for it is owned here. It was taken out of its queue pair's windows while nobody handed over
        // requests, or goes with the queue pair: the library reads no request any more that names it (M4).
        let returned = unsafe { dealloc(self.raw.as_ptr()) };
        VerbsError::check("ibv_dealloc_mw", returned).inspect_err(|error| {
            tracing::error!(%error, "a memory window and what it shows are leaked (M4)");
            std::mem::forget((self.shown, domain.clone()));
        })
    }
}

/// The low byte is the user's to change.
fn next_key(key: u32) -> u32 {
    key & !0xff | key.wrapping_add(1) & 0xff
}

impl Drop for Windows {
    /// Before the queue pair, which devices keep while a window is bound to it.
    fn drop(&mut self) {
        if !self.domain.context().is_ours() {
            return;
        }
        for window in self.all.drain(..).flatten() {
            // Logged there.
            let _ = window.end(&self.domain);
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
