//! Offers that wait for the peer's, with what was opened for them.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use zc_core::transport::{Offer, Reactor, Timer, Unavailable};

use super::interface::Face;
use super::offer::Endpoint;
use super::registry::Home;
use crate::engine::Engine;
use crate::limits::{MAX_OFFERED, OFFERED_MS};
use crate::protocol::SessionOptions;

/// How packets go.
pub(super) enum Way {
    Kernel,
    Device { face: Arc<Face>, next_hop: [u8; 6], queue: usize },
}

/// What an offer stands for.
pub(super) struct Offered {
    pub(super) engine: Arc<Engine>,
    pub(super) way: Way,
    pub(super) options: SessionOptions,
    at: Instant,
}

/// By the number of the session. What peers have chosen another transport for is forgotten after a while, by a task on the runtime that it
/// was offered from, which runs as long as there are any: engines, and interfaces, are not kept for them.
#[derive(Default)]
pub(super) struct Pending(Arc<Shared>);

#[derive(Default)]
struct Shared(Mutex<Vec<Place>>);

/// What was offered from one runtime. It is there as long as its task.
struct Place {
    home: Home,
    offers: HashMap<u32, Offered>,
    /// The task's.
    waker: Arc<AtomicWaker>,
}

impl Place {
    /// Takes out what is too old; when the next one is.
    fn forget(&mut self, now: Instant) -> (Vec<Offered>, Option<Instant>) {
        let age = Duration::from_millis(OFFERED_MS);
        let is_old = |offered: &Offered| now.saturating_duration_since(offered.at) >= age;
        let old = self.offers.extract_if(|_, offered| is_old(offered)).map(|(_, offered)| offered).collect();
        (old, self.offers.values().map(|offered| offered.at + age).min())
    }
}

/// The number of the oldest, where there are too many.
fn beyond(places: &[Place]) -> Option<u32> {
    if places.iter().map(|place| place.offers.len()).sum::<usize>() < MAX_OFFERED {
        return None;
    }
    let all = places.iter().flat_map(|place| &place.offers);
    all.min_by_key(|(_, offered)| offered.at).map(|(session, _)| *session)
}

impl Shared {
    fn take(&self, session: u32) -> Option<Offered> {
        let mut places = self.0.lock();
        let (offered, place) =
            places.iter_mut().find_map(|place| Some((place.offers.remove(&session)?, place)))?;
        let waker = place.offers.is_empty().then(|| place.waker.clone());
        drop(places);
        // Its task has nothing to do any more.
        waker.inspect(|waker| waker.wake());
        Some(offered)
    }
}

impl Pending {
    pub(super) fn has(&self, session: u32) -> bool {
        self.0.0.lock().iter().any(|place| place.offers.contains_key(&session))
    }

    /// Keeps one for a while; the oldest goes when there are too many.
    pub(super) fn keep(
        &self,
        session: u32,
        engine: Arc<Engine>,
        way: Way,
        options: SessionOptions,
        reactor: &Arc<dyn Reactor>,
    ) -> Result<(), Unavailable> {
        let home = Home::at(reactor);
        let offered = Offered { engine, way, options, at: reactor.now() };
        // Dropped behind the lock: engines that go with it may take a while.
        let _gone;
        let mut places = self.0.0.lock();
        _gone = beyond(&places)
            .and_then(|oldest| places.iter_mut().find_map(|place| place.offers.remove(&oldest)));
        if let Some(place) = places.iter_mut().find(|place| place.home == home) {
            place.offers.insert(session, offered);
            return Ok(());
        }
        let waker = Arc::<AtomicWaker>::default();
        places.push(Place { home, offers: HashMap::from([(session, offered)]), waker: waker.clone() });
        drop(places);
        let swept = Swept { shared: Arc::downgrade(&self.0), home };
        let timer = reactor.timer().map_err(|e| Unavailable::os("set a timer", &e))?;
        let sweeper = Sweeper { swept, waker, timer, reactor: reactor.clone() };
        reactor.spawn(Box::pin(sweeper)).map_err(|e| Unavailable::os("start a task", &e))?.detach();
        Ok(())
    }

    pub(super) fn take(&self, session: u32) -> Option<Offered> {
        self.0.take(session)
    }

    /// Forgets what this offer stands for.
    pub(super) fn withdraw(&self, offer: &Offer) {
        if let Ok(endpoint) = Endpoint::decode(offer.version, &offer.bytes) {
            drop(self.take(endpoint.offer.session()));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let places = std::mem::take(&mut *self.0.0.lock());
        places.iter().for_each(|place| place.waker.wake());
    }
}

/// A place that somebody sweeps. With this it goes: who offers after that begins another one. What is left in it is nobody's: no task of
/// its runtime runs any more, or none could be begun.
struct Swept {
    shared: Weak<Shared>,
    home: Home,
}

impl Swept {
    /// Forgets what is too old. When to come again; `None`: not at all.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        let shared = self.shared.upgrade()?;
        let mut places = shared.0.lock();
        let at = places.iter().position(|place| place.home == self.home)?;
        let (old, next) = places[at].forget(now);
        if next.is_none() {
            places.swap_remove(at);
            self.shared = Weak::new();
        }
        drop(places);
        drop(old);
        next
    }
}

impl Drop for Swept {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut places = shared.0.lock();
        let at = places.iter().position(|place| place.home == self.home);
        let left = at.map(|at| places.swap_remove(at));
        drop(places);
        drop(left);
    }
}

/// Forgets what nobody has joined.
struct Sweeper {
    swept: Swept,
    waker: Arc<AtomicWaker>,
    timer: Box<dyn Timer>,
    reactor: Arc<dyn Reactor>,
}

impl Future for Sweeper {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.waker.register(cx.waker());
        while let Some(next) = this.swept.sweep(this.reactor.now()) {
            this.timer.reset(next);
            if this.timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}
