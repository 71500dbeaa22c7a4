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

/// By the number of the session. What peers have chosen another transport for is forgotten after a while, by a task that runs as
/// long as there are any: engines, and interfaces, are not kept for them.
#[derive(Default)]
pub(super) struct Pending(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// The task's.
    waker: AtomicWaker,
}

#[derive(Default)]
struct Waiting {
    offers: HashMap<u32, Offered>,
    /// The task runs.
    is_swept: bool,
    /// There is no transport any more.
    is_closed: bool,
}

impl Waiting {
    /// Takes out what is too old; when the next one is.
    fn forget(&mut self, now: Instant) -> (Vec<Offered>, Option<Instant>) {
        let age = Duration::from_millis(OFFERED_MS);
        let is_old = |offered: &Offered| now.saturating_duration_since(offered.at) >= age;
        let old = self.offers.extract_if(|_, offered| is_old(offered)).map(|(_, offered)| offered).collect();
        (old, self.offers.values().map(|offered| offered.at + age).min())
    }
}

impl Pending {
    pub(super) fn has(&self, session: u32) -> bool {
        self.0.waiting.lock().offers.contains_key(&session)
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
        let mut waiting = self.0.waiting.lock();
        let Waiting { offers, is_swept, .. } = &mut *waiting;
        // Engines that go with it go without the lock: they may take a while.
        let mut gone = None;
        if offers.len() >= MAX_OFFERED
            && let Some(oldest) = offers.iter().min_by_key(|(_, offered)| offered.at).map(|(id, _)| *id)
        {
            gone = offers.remove(&oldest);
        }
        offers.insert(session, Offered { engine, way, options, at: reactor.now() });
        let is_swept = std::mem::replace(is_swept, true);
        drop(waiting);
        drop(gone);
        if is_swept {
            return Ok(());
        }
        self.begin(reactor).inspect_err(|_| {
            // Nobody hears of it, so nobody takes it back.
            let mut waiting = self.0.waiting.lock();
            waiting.is_swept = false;
            let unheard_of = waiting.offers.remove(&session);
            drop(waiting);
            drop(unheard_of);
        })
    }

    fn begin(&self, reactor: &Arc<dyn Reactor>) -> Result<(), Unavailable> {
        let timer = reactor.timer().map_err(|e| Unavailable::os("set a timer", &e))?;
        let sweeper = Sweeper { shared: Arc::downgrade(&self.0), timer, reactor: reactor.clone() };
        reactor.spawn(Box::pin(sweeper)).map_err(|e| Unavailable::os("start a task", &e))?.detach();
        Ok(())
    }

    pub(super) fn take(&self, session: u32) -> Option<Offered> {
        let mut waiting = self.0.waiting.lock();
        let offered = waiting.offers.remove(&session);
        let is_last = waiting.offers.is_empty();
        drop(waiting);
        if is_last {
            self.0.waker.wake();
        }
        offered
    }
}

impl Pending {
    /// Forgets what this offer stands for.
    pub(super) fn withdraw(&self, offer: &Offer) {
        if let Ok(endpoint) = Endpoint::decode(offer.version, &offer.bytes) {
            drop(self.take(endpoint.offer.session()));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.waiting.lock().is_closed = true;
        self.0.waker.wake();
    }
}

/// Forgets what nobody has joined.
struct Sweeper {
    shared: Weak<Shared>,
    timer: Box<dyn Timer>,
    reactor: Arc<dyn Reactor>,
}

impl Future for Sweeper {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some(shared) = this.shared.upgrade() else { return Poll::Ready(()) };
        shared.waker.register(cx.waker());
        loop {
            let mut waiting = shared.waiting.lock();
            let (old, next) = waiting.forget(this.reactor.now());
            let next = next.filter(|_| !waiting.is_closed);
            // Whoever offers from here on begins another one.
            waiting.is_swept = next.is_some();
            drop(waiting);
            drop(old);
            let Some(next) = next else {
                this.shared = Weak::new();
                return Poll::Ready(());
            };
            this.timer.reset(next);
            if this.timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        // Its runtime has ended, perhaps: the next offer begins one on its own.
        if let Some(shared) = self.shared.upgrade() {
            shared.waiting.lock().is_swept = false;
        }
    }
}
