//! The budget of locked memory.

use super::sys;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The limit of locked memory would be exceeded.
///
/// ```
/// use zc_core::memory::MemlockBudget;
///
/// let error = MemlockBudget::new(64 << 10, 1 << 20).reserve(128 << 10).unwrap_err();
/// assert_eq!((error.need, error.soft, error.hard), (128 << 10, 64 << 10, 1 << 20));
/// ```
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
///
/// The kernel counts per user or per process, depending on who locks; counting all of it against one
/// limit is the safe side of either.
///
/// ```
/// use zc_core::memory::MemlockBudget;
///
/// let budget = MemlockBudget::new(64 << 10, 64 << 10);
/// let ring = budget.reserve(48 << 10)?;
/// assert_eq!(budget.reserve(32 << 10).unwrap_err().need, 32 << 10);
/// drop(ring);
/// assert_eq!(budget.used_bytes(), 0);
/// # Ok::<(), zc_core::memory::MemlockExceeded>(())
/// ```
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

    /// The process's budget: RLIMIT_MEMLOCK as it is at the first use, or no limit for a process
    /// that the kernel does not hold to it (CAP_IPC_LOCK).
    pub fn process() -> &'static Arc<Self> {
        static PROCESS: OnceLock<Arc<MemlockBudget>> = OnceLock::new();
        PROCESS.get_or_init(|| {
            let (soft, hard) = if sys::may_lock_anything() { (None, None) } else { sys::memlock_limits() };
            Self::new(soft.unwrap_or(u64::MAX), hard.unwrap_or(u64::MAX))
        })
    }

    /// The bytes reserved now.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The soft limit, which is the one that counts; `u64::MAX` is none.
    pub fn soft_bytes(&self) -> u64 {
        self.soft
    }

    /// The hard limit.
    pub fn hard_bytes(&self) -> u64 {
        self.hard
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
///
/// ```
/// use zc_core::memory::MemlockBudget;
///
/// let budget = MemlockBudget::new(64 << 10, 64 << 10);
/// let grant = budget.reserve(4096)?;
/// assert_eq!(budget.used_bytes(), 4096);
/// drop(grant);
/// assert_eq!(budget.used_bytes(), 0);
/// # Ok::<(), zc_core::memory::MemlockExceeded>(())
/// ```
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

    #[test]
    fn memlock_is_bounded() {
        let b = MemlockBudget::new(100, 200);
        let g = b.reserve(60).unwrap();
        let e = b.reserve(41).unwrap_err();
        assert_eq!((e.need, e.soft, e.hard), (41, 100, 200));
        drop(g);
        assert_eq!(b.used_bytes(), 0);
    }

    #[test]
    fn several_who_lock_share_one_limit() {
        let b = MemlockBudget::new(1000, 1000);
        let granted: usize = std::thread::scope(|s| {
            let lock = || (0..100).filter_map(|_| b.reserve(7).ok()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| s.spawn(lock)).collect();
            let grants: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
            assert_eq!(b.used_bytes(), grants.len() as u64 * 7);
            grants.len()
        });
        assert_eq!(granted, 1000 / 7);
        assert_eq!(b.used_bytes(), 0);
    }
}
