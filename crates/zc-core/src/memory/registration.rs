//! Who knows a region under which key, and the budget of locked memory.

use super::{Region, RegionId, sys};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// How many registrars (rings, protection domains, UMEMs) can exist at once.
pub const MAX_REGISTRARS: usize = 64;

/// Identifies a registrar: a slot and a generation, so that a key of a retired one is never found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegistrarId {
    slot: u8,
    generation: u64,
}

static SLOTS: AtomicU64 = AtomicU64::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(1);

impl RegistrarId {
    /// Takes a free slot.
    pub fn allocate() -> Result<Self, RegisterError> {
        let mut used = SLOTS.load(Ordering::Relaxed);
        loop {
            let slot = used.trailing_ones();
            if slot as usize >= MAX_REGISTRARS {
                return Err(RegisterError::TooManyRegistrars);
            }
            match SLOTS.compare_exchange(used, used | 1 << slot, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
                    return Ok(Self { slot: slot as u8, generation });
                }
                Err(now) => used = now,
            }
        }
    }

    /// Gives the slot back; call once, when the registrar is gone.
    pub fn retire(self) {
        SLOTS.fetch_and(!(1 << self.slot), Ordering::AcqRel);
    }
}

/// Something that must know memory before it can use it.
pub trait Registrar: Send + Sync {
    /// Its identity.
    fn id(&self) -> RegistrarId;
    /// Makes the region known; the key is the registrar's own.
    fn register(&self, region: &Region) -> Result<u64, RegisterError>;
    /// Forgets the region; it is unmapped right after.
    fn deregister(&self, region: RegionId, key: u64);
}

/// Why a region could not be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// All [`MAX_REGISTRARS`] slots are taken.
    #[error("more than {MAX_REGISTRARS} registrars")]
    TooManyRegistrars,
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

#[derive(Default)]
struct Slot {
    generation: AtomicU64,
    key: AtomicU64,
}

/// The registrations of one region.
#[derive(Default)]
pub(super) struct Registrations {
    slots: OnceLock<Box<[Slot; MAX_REGISTRARS]>>,
    registered: Mutex<Vec<(RegistrarId, u64, Weak<dyn Registrar>)>>,
}

impl Registrations {
    pub(super) fn key_for(&self, id: RegistrarId) -> Option<u64> {
        let slot = &self.slots.get()?[id.slot as usize];
        if slot.generation.load(Ordering::Acquire) != id.generation {
            return None;
        }
        Some(slot.key.load(Ordering::Acquire))
    }

    pub(super) fn register(
        &self,
        region: &Region,
        registrar: &Arc<dyn Registrar>,
    ) -> Result<u64, RegisterError> {
        let id = registrar.id();
        let mut registered = self.registered.lock();
        if let Some(key) = self.key_for(id) {
            return Ok(key);
        }
        let key = registrar.register(region)?;
        // One live entry per slot: the list is bounded by MAX_REGISTRARS (M9).
        registered.retain(|(other, ..)| other.slot != id.slot);
        registered.push((id, key, Arc::downgrade(registrar)));
        let slots = self.slots.get_or_init(|| Box::new(std::array::from_fn(|_| Slot::default())));
        let slot = &slots[id.slot as usize];
        slot.key.store(key, Ordering::Release);
        slot.generation.store(id.generation, Ordering::Release);
        Ok(key)
    }

    pub(super) fn deregister_all(&mut self, region: RegionId) {
        for (_, key, registrar) in self.registered.get_mut().drain(..) {
            if let Some(registrar) = registrar.upgrade() {
                registrar.deregister(region, key);
            }
        }
    }
}

/// The limit of locked memory would be exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{need} more locked bytes exceed the limit (soft {soft}, hard {hard}): raise RLIMIT_MEMLOCK")]
pub struct MemlockExceeded {
    /// The bytes asked for.
    pub need: usize,
    /// The soft limit, which is the one that counts.
    pub soft: u64,
    /// The hard limit, up to which the process may raise it.
    pub hard: u64,
}

/// Locked memory, shared by everyone in the process who locks or registers.
#[derive(Debug)]
pub struct MemlockBudget {
    used: AtomicU64,
    soft: u64,
    hard: u64,
}

impl MemlockBudget {
    /// A budget of its own; `u64::MAX` is unlimited.
    pub fn new(soft_bytes: u64, hard_bytes: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), soft: soft_bytes, hard: hard_bytes })
    }

    /// The process's budget, from RLIMIT_MEMLOCK.
    pub fn process() -> &'static Arc<Self> {
        static PROCESS: OnceLock<Arc<MemlockBudget>> = OnceLock::new();
        PROCESS.get_or_init(|| {
            let (soft, hard) = sys::memlock_limits();
            Self::new(soft.unwrap_or(u64::MAX), hard.unwrap_or(u64::MAX))
        })
    }

    /// The bytes reserved now.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves `bytes` until the grant is dropped.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<MemlockGrant, MemlockExceeded> {
        let fits = |used: u64| used.checked_add(bytes as u64).filter(|n| *n <= self.soft);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(MemlockGrant { budget: self.clone(), bytes: bytes as u64 }),
            Err(_) => Err(MemlockExceeded { need: bytes, soft: self.soft, hard: self.hard }),
        }
    }
}

/// Reserved locked memory; dropping it gives the bytes back.
#[derive(Debug)]
pub struct MemlockGrant {
    budget: Arc<MemlockBudget>,
    bytes: u64,
}

impl Drop for MemlockGrant {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Fake(RegistrarId, Mutex<Vec<&'static str>>);
    impl Registrar for Fake {
        fn id(&self) -> RegistrarId {
            self.0
        }
        fn register(&self, _: &Region) -> Result<u64, RegisterError> {
            self.1.lock().push("in");
            Ok(77)
        }
        fn deregister(&self, _: RegionId, key: u64) {
            assert_eq!(key, 77);
            self.1.lock().push("out");
        }
    }

    #[test]
    fn registers_once_and_deregisters_on_drop() {
        let fake = Arc::new(Fake(RegistrarId::allocate().unwrap(), Mutex::default()));
        let dynamic: Arc<dyn Registrar> = fake.clone();
        let region = Region::builder(4096).build().unwrap();
        assert_eq!(region.key_for(fake.0), None);
        assert_eq!(region.register_with(&dynamic).unwrap(), 77);
        assert_eq!(region.register_with(&dynamic).unwrap(), 77);
        assert_eq!(region.key_for(fake.0), Some(77));
        drop(region);
        assert_eq!(*fake.1.lock(), ["in", "out"]);
        fake.0.retire();
    }

    #[test]
    fn memlock_is_bounded() {
        let b = MemlockBudget::new(100, 200);
        let g = b.reserve(60).unwrap();
        let e = b.reserve(41).unwrap_err();
        assert_eq!((e.need, e.soft, e.hard), (41, 100, 200));
        drop(g);
        assert_eq!(b.used_bytes(), 0);
    }
}
