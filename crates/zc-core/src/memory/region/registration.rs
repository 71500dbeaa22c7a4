//! Who knows a region under which key.

use super::key_slot::KeySlot;
use super::registrar::MAX_REGISTRARS;
use super::{Region, RegionId, RegisterError, Registrar, RegistrarId};
use parking_lot::{Condvar, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};

/// Key slots per page of the table.
const PAGE: usize = 64;

type Page = OnceLock<Box<[KeySlot; PAGE]>>;

/// The registrations of one region.
#[derive(Default)]
pub(super) struct Registrations {
    /// By slot of the registrar; made when needed, never moved.
    pages: OnceLock<Box<[Page; MAX_REGISTRARS / PAGE]>>,
    /// At most one per live registrar: those of dead ones go when another is added (M9).
    entries: Mutex<Vec<Entry>>,
    changed: Condvar,
}

struct Entry {
    id: RegistrarId,
    registrar: Weak<dyn Registrar>,
    /// `None` while the registrar is being called, which happens without the lock.
    key: Option<u64>,
}

/// Ends the time in which an entry is busy, also when the registrar panics.
struct Busy<'a> {
    of: &'a Registrations,
    id: RegistrarId,
    key: Option<u64>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut entries = self.of.entries.lock();
        match self.key {
            None => entries.retain(|e| e.id != self.id),
            Some(key) => {
                entries.iter_mut().filter(|e| e.id == self.id).for_each(|e| e.key = Some(key));
                self.of.slot(self.id).publish(self.id.generation, key);
            }
        }
        drop(entries);
        self.of.changed.notify_all();
    }
}

impl Registrations {
    pub(super) fn key_for(&self, id: RegistrarId) -> Option<u64> {
        let page = self.pages.get()?[usize::from(id.slot) / PAGE].get()?;
        page[usize::from(id.slot) % PAGE].key_of(id.generation)
    }

    fn slot(&self, id: RegistrarId) -> &KeySlot {
        let pages = self.pages.get_or_init(|| Box::new([const { Page::new() }; MAX_REGISTRARS / PAGE]));
        let page = pages[usize::from(id.slot) / PAGE]
            .get_or_init(|| Box::new(std::array::from_fn(|_| KeySlot::empty())));
        &page[usize::from(id.slot) % PAGE]
    }

    pub(super) fn register(
        &self,
        region: &Region,
        registrar: &Arc<dyn Registrar>,
    ) -> Result<u64, RegisterError> {
        let id = registrar.id();
        let mut entries = self.entries.lock();
        loop {
            match entries.iter().find(|e| e.id == id) {
                Some(Entry { key: Some(key), .. }) => return Ok(*key),
                Some(Entry { key: None, .. }) => self.changed.wait(&mut entries),
                None => break,
            }
        }
        for dead in entries.extract_if(.., |e| e.key.is_some() && e.registrar.strong_count() == 0) {
            self.slot(dead.id).withdraw_of(dead.id.generation);
        }
        entries.push(Entry { id, registrar: Arc::downgrade(registrar), key: None });
        drop(entries);
        let mut busy = Busy { of: self, id, key: None };
        let key = registrar.register(region)?;
        busy.key = Some(key);
        Ok(key)
    }

    /// False if the registrar could not, and the region is still registered.
    pub(super) fn deregister(&self, region: RegionId, id: RegistrarId) -> bool {
        let mut entries = self.entries.lock();
        let (key, registrar) = loop {
            match entries.iter_mut().find(|e| e.id == id) {
                None => return true,
                Some(Entry { key: None, .. }) => self.changed.wait(&mut entries),
                Some(entry) => match entry.key.take() {
                    Some(key) => break (key, entry.registrar.clone()),
                    None => continue,
                },
            }
        };
        self.slot(id).withdraw();
        drop(entries);
        // Still registered unless the registrar says otherwise.
        let mut busy = Busy { of: self, id, key: Some(key) };
        let done = forget(&registrar, region, key);
        if done {
            busy.key = None;
        }
        done
    }

    /// False if a registrar could not, and the region is still registered.
    pub(super) fn deregister_all(&mut self, region: RegionId) -> bool {
        let mut done = true;
        for Entry { registrar, key, .. } in self.entries.get_mut().drain(..) {
            done &= key.is_none_or(|key| forget(&registrar, region, key));
        }
        done
    }
}

/// Has a registrar forget a region; a panic counts as a failure.
fn forget(registrar: &Weak<dyn Registrar>, region: RegionId, key: u64) -> bool {
    let Some(registrar) = registrar.upgrade() else {
        return true; // It gave up its registrations when it was dropped.
    };
    match catch_unwind(AssertUnwindSafe(|| registrar.deregister(region, key))) {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::error!(region = region.0, %error, "cannot deregister a region");
            false
        }
        Err(_) => {
            tracing::error!(region = region.0, "a registrar panicked");
            false
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::super::{RegistrarSlot, region_of};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

    struct Fake {
        slot: RegistrarSlot,
        next: AtomicU64,
        log: Mutex<HashMap<RegionId, u64>>,
        calls: AtomicUsize,
        refuses: bool,
    }

    impl Fake {
        fn new(refuses: bool) -> Arc<Self> {
            let (next, calls) = (AtomicU64::new(70), AtomicUsize::new(0));
            let slot = RegistrarSlot::allocate().unwrap();
            Arc::new(Self { slot, next, log: Mutex::default(), calls, refuses })
        }
    }

    impl Registrar for Fake {
        fn id(&self) -> RegistrarId {
            self.slot.id()
        }
        fn register(&self, region: &Region) -> Result<u64, RegisterError> {
            // No lock is held: another registrar may be asked from here.
            assert_eq!(region.key_for(self.id()), None);
            self.calls.fetch_add(1, SeqCst);
            std::thread::yield_now();
            let key = self.next.fetch_add(1, SeqCst);
            assert_eq!(self.log.lock().insert(region.id(), key), None, "registered twice");
            Ok(key)
        }
        fn deregister(&self, region: RegionId, key: u64) -> std::io::Result<()> {
            if self.refuses {
                return Err(std::io::Error::other("busy"));
            }
            assert_eq!(self.log.lock().remove(&region), Some(key));
            Ok(())
        }
    }

    #[test]
    fn registers_once_and_deregisters_on_drop() {
        let fake = Fake::new(false);
        let dynamic: Arc<dyn Registrar> = fake.clone();
        let region = Region::builder(4096).build().unwrap();
        assert_eq!(region.key_for(fake.id()), None);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| assert_eq!(region.register_with(&dynamic).unwrap(), 70));
            }
        });
        assert_eq!((region.key_for(fake.id()), fake.calls.load(SeqCst)), (Some(70), 1));
        drop(region);
        assert!(fake.log.lock().is_empty());
    }

    #[test]
    fn a_former_registrar_is_forgotten_when_another_one_comes() {
        let region = Region::builder(4096).build().unwrap();
        // All at once, so that they have slots of their own.
        let [a, b, c] = [(); 3].map(|()| Fake::new(false));
        let (former, stays) = (a.id(), b.id());
        for fake in [a, b.clone()] {
            let dynamic: Arc<dyn Registrar> = fake;
            region.register_with(&dynamic).unwrap();
        }
        let later: Arc<dyn Registrar> = c.clone();
        region.register_with(&later).unwrap();
        assert_eq!(region.key_for(former), None);
        assert!(region.key_for(stays).is_some() && region.key_for(c.id()).is_some());
    }

    #[test]
    fn memory_that_stays_registered_is_leaked() {
        let fake = Fake::new(true);
        let dynamic: Arc<dyn Registrar> = fake.clone();
        let region = Region::builder(4096).build().unwrap();
        region.register_with(&dynamic).unwrap();
        assert!(!region.deregister_from(fake.id()));
        assert!(region.key_for(fake.id()).is_some());
        let base = region.base();
        drop(region);
        assert!(region_of(base, 1).is_none());
        // SAFETY: leaked, so still mapped, and nobody writes it (M4).
        assert_eq!(unsafe { base.read_volatile() }, 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Register(usize, usize),
        Deregister(usize, usize),
        NewRegion(usize),
        NewRegistrar(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3usize, 0..3usize).prop_map(|(a, b)| Step::Register(a, b)),
            2 => (0..3usize, 0..3usize).prop_map(|(a, b)| Step::Deregister(a, b)),
            1 => (0..3usize).prop_map(Step::NewRegion),
            1 => (0..3usize).prop_map(Step::NewRegistrar),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The oracle is what each registrar was told.
        #[test]
        fn table_agrees_with_the_registrars(steps in prop::collection::vec(step(), 0..60)) {
            let new_region = || Region::builder(4096).build().unwrap();
            let mut regions: [Region; 3] = std::array::from_fn(|_| new_region());
            let mut fakes: [Arc<Fake>; 3] = std::array::from_fn(|_| Fake::new(false));
            for step in steps {
                match step {
                    Step::Register(r, f) => {
                        let dynamic: Arc<dyn Registrar> = fakes[f].clone();
                        let key = regions[r].register_with(&dynamic).unwrap();
                        let told = fakes[f].log.lock().get(&regions[r].id()).copied();
                        prop_assert_eq!(told, Some(key));
                    }
                    Step::Deregister(r, f) => prop_assert!(regions[r].deregister_from(fakes[f].id())),
                    Step::NewRegion(r) => regions[r] = new_region(),
                    Step::NewRegistrar(f) => fakes[f] = Fake::new(false),
                }
                for (region, fake) in regions.iter().flat_map(|r| fakes.iter().map(move |f| (r, f))) {
                    let known = fake.log.lock().get(&region.id()).copied();
                    prop_assert_eq!(region.key_for(fake.id()), known);
                }
                for fake in &fakes {
                    let log = fake.log.lock();
                    prop_assert!(log.keys().all(|id| regions.iter().any(|r| r.id() == *id)));
                }
            }
        }
    }
}
