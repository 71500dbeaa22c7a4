//! Forwarding: the members of a forwarding group also see the memory of each other's connections.
//!
//! A circle is the set of regions that may be shown so. It is a registrar that only remembers: whether a region is
//! in it is asked of the region, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use zc_core::memory::{GroupId, Region, RegionId, RegisterError, Registrar, RegistrarId, RegistrarSlot};

/// One entry per forwarding group with members.
static CIRCLES: Mutex<Vec<(GroupId, Weak<Circle>)>> = Mutex::new(Vec::new());

pub(super) struct Circle {
    slot: RegistrarSlot,
    members: Mutex<Vec<Member>>,
    /// Bytes of the smallest arena that a member's peer may have.
    arena_bytes: AtomicU64,
}

#[derive(Clone)]
struct Member {
    /// Its peer's memory.
    opened: Weak<Opened>,
    /// Who shows its peer what others have.
    shown: RegistrarId,
}

impl Registrar for Circle {
    fn id(&self) -> RegistrarId {
        self.slot.id()
    }

    fn register(&self, _: &Region) -> Result<u64, RegisterError> {
        Ok(0)
    }

    fn deregister(&self, _: RegionId, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

impl Circle {
    /// The circle of a group; all its members in this process have the same.
    pub(super) fn of(group: GroupId) -> Result<Arc<Self>, RegisterError> {
        let mut circles = CIRCLES.lock();
        circles.retain(|(_, circle)| circle.strong_count() > 0);
        let known = circles.iter().find(|(id, _)| *id == group).and_then(|(_, circle)| circle.upgrade());
        if let Some(circle) = known {
            return Ok(circle);
        }
        let slot = RegistrarSlot::allocate()?;
        let circle =
            Arc::new(Self { slot, members: Mutex::default(), arena_bytes: AtomicU64::new(u64::MAX) });
        circles.push((group, Arc::downgrade(&circle)));
        Ok(circle)
    }

    /// Whether a region may be shown to members. O(1), no lock.
    pub(super) fn has(&self, region: &Region) -> bool {
        region.key_for(self.slot.id()).is_some()
    }

    /// What members keep of each other's messages comes out of so many bytes, or more.
    pub(super) fn arena_bytes(&self) -> u64 {
        self.arena_bytes.load(Ordering::Relaxed)
    }

    fn set_arena_bytes(&self, members: &[Member]) {
        let least = members.iter().filter_map(|one| one.opened.upgrade()).map(|one| one.max_bytes).min();
        self.arena_bytes.store(least.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// All that members can see of each other now.
    pub(super) fn regions(&self) -> Vec<Region> {
        let members: Vec<_> = self.members.lock().iter().filter_map(|one| one.opened.upgrade()).collect();
        members.iter().flat_map(|member| member.state.lock().regions.clone()).collect()
    }
}

/// The memory of one connection's peer, and the circles that it is open to.
pub(crate) struct Opened {
    /// Most bytes of the peer's arenas.
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The arenas from which messages are lent, at most [`MAX_SLABS`](crate::MAX_SLABS).
    regions: Vec<Region>,
    /// At most [`MAX_GROUPS`](crate::MAX_GROUPS).
    circles: Vec<Arc<Circle>>,
}

impl Opened {
    /// Open to nobody.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// The peer has one more arena.
    pub(crate) fn add(&self, region: &Region) {
        let mut state = self.state.lock();
        state.regions.push(region.clone());
        state.circles.iter().for_each(|circle| enter(circle, region));
    }

    /// The peer has taken an arena away: nothing new comes from there.
    pub(crate) fn remove(&self, region: &Region) {
        let mut state = self.state.lock();
        let at = state.regions.iter().position(|known| known.id() == region.id());
        let removed = at.map(|at| state.regions.swap_remove(at));
        drop(state);
        drop(removed);
    }

    /// From now on members of the circle may see what this peer sends, and `shown` shows it what theirs do.
    pub(super) fn open(self: &Arc<Self>, circle: Arc<Circle>, shown: RegistrarId) {
        let mut members = circle.members.lock();
        members.retain(|member| member.opened.strong_count() > 0);
        members.push(Member { opened: Arc::downgrade(self), shown });
        circle.set_arena_bytes(&members);
        drop(members);
        let mut state = self.state.lock();
        state.regions.iter().for_each(|region| enter(&circle, region));
        state.circles.push(circle);
    }

    /// From now on they may not, and those that they were shown are taken away again.
    pub(super) fn close(&self, circle: &Arc<Circle>) {
        let mut members = circle.members.lock();
        let at = members.iter().position(|member| std::ptr::eq(member.opened.as_ptr(), self));
        let own = at.map(|at| members.swap_remove(at));
        circle.set_arena_bytes(&members);
        drop(members);
        let mut state = self.state.lock();
        state.circles.retain(|known| !Arc::ptr_eq(known, circle));
        let regions = state.regions.clone();
        for region in &regions {
            region.deregister_from(circle.slot.id());
        }
        drop(state);
        // Only now: one that came meanwhile may have been shown them before they were out.
        let all: Vec<_> = circle.members.lock().iter().cloned().chain(own).collect();
        for Member { opened, shown } in all {
            let Some(opened) = opened.upgrade() else { continue };
            for region in regions.iter().filter(|region| !opened.may_be_shown(region)) {
                region.deregister_from(shown);
            }
        }
    }

    /// Whether another circle still shows this peer the region.
    fn may_be_shown(&self, region: &Region) -> bool {
        self.state.lock().circles.iter().any(|circle| circle.has(region))
    }
}

/// It only remembers, so it can't fail; what is not remembered is copied.
fn enter(circle: &Arc<Circle>, region: &Region) {
    let registrar: Arc<dyn Registrar> = circle.clone();
    let _ = region.register_with(&registrar);
}
