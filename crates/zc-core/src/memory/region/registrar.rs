//! Who can know a region, and how they are told apart.

use super::{MemlockExceeded, Region, RegionId};
use crate::memory::GroupId;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many registrars (rings, protection domains, UMEMs, group members) can exist at once.
pub const MAX_REGISTRARS: usize = 4096;

/// Which slots are taken, one bit each.
static SLOTS: Mutex<[u64; MAX_REGISTRARS / 64]> = Mutex::new([0; MAX_REGISTRARS / 64]);

/// Identifies a registrar: a slot and a generation, so that no key is taken for that of a later one.
///
/// ```
/// use zc_core::memory::{Region, RegistrarSlot};
///
/// let slot = RegistrarSlot::allocate()?;
/// let region = Region::builder(4096).build().unwrap();
/// assert_eq!(region.key_for(slot.id()), None); // not registered there
/// # Ok::<(), zc_core::memory::RegisterError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegistrarId {
    pub(super) slot: u16,
    pub(super) generation: u64,
}

/// The place of a registrar in the table of every region. The [`Registrar`] owns it: dropping it
/// makes room for another one.
///
/// ```
/// use zc_core::memory::RegistrarSlot;
///
/// let (a, b) = (RegistrarSlot::allocate()?, RegistrarSlot::allocate()?);
/// assert_ne!(a.id(), b.id());
/// # Ok::<(), zc_core::memory::RegisterError>(())
/// ```
#[derive(Debug)]
pub struct RegistrarSlot(RegistrarId);

impl RegistrarSlot {
    /// Takes a free slot.
    pub fn allocate() -> Result<Self, RegisterError> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let mut slots = SLOTS.lock();
        let Some(word) = slots.iter().position(|bits| *bits != u64::MAX) else {
            return Err(RegisterError::TooManyRegistrars);
        };
        let bit = slots[word].trailing_ones();
        slots[word] |= 1 << bit;
        let slot = (word * 64) as u16 + bit as u16;
        Ok(Self(RegistrarId { slot, generation: GENERATION.fetch_add(1, Ordering::Relaxed) }))
    }

    /// The identity that goes with it.
    pub fn id(&self) -> RegistrarId {
        self.0
    }
}

impl Drop for RegistrarSlot {
    fn drop(&mut self) {
        let slot = usize::from(self.0.slot);
        SLOTS.lock()[slot / 64] &= !(1 << (slot % 64));
    }
}

/// Something that must know memory before it can use it: a ring with fixed buffers, a protection domain, a
/// UMEM, a peer that maps it. Streams send any memory, so they have none.
///
/// A registrar that is dropped has given up all its registrations itself (a closed ring or
/// protection domain has): regions hold it weakly and then have nothing to undo.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::{RegisterError, Region, RegionId, Registrar, RegistrarId, RegistrarSlot};
///
/// struct Ring(RegistrarSlot);
/// impl Registrar for Ring {
///     fn id(&self) -> RegistrarId {
///         self.0.id()
///     }
///     fn register(&self, region: &Region) -> Result<u64, RegisterError> {
///         Ok(region.id().0) // A buffer index, a memory key, ...
///     }
///     fn deregister(&self, _: RegionId, _key: u64) -> std::io::Result<()> {
///         Ok(())
///     }
/// }
///
/// let ring: Arc<dyn Registrar> = Arc::new(Ring(RegistrarSlot::allocate()?));
/// let region = Region::builder(4096).build().unwrap();
/// let key = region.register_with(&ring)?;
/// assert_eq!(region.key_for(ring.id()), Some(key));
/// # Ok::<(), RegisterError>(())
/// ```
pub trait Registrar: Send + Sync {
    /// Its identity, always the same.
    fn id(&self) -> RegistrarId;
    /// Makes the region known; the key is the registrar's own. What it locks is first reserved from
    /// [`MemlockBudget::process`](super::MemlockBudget::process).
    fn register(&self, region: &Region) -> Result<u64, RegisterError>;
    /// Forgets the region, which may be unmapped right after. After an error it never is: the memory
    /// is leaked (M4).
    fn deregister(&self, region: RegionId, key: u64) -> std::io::Result<()>;
    /// Nothing of a group that it is a member of can be sent any more: it may leave it. Called from any thread,
    /// once.
    fn group_is_over(&self, group: GroupId) {
        let _ = group;
    }
}

/// Why a region could not be registered.
///
/// ```
/// use zc_core::memory::RegisterError;
///
/// fn remedy(error: &RegisterError) -> &'static str {
///     match error {
///         RegisterError::Memlock(_) => "raise RLIMIT_MEMLOCK",
///         RegisterError::TooManyRegistrars => "close connections first",
///         _ => "send it as foreign memory: it is copied",
///     }
/// }
/// assert_eq!(remedy(&RegisterError::TooManyRegistrars), "close connections first");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// All [`MAX_REGISTRARS`] slots are taken.
    #[error("more than {MAX_REGISTRARS} registrars")]
    TooManyRegistrars,
    /// The registrar is a member of the group already.
    #[error("a member of the group already")]
    AlreadyMember,
    /// The memory does not belong to the group, or its member is gone.
    #[error("the memory belongs to no region of the group")]
    NotInGroup,
    /// This kind of memory cannot be registered there.
    #[error("not supported for this region: {0}")]
    Unsupported(&'static str),
    /// The limit of locked memory is reached.
    #[error(transparent)]
    Memlock(#[from] MemlockExceeded),
    /// The system refused.
    #[error("registering: {0}")]
    Os(#[from] std::io::Error),
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slots_are_used_again_and_identities_are_not() {
        let slots: Vec<_> = (0..100).map(|_| RegistrarSlot::allocate().unwrap()).collect();
        let places: HashSet<_> = slots.iter().map(|s| s.id().slot).collect();
        assert_eq!(places.len(), 100);
        let old: HashSet<_> = slots.iter().map(RegistrarSlot::id).collect();
        drop(slots);
        let new: Vec<_> = (0..100).map(|_| RegistrarSlot::allocate().unwrap()).collect();
        assert!(new.iter().all(|s| !old.contains(&s.id())));
    }
}
