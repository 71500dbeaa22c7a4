//! The state machine of one end of a connection.
//!
//! The application's side calls `open`, `respond`, `send_*`, `take_*`, `release_*`; the wire's side
//! hands messages to `receive` and takes them from `transmit`. What happened is left in `events`.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderMap, request, response};

use super::block::{Decoder, Encoder};
use super::bucket::Bucket;
use super::call::{Allowance, BodyItem, Call, Head, Key, Queue, SendRoom};
use super::code::Code;
use super::error::{Ended, Violation};
use super::frame::{Control, Settings};
use super::head::{size_of, size_of_request};
use super::limits::{Limits, MAX_CONTROL_QUEUED, MIN_BODY_BYTES};
use super::slab::Calls;

/// A queue is not swept for keys of ended calls before it is this long.
const MIN_SWEEP: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What the application's side has to know.
#[derive(Debug)]
pub(crate) enum Event {
    /// The peer's SETTINGS are here: calls can be made.
    Ready,
    /// A call came in.
    Request(Key, Box<request::Parts>),
    /// A response, body bytes, the end: something can be taken.
    Readable(Key),
    /// There is room for more body.
    Writable(Key),
    /// It ended early; both halves should look.
    Ended(Key),
    /// One more call can be opened.
    Room,
    /// The peer takes no more calls.
    GoingAway { code: Code, reason: String },
    /// The answer to a ping.
    Pong(u64),
}

/// Why a call can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// As many as the peer takes are under way.
    Busy,
    /// This connection takes no more calls.
    Closed,
    /// Its headers are more than the peer takes.
    TooLarge,
}

pub(crate) struct Endpoint {
    pub(super) role: Role,
    pub(super) limits: Limits,
    pub(super) local: Settings,
    pub(super) peer: Option<Settings>,
    pub(super) calls: Calls,
    /// The last number given out (client) or seen (server).
    pub(super) last_id: u32,
    /// Calls with something to send, each once: in the middle of a long body,
    pub(super) ready: VecDeque<Key>,
    /// and those that begin, or end with their next frame. Whoever begins is here, so numbers go out in order.
    pub(super) short: VecDeque<Key>,
    pub(super) short_next: bool,
    /// Calls that wait for the connection's credit only.
    pub(super) starved: VecDeque<Key>,
    pub(super) control: VecDeque<Control>,
    /// Below zero: calls have used their reserve.
    pub(super) tx_credit: i64,
    pub(super) rx_window: i64,
    pub(super) rx_taken: u32,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) scratch: Vec<u8>,
    pub(super) resets: Bucket,
    /// GOAWAY was sent, up to this call.
    pub(super) going_away: Option<u32>,
    pub(super) peer_going_away: bool,
    pub(super) failed: bool,
    pub(crate) events: VecDeque<Event>,
}

impl Endpoint {
    pub(crate) fn new(role: Role, limits: Limits) -> Self {
        let local = limits.settings();
        Self {
            role,
            local,
            peer: None,
            calls: Calls::default(),
            last_id: 0,
            ready: VecDeque::new(),
            short: VecDeque::new(),
            short_next: false,
            starved: VecDeque::new(),
            control: VecDeque::from([Control::Settings(local)]),
            tx_credit: 0,
            rx_window: local.connection_window.into(),
            rx_taken: 0,
            encoder: Encoder::new(0),
            decoder: Decoder::new(local.table_bytes as usize),
            scratch: Vec::new(),
            resets: Bucket::new(limits.reset_burst, limits.resets_per_s),
            going_away: None,
            peer_going_away: false,
            failed: false,
            events: VecDeque::new(),
            limits,
        }
    }

    /// Calls under way, as far as the wire goes.
    pub(crate) fn open_calls(&self) -> usize {
        self.calls.open_count()
    }

    /// Calls that somebody here still looks at.
    pub(crate) fn held_calls(&self) -> usize {
        self.calls.used()
    }

    /// Whether no call is under way, everything is sent, and none will follow.
    pub(crate) fn is_finished(&self) -> bool {
        self.going_away.is_some() && self.calls.open_count() == 0 && !self.has_output()
    }

    /// The peer's or our GOAWAY, or a failure.
    pub(crate) fn takes_no_calls(&self) -> bool {
        self.failed || self.peer_going_away || self.going_away.is_some() || self.last_id == u32::MAX
    }

    /// Begins a call, and takes its head if it does. The key's two halves are released one by one.
    pub(crate) fn open(&mut self, head: &mut Option<request::Parts>) -> Result<Key, OpenError> {
        debug_assert_eq!(self.role, Role::Client);
        if self.takes_no_calls() {
            return Err(OpenError::Closed);
        }
        let Some(peer) = self.peer.filter(|peer| (self.calls.open_count() as u32) < peer.max_calls) else {
            return Err(OpenError::Busy);
        };
        if head.as_ref().is_none_or(|head| !fits(size_of_request(head), peer)) {
            return Err(OpenError::TooLarge);
        }
        self.last_id += 1;
        let (key, call) = self.calls.insert(self.last_id);
        call.tx.head = head.take().map(|head| Head::Request(Box::new(head)));
        call.tx.credit = peer.call_window;
        call.rx.window = self.local.call_window;
        self.enqueue(key);
        Ok(key)
    }

    /// Answers a call. False when its headers are more than the peer takes.
    pub(crate) fn respond(&mut self, key: Key, parts: response::Parts) -> bool {
        let fits = self.peer.is_some_and(|peer| {
            let (bytes, count) = size_of(&parts.headers);
            fits((bytes + 64, count + 1), peer)
        });
        if !fits {
            return false;
        }
        if let Some(call) = self.calls.get(key)
            && call.ended.is_none()
            && !call.tx.head_sent
        {
            call.tx.head = Some(Head::Response(Box::new(parts)));
            self.enqueue(key);
        }
        true
    }

    /// Whether more of the body may be given; when not, [`Event::Writable`] says when.
    pub(crate) fn send_room(&mut self, key: Key) -> SendRoom {
        let bound = self.limits.send_buffer_bytes;
        match self.calls.get(key) {
            Some(call) if call.ended.is_none() && !call.tx.finished => {
                call.tx.full = call.tx.body_bytes >= bound;
                if call.tx.full { SendRoom::Full } else { SendRoom::Ready }
            }
            _ => SendRoom::Gone,
        }
    }

    /// A piece of the body: kept until the peer has room for it.
    pub(crate) fn send_data(&mut self, key: Key, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if let Some(call) = self.calls.get(key)
            && call.ended.is_none()
            && !call.tx.finished
        {
            call.tx.body_bytes += bytes.len();
            call.tx.body.push_back(bytes);
            self.enqueue(key);
        }
    }

    /// The end of the body. False when the trailers are more than the peer takes.
    pub(crate) fn send_end(&mut self, key: Key, trailers: Option<HeaderMap>) -> bool {
        if let (Some(trailers), Some(peer)) = (&trailers, self.peer)
            && !fits(size_of(trailers), peer)
        {
            return false;
        }
        if let Some(call) = self.calls.get(key)
            && call.ended.is_none()
            && !call.tx.finished
        {
            call.tx.finished = true;
            call.tx.trailers = trailers;
            self.enqueue(key);
        }
        true
    }

    /// The response's head, once.
    pub(crate) fn take_response(&mut self, key: Key) -> Option<Result<response::Parts, Ended>> {
        let call = self.calls.get(key)?;
        match call.rx.response.take() {
            Some(parts) => Some(Ok(*parts)),
            None => call.ended.map(Err),
        }
    }

    /// What comes next of the incoming body; taking it gives the peer room for more.
    pub(crate) fn take_body(&mut self, key: Key) -> BodyItem {
        let due = self.call_grant();
        let Some(call) = self.calls.get(key) else { return BodyItem::End };
        if let Some(bytes) = call.rx.body.pop_front() {
            let len = bytes.len() as u32;
            call.rx.taken += len;
            self.control.extend(call.grant(due));
            self.give_back(len);
            return BodyItem::Data(bytes);
        }
        if let Some(trailers) = call.rx.trailers.take() {
            return BodyItem::Trailers(trailers);
        }
        match call.ended {
            _ if call.rx.end_seen => BodyItem::End,
            Some(ended) => BodyItem::Failed(ended),
            None => BodyItem::Pending,
        }
    }

    /// Whether the incoming body has nothing left, and how many bytes are here when all of it is.
    pub(crate) fn body_hint(&mut self, key: Key) -> (bool, Option<u64>) {
        let Some(call) = self.calls.get(key) else { return (true, Some(0)) };
        if !call.rx.end_seen {
            return (false, None);
        }
        let bytes = call.rx.body.iter().map(|bytes| bytes.len() as u64).sum();
        (bytes == 0 && call.rx.trailers.is_none(), Some(bytes))
    }

    /// Whether body that was given still waits for the peer's credit, or for its turn.
    pub(crate) fn has_unsent_body(&mut self, key: Key) -> bool {
        self.calls.get(key).is_some_and(|call| call.tx.body_bytes > 0)
    }

    /// Whether body that was given can't all go before the peer gives credit, however the others fare; when all of it has gone,
    /// [`Event::Writable`] says so.
    pub(crate) fn needs_credit(&mut self, key: Key) -> bool {
        let reserve = Allowance { credit: 0, ..self.allowance() };
        let Some(call) = self.calls.get(key) else { return false };
        let needs = call.tx.body_bytes > call.tx.room(reserve) as usize;
        call.tx.full |= needs;
        needs
    }

    /// Whether the peer may have heard of a call that was opened here, ended or not.
    pub(crate) fn was_sent(&mut self, key: Key) -> bool {
        self.calls.get(key).is_none_or(|call| call.tx.head_sent)
    }

    /// Ends a call early and tells the peer.
    pub(crate) fn cancel(&mut self, key: Key, code: Code) {
        let Some(call) = self.calls.get(key) else { return };
        if call.ended.is_some() || call.is_complete() {
            return;
        }
        let unsent = self.role == Role::Client && !call.tx.head_sent;
        if !unsent {
            self.control.push_back(Control::Reset { call: key.id, code });
        }
        self.end(key, Ended::Here(code));
    }

    /// Nobody gives more of the outgoing body. Without an end, the call is cancelled.
    pub(crate) fn release_tx(&mut self, key: Key) {
        let Some(call) = self.calls.get(key) else { return };
        call.tx_held = false;
        if !call.tx.finished {
            self.cancel(key, if self.role == Role::Client { Code::CANCEL } else { Code::INTERNAL });
        }
        self.free_if_unused(key);
    }

    /// Nobody takes more of the incoming body. A client cancels the call; a server goes on answering.
    pub(crate) fn release_rx(&mut self, key: Key) {
        let Some(call) = self.calls.get(key) else { return };
        call.rx_held = false;
        let dropped = call.rx.discard();
        let (ended, end_seen, end_sent) = (call.ended.is_some(), call.rx.end_seen, call.tx.end_sent);
        self.give_back(dropped);
        if !ended && !end_seen && (self.role == Role::Client || end_sent) {
            self.cancel(key, if self.role == Role::Client { Code::CANCEL } else { Code::DONE });
        }
        self.free_if_unused(key);
    }

    /// Asks the peer's machine for an answer.
    pub(crate) fn ping(&mut self, nonce: u64) {
        self.control.push_back(Control::Ping { answer: false, nonce });
    }

    /// Takes no more calls; those under way go on.
    pub(crate) fn go_away(&mut self, code: Code, reason: &str) {
        if self.going_away.is_none() {
            let last = if self.role == Role::Server { self.last_id } else { 0 };
            self.going_away = Some(last);
            self.control.push_back(Control::GoAway { last, code, reason: reason.to_owned() });
        }
    }

    /// The connection is gone: ends every call.
    pub(crate) fn fail(&mut self) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.control.clear();
        self.ready.clear();
        self.short.clear();
        self.starved.clear();
        for key in self.calls.keys() {
            let Some(call) = self.calls.get(key) else { continue };
            let sent = self.role == Role::Server || call.tx.head_sent;
            let complete = call.is_complete() || call.ended.is_some();
            if !complete {
                self.end(key, Ended::Connection { sent });
            }
        }
        self.events.push_back(Event::Room);
    }

    /// Whether `transmit` would have something, credit aside.
    pub(crate) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty() || !self.short.is_empty()
    }

    /// Ends a call without telling the peer.
    pub(super) fn end(&mut self, key: Key, ended: Ended) {
        let Some(call) = self.calls.get(key) else { return };
        if call.ended.is_none() {
            call.ended = Some(ended);
            call.tx.discard();
            call.tx.finished = true;
            // Nothing more goes out.
            call.tx.end_sent = true;
            self.events.push_back(Event::Ended(key));
        }
        self.close(key);
    }

    /// The wire is done with the call.
    pub(super) fn close(&mut self, key: Key) {
        let was_open = self.calls.is_open(key.id);
        if was_open {
            self.calls.close(key.id);
            if self.role == Role::Client {
                self.events.push_back(Event::Room);
            }
        }
        self.free_if_unused(key);
    }

    fn free_if_unused(&mut self, key: Key) {
        let open = self.calls.is_open(key.id);
        if let Some(call) = self.calls.get(key)
            && !call.tx_held
            && !call.rx_held
            && !open
        {
            let dropped = call.rx.discard();
            self.give_back(dropped);
            self.calls.free(key);
        }
    }

    /// Whether so little is left of the connection's window that calls live on their reserve, or soon will.
    pub(super) fn is_short(&self) -> bool {
        self.rx_window < self.local.call_reserve.into()
    }

    /// What must be taken of a call before the peer hears of it. It counts as outstanding until then, so when the connection's
    /// window is short it must leave room in the reserve.
    fn call_grant(&self) -> u32 {
        let much = self.local.call_window / 2;
        if self.is_short() { much.min(self.local.call_reserve / 2) } else { much }
    }

    /// The connection's window has become short: what was taken is granted, or who sends it might wait for nothing.
    pub(super) fn grant_taken(&mut self) {
        let due = self.call_grant();
        for call in self.calls.in_use() {
            self.control.extend(call.grant(due));
        }
    }

    /// Body bytes were taken or dropped: the connection's window opens again, once that doubles what the peer has left, or gives it
    /// something when calls have used more. While nothing stalls that is at half of it; what stalled calls have filled must not keep
    /// the rest from those that go on.
    pub(super) fn give_back(&mut self, bytes: u32) {
        self.rx_taken += bytes;
        let much = if self.rx_window > 0 { self.rx_window } else { 1 - self.rx_window };
        let much = much.min((self.local.connection_window / 2).into());
        if i64::from(self.rx_taken) >= much && self.rx_taken > 0 && !self.failed {
            let add = std::mem::take(&mut self.rx_taken);
            self.rx_window += i64::from(add);
            self.control.push_back(Control::Window { call: 0, add });
        }
    }

    /// Puts a call into the queue of those with something to send.
    pub(super) fn enqueue(&mut self, key: Key) {
        let (allowance, frame_bytes) = (self.allowance(), self.frame_bytes());
        let Some(call) = self.calls.get(key) else { return };
        let (was, can_send) = (call.tx.queue, call.tx.can_send(allowance));
        if was == Queue::Ready || (was == Queue::Starved && !can_send) {
            return;
        }
        let is_short = call.tx.is_short(frame_bytes);
        let goes_on = can_send && !is_short && call.tx.run_bytes > 0;
        let queue = if can_send {
            call.tx.queue = Queue::Ready;
            if is_short { &mut self.short } else { &mut self.ready }
        } else if call.tx.can_send(Allowance::UNBOUNDED) {
            call.tx.queue = Queue::Starved;
            &mut self.starved
        } else {
            return;
        };
        if goes_on {
            queue.push_front(key);
        } else {
            queue.push_back(key);
        }
        if was == Queue::Starved {
            // Its own credit has come, not the connection's.
            self.starved.retain(|other| *other != key);
            return;
        }
        // Calls that were given up leave their keys behind.
        if queue.len() > MIN_SWEEP + 2 * self.calls.used() {
            let calls = &mut self.calls;
            let waits = |call: &mut Call| call.tx.queue != Queue::None && call.ended.is_none();
            queue.retain(|key| calls.get(*key).is_some_and(waits));
        }
    }

    /// What the peer lets calls send now.
    pub(super) fn allowance(&self) -> Allowance {
        let of = |peer: Settings| (peer.call_reserve, peer.call_window);
        let (reserve, call_window) = self.peer.map_or((0, 0), of);
        Allowance { credit: self.tx_credit, reserve, call_window }
    }

    pub(super) fn check_control(&self) -> Result<(), Violation> {
        let allowed = MAX_CONTROL_QUEUED + 2 * self.calls.used();
        if self.control.len() > allowed {
            Err(Violation::Flood("frames that want an answer"))
        } else {
            Ok(())
        }
    }

    /// Body bytes of one frame to the peer.
    pub(super) fn frame_bytes(&self) -> usize {
        let peer = self.peer.map_or(MIN_BODY_BYTES, |peer| peer.max_body_bytes.max(MIN_BODY_BYTES));
        peer.min(self.local.max_body_bytes) as usize
    }
}

fn fits((bytes, count): (usize, usize), peer: Settings) -> bool {
    bytes <= peer.max_header_bytes as usize && count <= peer.max_header_count as usize
}
