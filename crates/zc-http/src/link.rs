//! What the handles and the driver of one connection share.
//!
//! One lock holds the protocol's state and the wakers of those who wait for it. Nobody is woken, and
//! no user code runs, while it is held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::task::AtomicWaker;
use http::request;
use parking_lot::Mutex;
use smallvec::SmallVec;
use zc::memory::CopyLedger;

use crate::error::{Error, ErrorKind, Executed};
use crate::proto::{Code, Endpoint, Event, Key, Limits, OpenError, Role};

/// Calls that wait until the peer takes one more.
pub(crate) const MAX_WAITING: usize = 65_536;

pub(crate) type Wakers = SmallVec<[Waker; 8]>;
/// Calls that came in.
pub(crate) type Requests = Vec<(Key, Box<request::Parts>)>;

#[derive(Default)]
struct CallWakers {
    id: u32,
    tx: Option<Waker>,
    rx: Option<Waker>,
}

/// Which half of a call waits.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    Tx,
    Rx,
}

pub(crate) struct State {
    pub(crate) endpoint: Endpoint,
    wakers: Vec<CallWakers>,
    /// Who waits to open a call, in order.
    waiting: VecDeque<(u64, Waker)>,
    tickets: u64,
    /// Who waits for the connection to be ready or answered.
    watchers: Vec<Waker>,
    pub(crate) ready: bool,
    /// The highest answer to a ping, and the last ping.
    pub(crate) pong: u64,
    pub(crate) pinged: u64,
    /// Why the connection ended.
    pub(crate) cause: Option<ErrorKind>,
    /// The driver runs and looks again before it sleeps.
    pub(crate) driver_runs: bool,
    requests: Requests,
}

pub(crate) struct Link {
    state: Mutex<State>,
    pub(crate) driver: AtomicWaker,
    pub(crate) ledger: CopyLedger,
    pub(crate) connection: Mutex<Option<zc::Connection>>,
}

impl Link {
    pub(crate) fn new(role: Role, limits: Limits, connection: zc::Connection) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                endpoint: Endpoint::new(role, limits),
                wakers: Vec::new(),
                waiting: VecDeque::new(),
                tickets: 0,
                watchers: Vec::new(),
                ready: false,
                pong: 0,
                pinged: 0,
                cause: None,
                driver_runs: false,
                requests: Vec::new(),
            }),
            driver: AtomicWaker::new(),
            ledger: CopyLedger::new(),
            connection: Mutex::new(Some(connection)),
        })
    }

    /// Does something with the state, then wakes whom it concerns.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        let result = f(&mut state);
        state.collect(&mut wakers);
        let driver = state.endpoint.has_output() && !std::mem::replace(&mut state.driver_runs, true);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if driver {
            self.driver.wake();
        }
        result
    }

    /// As [`Link::with`], for the driver; gives out the calls that came in.
    pub(crate) fn with_requests<R>(&self, requests: &mut Requests, f: impl FnOnce(&mut State) -> R) -> R {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        let result = f(&mut state);
        state.collect(&mut wakers);
        requests.append(&mut state.requests);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// Ends the connection for everyone; the first reason stays.
    pub(crate) fn fail(&self, cause: ErrorKind) {
        self.with(|state| {
            state.cause.get_or_insert(cause);
            state.endpoint.fail();
        });
    }

    /// Whether new calls need another connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().endpoint.takes_no_calls()
    }

    pub(crate) fn go_away(&self, code: Code, reason: &str) {
        self.with(|state| state.endpoint.go_away(code, reason));
        // Even without output: the driver may be done.
        self.driver.wake();
    }

    /// Opens a call as soon as the peer takes one more; who came first goes first.
    pub(crate) fn poll_open(
        &self,
        cx: &Context<'_>,
        ticket: &mut Option<u64>,
        parts: &mut Option<request::Parts>,
    ) -> Poll<Result<Key, Refusal>> {
        self.with(|state| {
            let first = state.waiting.front().map(|(ticket, _)| *ticket);
            let may_go = first.is_none() || first == *ticket || state.endpoint.takes_no_calls();
            if !may_go {
                return state.wait_to_open(cx, ticket);
            }
            let opened = state.endpoint.open(parts);
            if opened == Err(OpenError::Busy) {
                return state.wait_to_open(cx, ticket);
            }
            state.leave_queue(ticket);
            Poll::Ready(opened.map_err(|error| match error {
                OpenError::TooLarge => Refusal::Final(ErrorKind::HeadersTooLarge),
                _ => Refusal::Closed(state.cause.clone().unwrap_or(ErrorKind::NotTaken)),
            }))
        })
    }

    pub(crate) fn leave_queue(&self, ticket: &mut Option<u64>) {
        if ticket.is_some() {
            self.with(|state| state.leave_queue(ticket));
        }
    }
}

/// Why a call was not opened. Nothing of it was sent.
pub(crate) enum Refusal {
    /// Another connection may take it.
    Closed(ErrorKind),
    /// None will.
    Final(ErrorKind),
}

impl Refusal {
    pub(crate) fn into_error(self) -> Error {
        let (Self::Closed(kind) | Self::Final(kind)) = self;
        Error::new(kind, Executed::No)
    }
}

impl State {
    /// Remembers who to wake when something happens to a half of a call.
    pub(crate) fn wait(&mut self, key: Key, half: Half, cx: &Context<'_>) {
        let slot = key.slot as usize;
        if self.wakers.len() <= slot {
            self.wakers.resize_with(slot + 1, CallWakers::default);
        }
        let wakers = &mut self.wakers[slot];
        if wakers.id != key.id {
            *wakers = CallWakers { id: key.id, ..CallWakers::default() };
        }
        let waker = match half {
            Half::Tx => &mut wakers.tx,
            Half::Rx => &mut wakers.rx,
        };
        match waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Remembers who waits for the connection.
    pub(crate) fn watch(&mut self, cx: &Context<'_>) {
        if !self.watchers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.watchers.push(cx.waker().clone());
        }
    }

    fn wait_to_open(&mut self, cx: &Context<'_>, ticket: &mut Option<u64>) -> Poll<Result<Key, Refusal>> {
        if let Some(ticket) = *ticket
            && let Ok(at) = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
        {
            self.waiting[at].1.clone_from(cx.waker());
            return Poll::Pending;
        }
        if self.waiting.len() >= MAX_WAITING {
            return Poll::Ready(Err(Refusal::Final(ErrorKind::QueueFull)));
        }
        self.tickets += 1;
        self.waiting.push_back((self.tickets, cx.waker().clone()));
        *ticket = Some(self.tickets);
        Poll::Pending
    }

    fn leave_queue(&mut self, ticket: &mut Option<u64>) {
        if let Some(ticket) = ticket.take()
            && let Ok(at) = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
        {
            self.waiting.remove(at);
            // Its turn passes on.
            self.endpoint.events.push_back(Event::Room);
        }
    }

    /// Turns events into wakers.
    fn collect(&mut self, wakers: &mut Wakers) {
        while let Some(event) = self.endpoint.events.pop_front() {
            match event {
                Event::Request(key, parts) => self.requests.push((key, parts)),
                Event::Readable(key) => wakers.extend(self.of(key).and_then(|w| w.rx.take())),
                Event::Writable(key) => wakers.extend(self.of(key).and_then(|w| w.tx.take())),
                Event::Ended(key) => {
                    if let Some(of) = self.of(key) {
                        wakers.extend(of.rx.take().into_iter().chain(of.tx.take()));
                    }
                }
                Event::Room if self.endpoint.takes_no_calls() => {
                    wakers.extend(self.waiting.iter().map(|(_, waker)| waker.clone()));
                    wakers.extend(self.watchers.drain(..));
                }
                Event::Room => wakers.extend(self.waiting.front().map(|(_, waker)| waker.clone())),
                Event::Ready => {
                    self.ready = true;
                    wakers.extend(self.watchers.drain(..));
                    wakers.extend(self.waiting.front().map(|(_, waker)| waker.clone()));
                }
                Event::Pong(nonce) => {
                    self.pong = self.pong.max(nonce.min(self.pinged));
                    wakers.extend(self.watchers.drain(..));
                }
                Event::GoingAway { code, reason } => {
                    tracing::debug!(%code, reason, "the peer goes away");
                }
            }
        }
    }

    fn of(&mut self, key: Key) -> Option<&mut CallWakers> {
        self.wakers.get_mut(key.slot as usize).filter(|wakers| wakers.id == key.id)
    }
}
