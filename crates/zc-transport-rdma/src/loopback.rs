//! An owner's way to its own memory through its own device, for a device whose atomics know nothing of processors.
//!
//! ```text
//! Export::fetch_add --> a queue pair --the device--> its other end --> the word      as all peers' operations
//! ```
//!
//! The two are in a protection domain of their own, so that no peer's queue pair can use the key; and have a completion queue of
//! their own, at which the caller looks until its operation is complete.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::{BufPool, ExportError, ExportMemory, PinnedBufMut, RegisterError, WordAtomics};

use crate::gid::GidEntry;
use crate::limits::{OWN_ATOMIC_MS, OWN_ATOMIC_PAUSE_MS};
use crate::verbs::{
    Completion, CompletionQueue, Context, ExportedMemory, Operation, Path, ProtectionDomain, QueuePair,
    QueuePairCaps, RemoteAccess, RemotePlace, VerbsError, Work,
};
use crate::wire::Psn;

/// One at a time, at either end.
const DEPTH: u32 = 2;
const ENTRIES: u32 = 2 * DEPTH;
const WORD_BYTES: usize = size_of::<u64>();
/// So often it looks before others on this processor have their turn.
const LOOKS: u32 = 256;
/// For one word.
const POOL_BYTES: usize = 1 << 20;

/// The way to one memory.
pub(crate) struct Loopback {
    device: Arc<Context>,
    local: GidEntry,
    way: Renewed<Way, ExportError>,
    exported: ExportedMemory,
    domain: Arc<ProtectionDomain>,
}

struct Way {
    begins: QueuePair,
    _serves: QueuePair,
    completions: Arc<CompletionQueue>,
    word: Option<PinnedBufMut>,
    found: Vec<Completion>,
}

impl std::fmt::Debug for Loopback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loopback").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoWay {
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    #[error("memory can't be registered: {0}")]
    Register(#[from] RegisterError),
    #[error("no memory: {0}")]
    Memory(#[from] zc_core::memory::AllocError),
    #[error("the system has no random numbers")]
    NoRandomness,
}

const ATOMICS: RemoteAccess = RemoteAccess { read: false, write: false, atomic: true };

impl Loopback {
    /// Connects two queue pairs at that address to each other.
    pub(crate) fn new(device: &Arc<Context>, local: GidEntry, memory: &ExportMemory) -> Result<Self, NoWay> {
        let domain = ProtectionDomain::new(device)?;
        let exported = ExportedMemory::register(&domain, memory, ATOMICS)?;
        let way = Renewed::new(Way::open(device, local, &domain)?);
        Ok(Self { device: device.clone(), local, way, exported, domain })
    }

    fn run(
        &self,
        offset: u64,
        operation: impl FnOnce(PinnedBufMut, RemotePlace) -> Operation,
    ) -> Result<u64, ExportError> {
        let open = || {
            Way::open(&self.device, self.local, &self.domain).map_err(|error| {
                tracing::debug!(%error, "no way to our own device");
                ExportError::Device { operation: "queue pairs to our own device" }
            })
        };
        // What a way that failed had under way is given back when it is taken down, and can't be done any more then.
        let work = |way: &mut Way| way.run(self.exported.place().at(offset), operation);
        self.way.run(Instant::now, open, work)
    }
}

/// Something for one user at a time, which is thrown away when it fails and made again, but not for [`OWN_ATOMIC_PAUSE_MS`]: each failure
/// takes its time, and users wait for each other.
struct Renewed<T, E>(Mutex<Tried<T, E>>);

struct Tried<T, E> {
    kept: Option<T>,
    /// How it went last, if not well, and when.
    failed: Option<(Instant, E)>,
}

impl<T, E: Copy + std::fmt::Display> Renewed<T, E> {
    fn new(first: T) -> Self {
        Self(Mutex::new(Tried { kept: Some(first), failed: None }))
    }

    fn run<R>(
        &self,
        clock: impl Fn() -> Instant,
        make: impl FnOnce() -> Result<T, E>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let tried = &mut *self.0.lock();
        if let Some((when, error)) = tried.failed
            && clock().saturating_duration_since(when) < Duration::from_millis(OWN_ATOMIC_PAUSE_MS)
        {
            return Err(error);
        }
        let done = tried.attempt(make, work);
        let failed = done.as_ref().err().map(|error| (clock(), *error));
        match (&tried.failed, &failed) {
            (None, Some((_, error))) => tracing::warn!(%error, "our own device does none of our atomics"),
            (Some(_), None) => tracing::info!("our own device does our atomics again"),
            _ => {}
        }
        tried.failed = failed;
        done
    }
}

impl<T, E> Tried<T, E> {
    fn attempt<R>(
        &mut self,
        make: impl FnOnce() -> Result<T, E>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let kept = match &mut self.kept {
            Some(kept) => kept,
            none => none.insert(make()?),
        };
        let done = work(kept);
        if done.is_err() {
            self.kept = None;
        }
        done
    }
}

impl Way {
    fn open(device: &Arc<Context>, local: GidEntry, domain: &Arc<ProtectionDomain>) -> Result<Self, NoWay> {
        let completions = CompletionQueue::new(device, ENTRIES)?;
        let caps = QueuePairCaps { depth: DEPTH, segments: 1, inline_bytes: 0 };
        let queue_pair = || QueuePair::one_sided(domain, &completions, caps);
        let (begins, serves) = (queue_pair()?, queue_pair()?);
        let psn = || getrandom::u32().map(Psn::new).map_err(|_| NoWay::NoRandomness);
        let (psn_of_begins, psn_of_serves) = (psn()?, psn()?);
        let mtu = device.port(local.port)?.mtu;
        let connect = |one: &QueuePair, psn, other: &QueuePair, other_psn, access| {
            one.init(local.port, access)?;
            let path = Path { local, gid: local.gid, number: other.number(), psn: other_psn, mtu, reads: 1 };
            one.receive(&path)?;
            one.send(psn, 1)
        };
        connect(&serves, psn_of_serves, &begins, psn_of_begins, ATOMICS)?;
        connect(&begins, psn_of_begins, &serves, psn_of_serves, RemoteAccess::default())?;
        let word = BufPool::builder().max_bytes(POOL_BYTES).build().try_alloc(WORD_BYTES)?;
        Ok(Self { begins, _serves: serves, completions, word: Some(word), found: Vec::new() })
    }

    fn run(
        &mut self,
        at: RemotePlace,
        operation: impl FnOnce(PinnedBufMut, RemotePlace) -> Operation,
    ) -> Result<u64, ExportError> {
        let failed = |operation| ExportError::Device { operation };
        let word = self.word.take().ok_or(failed("no word"))?;
        let work = Work::new(0, operation(word, at)).signalled();
        self.begins.prepare(&work).map_err(|_| failed("prepare"))?;
        let posted = self.begins.post(&mut VecDeque::from([work])).map_err(|_| failed("ibv_post_send"))?;
        if posted != 1 {
            return Err(failed("no room"));
        }
        let until = Instant::now() + Duration::from_millis(OWN_ATOMIC_MS);
        loop {
            for _ in 0..LOOKS {
                self.completions.poll(&mut self.found).map_err(|_| failed("ibv_poll_cq"))?;
                if let Some(done) = self.found.pop() {
                    return self.take(done).ok_or(failed("a work completion"));
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                return Err(failed("no completion in time"));
            }
            std::thread::yield_now();
        }
    }

    /// The word as it was.
    fn take(&mut self, done: Completion) -> Option<u64> {
        let Completion::Sent { work, result: Ok(()), .. } = done else { return None };
        let (Operation::CompareSwap { into, .. } | Operation::FetchAdd { into, .. }) = work.operation else {
            return None;
        };
        let seen = into.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        self.word = Some(into);
        seen
    }
}

impl WordAtomics for Loopback {
    fn device(&self) -> &str {
        self.device.name()
    }

    fn compare_swap(&self, offset: u64, expected: u64, new: u64) -> Result<u64, ExportError> {
        self.run(offset, |into, at| Operation::CompareSwap { into, at, compare: expected, swap: new })
    }

    fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, ExportError> {
        self.run(offset, |into, at| Operation::FetchAdd { into, at, add })
    }
}

#[cfg(test)]
#[allow(clippy::print_stdout, reason = "tests")]
mod tests {
    use zc_core::memory::Region;

    use super::*;
    use crate::gid::DeviceChoice;
    use crate::verbs::Device;

    /// One failure costs the operation that met it, those that come soon after, and no later one.
    #[test]
    fn what_failed_is_made_again_after_a_while() {
        const MADE_NO_SOONER: &str = "made too soon";
        let start = Instant::now();
        let at = |ms| move || start + Duration::from_millis(ms);
        let renewed = Renewed::new(1);
        let none = || -> Result<u32, &str> { Err(MADE_NO_SOONER) };
        assert_eq!(renewed.run(at(0), none, |of| Ok(*of)), Ok(1), "it is there");
        assert_eq!(renewed.run(at(1), none, |_| Err::<u32, _>("failed")), Err("failed"));
        assert_eq!(renewed.run(at(OWN_ATOMIC_PAUSE_MS), || Ok(2), |of| Ok(*of)), Err("failed"), "at once");
        assert_eq!(renewed.run(at(OWN_ATOMIC_PAUSE_MS + 1), || Err("none"), |of| Ok(*of)), Err("none"));
        // That was a failure as well.
        assert_eq!(renewed.run(at(2 * OWN_ATOMIC_PAUSE_MS), || Ok(2), |of| Ok(*of)), Err("none"));
        assert_eq!(renewed.run(at(2 * OWN_ATOMIC_PAUSE_MS + 1), || Ok(2), |of| Ok(*of)), Ok(2));
        assert_eq!(renewed.run(at(2 * OWN_ATOMIC_PAUSE_MS + 2), none, |of| Ok(*of)), Ok(2));
    }

    /// Of the test machine; elsewhere there is none to be had.
    fn on_the_machine() -> Option<Loopback> {
        if std::env::var_os("ZC_RDMA_MACHINE").is_none() {
            println!("not the test machine, so this tests nothing");
            return None;
        }
        let device = Device::all().unwrap()[0].open().unwrap();
        let gids = device.gids().unwrap().into_iter().map(|gid| ((), gid));
        let (_, local) = DeviceChoice::default().choose(gids).unwrap();
        let memory = ExportMemory::new(Region::builder(4096), 4096).unwrap();
        Some(Loopback::new(&device, local, &memory).unwrap())
    }

    #[test]
    fn a_way_that_has_failed_comes_up_again() {
        let Some(loopback) = on_the_machine() else { return };
        assert_eq!((loopback.fetch_add(8, 5), loopback.fetch_add(8, 1)), (Ok(0), Ok(5)));
        loopback.way.0.lock().kept.as_ref().unwrap().begins.fail().unwrap();
        let failed = loopback.fetch_add(8, 100);
        assert!(matches!(failed, Err(ExportError::Device { .. })), "{failed:?}");
        assert!(loopback.way.0.lock().kept.is_none());
        // A hang guard.
        let until = Instant::now() + Duration::from_secs(60);
        let done = loop {
            match loopback.compare_swap(8, 6, 7) {
                Err(again) if Instant::now() < until => assert_eq!(Err(again), failed),
                done => break done,
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        // By the second one, in the same domain and of the same registration; and the first has done nothing after it had failed.
        assert_eq!((done, loopback.fetch_add(8, 1)), (Ok(6), Ok(7)));
    }
}
