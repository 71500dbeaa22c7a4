//! Memory that peers reach.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use zc_core::memory::{ExportMemory, RegisterError};

use super::error::VerbsError;
use super::protection_domain::{ProtectionDomain, Registration};
use super::work::RemotePlace;
use crate::sys;

/// What peers may do with exported memory.
///
/// ```
/// use zc_transport_rdma::RemoteAccess;
///
/// let look_only = RemoteAccess { read: true, ..RemoteAccess::default() };
/// assert!(!look_only.write && !look_only.atomic);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteAccess {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
    /// Exchange and add to its words.
    pub atomic: bool,
}

impl RemoteAccess {
    /// Of a window.
    pub(super) fn remote_flags(self) -> std::ffi::c_int {
        self.flags() & !sys::IBV_ACCESS_LOCAL_WRITE
    }

    /// As the library has it.
    pub(super) fn flags(self) -> std::ffi::c_int {
        let mut flags = 0;
        for (wanted, flag) in [
            (self.read, sys::IBV_ACCESS_REMOTE_READ),
            (self.write, sys::IBV_ACCESS_REMOTE_WRITE),
            (self.atomic, sys::IBV_ACCESS_REMOTE_ATOMIC),
            (self.write || self.atomic, sys::IBV_ACCESS_LOCAL_WRITE),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        flags
    }
}

/// A part of exported memory that is registered so that windows can show it, and only they: no key of the registration lets a
/// peer in. Windows reach no further than it, whatever a device makes of *their* range (see `QueuePair::open_window`).
///
/// ```
/// use zc_core::memory::{ExportMemory, Region};
/// use zc_transport_rdma::{Device, ProtectionDomain, Showable};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// let domain = ProtectionDomain::new(&devices[0].open()?)?;
/// let memory = ExportMemory::new(Region::builder(4096), 4096)?;
/// let half = Showable::register(&domain, &memory, 2048..4096)?;
/// assert_eq!(half.bytes(), 2048);
/// # Ok(())
/// # }
/// ```
pub struct Showable {
    domain: Arc<ProtectionDomain>,
    registration: ManuallyDrop<Registration>,
    /// Only words of it are touched here, atomically (M5).
    memory: ManuallyDrop<ExportMemory>,
    range: Range<u64>,
}

impl Showable {
    /// Registers that range.
    ///
    /// # Errors
    /// It is none of the memory's, or what the registration says.
    pub fn register(
        domain: &Arc<ProtectionDomain>,
        memory: &ExportMemory,
        range: Range<u64>,
    ) -> Result<Self, RegisterError> {
        let place =
            |at: u64| usize::try_from(at).map_err(|_| RegisterError::Unsupported("no place in memory"));
        if range.end > memory.len() || memory.region().is_read_only() {
            return Err(RegisterError::Unsupported("no memory that peers can be shown"));
        }
        // Devices want local writing for memory of which windows allow remote writing.
        let access = sys::IBV_ACCESS_LOCAL_WRITE | sys::IBV_ACCESS_MW_BIND;
        let bytes = place(range.start)?..place(range.end)?;
        let registration = domain.register_range(memory.region(), bytes, access)?;
        Ok(Self {
            domain: domain.clone(),
            registration: ManuallyDrop::new(registration),
            memory: ManuallyDrop::new(memory.clone()),
            range,
        })
    }

    /// Whether it is this range of this memory.
    pub(crate) fn is(&self, memory: &ExportMemory, range: &Range<u64>) -> bool {
        self.memory.region().id() == memory.region().id() && self.range == *range
    }

    pub(super) fn raw(&self) -> NonNull<sys::ibv_mr> {
        self.registration.raw()
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.registration.base().as_ptr().expose_provenance() as u64
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl std::fmt::Debug for Showable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Showable").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Drop for Showable {
    fn drop(&mut self) {
        if self.domain.context().is_ours() {
            // SAFETY: once each, here (M7).
            unsafe { end(&self.domain, &mut self.registration, &mut self.memory) }
        }
    }
}

/// # Safety
/// Neither was taken, nor is used again.
unsafe fn end(
    domain: &Arc<ProtectionDomain>,
    registration: &mut ManuallyDrop<Registration>,
    memory: &mut ManuallyDrop<ExportMemory>,
) {
    // SAFETY: taken once (the caller).
    let registration = unsafe { ManuallyDrop::take(registration) };
    if let Err((_, error)) = domain.deregister_memory(registration) {
        still_registered(domain, error);
        return;
    }
    // SAFETY: taken once (the caller), when the device knows it no more (M4).
    unsafe { ManuallyDrop::drop(memory) }
}

fn still_registered(domain: &Arc<ProtectionDomain>, error: VerbsError) {
    tracing::error!(%error, "still registered, exported memory is leaked (M4)");
    // The registration keeps the domain busy for ever.
    std::mem::forget(domain.clone());
}

/// Exported memory with a registration of its own. Peers that know its key reach it until this is dropped; whatever they do
/// later fails, and with it their queue pair.
///
/// ```
/// use zc_core::memory::{ExportMemory, Region};
/// use zc_transport_rdma::{Device, ExportedMemory, ProtectionDomain, RemoteAccess};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// let domain = ProtectionDomain::new(&devices[0].open()?)?;
/// let memory = ExportMemory::new(Region::builder(4096), 4096)?;
/// let access = RemoteAccess { read: true, ..RemoteAccess::default() };
/// let exported = ExportedMemory::register(&domain, &memory, access)?;
/// println!("peers find it at {:?}", exported.place());
/// # Ok(())
/// # }
/// ```
pub struct ExportedMemory {
    domain: Arc<ProtectionDomain>,
    registration: ManuallyDrop<Registration>,
    /// Only words of it are touched here, atomically (M5).
    memory: ManuallyDrop<ExportMemory>,
}

impl std::fmt::Debug for ExportedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportedMemory").field("memory", &*self.memory).finish_non_exhaustive()
    }
}

impl ExportedMemory {
    /// Registers it.
    ///
    /// # Errors
    /// What the registration says.
    pub fn register(
        domain: &Arc<ProtectionDomain>,
        memory: &ExportMemory,
        access: RemoteAccess,
    ) -> Result<Self, RegisterError> {
        let region = memory.region();
        if region.is_read_only() && (access.write || access.atomic) {
            return Err(RegisterError::Unsupported("the memory can't be written"));
        }
        let registration = domain.register_memory(region, access.flags())?;
        Ok(Self {
            domain: domain.clone(),
            registration: ManuallyDrop::new(registration),
            memory: ManuallyDrop::new(memory.clone()),
        })
    }

    /// The memory.
    pub fn memory(&self) -> &ExportMemory {
        &self.memory
    }

    /// Where peers find its beginning.
    pub fn place(&self) -> RemotePlace {
        let address = self.registration.base().addr().get() as u64;
        RemotePlace { address, key: self.registration.rkey() }
    }
}

impl Drop for ExportedMemory {
    fn drop(&mut self) {
        if self.domain.context().is_ours() {
            // SAFETY: once each, here (M7).
            unsafe { end(&self.domain, &mut self.registration, &mut self.memory) }
        }
    }
}
