//! An engine moves the packets of all sessions of one local address.
//!
//! Its task receives, looks after timers, and goes on with what found no room. In between, whoever has something to send
//! sends it, and whoever spins for a message receives for everybody ([`Engine::look`]).
//!
//! ```text
//! port --datagram--> Intake: which session? --> Conn: handle, then settle once for all that came
//!                                                 |
//!   lane: send, recv, release --> settle ---------+--> pump: packets to the port
//!                                                 +--> timers, and who can go on is woken
//! ```
//!
//! Locks: the port's for receiving, then one session's, then the table's, the timers' or the port's for sending. Wakers are called
//! when none is held ([`Deferral`]).

mod conn;
mod driver;
mod headers;
mod looks;
mod port;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use zc_core::memory::{Deferral, PinnedBufMut};
use zc_core::transport::{LaneError, Reactor, Unavailable};

pub(crate) use conn::{Conn, State};
pub(crate) use headers::{Headers, MAX_HEADER_BYTES, udp_payload};
use looks::Looks;
pub(crate) use port::{Datagram, Destination, Port, Sink};

use crate::limits::{MAX_LOOKS, MAX_SESSIONS};
use crate::protocol::{GRANULARITY, Session, Transmit, session_of};

/// The sessions of one local address.
pub(crate) struct Engine {
    port: Box<dyn Port>,
    reactor: Arc<dyn Reactor>,
    table: Mutex<Table>,
    /// When to look after which session.
    timers: Mutex<BTreeSet<(Instant, u32)>>,
    /// Those that wait for room at the port.
    blocked: Mutex<Vec<Arc<Conn>>>,
    /// Memory for packets on their way to the port.
    spare: Mutex<Vec<Transmit>>,
    /// The task's.
    waker: AtomicWaker,
    /// Of those who spin.
    looks: Looks,
}

#[derive(Default)]
struct Table {
    conns: HashMap<u32, Arc<Conn>>,
    /// The task runs.
    runs: bool,
    failed: Option<LaneError>,
}

impl Engine {
    pub(crate) fn new(port: Box<dyn Port>, reactor: Arc<dyn Reactor>) -> Arc<Self> {
        let (table, timers, blocked, spare, waker) = Default::default();
        Arc::new(Self { port, reactor, table, timers, blocked, spare, waker, looks: Looks::default() })
    }

    pub(crate) fn now(&self) -> Instant {
        self.reactor.now()
    }

    /// Whether it can be used, as far as is known.
    pub(crate) fn works(&self) -> bool {
        self.table.lock().failed.is_none()
    }

    pub(crate) fn has(&self, id: u32) -> bool {
        self.table.lock().conns.contains_key(&id)
    }

    /// Takes a session up; its packets carry `id`.
    pub(crate) fn join(
        self: &Arc<Self>,
        id: u32,
        session: Session,
        to: Destination,
    ) -> Result<Arc<Conn>, Unavailable> {
        let other = |code, remedy: String| Unavailable::Other { code, remedy };
        let mut table = self.table.lock();
        if let Some(error) = &table.failed {
            return Err(other("engine", error.to_string()));
        }
        if table.conns.len() >= MAX_SESSIONS || table.conns.contains_key(&id) {
            return Err(other("sessions", format!("at most {MAX_SESSIONS} sessions have one address")));
        }
        let runs = std::mem::replace(&mut table.runs, true);
        let conn = Arc::new(Conn::new(id, session, to));
        table.conns.insert(id, conn.clone());
        drop(table);
        if !runs {
            // Without the lock: a task that is refused is dropped at once, and then tells all sessions.
            self.begin().inspect_err(|why| self.fail(&LaneError::Other(why.to_string())))?;
        }
        Ok(conn)
    }

    /// Begins its task, which keeps it for a while: those who come and go must not open and close it each time.
    pub(crate) fn stay(self: &Arc<Self>) -> Result<(), Unavailable> {
        let runs = std::mem::replace(&mut self.table.lock().runs, true);
        if runs { Ok(()) } else { self.begin() }
    }

    fn begin(self: &Arc<Self>) -> Result<(), Unavailable> {
        let task = driver::Driver::new(self.clone()).map_err(|e| Unavailable::os("set a timer", &e))?;
        let task = self.reactor.spawn(Box::pin(task)).map_err(|e| Unavailable::os("start a task", &e))?;
        task.detach();
        Ok(())
    }

    /// Memory that is sent as it is, if there is any of that length.
    pub(crate) fn alloc(&self, len: usize) -> Option<PinnedBufMut> {
        self.port.alloc(len)
    }

    /// Receives some of what has come, for all sessions, if nobody else does; most of it is for `conn`. Whether anything came. The task
    /// leaves what comes to who often looks so.
    #[inline]
    pub(crate) fn look(&self, conn: &Arc<Conn>) -> bool {
        self.looks.begin();
        let found = self.glance(conn);
        self.looks.end();
        found
    }

    /// The same by one on whom the task does not rely.
    pub(crate) fn glance(&self, conn: &Arc<Conn>) -> bool {
        self.receive(false, Some(conn))
    }

    /// Whoever looked now waits to be woken: so the task takes over.
    pub(crate) fn rest(&self) {
        if self.looks.rest() {
            self.wake();
        }
    }

    /// Receives all that has come by now.
    pub(crate) fn look_at_all(&self) {
        let _ = (0..MAX_LOOKS).find(|_| !self.receive(true, None));
    }

    fn receive(&self, patient: bool, looks: Option<&Arc<Conn>>) -> bool {
        let _deferral = Deferral::begin();
        let mut intake = Intake::new(self, looks);
        let received = self.port.receive(patient, &mut |datagram| intake.take(datagram));
        intake.settle();
        received.unwrap_or_else(|_| {
            // The task is to find the same error.
            self.rest();
            false
        })
    }

    /// After something was done to a session: sends what may be sent, sees to its timer, and wakes whoever can go on.
    pub(crate) fn settle(&self, conn: &Arc<Conn>, state: &mut State, now: Instant) {
        if self.settle_in_task(conn, state, now) {
            self.wake();
        }
    }

    /// The same for the engine's task, which goes on by itself with what this tells: that there is something at the port to
    /// try again, for which it sets a timer.
    fn settle_in_task(&self, conn: &Arc<Conn>, state: &mut State, now: Instant) -> bool {
        let finds_no_room = self.pump(state, now) && !state.blocked;
        if finds_no_room {
            state.blocked = true;
            self.blocked.lock().push(conn.clone());
        }
        self.see_to(conn, state, now);
        finds_no_room || self.port.again_in(false).is_some()
    }

    fn see_to(&self, conn: &Arc<Conn>, state: &mut State, now: Instant) {
        conn.wake(state.follow());
        if state.is_over() {
            self.table.lock().conns.remove(&conn.id);
            state.due.take().map(|at| self.timers.lock().remove(&(at, conn.id)));
            return self.wake();
        }
        // What could not be done now is not tried again at once.
        let soonest = now + GRANULARITY;
        if state.due.is_some_and(|due| due <= soonest) {
            return;
        }
        let next = state.session.poll_timeout().map(|next| next.max(soonest));
        // One that is too early costs a look; moving it each time costs more.
        let Some(next) = next.filter(|next| state.due.is_none_or(|due| *next < due)) else { return };
        let mut timers = self.timers.lock();
        state.due.map(|due| timers.remove(&(due, conn.id)));
        let is_first = timers.first().is_none_or(|(first, _)| next < *first);
        timers.insert((next, conn.id));
        state.due = Some(next);
        drop(timers);
        if is_first {
            self.wake();
        }
    }

    /// Sends what may be sent, by way of memory that all sessions share. True: there is no room at the port.
    fn pump(&self, state: &mut State, now: Instant) -> bool {
        if state.is_quiet(now) {
            return false;
        }
        state.borrow(std::mem::take(&mut *self.spare.lock()));
        let is_blocked = state.pump(&*self.port, now);
        let packets = state.give_back();
        let mut spare = self.spare.lock();
        if spare.len() < packets.len() {
            *spare = packets;
        }
        is_blocked
    }

    /// The lane of this session is gone.
    pub(crate) fn detach(&self, conn: &Arc<Conn>) {
        let _deferral = Deferral::begin();
        let now = self.now();
        let mut state = conn.state.lock();
        state.detach(now);
        self.settle(conn, &mut state, now);
    }

    /// Looks after those whose time has come; when the next one's does.
    fn run_timers(&self, now: Instant) -> Option<Instant> {
        loop {
            let mut timers = self.timers.lock();
            let (at, id) = *timers.first()?;
            if at > now {
                return Some(at);
            }
            timers.pop_first();
            drop(timers);
            let Some(conn) = self.table.lock().conns.get(&id).cloned() else { continue };
            let mut state = conn.state.lock();
            // Another one may have been set meanwhile.
            if state.due == Some(at) {
                state.due = None;
            }
            state.session.handle_timeout(now);
            self.settle_in_task(&conn, &mut state, now);
            drop(state);
        }
    }

    /// Goes on with those that found no room, until there is none again.
    fn unblock(&self, now: Instant) -> io::Result<usize> {
        loop {
            let Some(conn) = self.blocked.lock().pop() else { return Ok(0) };
            let mut state = conn.state.lock();
            state.blocked = false;
            self.settle_in_task(&conn, &mut state, now);
            if state.blocked {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Nothing goes any more.
    fn fail(&self, error: &LaneError) {
        let mut table = self.table.lock();
        table.failed.get_or_insert_with(|| error.clone());
        let conns: Vec<_> = table.conns.drain().map(|(_, conn)| conn).collect();
        drop(table);
        self.blocked.lock().clear();
        for conn in conns {
            let mut state = conn.state.lock();
            state.cut_off(error.clone());
            conn.wake(state.follow());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            Deferral::wake(waker);
        }
    }
}

/// Hands what comes to the sessions, and settles each once.
struct Intake<'a> {
    engine: &'a Engine,
    /// When the first of them came; nobody asks for the time while nothing comes.
    now: Option<Instant>,
    /// Whose lane looks.
    looks: Option<&'a Arc<Conn>>,
    touched: SmallVec<[Arc<Conn>; 8]>,
}

impl<'a> Intake<'a> {
    fn new(engine: &'a Engine, looks: Option<&'a Arc<Conn>>) -> Self {
        Self { engine, now: None, looks, touched: SmallVec::new() }
    }

    fn take(&mut self, datagram: Datagram<'_>) {
        let id = match &datagram {
            Datagram::Lent(bytes) => session_of(bytes),
            Datagram::Shown(bytes) => session_of(bytes),
        };
        let Some(id) = id else { return };
        let now = *self.now.get_or_insert_with(|| self.engine.now());
        // The last one first: packets of one sender come together.
        let known = self.touched.iter().rev().find(|conn| conn.id == id);
        let conn = match known {
            Some(conn) => conn,
            None => {
                let looks = self.looks.filter(|conn| conn.id == id);
                let find = || self.engine.table.lock().conns.get(&id).cloned();
                let Some(conn) = looks.cloned().or_else(find) else { return };
                if self.touched.len() == self.touched.inline_size() {
                    self.settle();
                }
                self.touched.push(conn);
                &self.touched[self.touched.len() - 1]
            }
        };
        conn.state.lock().handle(now, datagram);
    }

    fn settle(&mut self) {
        let Some(now) = self.now else { return };
        for conn in self.touched.drain(..) {
            self.engine.settle(&conn, &mut conn.state.lock(), now);
        }
    }
}
