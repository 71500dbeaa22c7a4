//! Two machines back to back, and one against a liar.

mod calls;
mod liars;
mod random;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use zc::Message;
use zc::memory::CopyLedger;

use super::call::{BodyItem, Call, Key, SendRoom};
use super::code::Code;
use super::endpoint::{Endpoint, Event, OpenError, Role};
use super::error::{Ended, Violation};
use super::frame::{CallHeader, Control, FLAG_END, FLAG_HEADERS, FLAG_TRAILERS};
use super::limits::Limits;

fn small() -> Limits {
    Limits {
        max_calls: 4,
        call_window_bytes: 3000,
        connection_window_bytes: 5000,
        call_reserve_bytes: 700,
        max_body_frame_bytes: 1024,
        send_buffer_bytes: 2000,
        ..Limits::default()
    }
}

fn next(endpoint: &mut Endpoint) -> Option<Message> {
    endpoint.transmit(&mut |_| None, &CopyLedger::new())
}

fn request(n: usize) -> http::request::Parts {
    let request = Request::post(format!("/call/{}", n % 3)).header("n", n.to_string());
    request.body(()).unwrap().into_parts().0
}

fn response() -> http::response::Parts {
    Response::builder().header("x", "y").body(()).unwrap().into_parts().0
}

fn trailers(n: u8) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(u16::from(n)))])
}

/// What one side of a call has seen and given.
#[derive(Default, Debug)]
struct Half {
    given: Vec<u8>,
    ended: Option<Option<u8>>,
    got: Vec<u8>,
    got_trailers: Option<u8>,
    got_end: bool,
    failed: Option<Ended>,
    tx_released: bool,
    rx_released: bool,
}

/// What one side has on its way: the oracle of what it may send, kept from its frames alone.
struct Outstanding {
    limits: Limits,
    of_connection: i64,
    of_calls: BTreeMap<u32, i64>,
}

impl Outstanding {
    fn sends(&mut self, message: &Message) {
        let bytes = flat(message);
        if bytes[0] != 2 {
            return;
        }
        let header = CallHeader::decode(bytes[..12].try_into().unwrap()).unwrap();
        let blocks = usize::from(header.headers_len + header.trailers_len);
        let body = (bytes.len() - 12 - blocks) as i64;
        let of_call = self.of_calls.entry(header.call).or_default();
        (self.of_connection, *of_call) = (self.of_connection + body, *of_call + body);
        let within = self.of_connection <= self.limits.connection_window_bytes.into();
        let reserved = *of_call <= self.limits.call_reserve_bytes.into();
        assert!(body == 0 || within || reserved, "{} of all, {of_call} of its own", self.of_connection);
        assert!(*of_call <= self.limits.call_window_bytes.into());
    }

    fn hears(&mut self, message: &Message) {
        if let Ok(Some(Control::Window { call, add })) = Control::decode(&flat(message)) {
            let of = if call == 0 { &mut self.of_connection } else { self.of_calls.entry(call).or_default() };
            *of -= i64::from(add);
            assert!(*of >= 0, "granted what was never sent");
        }
    }
}

fn flat(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.to_vec()).collect()
}

struct Side {
    endpoint: Endpoint,
    outstanding: Outstanding,
    wire: VecDeque<Message>,
    calls: BTreeMap<u32, (Key, Half)>,
    pending_answer: Vec<Key>,
}

impl Side {
    fn new(role: Role, limits: Limits) -> Self {
        let outstanding = Outstanding { limits: limits.clone(), of_connection: 0, of_calls: BTreeMap::new() };
        let endpoint = Endpoint::new(role, limits);
        Self {
            endpoint,
            outstanding,
            wire: VecDeque::new(),
            calls: BTreeMap::new(),
            pending_answer: Vec::new(),
        }
    }

    fn pick(&self, n: usize) -> Option<u32> {
        let len = self.calls.len().max(1);
        self.calls.keys().nth(n % len).copied()
    }

    fn transmit(&mut self) -> bool {
        let message = next(&mut self.endpoint);
        let some = message.is_some();
        message.iter().for_each(|message| self.outstanding.sends(message));
        self.wire.extend(message);
        some
    }

    fn receive(&mut self, message: Message, now: Instant) {
        self.outstanding.hears(&message);
        self.endpoint.receive(message, now).unwrap();
        self.check_memory();
        while let Some(event) = self.endpoint.events.pop_front() {
            if let Event::Request(key, parts) = event {
                assert!(parts.uri.path().starts_with("/call/"));
                self.calls.insert(key.id, (key, Half::default()));
                self.pending_answer.push(key);
            }
        }
    }

    /// The receiver's bound: the window of the connection, and a reserve for each call.
    fn check_memory(&mut self) {
        let (mut unread, mut bound) = (0, self.endpoint.local.connection_window);
        for call in self.endpoint.calls.in_use() {
            unread += call.rx.body.iter().map(|bytes| bytes.len() as u32).sum::<u32>();
            bound += self.endpoint.local.call_reserve;
        }
        assert!(unread <= bound, "{unread} bytes are held, at most {bound} may be");
    }

    fn give(&mut self, id: u32, bytes: usize) {
        let Some((key, half)) = self.calls.get_mut(&id) else { return };
        if half.ended.is_some() || half.tx_released || self.endpoint.send_room(*key) != SendRoom::Ready {
            return;
        }
        let data: Vec<u8> = (0..bytes).map(|at| (half.given.len() + at) as u8).collect();
        half.given.extend_from_slice(&data);
        self.endpoint.send_data(*key, data.into());
    }

    fn end(&mut self, id: u32, with: Option<u8>) -> bool {
        let Some((key, half)) = self.calls.get_mut(&id) else { return false };
        let first = half.ended.is_none() && !half.tx_released;
        if first {
            half.ended = Some(with);
            assert!(self.endpoint.send_end(*key, with.map(trailers)));
        }
        first
    }

    fn take(&mut self, id: u32) -> bool {
        let Some((key, half)) = self.calls.get_mut(&id) else { return false };
        if half.rx_released || half.got_end || half.failed.is_some() {
            return false;
        }
        match self.endpoint.take_body(*key) {
            BodyItem::Data(bytes) => half.got.extend_from_slice(&bytes),
            BodyItem::Trailers(map) => {
                half.got_trailers = Some(map["grpc-status"].to_str().unwrap().parse().unwrap());
            }
            BodyItem::End => half.got_end = true,
            BodyItem::Failed(ended) => half.failed = Some(ended),
            BodyItem::Pending => return false,
        }
        true
    }

    fn release(&mut self, id: u32, tx: bool, rx: bool) {
        let Some((key, half)) = self.calls.get_mut(&id) else { return };
        if tx && !std::mem::replace(&mut half.tx_released, true) {
            self.endpoint.release_tx(*key);
        }
        if rx && !std::mem::replace(&mut half.rx_released, true) {
            self.endpoint.release_rx(*key);
        }
    }
}

struct Pair {
    client: Side,
    server: Side,
    opened: usize,
    now: Instant,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let (client, server) = (Side::new(Role::Client, limits.clone()), Side::new(Role::Server, limits));
        let mut pair = Self { client, server, opened: 0, now: Instant::now() };
        pair.settle();
        pair
    }

    fn open(&mut self) -> Result<Key, OpenError> {
        let opened = self.client.endpoint.open(&mut Some(request(self.opened)));
        if let Ok(key) = opened {
            self.opened += 1;
            self.client.calls.insert(key.id, (key, Half::default()));
        }
        opened
    }

    fn deliver(&mut self, to_server: bool) -> bool {
        let (from, to) = if to_server {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        };
        let Some(message) = from.wire.pop_front() else { return false };
        to.receive(message, self.now);
        true
    }

    /// Moves everything that can move, without the applications' help.
    fn settle(&mut self) {
        while self.client.transmit() | self.server.transmit() | self.deliver(true) | self.deliver(false) {}
    }

    fn step(&mut self, op: u8, n: usize, bytes: usize) {
        let with = n.is_multiple_of(2).then_some(n as u8);
        let (side, other) = if op & 1 == 0 {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        };
        let id = side.pick(n).unwrap_or(0);
        match op >> 1 {
            0 | 1 => drop(self.open()),
            2 | 3 => side.give(id, bytes),
            4 => drop(side.end(id, with)),
            5..=7 => drop(side.take(id)),
            8 | 9 => {
                if let Some(key) = self.server.pending_answer.pop() {
                    assert!(self.server.endpoint.respond(key, response()));
                }
            }
            10 if n.is_multiple_of(7) => side.release(id, true, false),
            11 if n.is_multiple_of(7) => side.release(id, false, true),
            12 if n.is_multiple_of(5) => {
                if let Some((key, _)) = side.calls.get(&id) {
                    side.endpoint.cancel(*key, Code::CANCEL);
                }
            }
            13 if n.is_multiple_of(50) => side.endpoint.ping(n as u64),
            _ => {
                let _ = other.transmit() | side.transmit();
                let _ = self.deliver(op & 1 == 0) | self.deliver(n.is_multiple_of(2));
            }
        }
    }

    /// Every call is brought to its end, by both applications.
    fn finish(&mut self) {
        for key in std::mem::take(&mut self.server.pending_answer) {
            assert!(self.server.endpoint.respond(key, response()));
        }
        loop {
            self.settle();
            for key in std::mem::take(&mut self.server.pending_answer) {
                assert!(self.server.endpoint.respond(key, response()));
            }
            let mut moved = false;
            for side in [&mut self.client, &mut self.server] {
                let ids: Vec<u32> = side.calls.keys().copied().collect();
                for id in ids {
                    moved |= side.end(id, None);
                    moved |= side.take(id);
                }
            }
            if !moved {
                break;
            }
        }
    }

    fn check(&mut self) {
        for (id, (_, asked)) in &self.client.calls {
            let Some((_, answered)) = self.server.calls.get(id) else {
                assert!(asked.failed.is_some() || asked.rx_released, "call {id} vanished");
                continue;
            };
            check_direction(asked, answered);
            check_direction(answered, asked);
        }
        for side in [&mut self.client, &mut self.server] {
            let ids: Vec<u32> = side.calls.keys().copied().collect();
            ids.into_iter().for_each(|id| side.release(id, true, true));
        }
        self.settle();
        let (client, server) = (&self.client.endpoint, &self.server.endpoint);
        for (tx, rx) in [(client, server), (server, client)] {
            assert_eq!((tx.open_calls(), tx.held_calls()), (0, 0), "a call leaked");
            assert!(!tx.has_output() && tx.starved.is_empty());
            let all = tx.tx_credit + i64::from(rx.rx_taken);
            assert_eq!(all, i64::from(rx.local.connection_window), "credit leaked");
            assert_eq!(tx.tx_credit, rx.rx_window);
        }
    }
}

/// What came out is what went in; all of it, unless somebody gave up.
fn check_direction(from: &Half, to: &Half) {
    assert!(from.given.starts_with(&to.got), "other bytes came out");
    if to.got_end {
        assert_eq!(from.given.len(), to.got.len());
        assert_eq!(from.ended.flatten(), to.got_trailers);
    } else {
        let given_up = to.failed.is_some() || to.rx_released || from.tx_released || from.failed.is_some();
        assert!(given_up, "neither the end nor a failure came out: {to:?}");
    }
}

fn frame(flags: u8, call: u32, headers: &[u8], trailers: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (headers_len, trailers_len) = (headers.len() as u16, trailers.len() as u16);
    CallHeader { flags, call, headers_len, trailers_len }.encode(&mut bytes);
    [headers, trailers, body].iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn control(control: &Control) -> Message {
    let mut bytes = Vec::new();
    control.encode(&mut bytes);
    bytes.into()
}

fn greet(endpoint: &mut Endpoint) {
    let settings = control(&Control::Settings(small().settings()));
    endpoint.receive(settings, Instant::now()).unwrap();
    while next(endpoint).is_some() {}
    endpoint.events.clear();
}

fn server() -> Endpoint {
    let mut endpoint = Endpoint::new(Role::Server, small());
    greet(&mut endpoint);
    endpoint
}

const GET: &[u8] = b"\x82\x8a";

fn receive(endpoint: &mut Endpoint, bytes: Vec<u8>) -> Result<(), Violation> {
    endpoint.receive(bytes.into(), Instant::now())
}
