//! What is being opened, each by a thread of its own: whoever asked waits for it for a while, and what comes later is kept for the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Shared, poll_fn};
use parking_lot::{Condvar, Mutex};
use zc_core::transport::{Reactor, Unavailable};

use super::interface::{Key, other};
use crate::limits::{MAX_ENGINES, OPENING_HERE_MS, OPENING_MS, REFUSED_MS, TAKING_MS};

/// All of them, one for each interface.
pub(super) struct Openings<T>(Mutex<Vec<Arc<Opening<T>>>>);

/// One that is under way.
pub(super) struct Opening<T> {
    key: Key,
    /// Whose reasons not to open it these are.
    owner: usize,
    since: Instant,
    state: Mutex<State<T>>,
    changed: Condvar,
    done: Shared<oneshot::Receiver<()>>,
}

enum State<T> {
    UnderWay,
    Done(Result<T, Unavailable>),
    /// Somebody has taken it, or nobody wanted it.
    Over,
}

fn still_opening() -> Unavailable {
    other("interface_opening", "connect again: the interface takes long to be opened")
}

impl<T: Send + 'static> Openings<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The one of this interface, or a new one by `open`, whose thread may wait as long as it likes. What it opens and nobody takes for
    /// `stays_for` goes to `give_back`.
    pub(super) fn of(
        &'static self,
        key: &Key,
        owner: usize,
        stays_for: Duration,
        open: impl FnOnce() -> Result<T, Unavailable> + Send + 'static,
        give_back: impl FnOnce(&Key, T, &mut dyn FnMut()) + Send + 'static,
    ) -> Result<Arc<Opening<T>>, Unavailable> {
        let mut all = self.0.lock();
        if let Some(found) = all.iter().find(|one| one.key == *key) {
            return Ok(found.clone());
        }
        if all.len() >= MAX_ENGINES {
            return Err(still_opening());
        }
        let (say_done, done) = oneshot::channel();
        let opening = Arc::new(Opening {
            key: key.clone(),
            owner,
            since: Instant::now(),
            state: Mutex::new(State::UnderWay),
            changed: Condvar::new(),
            done: done.shared(),
        });
        let this = opening.clone();
        let work = move || {
            let panicked =
                |_| Err(other("interface_opening", "look at what the thread zc-xdp-open has said"));
            let opened = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(panicked);
            let stays_for = if opened.is_ok() { stays_for } else { Duration::from_millis(REFUSED_MS) };
            *this.state.lock() = State::Done(opened);
            this.changed.notify_all();
            let _ = say_done.send(());
            self.keep(&this, stays_for, give_back);
        };
        // It is in the namespace of this thread, too.
        let thread = std::thread::Builder::new().name("zc-xdp-open".to_owned());
        thread.spawn(work).map_err(|e| Unavailable::os("start a thread", &e))?;
        all.push(opening.clone());
        Ok(opening)
    }

    /// Until somebody takes it, or for so long, and not before who waited for it had his turn.
    fn keep(
        &self,
        opening: &Arc<Opening<T>>,
        stays_for: Duration,
        give_back: impl FnOnce(&Key, T, &mut dyn FnMut()),
    ) {
        let done = Instant::now();
        let mut state = opening.state.lock();
        while matches!(*state, State::Done(_)) {
            // The list of all has it, and this thread; who else has it waited for it, and is about to take it.
            let is_awaited =
                Arc::strong_count(opening) > 2 && done.elapsed() < Duration::from_millis(OPENING_MS);
            let left = stays_for.saturating_sub(done.elapsed());
            if left.is_zero() && !is_awaited {
                break;
            }
            let patience = if is_awaited { left.max(Duration::from_millis(TAKING_MS)) } else { left };
            opening.changed.wait_for(&mut state, patience);
        }
        let left = std::mem::replace(&mut *state, State::Over);
        // Who asks from then on begins another one.
        let mut state = Some(state);
        let mut remove = || {
            self.remove(opening);
            state = None;
        };
        match left {
            State::Done(Ok(opened)) => give_back(&opening.key, opened, &mut remove),
            _ => remove(),
        }
    }

    fn remove(&self, opening: &Arc<Opening<T>>) {
        self.0.lock().retain(|one| !Arc::ptr_eq(one, opening));
    }

    /// What it came to, handed to the first that asks; `None`: it is not done, or somebody else has it. Others wait meanwhile.
    pub(super) fn finish<R>(
        &self,
        opening: &Arc<Opening<T>>,
        owner: usize,
        begin: impl FnOnce(Result<T, Unavailable>) -> R,
    ) -> Option<R> {
        let mut state = opening.state.lock();
        if !matches!(*state, State::Done(_)) {
            return None;
        }
        let done = std::mem::replace(&mut *state, State::Over);
        let result = match done {
            // What another one was refused is worth a try.
            State::Done(Err(_)) if opening.owner != owner => None,
            State::Done(done) => Some(begin(done)),
            _ => None,
        };
        self.remove(opening);
        drop(state);
        opening.changed.notify_all();
        result
    }
}

impl<T> Opening<T> {
    /// Waits until it is done; not longer than [`OPENING_MS`] after it was begun.
    pub(super) async fn wait(&self, reactor: &Arc<dyn Reactor>) -> Result<(), Unavailable> {
        let mut timer = reactor.timer().map_err(|e| Unavailable::os("set a timer", &e))?;
        timer.reset(reactor.now() + Duration::from_millis(OPENING_MS).saturating_sub(self.since.elapsed()));
        let mut done = self.done.clone();
        poll_fn(|cx| {
            if done.poll_unpin(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            timer.poll_expired(cx).map(|()| Err(still_opening()))
        })
        .await
    }

    /// The same for a thread that may sleep, for up to [`OPENING_HERE_MS`].
    pub(super) fn wait_here(&self) -> Result<(), Unavailable> {
        let until = self.since + Duration::from_millis(OPENING_HERE_MS);
        let mut state = self.state.lock();
        while matches!(*state, State::UnderWay) {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Err(still_opening());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const STAYS: Duration = Duration::from_secs(60);
    const GUARD: Duration = Duration::from_secs(60);

    fn no_more(_: &Key, _: u32, remove: &mut dyn FnMut()) {
        remove();
    }

    fn after(go: Receiver<()>, what: Result<u32, Unavailable>) -> impl FnOnce() -> Result<u32, Unavailable> {
        move || {
            let _ = go.recv();
            what
        }
    }

    fn run<T>(what: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(GUARD, what).await.unwrap() })
    }

    /// Who waits for one gives up after a while, others are not kept waiting, and the next one gets what was opened.
    #[test]
    fn a_slow_one_keeps_nobody_waiting() {
        static ALL: Openings<u32> = Openings::new();
        run(async {
            let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
            let (slow, quick) = (Key::here("slow"), Key::here("quick"));
            let (go, gone) = channel();
            let begun = Instant::now();
            let opening = ALL.of(&slow, 1, STAYS, after(gone, Ok(5)), no_more).unwrap();
            assert_eq!(opening.wait(&reactor).await.unwrap_err().code(), "interface_opening");
            assert!(begun.elapsed() >= Duration::from_millis(OPENING_MS));
            let again = ALL.of(&slow, 1, STAYS, || Ok(6), no_more).unwrap();
            assert!(Arc::ptr_eq(&opening, &again), "it goes on");
            assert_eq!(ALL.finish(&again, 1, |_| ()), None, "and is not done");
            let other = ALL.of(&quick, 1, STAYS, || Ok(7), no_more).unwrap();
            other.wait(&reactor).await.unwrap();
            assert_eq!(ALL.finish(&other, 1, |opened| opened.unwrap()), Some(7));
            go.send(()).unwrap();
            opening.wait_here().unwrap();
            assert_eq!(ALL.finish(&again, 1, |opened| opened.unwrap()), Some(5), "it was kept");
            assert_eq!(ALL.finish(&opening, 1, |_| ()), None, "for one");
            assert!(ALL.0.lock().is_empty());
        });
    }

    #[test]
    fn what_nobody_takes_is_given_back() {
        static ALL: Openings<u32> = Openings::new();
        let (say, hear) = channel();
        let give_back = move |key: &Key, opened: u32, remove: &mut dyn FnMut()| {
            remove();
            say.send((key.clone(), opened)).unwrap();
        };
        let key = Key::here("unwanted");
        ALL.of(&key, 1, Duration::ZERO, || Ok(3), give_back).unwrap();
        assert_eq!(hear.recv_timeout(GUARD).unwrap(), (key, 3));
        assert!(ALL.0.lock().is_empty());
    }

    /// Else he would begin another one, over and over.
    #[test]
    fn who_waited_gets_it_where_nothing_stays() {
        static ALL: Openings<u32> = Openings::new();
        let key = Key::here("brief");
        let mut taken = 0;
        for _ in 0..20 {
            let opening = ALL.of(&key, 1, Duration::ZERO, || Ok(3), no_more).unwrap();
            opening.wait_here().unwrap();
            taken += u32::from(ALL.finish(&opening, 1, |_| ()).is_some());
        }
        // A thread may be kept from its processor for longer than anybody waits.
        assert!(taken >= 10, "{taken}");
    }

    /// The reasons of one who may not are no reasons for another.
    #[test]
    fn a_refusal_is_for_who_asked() {
        static ALL: Openings<u32> = Openings::new();
        let key = Key::here("refused");
        for owner in [1, 2] {
            let opening = ALL.of(&key, 1, STAYS, || Err(Unavailable::NoDevice), no_more).unwrap();
            opening.wait_here().unwrap();
            let refused = ALL.finish(&opening, owner, |opened| opened.unwrap_err());
            assert_eq!(refused, (owner == 1).then_some(Unavailable::NoDevice));
            assert!(ALL.0.lock().is_empty());
        }
        let panicked = ALL.of(&key, 1, STAYS, || panic!("on purpose"), no_more).unwrap();
        panicked.wait_here().unwrap();
        let code = ALL.finish(&panicked, 1, |opened| opened.unwrap_err().code());
        assert_eq!(code, Some("interface_opening"));
    }
}
