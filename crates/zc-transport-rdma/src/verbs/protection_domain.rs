//! What belongs together on a device, and the memory that it knows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use zc_core::memory::{
    MemlockBudget, MemlockGrant, Region, RegionId, RegisterError, Registrar, RegistrarId, RegistrarSlot,
    region_of,
};

use super::context::Context;
use super::error::VerbsError;
use super::refusals::Refusals;
use crate::limits::MAX_REGIONS;
use crate::sys;

/// A protection domain: queue pairs reach the memory that is registered with theirs.
///
/// Regions are registered once each, when something of theirs is first sent ([`lkey`](Self::lkey)), for this device alone: no
/// peer can reach them. They are forgotten when they go. What peers may reach is [`ExportedMemory`](super::ExportedMemory).
///
/// ```
/// use zc_core::memory::Region;
/// use zc_transport_rdma::{Device, ProtectionDomain};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// let domain = ProtectionDomain::new(&devices[0].open()?)?;
/// let region = Region::builder(4096).build()?;
/// let key = domain.lkey(&region)?;
/// assert_eq!((domain.lkey(&region)?, domain.regions()), (key, 1));
/// # Ok(())
/// # }
/// ```
pub struct ProtectionDomain {
    context: Arc<Context>,
    raw: NonNull<sys::ibv_pd>,
    slot: RegistrarSlot,
    regions: Mutex<HashMap<RegionId, Registration>>,
    /// Taken for a moment only, and no other lock inside.
    refusals: Mutex<Refusals>,
    /// The device has memory windows of type 2.
    has_windows: bool,
    me: Weak<Self>,
}

// SAFETY: the library's objects may be used from any thread, several at a time (its manual).
unsafe impl Send for ProtectionDomain {}
// SAFETY: as for Send.
unsafe impl Sync for ProtectionDomain {}

/// Memory that a device knows.
pub(super) struct Registration {
    raw: NonNull<sys::ibv_mr>,
    base: NonNull<u8>,
    len: usize,
    /// Given back once the device knows it no more.
    grant: ManuallyDrop<MemlockGrant>,
}

// SAFETY: a name for memory, and used under a lock or by its one owner.
unsafe impl Send for Registration {}
// SAFETY: as for Send.
unsafe impl Sync for Registration {}

impl std::fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProtectionDomain").field("context", &self.context).finish_non_exhaustive()
    }
}

impl ProtectionDomain {
    /// A domain without memory.
    ///
    /// # Errors
    /// The device has no more, or there are too many registrars.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, RegisterError> {
        let slot = RegistrarSlot::allocate()?;
        // SAFETY: the context is open (M4).
        let raw = unsafe { (context.verbs().alloc_pd)(context.raw()) };
        let raw = VerbsError::non_null("ibv_alloc_pd", raw).map_err(VerbsError::to_io)?;
        let regions = Mutex::new(HashMap::new());
        let has_windows = context.limits().is_ok_and(|limits| limits.windows);
        Ok(Arc::new_cyclic(|me| Self {
            context: context.clone(),
            raw,
            slot,
            regions,
            refusals: Mutex::default(),
            has_windows,
            me: me.clone(),
        }))
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }

    /// How many regions the device knows.
    pub fn regions(&self) -> usize {
        self.regions.lock().len()
    }

    /// The key of a region for requests of this device, registering it if it is not yet. That takes a while for a long one. One that
    /// was refused is tried again after [`REFUSED_MS`](crate::REFUSED_MS), or when another one was deregistered.
    ///
    /// # Errors
    /// What the registration says; memory of a group has none.
    pub fn lkey(&self, region: &Region) -> Result<u32, RegisterError> {
        if let Some(key) = self.known(region) {
            return Ok(key);
        }
        if let Some(refusal) = self.refusals.lock().of(region.id(), Instant::now()) {
            return Err(refusal);
        }
        let me = self.me.upgrade().ok_or(RegisterError::Unsupported("the protection domain ends"))?;
        let registrar: Arc<dyn Registrar> = me;
        let registered = region.register_with(&registrar).map(|key| key as u32);
        if let Err(error) = &registered {
            self.refusals.lock().note(region.id(), error, Instant::now());
        }
        registered
    }

    /// The key of a region that is registered. O(1), no lock.
    pub(super) fn known(&self, region: &Region) -> Option<u32> {
        region.key_for(self.slot.id()).map(|key| key as u32)
    }

    /// All regions that are registered; none is deregistered meanwhile. Nothing may be let go of under it.
    pub(super) fn registered(&self) -> Registered<'_> {
        Registered(self.regions.lock())
    }

    /// Makes memory known to the device.
    pub(super) fn register_memory(
        &self,
        region: &Region,
        access: std::ffi::c_int,
    ) -> Result<Registration, RegisterError> {
        self.register_range(region, 0..region.len(), access)
    }

    /// The same for a part: of the rest the device hears nothing.
    pub(super) fn register_range(
        &self,
        region: &Region,
        range: Range<usize>,
        access: std::ffi::c_int,
    ) -> Result<Registration, RegisterError> {
        if range.is_empty() || range.end > region.len() {
            return Err(RegisterError::Unsupported("no part of the region"));
        }
        let len = range.len();
        // SAFETY: inside of the region's mapping (checked above).
        let base = unsafe { region.base_mut().add(range.start) };
        let grant = MemlockBudget::process().reserve(len)?;
        // SAFETY: the region is mapped, and the caller lets go of it only when it is no more registered (M2, M4). What the
        // device writes there is what requests say, which own their part (M1), or peers to exported memory (M5).
        let raw =
            unsafe { (self.context.verbs().reg_mr)(self.raw.as_ptr(), base.as_ptr().cast(), len, access) };
        let raw = VerbsError::non_null("ibv_reg_mr", raw).map_err(VerbsError::to_io)?;
        Ok(Registration { raw, base, len, grant: ManuallyDrop::new(grant) })
    }

    /// The device knows it no more. After an error it does, what it locks stays locked, and the registration comes back.
    pub(super) fn deregister_memory(
        &self,
        registration: Registration,
    ) -> Result<(), (Registration, VerbsError)> {
        // SAFETY: registered with this domain, which is there; taken out of where it was kept, so this succeeds once (M4).
        let returned = unsafe { (self.context.verbs().dereg_mr)(registration.raw.as_ptr()) };
        if let Err(error) = VerbsError::check("ibv_dereg_mr", returned) {
            return Err((registration, error));
        }
        registration.stays_from_children();
        drop(ManuallyDrop::into_inner(registration.grant));
        self.refusals.lock().forget();
        Ok(())
    }

    /// Deregisters what nobody else will: if the device does not let go of it, neither may we.
    fn give_up(&self, region: RegionId, registration: Registration) {
        let (base, len) = (registration.base, registration.len);
        if let Err((_, error)) = self.deregister_memory(registration) {
            tracing::error!(region = region.0, %error, "still registered, the memory is leaked (M4)");
            std::mem::forget(region_of(base.as_ptr(), len));
        }
    }
}

/// Holds registrations where they are.
pub(super) struct Registered<'a>(MutexGuard<'a, HashMap<RegionId, Registration>>);

impl Registered<'_> {
    pub(super) fn raw(&self, region: RegionId) -> Option<NonNull<sys::ibv_mr>> {
        self.0.get(&region).map(|registration| registration.raw)
    }
}

impl Registration {
    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: not deregistered: that takes `self`.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    pub(super) fn raw(&self) -> NonNull<sys::ibv_mr> {
        self.raw
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Where kernels need `ibv_fork_init`, the library lets children have the memory again that is deregistered. Ours
    /// never is (M8).
    fn stays_from_children(&self) {
        let Some(region) = region_of(self.base.as_ptr(), self.len) else { return };
        // SAFETY: all of a mapping of ours, which is held meanwhile; it stays as it is for this process (M8).
        let kept = unsafe {
            rustix::mm::madvise(
                region.base_mut().as_ptr().cast(),
                region.len(),
                rustix::mm::Advice::LinuxDontFork,
            )
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "a region may be inherited by children");
        }
    }
}

impl Registrar for ProtectionDomain {
    fn id(&self) -> RegistrarId {
        self.slot.id()
    }

    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        if self.regions() >= MAX_REGIONS {
            return Err(RegisterError::Unsupported("the protection domain knows too many regions"));
        }
        // Nobody else reaches it but through a window. What can't be written can still be sent.
        let access = if region.is_read_only() { 0 } else { sys::IBV_ACCESS_LOCAL_WRITE };
        let access = access | if self.has_windows { sys::IBV_ACCESS_MW_BIND } else { 0 };
        let registration = self.register_memory(region, access)?;
        let key = registration.lkey();
        let second = match self.regions.lock().entry(region.id()) {
            Entry::Occupied(_) => registration,
            Entry::Vacant(free) => {
                free.insert(registration);
                return Ok(key.into());
            }
        };
        // The first one would be lost.
        self.give_up(region.id(), second);
        Err(RegisterError::Unsupported("a region that is registered already"))
    }

    fn deregister(&self, region: RegionId, _key: u64) -> io::Result<()> {
        let registration = self.regions.lock().remove(&region);
        let Some(registration) = registration.filter(|_| self.context.is_ours()) else { return Ok(()) };
        self.deregister_memory(registration).map_err(|(registration, error)| {
            // Else it would be taken for deregistered the next time, and its memory be unmapped.
            self.regions.lock().insert(region, registration);
            error.to_io()
        })
    }
}

impl Drop for ProtectionDomain {
    /// All queues are gone, so the device uses nothing of what is still registered.
    fn drop(&mut self) {
        if !self.context.is_ours() {
            return;
        }
        for (region, registration) in std::mem::take(self.regions.get_mut()) {
            self.give_up(region, registration);
        }
        // SAFETY: all that was made of it is gone, for each of those holds the domain (M4).
        let returned = unsafe { (self.context.verbs().dealloc_pd)(self.raw.as_ptr()) };
        if let Err(error) = VerbsError::check("ibv_dealloc_pd", returned) {
            tracing::error!(%error, "a protection domain is leaked (M4)");
            std::mem::forget(self.context.clone());
        }
    }
}
