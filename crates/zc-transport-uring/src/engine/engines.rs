//! Several engines for one runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use zc_core::memory::BufPool;
use zc_core::transport::{Reactor, Unavailable};

use super::{Engine, EngineOptions, EngineStats};
use crate::ladder::Flavour;
use crate::limits::{MAX_RINGS, THREADS_PER_RING};

/// Engines among which the sockets of a runtime with several threads are dealt out.
///
/// Each has a lock of its own, held by the worker that runs its task; with one alone workers meet there, and only one of
/// them at a time submits and reaps. Each also costs its receive buffers, a task, and four descriptors.
///
/// ```
/// use std::sync::Arc;
/// use zc_core::memory::BufPool;
/// use zc_transport_uring::{EngineOptions, Engines, Flavour};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let (reactor, pool) = (Arc::new(zc::TokioReactor::new()), BufPool::builder().build());
/// let options = EngineOptions::new(Flavour::ManyThreads);
/// match Engines::start(reactor, &pool, options, Engines::rings_for(8)) {
///     Ok(engines) => {
///         let (socket, _peer) = std::os::unix::net::UnixStream::pair()?;
///         let (_tx, _rx) = engines.pick().socket(socket.into())?;
///         assert_eq!(engines.stats().sockets, 1);
///         engines.shutdown().await;
///     }
///     Err(why) => println!("without io_uring: {why}"),
/// }
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Engines {
    all: Arc<[Engine]>,
    /// Where to begin to look, so that those that are even take turns.
    next: Arc<AtomicUsize>,
    why_fewer: Option<Unavailable>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("rings", &self.all.len()).finish_non_exhaustive()
    }
}

impl Engines {
    /// How many rings suit a runtime of so many worker threads: one for [`THREADS_PER_RING`] of them, at most [`MAX_RINGS`].
    pub fn rings_for(worker_threads: usize) -> usize {
        worker_threads.div_ceil(THREADS_PER_RING).clamp(1, MAX_RINGS)
    }

    /// Starts `rings` engines, all with these options; a single one for a runtime of one thread
    /// ([`Flavour::OneThread`]), and at most [`MAX_RINGS`]. Where there can't be as many, there are
    /// [fewer](Self::why_fewer).
    ///
    /// # Errors
    /// The typed reason why there is not even one.
    pub fn start(
        reactor: Arc<dyn Reactor>,
        pool: &BufPool,
        options: EngineOptions,
        rings: usize,
    ) -> Result<Self, Unavailable> {
        let rings = if options.flavour == Flavour::OneThread { 1 } else { rings.clamp(1, MAX_RINGS) };
        let mut all = vec![Engine::start(reactor.clone(), pool, options.clone())?];
        let mut why_fewer = None;
        while all.len() < rings {
            match Engine::start(reactor.clone(), pool, options.clone()) {
                Ok(engine) => all.push(engine),
                Err(why) => {
                    why_fewer = Some(why);
                    break;
                }
            }
        }
        Ok(Self { all: all.into(), next: Arc::default(), why_fewer })
    }

    /// The one for the next socket: that with the fewest; those that are even take turns. One that has ended is only taken
    /// if all have.
    pub fn pick(&self) -> &Engine {
        let begin = self.next.fetch_add(1, Relaxed) % self.all.len();
        let (before, from) = self.all.split_at(begin);
        let in_turn = from.iter().chain(before);
        in_turn.min_by_key(|engine| (engine.has_ended(), engine.sockets())).unwrap_or(&self.all[begin])
    }

    /// All of them.
    pub fn all(&self) -> &[Engine] {
        &self.all
    }

    /// Why there are fewer than were asked for.
    pub fn why_fewer(&self) -> Option<&Unavailable> {
        self.why_fewer.as_ref()
    }

    /// Figures of all together.
    pub fn stats(&self) -> EngineStats {
        self.all.iter().map(Engine::stats).fold(EngineStats::default(), EngineStats::plus)
    }

    /// Ends all of them, see [`Engine::shutdown`].
    pub async fn shutdown(&self) {
        futures::future::join_all(self.all.iter().map(Engine::shutdown)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_suit_the_threads() {
        assert_eq!([0, 1, 2, 3, 4, 8].map(Engines::rings_for), [1, 1, 1, 2, 2, 4]);
        assert_eq!(Engines::rings_for(usize::MAX), MAX_RINGS);
    }
}
