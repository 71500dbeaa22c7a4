//! Parts of blocks that many share, counted for who keeps them.

use super::block::{SharedBlock, Table};
use super::{LeaseBudget, PinnedBuf};
use std::sync::Arc;

/// Counts what one connection keeps of blocks that it shares with others against its own lease.
///
/// A block has one lease, so memory into which a device puts what comes for many connections has none. A holder lends the
/// parts that are for its connection once more: the whole block counts, for a small part keeps all of it, until the last
/// of them is dropped. Parts that are lent in a row out of one block count it once; after a [rest](Self::rest) it counts once
/// more, if some are still kept. What another holder lent counts here instead. It allocates nothing as long as what was lent is
/// dropped before the next block comes, and once for each block that is kept longer.
///
/// ```
/// use zc_core::memory::{BufPool, Holder, LeaseBudget};
///
/// let mut shared = BufPool::builder().build().try_alloc(4096)?;
/// shared.put_slice(b"for one and for another");
/// let shared = shared.freeze();
/// let (one, another) = (LeaseBudget::new(1 << 20, 1 << 20), LeaseBudget::new(1 << 20, 1 << 20));
/// let mut holder = Holder::new(one.clone());
/// let (part, next) = (holder.hold(shared.slice(..7)), holder.hold(shared.slice(8..11)));
/// let other = Holder::new(another.clone()).hold(shared.slice(12..));
/// assert_eq!((one.outstanding_bytes(), another.outstanding_bytes()), (4096, 4096));
/// holder.rest();
/// drop((part, next));
/// assert_eq!((one.outstanding_bytes(), &other[..]), (0, &b"for another"[..]));
/// # Ok::<(), zc_core::memory::AllocError>(())
/// ```
#[derive(Debug)]
pub struct Holder {
    lease: Arc<LeaseBudget>,
    /// The block out of which was lent last.
    last: Option<PinnedBuf>,
    /// Idle, unless somebody keeps what was lent with it.
    spare: Option<Spare>,
}

struct Spare(Arc<Table>);

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spare")
    }
}

impl Holder {
    /// One that counts against `lease`.
    pub fn new(lease: Arc<LeaseBudget>) -> Self {
        Self { lease, last: None, spare: None }
    }

    /// The same bytes, counted. Nobody can write them through what comes back
    /// ([`try_into_mut`](PinnedBuf::try_into_mut)).
    pub fn hold(&mut self, part: PinnedBuf) -> PinnedBuf {
        let Some(block) = part.block() else { return part };
        if let Some(last) = &self.last
            && let Some(held) = last.block().filter(|held| held.covers_the_same(block))
        {
            return part.kept_by(held.clone());
        }
        let held = self.take_for(block.clone());
        let lent = part.kept_by(held.clone());
        self.last = Some(lent.clone());
        lent
    }

    fn take_for(&mut self, block: SharedBlock) -> SharedBlock {
        // What was lent last may be all that keeps the spare one.
        self.last = None;
        let spare = self.spare.take().map_or_else(Table::standing, |spare| spare.0);
        let (table, taken) = match spare.take_for(block.clone()) {
            Some(taken) => (spare, Some(taken)),
            None => {
                let new = Table::standing();
                let taken = new.take_for(block.clone());
                (new, taken)
            }
        };
        self.spare = Some(Spare(table));
        match taken {
            Some(mut taken) => {
                taken.attach_lease(self.lease.clone());
                taken.share()
            }
            // Unreachable: the block of a new table is idle.
            None => block,
        }
    }

    /// Nothing is to be lent for a while: keeps no memory.
    #[inline]
    pub fn rest(&mut self) {
        self.last = None;
    }
}

impl PinnedBuf {
    /// What this [keeps](Self::kept_bytes) besides what `other` does: nothing if they are parts of one block.
    #[inline]
    pub fn kept_bytes_beside(&self, other: &PinnedBuf) -> usize {
        match (self.block(), other.block()) {
            (Some(own), Some(other)) if own.covers_the_same(other) => 0,
            _ => self.kept_bytes(),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use crate::memory::BufPool;

    #[test]
    fn a_block_counts_as_a_whole_and_once_and_goes_back_to_its_pool() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let lease = LeaseBudget::new(1 << 20, 1 << 20);
        let mut holder = Holder::new(lease.clone());
        let shared = |fill: u8| {
            let mut buf = pool.try_alloc(4096).unwrap();
            buf.put_slice(&[fill; 4096]);
            buf.freeze()
        };
        for fill in 0..10 {
            let block = shared(fill);
            let parts: Vec<_> = (0..10).map(|n| holder.hold(block.slice(n..n + 2))).collect();
            assert_eq!((lease.outstanding_bytes(), parts[0].kept_bytes()), (4096, 4096));
            assert_eq!(parts[3].region().unwrap().id(), block.region().unwrap().id());
            assert!(parts.iter().all(|part| part[..] == [fill; 2]));
            drop(block);
            let part = parts.into_iter().next_back().unwrap();
            let part = part.try_into_mut().unwrap_err();
            holder.rest();
            assert_eq!(lease.outstanding_bytes(), 4096);
            std::thread::spawn(move || drop(part)).join().unwrap();
            assert_eq!((lease.outstanding_bytes(), pool.stats().in_use_bytes), (0, 0));
        }
        // Parts of several blocks that are kept at the same time.
        let kept: Vec<_> = (0..5).map(|fill| holder.hold(shared(fill).slice(..1))).collect();
        assert_eq!(lease.outstanding_bytes(), 5 * 4096);
        assert!(kept.iter().enumerate().all(|(n, part)| part[0] == n as u8));
        drop((kept, holder));
        assert_eq!((lease.outstanding_bytes(), pool.stats().in_use_bytes), (0, 0));
        // Through however many hands: what is kept is the block itself, and who has it last counts it.
        let lease = [(); 2].map(|()| LeaseBudget::new(1 << 20, 1 << 20));
        let [mut one, mut other] = [0, 1].map(|n| Holder::new(lease[n].clone()));
        let mut part = shared(1).slice(..1);
        for _ in 0..100_000 {
            one.rest();
            part = one.hold(part);
            other.rest();
            part = other.hold(part);
        }
        one.rest();
        other.rest();
        assert_eq!([0, 1].map(|n| lease[n].outstanding_bytes()), [0, 4096]);
        drop(part);
        assert_eq!(pool.stats().in_use_bytes, 0);
        // What lies in no block keeps nothing.
        let mut holder = Holder::new(lease[0].clone());
        assert_eq!((holder.hold(PinnedBuf::from_static(b"x"))[0], lease[0].outstanding_bytes()), (b'x', 0));
    }
}
