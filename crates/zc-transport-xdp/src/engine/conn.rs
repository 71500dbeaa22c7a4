//! One session of an engine, and who waits for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use zc_core::memory::Deferral;
use zc_core::transport::{FrameKind, LaneError};
use zc_core::wire::{CloseCode, WireError, frame_credit_bytes};

use super::port::{Datagram, Destination, Port};
use crate::limits::BATCH_PACKETS;
use crate::protocol::{End, Event, Session, Transmit};

/// A session, and the two halves of a lane that may wait for it.
pub(crate) struct Conn {
    pub(crate) id: u32,
    pub(crate) state: Mutex<State>,
    pub(crate) rx: AtomicWaker,
    pub(crate) tx: AtomicWaker,
    pub(crate) drive: AtomicWaker,
    /// There may be something for the receiving half; so that who spins need not lock the session to see that there is nothing.
    has_news: AtomicBool,
}

impl Conn {
    pub(super) fn new(id: u32, session: Session, to: Destination) -> Self {
        let state = State {
            session,
            to,
            batch: Batch::default(),
            due: None,
            waits: Waits::default(),
            withheld: Withheld::default(),
            end: None,
            finished: false,
            ignores: false,
            detached: false,
            is_cut_off: false,
            blocked: false,
        };
        let (rx, tx, drive) = Default::default();
        Self { id, state: Mutex::new(state), rx, tx, drive, has_news: AtomicBool::new(true) }
    }

    /// Whether the receiving half may find something.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Acquire)
    }

    /// It found nothing. The session is locked, so nothing comes in between.
    #[inline]
    pub(crate) fn no_news(&self) {
        self.has_news.store(false, Ordering::Relaxed);
    }

    /// Has those called who can go on, as soon as no lock is held.
    pub(super) fn wake(&self, wake: Wake) {
        if wake.rx {
            self.has_news.store(true, Ordering::Release);
        }
        let due = [(wake.rx, &self.rx), (wake.tx, &self.tx)];
        due.into_iter()
            .filter(|(due, _)| *due)
            .filter_map(|(_, waker)| waker.take())
            .for_each(Deferral::wake);
    }
}

/// What the sending half waits for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Waits {
    /// Room for a message of so many bytes.
    pub(crate) room: Option<usize>,
    pub(crate) flush: bool,
    pub(crate) completion: bool,
    pub(crate) close: bool,
}

/// Which halves can go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wake {
    rx: bool,
    tx: bool,
}

/// What the application took and the peer is not told of, since it holds too much.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    cost_bytes: u64,
    messages: u64,
}

/// Packets that are on their way to the port.
#[derive(Default)]
struct Batch {
    packets: Vec<Transmit>,
    filled: usize,
    sent: usize,
}

pub(crate) struct State {
    pub(crate) session: Session,
    to: Destination,
    batch: Batch,
    /// When the engine looks after it.
    pub(super) due: Option<Instant>,
    pub(crate) waits: Waits,
    withheld: Withheld,
    /// How it ended, unless in order.
    end: Option<LaneError>,
    /// The peer has all that was sent, and knows that it was the last.
    finished: bool,
    /// Nobody reads any more: what comes is thrown away.
    pub(crate) ignores: bool,
    /// There is no lane any more.
    detached: bool,
    /// There is no engine any more: whoever still looks hands it nothing, since its timers run no more.
    is_cut_off: bool,
    /// It is among those that wait for room.
    pub(super) blocked: bool,
}

impl State {
    /// Takes a datagram of this session.
    pub(super) fn handle(&mut self, now: Instant, datagram: Datagram<'_>) {
        if self.is_cut_off {
            return;
        }
        // Counted by the session, and what ends it comes as an event.
        let _ = match datagram {
            Datagram::Lent(datagram) => self.session.handle(now, datagram),
            Datagram::Shown(bytes) => self.session.handle_shown(now, bytes),
        };
    }

    /// Takes memory for packets, unless it has some with packets in it.
    pub(super) fn borrow(&mut self, packets: Vec<Transmit>) {
        if self.batch.filled == 0 {
            self.batch.packets = packets;
        }
    }

    /// Gives it back, once no packet is in it.
    pub(super) fn give_back(&mut self) -> Vec<Transmit> {
        if self.batch.filled == 0 { std::mem::take(&mut self.batch.packets) } else { Vec::new() }
    }

    /// Nothing would be sent now.
    pub(super) fn is_quiet(&mut self, now: Instant) -> bool {
        self.batch.filled == 0 && self.session.is_quiet(now)
    }

    /// Sends what may be sent. True: there is no room at the port.
    pub(super) fn pump(&mut self, port: &dyn Port, now: Instant) -> bool {
        loop {
            let Batch { packets, filled, sent } = &mut self.batch;
            while *sent < *filled {
                match port.send(&self.to, &packets[*sent..*filled]) {
                    Ok(n) => {
                        // What was acknowledged must not be kept by packets that are long out.
                        packets[*sent..*sent + n].iter_mut().for_each(Transmit::clear);
                        *sent += n;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(error) => {
                        self.fail(LaneError::os("send", &error));
                        return false;
                    }
                }
            }
            (*sent, *filled) = (0, 0);
            while *filled < BATCH_PACKETS {
                if packets.len() == *filled {
                    packets.push(Transmit::default());
                }
                if !self.session.poll_transmit(now, &mut packets[*filled]) {
                    packets[*filled].clear();
                    break;
                }
                *filled += 1;
            }
            if *filled == 0 {
                return false;
            }
        }
    }

    /// Notes what happened, and who can go on.
    pub(super) fn follow(&mut self) -> Wake {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Finished | Event::Ended(End::Finished) => self.finished = true,
                Event::Ended(end) => _ = self.end.get_or_insert_with(|| lane_error(end)),
            }
        }
        if self.ignores || self.detached {
            while self.session.recv().is_some() {}
        }
        let ended = self.end.is_some();
        let Waits { room, flush, completion, close } = self.waits;
        let room = || room.is_some_and(|len| self.session.may_send(FrameKind::Data, len) != Ok(false));
        let tx = ended
            || room()
            || (flush && self.is_flushed())
            || (completion && self.session.has_completion())
            || (close && self.finished);
        if tx {
            self.waits = Waits::default();
        }
        Wake { rx: ended || self.session.has_frame() || self.session.is_peer_finished(), tx }
    }

    /// Everything that was taken has gone.
    pub(crate) fn is_flushed(&self) -> bool {
        self.session.is_flushed() && self.batch.sent == self.batch.filled
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Why nothing goes any more, if so.
    pub(crate) fn end(&self) -> Option<&LaneError> {
        self.end.as_ref()
    }

    pub(crate) fn fail(&mut self, error: LaneError) {
        self.end.get_or_insert(error);
    }

    /// Its engine has failed.
    pub(super) fn cut_off(&mut self, error: LaneError) {
        self.fail(error);
        self.is_cut_off = true;
    }

    /// The application took a message, and holds too much.
    pub(crate) fn withhold(&mut self, bytes: usize) {
        self.withheld.cost_bytes += frame_credit_bytes(bytes);
        self.withheld.messages += 1;
    }

    pub(crate) fn withholds(&self) -> bool {
        self.withheld.messages > 0
    }

    /// It holds less.
    pub(crate) fn grant(&mut self) {
        let Withheld { cost_bytes, messages } = std::mem::take(&mut self.withheld);
        self.session.release_all(cost_bytes, messages);
    }

    /// There is no lane any more: nothing is kept for it. What the peer repeats is still answered.
    pub(super) fn detach(&mut self, now: Instant) {
        self.detached = true;
        if !(self.finished && self.session.is_peer_finished()) {
            self.session.close(now, CloseCode::NORMAL.0);
            self.session.abandon().for_each(drop);
        }
        self.batch = Batch::default();
    }

    pub(super) fn is_over(&self) -> bool {
        self.detached && self.session.is_over()
    }
}

fn lane_error(end: End) -> LaneError {
    match end {
        End::PeerClosed { .. } => LaneError::PeerGone("it closed its session"),
        End::TimedOut => LaneError::PeerGone("nothing came from it for too long"),
        End::PathMtu => LaneError::Other("the path carries no packets of the agreed length any more".into()),
        End::NoMemory => LaneError::Memory("the pool never had it".into()),
        End::Protocol(field) => WireError::BadValue { field }.into(),
        End::Finished | End::Closed { .. } => LaneError::Closed,
    }
}
