//! What of groups is shown to the peer: their regions, and those of other members that are forwarded.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::memory::{
    GroupId, LentBytes, Membership, MemoryGroup, PinnedBuf, Region, RegionId, RegionKind, RegisterError,
    Registrar, RegistrarId, RegistrarSlot,
};
use zc_core::transport::LaneLimits;
use zc_core::wire::WireError;

use super::chores::Chores;
use super::circle::{Circle, Opened};
use super::loans::{Left, Loans};
use crate::abandoned;
use crate::layout::{Descriptor, Return, SHARED, Share};
use crate::limits::{MAX_ARENA_BLOCKS, MAX_GROUPS, MAX_SHARED_LOANS, MAX_SHARED_REGIONS};
use crate::sys;

/// Where a buffer lies, as the peer is told.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) region: u8,
    pub(crate) offset: u32,
    /// It is another member's.
    pub(crate) forwarded: bool,
    /// Of a group's memory: it counts as lent already.
    pub(crate) counted: Option<LentBytes>,
}

/// What a message that is being put together will lend.
#[derive(Default)]
pub(crate) struct Planned {
    loans: usize,
    bytes: usize,
    forwarded: usize,
    forwarded_bytes: usize,
}

impl Planned {
    pub(crate) fn add(&mut self, place: &Place, buf: &PinnedBuf) {
        self.loans += 1;
        if place.forwarded {
            self.forwarded += 1;
            self.forwarded_bytes += buf.kept_bytes();
        } else {
            self.bytes += buf.kept_bytes();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.loans == 0
    }
}

/// A group that the connection is a member of.
struct Joined {
    membership: Membership,
    /// If it is a forwarding group.
    circle: Option<Arc<Circle>>,
}

impl Joined {
    fn id(&self) -> GroupId {
        self.membership.group()
    }
}

/// Everything that is shown to one peer.
pub(crate) struct Shown {
    groups: Vec<Joined>,
    /// Made when the first group is joined.
    regions: Option<Arc<Regions>>,
    /// Which the peer has been told of.
    announced: [bool; MAX_SHARED_REGIONS],
    loans: Loans,
    /// The peer's own memory, which it opens to forwarding groups.
    opened: Arc<Opened>,
    max_bytes: u64,
    /// Of each member's messages, up to so many bytes are lent here ...
    lease_bytes: usize,
    /// ... and so many more until its credit is withheld.
    spare_bytes: usize,
    chores: Arc<Chores>,
}

impl Shown {
    /// Nothing yet, and at most `max_bytes` at a time.
    pub(crate) fn new(max_bytes: u64, limits: &LaneLimits, opened: Arc<Opened>, chores: Arc<Chores>) -> Self {
        Self {
            groups: Vec::new(),
            regions: None,
            announced: [false; MAX_SHARED_REGIONS],
            loans: Loans::default(),
            opened,
            max_bytes,
            lease_bytes: limits.lease_soft,
            spare_bytes: limits.lease_hard.saturating_sub(limits.lease_soft),
            chores,
        }
    }

    pub(crate) fn join(&mut self, group: &MemoryGroup) -> Result<(), RegisterError> {
        let regions = match &self.regions {
            Some(regions) => regions.clone(),
            None => self.regions.insert(Arc::new(Regions::new(self.max_bytes, self.chores.clone())?)).clone(),
        };
        self.leave_over();
        if self.groups.iter().any(|joined| joined.id() == group.id()) {
            return Err(RegisterError::AlreadyMember);
        }
        if self.groups.len() >= MAX_GROUPS {
            return Err(RegisterError::Unsupported("the connection is in as many groups as it may be"));
        }
        let shown = regions.slot.id();
        let registrar: Arc<dyn Registrar> = regions;
        let membership = group.join(&registrar)?;
        let circle = match group.forwards() {
            true => Some(Circle::of(group.id())?),
            false => None,
        };
        if let Some(circle) = &circle {
            self.opened.open(circle.clone(), shown);
        }
        self.loans.come_back(group.id());
        self.groups.push(Joined { membership, circle });
        self.chores.set_in_group(true);
        abandoned::watch(&self.chores);
        self.chores.wake();
        Ok(())
    }

    pub(crate) fn leave(&mut self, group: GroupId) {
        let Some(at) = self.groups.iter().position(|joined| joined.id() == group) else { return };
        let Joined { membership, circle } = self.groups.swap_remove(at);
        self.loans.leave(group);
        drop(membership);
        self.chores.set_in_group(!self.groups.is_empty());
        let (Some(circle), Some(regions)) = (circle, &self.regions) else { return };
        self.opened.close(&circle);
        let elsewhere = |region: &Region| self.groups.iter().any(|joined| joined.may_forward(region));
        for region in circle.regions().iter().filter(|region| !elsewhere(region)) {
            region.deregister_from(regions.slot.id());
        }
    }

    /// Leaves groups of which nothing can be sent any more: nobody has a handle or a buffer.
    fn leave_over(&mut self) {
        self.chores.clear_over();
        while let Some(over) = self.groups.iter().find(|joined| joined.membership.is_over()) {
            self.leave(over.id());
        }
    }

    /// The look now and then: leaves what is over. Whether anything of groups is here; then tell what is gone, and
    /// [rest](Self::rest).
    pub(crate) fn look(&mut self) -> bool {
        self.leave_over();
        self.regions.is_some()
    }

    /// Whether there is something that the peer maps, or may.
    pub(crate) fn is_used(&self) -> bool {
        !self.groups.is_empty() || self.announced.contains(&true)
    }

    /// Whether the peer holds anything.
    #[inline]
    pub(crate) fn has_loans(&self) -> bool {
        self.loans.count() > 0
    }

    /// Where the peer will find a buffer, if it may see it and does not hold too much already. Its region is
    /// perhaps [not announced](Self::is_announced) yet.
    pub(crate) fn place_of(&self, buf: &PinnedBuf, planned: &Planned) -> Option<Place> {
        if self.groups.is_empty() || self.loans.count() + planned.loans >= MAX_SHARED_LOANS as usize {
            return None;
        }
        let (region, offset) = buf.place()?;
        let forwarded = region.group().is_none();
        let (joined, key) = match region.group() {
            Some(group) => {
                let joined = self.groups.iter().find(|joined| joined.id() == group)?;
                (joined, joined.membership.place_of(buf).ok()?.key)
            }
            None => self.forward(region)?,
        };
        let (offset, region) = (u32::try_from(offset).ok()?, u8::try_from(key).ok()?);
        let bytes = buf.kept_bytes();
        if !self.is_within_share(joined, forwarded, bytes, planned) {
            return None;
        }
        let counted = if forwarded { None } else { Some(joined.membership.lend(bytes)?) };
        Some(Place { region, offset, forwarded, counted })
    }

    fn forward(&self, region: &Region) -> Option<(&Joined, u64)> {
        let regions = self.regions.as_ref()?;
        let joined = self.groups.iter().find(|joined| joined.may_forward(region))?;
        if let Some(key) = region.key_for(regions.slot.id()) {
            return Some((joined, key));
        }
        let registrar: Arc<dyn Registrar> = regions.clone();
        let key = region.register_with(&registrar).ok()?;
        if !joined.may_forward(region) {
            // Its member was dismissed meanwhile, and may not have seen that we have it.
            region.deregister_from(regions.slot.id());
            return None;
        }
        Some((joined, key))
    }

    /// Members that never give anything back can't have it all between them: something is left for others.
    fn is_within_share(&self, joined: &Joined, forwarded: bool, bytes: usize, planned: &Planned) -> bool {
        let (member, loans) = (&joined.membership, &self.loans);
        if !forwarded {
            return loans.bytes() + planned.bytes + bytes <= member.share_bytes();
        }
        let shares = member.members() + 1;
        // Blocks of whoever sent them. Of his lease here one leaves the others half: past it all is copied. A single long
        // one may be more, but never so much that he gets no credit.
        let (blocks, kept) =
            (loans.forwarded() + planned.forwarded, loans.forwarded_bytes() + planned.forwarded_bytes);
        let arena_bytes = joined.circle.as_ref().map_or(0, |circle| circle.arena_bytes());
        blocks < MAX_ARENA_BLOCKS as usize / shares
            && (kept + bytes) as u64 <= arena_bytes / shares as u64
            && (kept == 0 && bytes < self.spare_bytes || kept + bytes <= self.lease_bytes / 2)
    }

    pub(crate) fn is_announced(&self, region: u8) -> bool {
        self.announced.get(usize::from(region)) == Some(&true)
    }

    /// What the peer is now told of a region, before anything in it is named. Then it
    /// [was](Self::set_announced), or [was not](Self::take_word_back).
    pub(crate) fn tell(&self, region: u8) -> Option<Share> {
        let bytes = self.regions.as_ref()?.state.lock().tell(region)?;
        Some(Share { region: SHARED | region, bytes })
    }

    /// The peer was told of a region.
    pub(crate) fn set_announced(&mut self, region: u8) {
        self.announced[usize::from(region)] = true;
    }

    /// It could not be told.
    pub(crate) fn take_word_back(&self, region: u8) {
        if let Some(regions) = &self.regions {
            let mut state = regions.state.lock();
            state.untell(region);
            regions.count_gone(&state);
        }
    }

    /// A region of which the peer is to be told that it is gone: nobody will send from it, and nothing of it is with the
    /// peer. Its number is free again.
    pub(crate) fn take_gone(&mut self) -> Option<u8> {
        let regions = self.regions.as_ref()?;
        let mut state = regions.state.lock();
        let at = state.gone.iter().position(|region| !self.loans.are_of(*region))?;
        let region = state.gone.remove(at)?;
        state.release(region);
        regions.count_gone(&state);
        self.announced[usize::from(region)] = false;
        Some(SHARED | region)
    }

    /// Keeps a buffer until the peer gives it back (M1, M2).
    pub(crate) fn lend(&mut self, place: Place, buf: PinnedBuf, token: Option<u64>) -> Option<Descriptor> {
        self.loans.lend(place, buf, token)
    }

    /// The peer gave something back (M6).
    pub(crate) fn take_back(&mut self, back: Return) -> Result<Option<u64>, WireError> {
        self.loans.take_back(back)
    }

    /// Lets go of what only groups need, when there is none any more: there are not many registrars.
    pub(crate) fn rest(&mut self) {
        if self.is_used() || self.has_loans() {
            return;
        }
        let Some(regions) = self.regions.take() else { return };
        if let Err(regions) = Arc::try_unwrap(regions) {
            // Somebody is about to say that a region is gone, and what it counts must not follow what others count later. It
            // is looked at again.
            self.regions = Some(regions);
            self.chores.set_over();
            self.chores.wake();
        }
    }

    /// Everything that the peer holds, which is not looked after here any more.
    pub(crate) fn end(&mut self) -> Vec<Left> {
        self.loans.end()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        while let Some(joined) = self.groups.last() {
            self.leave(joined.id());
        }
    }
}

impl Joined {
    /// Whether it is memory of another member, or of this one.
    fn may_forward(&self, region: &Region) -> bool {
        region.info().kind == RegionKind::Peer
            && !self.membership.is_over()
            && self.circle.as_ref().is_some_and(|circle| circle.has(region))
    }
}

/// The regions of one direction and their numbers.
struct Regions {
    slot: RegistrarSlot,
    max_bytes: u64,
    state: Mutex<State>,
    chores: Arc<Chores>,
}

#[derive(Default)]
struct State {
    /// By number, at most [`MAX_SHARED_REGIONS`].
    all: Vec<Option<Known>>,
    bytes: u64,
    /// Those of which the peer has not been told yet that they are gone.
    gone: VecDeque<u8>,
    /// The system had no memory for it; it is not asked again at every message.
    refused: Option<RegionId>,
}

/// A number that is taken. The region itself is kept by whoever sends from it.
#[derive(Clone)]
struct Known {
    bytes: u64,
    /// The peer has been told of it.
    told: bool,
}

impl State {
    fn claim(&mut self, region: &Region, max_bytes: u64) -> Result<u8, RegisterError> {
        let bytes = region.len() as u64;
        if self.refused == Some(region.id()) {
            return Err(RegisterError::Unsupported("there was no memory for all its pages"));
        }
        if bytes > max_bytes.saturating_sub(self.bytes) {
            return Err(RegisterError::Unsupported("the peer maps no more of groups"));
        }
        let at = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        if at >= MAX_SHARED_REGIONS {
            return Err(RegisterError::Unsupported("the peer maps as many regions as it may"));
        }
        self.all.resize(self.all.len().max(at + 1), None);
        self.all[at] = Some(Known { bytes, told: false });
        self.bytes += bytes;
        Ok(at as u8)
    }

    fn release(&mut self, region: u8) {
        if let Some(Known { bytes, .. }) = self.all.get_mut(usize::from(region)).and_then(Option::take) {
            self.bytes -= bytes;
        }
    }

    fn tell(&mut self, region: u8) -> Option<u64> {
        let known = self.all.get_mut(usize::from(region))?.as_mut()?;
        known.told = true;
        Some(known.bytes)
    }

    fn untell(&mut self, region: u8) {
        match self.gone.iter().position(|gone| *gone == region) {
            Some(at) => {
                self.gone.remove(at);
                self.release(region);
            }
            None => {
                let known = self.all.get_mut(usize::from(region)).and_then(Option::as_mut);
                known.into_iter().for_each(|known| known.told = false);
            }
        }
    }

    fn forget(&mut self, region: u8) {
        match self.all.get(usize::from(region)) {
            Some(Some(Known { told: true, .. })) => self.gone.push_back(region),
            _ => self.release(region),
        }
    }
}

impl Regions {
    fn new(max_bytes: u64, chores: Arc<Chores>) -> Result<Self, RegisterError> {
        Ok(Self { slot: RegistrarSlot::allocate()?, max_bytes, state: Mutex::default(), chores })
    }

    fn count_gone(&self, state: &State) {
        self.chores.set_gone(state.gone.len());
    }
}

impl Registrar for Regions {
    fn id(&self) -> RegistrarId {
        self.slot.id()
    }

    fn register(&self, region: &Region) -> Result<u64, RegisterError> {
        if region.fd().is_none() {
            return Err(RegisterError::Unsupported("a peer maps memfds only"));
        }
        let at = self.state.lock().claim(region, self.max_bytes)?;
        if let Err(error) = sys::make_whole(region) {
            let mut state = self.state.lock();
            state.release(at);
            state.refused = Some(region.id());
            return Err(error.into());
        }
        Ok(at.into())
    }

    fn deregister(&self, _: RegionId, key: u64) -> std::io::Result<()> {
        if let Ok(region) = u8::try_from(key) {
            let mut state = self.state.lock();
            state.forget(region);
            self.count_gone(&state);
            drop(state);
            self.chores.wake();
        }
        Ok(())
    }

    fn group_is_over(&self, _: GroupId) {
        self.chores.set_over();
        self.chores.wake();
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zc_core::memory::{BufPool, Reclaim, WindowTable};

    struct Nobody;
    impl Reclaim for Nobody {
        fn reclaim(&self, _: u32) {}
    }

    struct Connection {
        shown: Shown,
        /// A message of its peer.
        message: PinnedBuf,
        _memory: Region,
    }

    fn connection() -> Connection {
        let memory = sys::create(8192).unwrap();
        let region = sys::map_peer(memory.fd().unwrap().try_clone_to_owned().unwrap(), 8192).unwrap();
        let opened = Arc::new(Opened::new(1 << 20));
        opened.add(&region);
        // SAFETY: nobody writes it (M5).
        let windows = unsafe { WindowTable::new(region, 1, Arc::new(Nobody)) };
        let message = windows.lend(0, 100, 5000, None).unwrap();
        Connection {
            shown: Shown::new(1 << 20, &LaneLimits::default(), opened, Arc::default()),
            message,
            _memory: memory,
        }
    }

    fn place(shown: &Shown, buf: &PinnedBuf) -> Option<Place> {
        shown.place_of(buf, &Planned::default())
    }

    /// Shows it, as to a peer.
    fn show(shown: &mut Shown, buf: &PinnedBuf) -> u8 {
        let place = place(shown, buf).unwrap();
        assert!(place.forwarded && place.offset == 100);
        assert_eq!(shown.tell(place.region).unwrap().bytes, 8192);
        shown.set_announced(place.region);
        place.region
    }

    #[test]
    fn who_is_dismissed_is_taken_away_from_all() {
        let hub = MemoryGroup::forwarding(BufPool::builder());
        let (mut from, mut to, mut also) = (connection(), connection(), connection());
        [&mut from, &mut to, &mut also].into_iter().for_each(|member| member.shown.join(&hub).unwrap());
        let region = show(&mut to.shown, &from.message);
        let own = show(&mut from.shown, &from.message);
        // Found, but not told of: that number is free at once.
        place(&also.shown, &from.message).unwrap();
        let lent =
            to.shown.lend(place(&to.shown, &from.message).unwrap(), from.message.clone(), None).unwrap();
        from.shown.leave(hub.id());
        assert!(place(&to.shown, &from.message).is_none() && place(&also.shown, &from.message).is_none());
        assert_eq!(to.shown.take_gone(), None, "its peer reads it");
        let back =
            Return { slab: lent.slab, sent_back: 0, generation: lent.generation, block: lent.block as u16 };
        to.shown.take_back(back).unwrap();
        assert_eq!(to.shown.take_gone(), Some(SHARED | region));
        assert_eq!((from.shown.take_gone(), also.shown.take_gone()), (Some(SHARED | own), None));
        // And back.
        from.shown.join(&hub).unwrap();
        assert_eq!(show(&mut to.shown, &from.message), region);
        assert_eq!(show(&mut also.shown, &to.message), 0);
    }

    /// Of two circles, one is left: those who are in both see it still.
    #[test]
    fn another_circle_still_shows_it() {
        let (one, other) =
            (MemoryGroup::forwarding(BufPool::builder()), MemoryGroup::forwarding(BufPool::builder()));
        let (mut from, mut both) = (connection(), connection());
        for group in [&one, &other] {
            from.shown.join(group).unwrap();
            both.shown.join(group).unwrap();
        }
        show(&mut both.shown, &from.message);
        from.shown.leave(one.id());
        assert!(place(&both.shown, &from.message).is_some() && both.shown.take_gone().is_none());
        both.shown.leave(other.id());
        assert!(place(&both.shown, &from.message).is_none() && both.shown.take_gone().is_some());
    }

    /// A descriptor that could not be sent: the region is announced the next time, unless it has gone meanwhile.
    #[test]
    fn what_could_not_be_told_is_not_gone_either() {
        let hub = MemoryGroup::forwarding(BufPool::builder());
        let (mut from, mut to) = (connection(), connection());
        from.shown.join(&hub).unwrap();
        to.shown.join(&hub).unwrap();
        let at = place(&to.shown, &from.message).unwrap().region;
        to.shown.tell(at).unwrap();
        to.shown.take_word_back(at);
        to.shown.tell(at).unwrap();
        from.shown.leave(hub.id());
        to.shown.take_word_back(at);
        assert!(to.shown.take_gone().is_none() && to.shown.tell(at).is_none());
    }

    /// One large message is passed on, unless its sender would get no more credit; of smaller ones half of the lease, within a
    /// share of the arena.
    #[test]
    fn what_is_forwarded_has_a_share() {
        let hub = MemoryGroup::forwarding(BufPool::builder());
        let (mut from, mut to) = (connection(), connection());
        (to.shown.lease_bytes, to.shown.spare_bytes) = (8000, from.message.kept_bytes() + 1);
        from.shown.join(&hub).unwrap();
        to.shown.join(&hub).unwrap();
        let first = place(&to.shown, &from.message).unwrap();
        to.shown.spare_bytes -= 1;
        assert!(place(&to.shown, &from.message).is_none());
        let lent = to.shown.lend(first, from.message.clone(), None).unwrap();
        assert!(place(&to.shown, &from.message).is_none());
        to.shown.lease_bytes = 20_000;
        assert!(place(&to.shown, &from.message).is_some());
        let mut small = connection();
        small.shown.opened = Arc::new(Opened::new(29_999));
        small.shown.join(&hub).unwrap();
        assert!(place(&to.shown, &from.message).is_none(), "of four shares of 29,999");
        let back =
            Return { slab: lent.slab, sent_back: 0, generation: lent.generation, block: lent.block as u16 };
        to.shown.take_back(back).unwrap();
        assert!(place(&to.shown, &from.message).is_some());
    }

    /// A group that was left may be over a moment later; that is looked at once, and not for ever.
    #[test]
    fn the_end_of_a_group_that_was_left_is_looked_at_once() {
        let mut one = connection().shown;
        one.chores.set_over();
        assert!(one.chores.any() && !one.look() && !one.chores.any());
    }

    /// Somebody is in the middle of telling that a region is gone.
    #[test]
    fn who_counts_what_is_gone_is_waited_for() {
        let hub = MemoryGroup::new(BufPool::builder());
        let mut one = connection().shown;
        one.join(&hub).unwrap();
        one.leave(hub.id());
        let teller = one.regions.clone().unwrap();
        assert!(one.look());
        one.rest();
        assert!(one.regions.is_some() && one.chores.any(), "it is looked at again");
        drop(teller);
        assert!(one.look());
        one.rest();
        assert!(one.regions.is_none() && !one.chores.any() && !one.look());
    }

    /// A connection that is in no group any more is no registrar either.
    #[test]
    fn groups_that_are_over_leave_nothing() {
        let hub = MemoryGroup::forwarding(BufPool::builder());
        let (mut from, mut to) = (connection(), connection());
        from.shown.join(&hub).unwrap();
        to.shown.join(&hub).unwrap();
        show(&mut to.shown, &from.message);
        drop(hub);
        for one in [&mut from, &mut to] {
            assert!(one.shown.chores.any(), "somebody is to look");
            one.shown.leave_over();
            while one.shown.take_gone().is_some() {}
            one.shown.rest();
            assert!(one.shown.regions.is_none());
        }
        // And everything is there again when it is asked for.
        let again = MemoryGroup::forwarding(BufPool::builder());
        from.shown.join(&again).unwrap();
        to.shown.join(&again).unwrap();
        show(&mut to.shown, &from.message);
    }
}
