//! Which engines there are: for each runtime, and each pool of memory that it receives into.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use zc_core::memory::{BufPool, Deferral};
use zc_core::transport::{Reactor, Unavailable};

use crate::engine::{Engine, EngineStats, Kept, Tenant};
use crate::limits::MAX_MOVED_RUNTIMES;

/// Those of one transport.
#[derive(Default)]
pub(crate) struct Homes(Mutex<Vec<Home>>);

struct Home {
    /// As long as this is here no other one has its address.
    reactor: Weak<dyn Reactor>,
    runtime: u64,
    engines: Weak<Kept>,
    moved: Arc<AtomicBool>,
}

impl std::fmt::Debug for Homes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Homes").finish_non_exhaustive()
    }
}

impl Home {
    fn is_of(&self, reactor: &Arc<dyn Reactor>, runtime: u64) -> bool {
        std::ptr::addr_eq(self.reactor.as_ptr(), Arc::as_ptr(reactor)) && self.runtime == runtime
    }

    /// No engine is left, but it is known how the runtime behaves.
    fn is_memory(&self) -> bool {
        self.engines.strong_count() == 0
    }

    fn is_of_use(&self) -> bool {
        !self.is_memory() || (self.moved.load(Relaxed) && self.reactor.strong_count() > 0)
    }
}

/// What is known of a runtime.
pub(crate) struct Found {
    /// Engines that work.
    pub(crate) tenant: Option<Tenant>,
    /// Set once it has gone on in another thread.
    pub(crate) moved: Arc<AtomicBool>,
}

impl Homes {
    /// The engines for a connection.
    pub(crate) fn find(&self, reactor: &Arc<dyn Reactor>, pool: &BufPool) -> Found {
        // Let go of without the lock, perhaps as the last one.
        let (mut seen, mut moved) = (Vec::new(), None);
        let runtime = reactor.runtime();
        let homes = self.0.lock();
        for home in homes.iter().filter(|home| home.is_of(reactor, runtime)) {
            moved.get_or_insert_with(|| home.moved.clone());
            seen.extend(home.engines.upgrade());
        }
        drop(homes);
        let tenant = seen.iter().filter(|kept| kept.is_of(pool)).find_map(Kept::enter);
        Found { tenant, moved: moved.unwrap_or_default() }
    }

    /// Keeps engines in mind that were begun for a connection, unless somebody was faster: then his are used.
    pub(crate) fn settle(
        &self,
        reactor: &Arc<dyn Reactor>,
        pool: &BufPool,
        tenant: Tenant,
        moved: Arc<AtomicBool>,
    ) -> Tenant {
        let _deferral = Deferral::begin();
        let mut seen = Vec::new();
        let runtime = reactor.runtime();
        let mut homes = self.0.lock();
        for home in homes.iter().filter(|home| home.is_of(reactor, runtime)) {
            seen.extend(home.engines.upgrade());
        }
        let faster = seen.iter().filter(|kept| kept.is_of(pool)).find_map(Kept::enter);
        if let Some(faster) = faster {
            drop(homes);
            tenant.forsake();
            return faster;
        }
        homes.retain(Home::is_of_use);
        if homes.iter().filter(|home| home.is_memory()).count() > MAX_MOVED_RUNTIMES
            && let Some(oldest) = homes.iter().position(Home::is_memory)
        {
            homes.remove(oldest);
        }
        let reactor = Arc::downgrade(reactor);
        homes.push(Home { reactor, runtime, engines: tenant.kept(), moved });
        tenant
    }

    fn all(&self) -> Vec<Arc<Kept>> {
        self.0.lock().iter().filter_map(|home| home.engines.upgrade()).collect()
    }

    /// The best that became of zero-copy receive.
    pub(crate) fn zero_copy_receive(&self) -> Option<Result<(), Unavailable>> {
        let all = self.all();
        let engines = all.iter().flat_map(|kept| kept.engines().all());
        engines.filter_map(Engine::zero_copy_receive).min_by_key(Result::is_err)
    }

    /// Figures of all engines.
    pub(crate) fn stats(&self) -> EngineStats {
        let all = self.all();
        all.iter().map(|kept| kept.engines().stats()).fold(EngineStats::default(), EngineStats::plus)
    }
}
