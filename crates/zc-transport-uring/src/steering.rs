//! Which connections come by the queue of a NIC that fills an area: a rule for each, as long as it is received from.
//!
//! A rule is made and removed by the driver, under a lock that the whole network shares; that takes milliseconds, so a thread
//! of its own does it. Until a rule is in force the kernel copies to where it belongs what comes in another way.
//!
//! ```text
//! socket --Begin--> (at most MAX_STEERING wait) --> the thread: a rule --dropped, End--> the thread: none
//! ```

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use zc_core::transport::Unavailable;

use crate::limits::MAX_STEERING;
use crate::sys::{Flow, Rule};
use crate::zcrx::{ZcrxOptions, ZcrxSource};
use crate::zero_copy::PeerPlace;

/// What the thread is to do, for a number that stands for a connection.
enum Ask {
    Begin(u64, Flow, Weak<()>),
    End(u64),
}

/// What both sides know.
#[derive(Default)]
struct Shared {
    /// Rules that were asked for and not begun.
    waiting: AtomicUsize,
    /// Why the last one that is not in force is not.
    why_not: Mutex<Option<Unavailable>>,
}

/// Where connections are sent to, one by one. The thread ends when this is gone and so are all rules.
pub(crate) struct Steering {
    asks: Sender<Ask>,
    next: AtomicU64,
    shared: Arc<Shared>,
}

/// A connection comes by the queue, soon, if the NIC can do that; until this is dropped.
pub(crate) struct Steered {
    asks: Sender<Ask>,
    number: u64,
    /// Gone with this: then no rule need be made any more.
    _wanted: Arc<()>,
}

impl Steering {
    /// `None`: nobody asked for it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn of(options: &ZcrxOptions) -> Result<Option<Self>, Unavailable> {
        match &options.source {
            ZcrxSource::Queue { interface, queue } if options.steers => {
                Self::to(interface.clone(), *queue).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn to(interface: String, queue: u32) -> Result<Self, Unavailable> {
        let (asks, asked) = channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("zc-uring-steer".into());
        let serve = move || serve(&asked, &theirs, &interface, queue);
        thread.spawn(serve).map_err(|error| Unavailable::os("spawning a thread", &error))?;
        Ok(Self { asks, next: AtomicU64::new(0), shared })
    }

    /// Has what comes for a socket come by the queue. What comes from this host passes no NIC.
    pub(crate) fn steer(&self, socket: &OwnedFd) -> Option<Steered> {
        if PeerPlace::of(socket) == PeerPlace::ThisHost {
            return None;
        }
        self.steer_flow(Flow::of(socket)?)
    }

    fn steer_flow(&self, flow: Flow) -> Option<Steered> {
        if self.shared.waiting.fetch_add(1, Relaxed) >= MAX_STEERING {
            self.shared.waiting.fetch_sub(1, Relaxed);
            let remedy = "the NIC makes rules more slowly than connections come".to_owned();
            self.shared.note(Unavailable::Other { code: "rules_wait", remedy });
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        let wanted = Arc::new(());
        self.asks.send(Ask::Begin(number, flow, Arc::downgrade(&wanted))).ok()?;
        Some(Steered { asks: self.asks.clone(), number, _wanted: wanted })
    }

    pub(crate) fn why_not(&self) -> Option<Unavailable> {
        self.shared.why_not.lock().clone()
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        // Of those that wait or are in force each ends once, so these are bounded as well (M9).
        let _ = self.asks.send(Ask::End(self.number));
    }
}

impl Shared {
    fn note(&self, why: Unavailable) {
        *self.why_not.lock() = Some(why);
    }
}

/// Until nobody asks any more.
fn serve(asked: &Receiver<Ask>, shared: &Shared, interface: &str, queue: u32) {
    let mut rules = HashMap::new();
    for ask in asked {
        match ask {
            Ask::Begin(number, flow, wanted) => {
                shared.waiting.fetch_sub(1, Relaxed);
                if wanted.strong_count() == 0 {
                    continue;
                }
                match Rule::new(interface, queue, flow) {
                    Ok(rule) => drop(rules.insert(number, rule)),
                    Err(error) => shared.note(match error.raw_os_error() {
                        Some(libc::EOPNOTSUPP) => Unavailable::Other {
                            code: "no_flow_rules",
                            remedy: format!(
                                "`ethtool -K {interface} ntuple on`, if the driver has such rules"
                            ),
                        },
                        _ => Unavailable::os("ETHTOOL_SRXCLSRLINS", &error),
                    }),
                }
            }
            Ask::End(number) => drop(rules.remove(&number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn flow() -> Flow {
        Flow { peer: "10.1.2.3:1".parse().unwrap(), here: "10.1.2.4:2".parse().unwrap() }
    }

    fn wait_until(mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_refusal_is_told() {
        let steering = Steering::to("lo".into(), 0).unwrap();
        assert!(steering.why_not().is_none());
        let steered = steering.steer_flow(flow()).unwrap();
        wait_until(|| steering.why_not().is_some());
        // Without the right to it the kernel does not come to the driver.
        let code = steering.why_not().unwrap().code();
        assert!(["no_flow_rules", "os"].contains(&code), "{code}");
        let shared = Arc::downgrade(&steering.shared);
        drop(steering);
        assert!(shared.upgrade().is_some(), "the thread has a rule to see to");
        drop(steered);
        wait_until(|| shared.upgrade().is_none());
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let (asks, asked) = channel();
        let steering = Steering { asks, next: AtomicU64::new(0), shared: Arc::default() };
        let steered: Vec<_> = (0..=MAX_STEERING).map(|_| steering.steer_flow(flow())).collect();
        assert_eq!(steered.iter().flatten().count(), MAX_STEERING);
        assert_eq!(steering.why_not().unwrap().code(), "rules_wait");
        let shared = steering.shared.clone();
        drop((steering, steered));
        serve(&asked, &shared, "lo", 0);
        assert_eq!(shared.waiting.load(Relaxed), 0);
    }
}
