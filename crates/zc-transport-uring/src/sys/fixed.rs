//! Memory that the ring knows ahead: whole regions, whose pages the kernel then need not look up and pin for each
//! operation (`io_uring_register_buffers(3)`).
//!
//! ```text
//! an operation meets a region --register--> Wanted --(the engine's next turn)--> Ready, or Refused
//! the region goes -----------deregister----------------> (the engine's next turn) vacant
//! ```
//!
//! Only the engine's thread may tell the ring, so others leave word. A region that goes is unmapped without waiting
//! for that: the kernel holds the pages themselves, and no later region has this one's key. Operations hold
//! the region, so none is under way then (M2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::*};
use std::task::Context;

use parking_lot::Mutex;
use zc_core::memory::{
    Deferral, MemlockBudget, MemlockGrant, Region, RegionId, RegionKind, RegisterError, Registrar,
    RegistrarId, RegistrarSlot,
};
use zc_core::transport::Unavailable;

use super::ring::Ring;
use crate::engine::Parked;
use crate::limits::{MAX_REGION_BYTES, MAX_UNASKED_REGION_BYTES, UNASKED_MEMLOCK_DIVISOR};

const VACANT: u8 = 0;
const WANTED: u8 = 1;
const READY: u8 = 2;
const REFUSED: u8 = 3;

/// How much a ring knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FixedCounts {
    pub(crate) regions: usize,
    pub(crate) bytes: u64,
}

/// The table of one ring, as all who use it see it.
pub(crate) struct Fixed {
    identity: RegistrarSlot,
    /// By place in the table.
    states: Box<[AtomicU8]>,
    /// There is word for the engine.
    has_word: AtomicBool,
    /// No place is free, or the ring is closed. Written with `table` locked.
    is_full: AtomicBool,
    /// It is noted why something was not taken up.
    has_reason: AtomicBool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    free: Vec<u16>,
    /// To be made known; each is held until it is.
    wanted: Vec<(u16, Region)>,
    gone: Vec<u16>,
    /// What each place locks.
    locked: Vec<Option<Locked>>,
    closed: bool,
    /// Why the last one was refused.
    why_not: Option<Unavailable>,
    /// The engine's task, while it sleeps.
    driver: Parked,
}

/// Pages that the kernel holds, and the budget that they are taken from.
pub(crate) struct Locked {
    bytes: u64,
    _grant: MemlockGrant,
}

impl Locked {
    pub(super) fn new(bytes: u64, grant: MemlockGrant) -> Self {
        Self { bytes, _grant: grant }
    }
}

/// What comes of telling the ring. Letting go of a region and the log are other people's code, so this is dropped where
/// no lock is held.
#[derive(Default)]
pub(crate) struct Settled {
    _regions: Vec<Region>,
    refused: Option<(usize, Unavailable)>,
    stuck: Option<io::Error>,
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some((bytes, why)) = &self.refused {
            tracing::debug!(bytes, %why, "a region was not registered with a ring");
        }
        if let Some(error) = &self.stuck {
            tracing::warn!(%error, "a region is still registered with a ring");
        }
    }
}

impl Fixed {
    /// A table of at most `places` regions. `None`: this ring has none.
    pub(crate) fn new(ring: &Ring, places: u16) -> Option<Arc<Self>> {
        if places == 0 {
            return None;
        }
        let identity = RegistrarSlot::allocate().ok()?;
        ring.register_table(places.into()).ok()?;
        let table = Table {
            free: (0..places).rev().collect(),
            locked: (0..places).map(|_| None).collect(),
            ..Table::default()
        };
        Some(Arc::new(Self {
            identity,
            states: (0..places).map(|_| AtomicU8::new(VACANT)).collect(),
            has_word: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            has_reason: AtomicBool::new(false),
            table: Mutex::new(table),
        }))
    }

    /// The place of a region that the ring knows. O(1), no lock.
    pub(crate) fn place_of(&self, region: Option<&Region>) -> Option<u16> {
        let place = u16::try_from(region?.key_for(self.identity.id())?).ok()?;
        let is_ready = self.states.get(usize::from(place))?.load(Acquire) == READY;
        is_ready.then_some(place)
    }

    /// Has a region made known soon, if it can be and there is room.
    pub(crate) fn want(self: &Arc<Self>, region: Option<&Region>) {
        let Some(region) = region else { return };
        let known = region.key_for(self.identity.id()).is_some();
        if known || self.is_full.load(Relaxed) || unsupported(region).is_some() {
            return;
        }
        if let Some(why) = too_much(region.len()) {
            // The first time is enough: this is asked for each operation.
            if !self.has_reason.load(Relaxed) {
                self.note(&mut self.table.lock(), why);
            }
            return;
        }
        let registrar: Arc<dyn Registrar> = self.clone();
        // What is refused is noted, and used in the ordinary way.
        let _ = region.register_with(&registrar);
    }

    /// As [`want`](Self::want), with the reason why not.
    pub(crate) fn register(self: &Arc<Self>, region: &Region) -> Result<(), RegisterError> {
        let registrar: Arc<dyn Registrar> = self.clone();
        region.register_with(&registrar).map(drop)
    }

    pub(crate) fn counts(&self) -> FixedCounts {
        let table = self.table.lock();
        let ready = |place: usize| self.states[place].load(Relaxed) == READY;
        let locked = table.locked.iter().enumerate().filter(|(place, _)| ready(*place));
        let known = locked.filter_map(|(_, locked)| locked.as_ref());
        let (regions, bytes) = known.fold((0, 0), |(n, bytes), locked| (n + 1, bytes + locked.bytes));
        FixedCounts { regions, bytes }
    }

    pub(crate) fn why_not(&self) -> Option<Unavailable> {
        self.table.lock().why_not.clone()
    }

    pub(super) fn has_word(&self) -> bool {
        self.has_word.load(Acquire)
    }

    /// Wakes `cx` when there is word.
    pub(super) fn park(&self, cx: &Context<'_>) {
        self.table.lock().driver.park(cx);
    }

    /// Tells the ring: of all that are gone, and of one that has come, since that takes a while for a long one; if the ring
    /// is about to close, of none that has come.
    pub(super) fn settle(&self, ring: &Ring, goes_on: bool, settled: &mut Settled) {
        if !self.has_word.swap(false, AcqRel) {
            return;
        }
        let (gone, wanted) = {
            let mut table = self.table.lock();
            let wanted = if goes_on { table.wanted.pop() } else { None };
            if goes_on && !table.wanted.is_empty() {
                self.has_word.store(true, Release);
            }
            (std::mem::take(&mut table.gone), wanted)
        };
        gone.into_iter().for_each(|place| self.forget(ring, place, settled));
        if let Some((place, region)) = wanted {
            self.make_known(ring, place, &region, settled);
            settled._regions.push(region);
        }
    }

    fn make_known(&self, ring: &Ring, place: u16, region: &Region, settled: &mut Settled) {
        // SAFETY: the region is mapped as long as it is held here, and by then the kernel holds its pages. What is written
        // to them goes through requests that own their part of it (M1, M2).
        let done = unsafe { ring.register_memory(place.into(), region.base_mut().as_ptr(), region.len()) };
        let state = &self.states[usize::from(place)];
        let Err(error) = done else { return state.store(READY, Release) };
        state.store(REFUSED, Release);
        let why = why(&error, region.len());
        settled.refused = Some((region.len(), why.clone()));
        let mut table = self.table.lock();
        // The place stays taken, which keeps it from being tried again.
        let locked = table.locked[usize::from(place)].take();
        self.note(&mut table, why);
        drop(table);
        drop(locked);
    }

    fn forget(&self, ring: &Ring, place: u16, settled: &mut Settled) {
        let state = &self.states[usize::from(place)];
        if state.load(Acquire) == READY
            && let Err(error) = ring.unregister_memory(place.into())
        {
            // The place is lost, and the pages are locked as long as the ring lives (M4).
            settled.stuck = Some(error);
            return;
        }
        state.store(VACANT, Release);
        let mut table = self.table.lock();
        let locked = table.locked[usize::from(place)].take();
        table.free.push(place);
        self.is_full.store(table.closed, Relaxed);
        drop(table);
        drop(locked);
    }

    /// The ring closes, and takes its table along: what the kernel holds locked until it is gone. And what was to be made
    /// known; letting go of a region runs other people's code, and comes back here.
    pub(super) fn close(&self) -> (Vec<Locked>, Vec<Region>) {
        let mut table = self.table.lock();
        table.closed = true;
        self.is_full.store(true, Relaxed);
        let (wanted, locked) = (std::mem::take(&mut table.wanted), std::mem::take(&mut table.locked));
        drop(table);
        let wanted = wanted.into_iter().map(|(_, region)| region).collect();
        (locked.into_iter().flatten().collect(), wanted)
    }

    fn note(&self, table: &mut Table, why: Unavailable) {
        table.why_not = Some(why);
        self.has_reason.store(true, Relaxed);
    }
}

/// Why a region is not made known without being asked to: it would take too long, or too much of what the process may lock.
fn too_much(bytes: usize) -> Option<Unavailable> {
    if bytes > MAX_UNASKED_REGION_BYTES {
        let remedy = format!("register the region of {bytes} bytes ahead, or use shorter ones");
        return Some(Unavailable::Other { code: "long_region", remedy });
    }
    let budget = MemlockBudget::process();
    let (soft, hard) = (budget.soft_bytes(), budget.hard_bytes());
    let need = budget.used_bytes().saturating_add(bytes as u64).saturating_mul(UNASKED_MEMLOCK_DIVISOR);
    (need > soft).then_some(Unavailable::Memlock { need, soft, hard })
}

/// What no ring takes.
fn unsupported(region: &Region) -> Option<&'static str> {
    match () {
        () if region.is_read_only() => Some("io_uring refuses memory that can't be written (EFAULT)"),
        () if region.info().kind != RegionKind::Own => Some("it is not ours"),
        () if region.group().is_some() => Some("it belongs to a group"),
        () if region.len() > MAX_REGION_BYTES => Some("it is longer than the kernel takes at once"),
        () => None,
    }
}

/// Why the kernel did not take a region.
fn why(error: &io::Error, bytes: usize) -> Unavailable {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let soft = limit.current.unwrap_or(u64::MAX);
    match error.raw_os_error() {
        Some(libc::ENOMEM) if soft != u64::MAX => {
            Unavailable::Memlock { need: bytes as u64, soft, hard: limit.maximum.unwrap_or(u64::MAX) }
        }
        _ => Unavailable::os("io_uring_register", error),
    }
}

impl Registrar for Fixed {
    fn id(&self) -> RegistrarId {
        self.identity.id()
    }

    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        let _deferral = Deferral::begin();
        if let Some(why) = unsupported(region) {
            return Err(RegisterError::Unsupported(why));
        }
        let bytes = region.len();
        let grant = MemlockBudget::process().reserve(bytes);
        let mut table = self.table.lock();
        if table.closed {
            return Err(RegisterError::Unsupported("the ring is closed"));
        }
        let grant = match grant {
            Ok(grant) => grant,
            Err(over) => {
                let (soft, hard) = (over.soft, over.hard);
                self.note(&mut table, Unavailable::Memlock { need: bytes as u64, soft, hard });
                return Err(over.into());
            }
        };
        let Some(place) = table.free.pop() else {
            self.is_full.store(true, Relaxed);
            let error = RegisterError::Unsupported("the ring's table is full");
            self.note(&mut table, Unavailable::Other { code: "no_room", remedy: error.to_string() });
            return Err(error);
        };
        self.states[usize::from(place)].store(WANTED, Release);
        table.locked[usize::from(place)] = Some(Locked::new(bytes as u64, grant));
        table.wanted.push((place, region.clone()));
        self.has_word.store(true, Release);
        table.driver.wake();
        Ok(place.into())
    }

    /// Succeeds at once, see the module.
    fn deregister(&self, _: RegionId, place: u64) -> io::Result<()> {
        let _deferral = Deferral::begin();
        let mut table = self.table.lock();
        if let Ok(place) = u16::try_from(place)
            && !table.closed
        {
            table.gone.push(place);
            self.has_word.store(true, Release);
            table.driver.wake();
        }
        Ok(())
    }
}
