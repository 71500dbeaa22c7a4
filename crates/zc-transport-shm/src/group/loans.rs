//! Buffers of shown regions that the peer holds. One buffer may be out to many peers: each has a loan of its own.

use zc_core::memory::{GroupId, LentBytes, PinnedBuf, Region};
use zc_core::wire::WireError;

use super::Place;
use crate::layout::{Descriptor, Return, SHARED};
use crate::lie::lie;
use crate::limits::{MAX_SHARED_LOANS, MAX_SHARED_REGIONS};

/// A loan, by its number; the number is used again under another generation.
#[derive(Default)]
struct Loan {
    generation: u16,
    lent: Option<Lent>,
}

struct Lent {
    buf: PinnedBuf,
    /// The send whose report waits for it.
    token: Option<u64>,
    place: Place,
    /// The peer has left the group that it is of.
    left: bool,
}

/// What a peer may read after the lane is gone.
pub(crate) struct Left {
    _buf: PinnedBuf,
    _counted: Option<LentBytes>,
}

impl From<Lent> for Left {
    fn from(Lent { buf, place, .. }: Lent) -> Self {
        Self { _buf: buf, _counted: place.counted }
    }
}

impl Lent {
    fn is_of(&self, group: GroupId) -> bool {
        self.buf.region().and_then(Region::group) == Some(group)
    }
}

/// All loans of one direction.
pub(super) struct Loans {
    /// Grows to [`MAX_SHARED_LOANS`].
    all: Vec<Loan>,
    free: Vec<u16>,
    /// How many there are of each region.
    of_region: [u16; MAX_SHARED_REGIONS],
    /// Bytes of groups of our own that the peer is in.
    bytes: usize,
    /// Buffers of other members, and their bytes.
    forwarded: usize,
    forwarded_bytes: usize,
}

impl Default for Loans {
    fn default() -> Self {
        let of_region = [0; MAX_SHARED_REGIONS];
        Self { all: Vec::new(), free: Vec::new(), of_region, bytes: 0, forwarded: 0, forwarded_bytes: 0 }
    }
}

impl Loans {
    pub(super) fn count(&self) -> usize {
        self.all.len() - self.free.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn forwarded(&self) -> usize {
        self.forwarded
    }

    pub(super) fn forwarded_bytes(&self) -> usize {
        self.forwarded_bytes
    }

    pub(super) fn are_of(&self, region: u8) -> bool {
        self.of_region[usize::from(region)] > 0
    }

    /// Keeps a buffer until the peer gives it back (M1, M2). What names it to the peer; `None` when there are too
    /// many already.
    pub(super) fn lend(&mut self, place: Place, buf: PinnedBuf, token: Option<u64>) -> Option<Descriptor> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.all.len() < MAX_SHARED_LOANS as usize => {
                self.all.push(Loan::default());
                (self.all.len() - 1) as u16
            }
            None => return None,
        };
        let loan = &mut self.all[usize::from(at)];
        let name = Descriptor {
            slab: SHARED | place.region,
            generation: loan.generation,
            block: at.into(),
            offset: place.offset,
            len: buf.len() as u32,
        };
        if place.forwarded {
            self.forwarded += 1;
            self.forwarded_bytes += buf.kept_bytes();
        } else {
            self.bytes += buf.kept_bytes();
        }
        self.of_region[usize::from(place.region)] += 1;
        loan.lent = Some(Lent { buf, token, place, left: false });
        Some(name)
    }

    /// The peer gave a buffer back: checks that it had it (M6) and lets it go. The send that waits for it.
    pub(super) fn take_back(&mut self, back: Return) -> Result<Option<u64>, WireError> {
        let loan = self.all.get_mut(usize::from(back.block)).ok_or_else(|| lie("shm return: loan"))?;
        let same = |lent: &mut Lent| SHARED | lent.place.region == back.slab;
        if back.sent_back != 0 || loan.generation != back.generation || !loan.lent.as_mut().is_some_and(same)
        {
            return Err(lie("shm return: not lent"));
        }
        loan.generation = loan.generation.wrapping_add(1);
        let lent = loan.lent.take();
        self.free.push(back.block);
        let Some(Lent { buf, token, place, left }) = lent else { return Ok(None) };
        if place.forwarded {
            self.forwarded -= 1;
            self.forwarded_bytes -= buf.kept_bytes();
        } else if !left {
            self.bytes -= buf.kept_bytes();
        }
        self.of_region[usize::from(place.region)] -= 1;
        Ok(token)
    }

    /// The peer leaves a group: what it holds of that is no part of what it may hold of others.
    pub(super) fn leave(&mut self, group: GroupId) {
        for lent in self.all.iter_mut().filter_map(|loan| loan.lent.as_mut()) {
            if lent.is_of(group) && !std::mem::replace(&mut lent.left, true) {
                self.bytes -= lent.buf.kept_bytes();
            }
        }
    }

    /// The peer comes back to a group: what it still holds of that counts again.
    pub(super) fn come_back(&mut self, group: GroupId) {
        for lent in self.all.iter_mut().filter_map(|loan| loan.lent.as_mut()) {
            if lent.is_of(group) && std::mem::replace(&mut lent.left, false) {
                self.bytes += lent.buf.kept_bytes();
            }
        }
    }

    /// Everything that the peer holds. No loan is made or comes back after this.
    pub(super) fn end(&mut self) -> Vec<Left> {
        let all = std::mem::take(self).all;
        all.into_iter().filter_map(|loan| loan.lent).map(Left::from).collect()
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lend(loans: &mut Loans, region: u8, token: u64) -> Option<Descriptor> {
        let place = Place { region, offset: 4, forwarded: false, counted: None };
        loans.lend(place, PinnedBuf::from(vec![1; 10]), Some(token))
    }

    fn back(at: Descriptor) -> Return {
        Return { slab: at.slab, sent_back: 0, generation: at.generation, block: at.block as u16 }
    }

    #[test]
    fn each_comes_back_once_under_its_own_name() {
        let mut loans = Loans::default();
        let one = lend(&mut loans, 3, 7).unwrap();
        let other = lend(&mut loans, 3, 8).unwrap();
        assert_eq!((one.slab, one.offset, one.len), (SHARED | 3, 4, 10));
        assert_ne!(one.block, other.block);
        assert_eq!((loans.count(), loans.bytes(), loans.are_of(3)), (2, 20, true));
        for wrong in [
            Return { slab: SHARED | 4, ..back(one) },
            Return { slab: 3, ..back(one) },
            Return { generation: 9, ..back(one) },
            Return { sent_back: 1, ..back(one) },
            Return { block: 2, ..back(one) },
            Return { block: u16::MAX, ..back(one) },
        ] {
            assert!(loans.take_back(wrong).is_err());
        }
        assert_eq!(loans.take_back(back(one)).unwrap(), Some(7));
        assert!(loans.take_back(back(one)).is_err());
        let again = lend(&mut loans, 0, 9).unwrap();
        assert_eq!((again.block, again.generation), (one.block, one.generation + 1));
        assert!(loans.take_back(back(one)).is_err(), "of an earlier loan");
        assert_eq!(loans.take_back(back(other)).unwrap(), Some(8));
        assert!(!loans.are_of(3) && loans.are_of(0));
        assert_eq!(loans.end().len(), 1);
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let mut loans = Loans::default();
        let all: Vec<_> = (0..MAX_SHARED_LOANS).map(|n| lend(&mut loans, 1, n.into()).unwrap()).collect();
        assert!(lend(&mut loans, 1, 0).is_none());
        assert_eq!(loans.take_back(back(all[5])).unwrap(), Some(5));
        assert!(lend(&mut loans, 1, 0).is_some() && lend(&mut loans, 1, 0).is_none());
    }
}
