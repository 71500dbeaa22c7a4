//! The engines that are open.

use std::sync::{Arc, Weak};

use zc_core::transport::{OfferContext, Reactor, Unavailable};

use crate::engine::Engine;
use crate::limits::MAX_ENGINES;

/// The runtime that an engine's task runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Home(usize, u64);

impl Home {
    pub(super) fn of(cx: &OfferContext) -> Self {
        Self::at(&cx.reactor)
    }

    pub(super) fn at(reactor: &Arc<dyn Reactor>) -> Self {
        // One that has no number of its own is told by its reactor.
        match reactor.runtime() {
            0 => Self(Arc::as_ptr(reactor).cast::<()>().addr(), 0),
            runtime => Self(0, runtime),
        }
    }
}

struct Known<K, T> {
    home: Home,
    key: K,
    /// For as long as anybody uses it.
    engine: Weak<Engine>,
    about: T,
}

/// Engines of several runtimes, by what tells them apart there.
pub(super) struct Registry<K, T>(Vec<Known<K, T>>);

impl<K: PartialEq, T: Clone> Registry<K, T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// The engine that there is. Others are not touched: who held one for a moment might be the last, and end it under the lock of all.
    pub(super) fn find(&mut self, home: Home, key: &K) -> Option<(Arc<Engine>, T)> {
        self.0.retain(|known| known.engine.strong_count() > 0);
        let at = self.0.iter().position(|known| known.home == home && known.key == *key)?;
        match self.0[at].engine.upgrade() {
            Some(engine) if engine.works() => Some((engine, self.0[at].about.clone())),
            _ => {
                self.0.swap_remove(at);
                None
            }
        }
    }

    /// Whether there is room for another one.
    pub(super) fn check_room(&self) -> Result<(), Unavailable> {
        if self.0.len() < MAX_ENGINES {
            return Ok(());
        }
        let remedy = format!("use at most {MAX_ENGINES} addresses or interfaces");
        Err(Unavailable::Other { code: "too_many_engines", remedy })
    }

    pub(super) fn add(&mut self, home: Home, key: K, engine: &Arc<Engine>, about: T) {
        self.0.push(Known { home, key, engine: Arc::downgrade(engine), about });
    }

    /// The engine that there is, or a new one.
    pub(super) fn engine(
        &mut self,
        home: Home,
        key: K,
        open: impl FnOnce() -> Result<(Arc<Engine>, T), Unavailable>,
    ) -> Result<(Arc<Engine>, T), Unavailable> {
        if let Some(found) = self.find(home, &key) {
            return Ok(found);
        }
        self.check_room()?;
        let (engine, about) = open()?;
        self.add(home, key, &engine, about.clone());
        Ok((engine, about))
    }
}
