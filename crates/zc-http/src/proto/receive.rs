//! What comes in.

use std::time::Instant;

use bytes::Buf;
use zc::Message;

use super::block::Encoder;
use super::call::{Key, Queue};
use super::code::Code;
use super::endpoint::{Endpoint, Event, Role};
use super::error::{Ended, Violation};
use super::frame::{
    CALL_HEADER_BYTES, CallHeader, Control, FLAG_END, FLAG_HEADERS, FLAG_TRAILERS, MAX_CONTROL_BYTES,
    Settings, kind,
};
use super::head::{BadHead, BlockLimits, read_request, read_response, read_trailers};
use super::limits::{MAX_TABLE_BYTES, MAX_WINDOW};

impl Endpoint {
    /// Takes one frame. An error ends the connection.
    pub(crate) fn receive(&mut self, message: Message, now: Instant) -> Result<(), Violation> {
        if self.failed {
            return Ok(());
        }
        // What a peer may still write is copied before it is looked at (M6): all but the body.
        let mut head = [0; CALL_HEADER_BYTES];
        let got = copy_out(&message, &mut head);
        if head[0] == kind::CALL {
            if self.peer.is_none() {
                return Err(Violation::NotHttp);
            }
            if got < CALL_HEADER_BYTES {
                return Err(Violation::Frame("cut short"));
            }
            return self.on_call(CallHeader::decode(&head)?, message);
        }
        if message.len() > MAX_CONTROL_BYTES {
            return Err(if self.peer.is_none() { Violation::NotHttp } else { Violation::Frame("too long") });
        }
        let mut bytes = [0; MAX_CONTROL_BYTES];
        let got = copy_out(&message, &mut bytes);
        let control = match Control::decode(&bytes[..got]) {
            // Text of another protocol, say, and no frame at all.
            Err(_) if self.peer.is_none() && head[0] != kind::SETTINGS => return Err(Violation::NotHttp),
            decoded => decoded?,
        };
        let Some(control) = control else { return Ok(()) };
        self.on_control(control, now)?;
        self.check_control()
    }

    fn on_control(&mut self, control: Control, now: Instant) -> Result<(), Violation> {
        match (control, self.peer) {
            (Control::Settings(settings), None) => self.on_settings(settings),
            (_, None) => Err(Violation::NotHttp),
            (Control::Settings(_), Some(_)) => Err(Violation::Unexpected("SETTINGS again")),
            (Control::Reset { call, code }, _) => self.on_reset(call, code, now),
            (Control::Window { call, add }, _) => self.on_window(call, add),
            (Control::Ping { answer: true, nonce }, _) => {
                self.events.push_back(Event::Pong(nonce));
                Ok(())
            }
            (Control::Ping { answer: false, nonce }, _) => {
                self.control.push_back(Control::Ping { answer: true, nonce });
                Ok(())
            }
            (Control::GoAway { last, code, reason }, _) => self.on_go_away(last, code, reason),
        }
    }

    fn on_settings(&mut self, peer: Settings) -> Result<(), Violation> {
        if [peer.call_window, peer.connection_window, peer.call_reserve]
            .iter()
            .any(|window| *window > MAX_WINDOW)
        {
            return Err(Violation::Window("wider than can be"));
        }
        self.peer = Some(peer);
        self.tx_credit = peer.connection_window.into();
        self.encoder =
            Encoder::new(peer.table_bytes.min(self.local.table_bytes).min(MAX_TABLE_BYTES) as usize);
        self.events.push_back(Event::Ready);
        Ok(())
    }

    fn on_reset(&mut self, id: u32, code: Code, now: Instant) -> Result<(), Violation> {
        if id > self.last_id {
            return Err(Violation::Unexpected("RESET of a call that never was"));
        }
        if self.role == Role::Server && !self.resets.take(now) {
            return Err(Violation::Flood("resets"));
        }
        let Some((key, call)) = self.calls.by_id(id) else { return Ok(()) };
        if code == Code::DONE && call.rx.end_seen {
            // The answer is whole; the rest of the question is not wanted.
            call.tx.discard();
            call.tx.finished = true;
            call.tx.end_sent = true;
            self.events.push_back(Event::Writable(key));
            self.close(key);
            return Ok(());
        }
        self.end(key, Ended::ByPeer(code));
        Ok(())
    }

    fn on_window(&mut self, id: u32, add: u32) -> Result<(), Violation> {
        if add == 0 {
            return Err(Violation::Window("a grant of nothing"));
        }
        let widen = |credit: i64| match credit + i64::from(add) {
            sum if sum <= MAX_WINDOW.into() => Ok(sum),
            _ => Err(Violation::Window("wider than can be")),
        };
        if id == 0 {
            self.tx_credit = widen(self.tx_credit)?;
            for key in std::mem::take(&mut self.starved) {
                if let Some(call) = self.calls.get(key) {
                    call.tx.queue = Queue::None;
                    self.enqueue(key);
                }
            }
            return Ok(());
        }
        if id > self.last_id {
            return Err(Violation::Unexpected("WINDOW of a call that never was"));
        }
        if let Some((key, call)) = self.calls.by_id(id) {
            call.tx.credit = widen(call.tx.credit.into())? as u32;
            self.enqueue(key);
        }
        Ok(())
    }

    fn on_go_away(&mut self, last: u32, code: Code, reason: String) -> Result<(), Violation> {
        self.peer_going_away = true;
        if self.role == Role::Client {
            for key in self.calls.keys() {
                if key.id > last && self.calls.is_open(key.id) {
                    self.end(key, Ended::NotTaken);
                }
            }
            self.events.push_back(Event::Room);
        }
        self.events.push_back(Event::GoingAway { code, reason });
        Ok(())
    }

    fn on_call(&mut self, header: CallHeader, message: Message) -> Result<(), Violation> {
        let blocks = usize::from(header.headers_len) + usize::from(header.trailers_len);
        let body_at = CALL_HEADER_BYTES + blocks;
        if body_at > message.len() {
            return Err(Violation::Frame("cut short"));
        }
        let body_len = message.len() - body_at;
        if body_len > self.local.max_body_bytes as usize {
            return Err(Violation::Frame("a body frame above the limit"));
        }
        // The credit of the connection is used up even by a body that nobody wants.
        let body_len = body_len as u32;
        let was_short = self.is_short();
        self.rx_window -= i64::from(body_len);
        // For a call that is over no more can be checked; what it brings is dropped at once.
        self.check_reserve(body_len, body_len)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(CALL_HEADER_BYTES + blocks, 0);
        copy_out(&message, &mut scratch);
        let (headers, trailers) = scratch[CALL_HEADER_BYTES..].split_at(header.headers_len.into());
        let result = match self.role {
            Role::Server => self.on_server(header, headers, trailers, body_len),
            Role::Client => self.on_client(header, headers, trailers, body_len),
        };
        self.scratch = scratch;
        match result? {
            Some(key) => self.on_body(key, header, message, body_at)?,
            None => self.give_back(body_len),
        }
        if self.is_short() && !was_short {
            self.grant_taken();
        }
        self.check_control()
    }

    /// What came beyond the connection's window must be within the reserve, with all that is outstanding of its call.
    fn check_reserve(&self, body_len: u32, outstanding: u32) -> Result<(), Violation> {
        if body_len > 0 && self.rx_window < 0 && outstanding > self.local.call_reserve {
            return Err(Violation::Window("of the connection"));
        }
        Ok(())
    }

    fn block_limits(&self) -> BlockLimits {
        BlockLimits {
            bytes: self.local.max_header_bytes as usize,
            count: self.local.max_header_count as usize,
        }
    }

    /// The call whose body it is, if somebody wants it.
    fn on_server(
        &mut self,
        header: CallHeader,
        headers: &[u8],
        trailers: &[u8],
        body_len: u32,
    ) -> Result<Option<Key>, Violation> {
        let limits = self.block_limits();
        let mut fresh = None;
        if header.has(FLAG_HEADERS) {
            if header.call <= self.last_id {
                return Err(Violation::Unexpected("headers of an old call"));
            }
            self.last_id = header.call;
            match read_request(&mut self.decoder, headers, limits)? {
                Ok(parts) => fresh = Some(parts),
                Err(bad) => {
                    self.refuse(header.call, bad);
                    self.read_trailers_of(None, header, trailers)?;
                    return Ok(None);
                }
            }
        } else if header.call > self.last_id {
            return Err(Violation::Unexpected("a body of a call that never was"));
        }
        if let Some(parts) = fresh {
            if self.going_away.is_some() {
                // The peer had not heard yet; it knows from `last` that this one was not taken.
                self.read_trailers_of(None, header, trailers)?;
                return Ok(None);
            }
            if self.calls.open_count() as u32 >= self.local.max_calls {
                return Err(Violation::TooManyCalls);
            }
            let window = self.local.call_window;
            let credit = self.peer.map_or(0, |peer| peer.call_window);
            let (key, call) = self.calls.insert(header.call);
            call.tx.credit = credit;
            call.rx.window = window;
            call.rx.head_seen = true;
            self.events.push_back(Event::Request(key, Box::new(parts)));
        }
        self.on_known(header, trailers, body_len)
    }

    fn on_client(
        &mut self,
        header: CallHeader,
        headers: &[u8],
        trailers: &[u8],
        body_len: u32,
    ) -> Result<Option<Key>, Violation> {
        if header.call > self.last_id {
            return Err(Violation::Unexpected("an answer to a call that never was"));
        }
        if header.has(FLAG_HEADERS) {
            let limits = self.block_limits();
            let read = read_response(&mut self.decoder, headers, limits)?;
            if let Some((key, call)) = self.calls.by_id(header.call) {
                if !call.tx.head_sent {
                    return Err(Violation::Unexpected("an answer before the question"));
                }
                if std::mem::replace(&mut call.rx.head_seen, true) {
                    return Err(Violation::Unexpected("headers again"));
                }
                match read {
                    Ok(parts) => call.rx.response = Some(Box::new(parts)),
                    Err(bad) => {
                        self.read_trailers_of(None, header, trailers)?;
                        self.cancel(key, bad.code());
                        return Ok(None);
                    }
                }
            }
        }
        self.on_known(header, trailers, body_len)
    }

    /// Trailers and end of a frame, for a call that may be over.
    fn on_known(
        &mut self,
        header: CallHeader,
        trailers: &[u8],
        body_len: u32,
    ) -> Result<Option<Key>, Violation> {
        let Some((key, call)) = self.calls.by_id(header.call) else {
            self.read_trailers_of(None, header, trailers)?;
            return Ok(None);
        };
        if !call.rx.head_seen {
            return Err(Violation::Unexpected("a body before its headers"));
        }
        if call.rx.end_seen {
            return Err(Violation::Unexpected("more after the end"));
        }
        call.rx.window = call.rx.window.checked_sub(body_len).ok_or(Violation::Window("of a call"))?;
        let outstanding = self.local.call_window.saturating_sub(call.rx.window);
        self.check_reserve(body_len, outstanding)?;
        if !self.read_trailers_of(Some(key), header, trailers)? {
            return Ok(None);
        }
        Ok(Some(key))
    }

    /// Reads the block in any case, for the table's sake. False when the call was ended over it.
    fn read_trailers_of(
        &mut self,
        key: Option<Key>,
        header: CallHeader,
        trailers: &[u8],
    ) -> Result<bool, Violation> {
        if !header.has(FLAG_TRAILERS) {
            return Ok(true);
        }
        let limits = self.block_limits();
        let read = read_trailers(&mut self.decoder, trailers, limits)?;
        let Some(key) = key else { return Ok(true) };
        match read {
            Ok(trailers) => {
                if let Some(call) = self.calls.get(key)
                    && call.rx_held
                {
                    call.rx.trailers = Some(trailers);
                }
                Ok(true)
            }
            Err(bad) => {
                self.cancel(key, bad.code());
                Ok(false)
            }
        }
    }

    fn on_body(
        &mut self,
        key: Key,
        header: CallHeader,
        message: Message,
        body_at: usize,
    ) -> Result<(), Violation> {
        let Some(call) = self.calls.get(key) else { return Ok(()) };
        let mut unwanted = 0;
        let mut skip = body_at;
        for mut part in message.into_segments() {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            part.advance(skip);
            skip = 0;
            if call.rx_held {
                call.rx.body.push_back(part.into_bytes());
            } else {
                unwanted += part.len() as u32;
            }
        }
        call.rx.end_seen |= header.has(FLAG_END);
        let complete = call.is_complete();
        // The connection's window opens again; the call's stays shut, so that its sender stops.
        self.give_back(unwanted);
        self.events.push_back(Event::Readable(key));
        if complete {
            self.close(key);
        }
        Ok(())
    }

    fn refuse(&mut self, id: u32, bad: BadHead) {
        self.control.push_back(Control::Reset { call: id, code: bad.code() });
    }
}

impl BadHead {
    fn code(self) -> Code {
        match self {
            Self::Malformed => Code::MALFORMED,
            Self::TooLarge => Code::TOO_LARGE,
        }
    }
}

/// Copies the first bytes of a message; how many there were.
#[allow(clippy::disallowed_methods, reason = "headers, not payload")]
fn copy_out(message: &Message, out: &mut [u8]) -> usize {
    let mut at = 0;
    for segment in message.segments() {
        let n = segment.len().min(out.len() - at);
        out[at..at + n].copy_from_slice(&segment[..n]);
        at += n;
    }
    at
}
