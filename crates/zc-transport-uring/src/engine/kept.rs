//! Engines that lanes come to and go from.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use zc_core::memory::{BufPool, Deferral};
use zc_core::transport::{Reactor, Timer};

use super::parked::Parked;
use super::{End, Engine, Engines};

/// The engines of a runtime, as long as a lane uses one of them and a while longer: to set them up for each of several short
/// connections in a row would take longer than these do.
///
/// ```text
/// first lane -> used --last lane--> idle --so long--> over
///                 ^-----next lane----+
/// ```
pub(crate) struct Kept {
    engines: Engines,
    pool: BufPool,
    tenants: Mutex<Tenants>,
    /// That the runtime went on in another thread, for who asks when these are gone.
    moved: Arc<AtomicBool>,
    /// They run in a thread of their own, whichever uses them.
    stays: bool,
}

#[derive(Default)]
struct Tenants {
    count: usize,
    /// How often the last one left.
    left: u64,
    /// Nobody may enter any more.
    over: bool,
    keeper: Parked,
}

/// A lane that uses the engines.
pub(crate) struct Tenant(Arc<Kept>);

impl Deref for Tenant {
    type Target = Engines;

    fn deref(&self) -> &Engines {
        &self.0.engines
    }
}

impl Kept {
    /// For the first lane. Nobody keeps them behind the last one with an `idle` of zero, or where the reactor can't wait.
    pub(crate) fn start(
        engines: Engines,
        pool: BufPool,
        reactor: &Arc<dyn Reactor>,
        idle: Duration,
        moved: Arc<AtomicBool>,
        stays: bool,
    ) -> Tenant {
        let tenants = Mutex::new(Tenants { count: 1, ..Tenants::default() });
        let kept = Arc::new(Self { engines, pool, tenants, moved, stays });
        if !idle.is_zero()
            && let Ok(timer) = reactor.timer()
        {
            let keeper = Keeper { kept: kept.clone(), reactor: reactor.clone(), timer, idle, since: None };
            if let Ok(task) = reactor.spawn(Box::pin(keeper)) {
                task.detach();
            }
        }
        Tenant(kept)
    }

    /// For another lane; `None`: they have ended, or are about to.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Tenant> {
        if self.engines.all().iter().all(Engine::has_ended) {
            self.note_end();
            return None;
        }
        let _deferral = Deferral::begin();
        let mut tenants = self.tenants.lock();
        if tenants.over {
            return None;
        }
        // With nobody there a ring of another thread breaks no connection yet: the next one gets one that it can use.
        if tenants.count == 0 && !self.stays && self.engines.all().iter().any(Engine::is_elsewhere) {
            self.moved.store(true, Relaxed);
            tenants.end();
            return None;
        }
        tenants.count += 1;
        Some(Tenant(self.clone()))
    }

    pub(crate) fn engines(&self) -> &Engines {
        &self.engines
    }

    pub(crate) fn is_of(&self, pool: &BufPool) -> bool {
        self.pool.is_same(pool)
    }

    fn note_end(&self) {
        if self.engines.all().iter().any(|engine| engine.end() == Some(End::Moved)) {
            self.moved.store(true, Relaxed);
        }
    }
}

impl Tenants {
    fn end(&mut self) {
        self.over = true;
        self.keeper.wake();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.note_end();
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _deferral = Deferral::begin();
        let mut tenants = self.0.tenants.lock();
        tenants.count -= 1;
        if tenants.count == 0 {
            tenants.left += 1;
            tenants.keeper.wake();
        }
    }
}

impl Tenant {
    pub(crate) fn kept(&self) -> Weak<Kept> {
        Arc::downgrade(&self.0)
    }

    /// Others are used instead: nobody will look for these.
    pub(crate) fn forsake(self) {
        let _deferral = Deferral::begin();
        self.0.tenants.lock().end();
    }
}

/// Keeps them while nobody uses them.
struct Keeper {
    kept: Arc<Kept>,
    reactor: Arc<dyn Reactor>,
    timer: Box<dyn Timer>,
    idle: Duration,
    /// The last lane that left, after which the time runs.
    since: Option<u64>,
}

impl Future for Keeper {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let _deferral = Deferral::begin();
        loop {
            let left = {
                let mut tenants = this.kept.tenants.lock();
                tenants.keeper.park(cx);
                if tenants.over {
                    return Poll::Ready(());
                }
                if tenants.count > 0 {
                    this.since = None;
                    return Poll::Pending;
                }
                tenants.left
            };
            if this.since.replace(left) != Some(left) {
                this.timer.reset(this.reactor.now() + this.idle);
            }
            ready!(this.timer.poll_expired(cx));
            let mut tenants = this.kept.tenants.lock();
            if tenants.count == 0 && tenants.left == left {
                tenants.over = true;
                return Poll::Ready(());
            }
        }
    }
}
