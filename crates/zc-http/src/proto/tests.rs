//! Two machines back to back, and one against a liar.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use proptest::prelude::*;
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

proptest! {
    #[test]
    fn fuzz_any_interleaving_delivers_what_was_sent(
        steps in prop::collection::vec((0_u8..34, any::<u8>(), 0_usize..4000), 0..400),
    ) {
        let mut pair = Pair::new(small());
        for (op, n, bytes) in steps {
            pair.step(op, n.into(), bytes);
        }
        pair.finish();
        pair.check();
    }

    /// However the others stall: a call that is read in a direction goes on in it.
    #[test]
    fn fuzz_a_call_that_is_read_goes_on(
        steps in prop::collection::vec((0_usize..16, 0_usize..4, 1_usize..3000), 0..300),
        reserve in prop_oneof![1_u32..8, 1_u32..4000],
        chosen in 0_usize..8,
        to_server in any::<bool>(),
    ) {
        let mut pair = Pair::new(Limits { max_calls: 8, call_reserve_bytes: reserve, ..small() });
        (0..8).for_each(|_| assert!(pair.open().is_ok()));
        pair.settle();
        for key in std::mem::take(&mut pair.server.pending_answer) {
            assert!(pair.server.endpoint.respond(key, response()));
        }
        for (at, what, bytes) in steps {
            let side = if at < 8 { &mut pair.client } else { &mut pair.server };
            let id = side.pick(at).unwrap();
            match what {
                0 | 1 => side.give(id, bytes),
                2 => drop(side.take(id)),
                _ => pair.settle(),
            }
        }
        let id = pair.client.pick(chosen).unwrap();
        for _ in 0..5 {
            let (from, to) = ends(&mut pair, to_server);
            while to.take(id) {}
            from.give(id, 1500);
            loop {
                pair.settle();
                if !ends(&mut pair, to_server).1.take(id) {
                    break;
                }
            }
            let (from, to) = ends(&mut pair, to_server);
            prop_assert_eq!(&from.calls[&id].1.given, &to.calls[&id].1.got);
        }
        pair.finish();
        pair.check();
    }

    #[test]
    fn fuzz_a_machine_survives_any_frames(
        frames in prop::collection::vec(any_frame(), 0..60),
        (server, reads) in any::<(bool, bool)>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut endpoint = Endpoint::new(role, small());
        greet(&mut endpoint);
        for n in 0..3 {
            if !server {
                endpoint.open(&mut Some(request(n))).unwrap();
            }
        }
        let now = Instant::now();
        for frame in frames {
            if endpoint.receive(Message::from(frame), now).is_err() {
                break;
            }
            while let Some(event) = endpoint.events.pop_front() {
                if let Event::Readable(key) = event
                    && reads
                {
                    let _ = endpoint.take_body(key);
                }
            }
            while next(&mut endpoint).is_some() {}
            prop_assert!(endpoint.held_calls() <= 4);
            let unread = |call: &mut Call| call.rx.body.iter().map(Bytes::len).sum::<usize>();
            prop_assert!(endpoint.calls.in_use().map(unread).sum::<usize>() <= 5000 + 4 * 700);
        }
    }
}

/// Who sends and who receives.
fn ends(pair: &mut Pair, to_server: bool) -> (&mut Side, &mut Side) {
    if to_server { (&mut pair.client, &mut pair.server) } else { (&mut pair.server, &mut pair.client) }
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![
        Just(b"\x81\x8a\x00\x01a\x01b".to_vec()),
        Just(b"\x8c".to_vec()),
        Just(b"\x40\x01a\x01b".to_vec()),
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    let call = (0_u8..8, 0_u32..6, block.clone(), block, 0_usize..1100).prop_map(
        |(flags, call, headers, trailers, body)| frame(flags, call, &headers, &trailers, &vec![7; body]),
    );
    let control = (2_u8..8, any::<u8>(), 0_u32..6, any::<u32>()).prop_map(|(kind, second, call, value)| {
        let mut bytes = vec![kind, second % 3, 0, 0];
        bytes.extend_from_slice(&call.to_le_bytes());
        bytes.extend_from_slice(&(value % 9000).to_le_bytes());
        if kind == 3 {
            bytes.truncate(8);
        }
        bytes
    });
    prop_oneof![3 => call, 2 => control, 1 => prop::collection::vec(any::<u8>(), 0..40)]
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

#[test]
fn a_unary_call_is_one_frame_each_way() {
    let mut pair = Pair::new(small());
    let key = pair.open().unwrap();
    pair.client.give(key.id, 100);
    pair.client.end(key.id, None);
    assert!(pair.client.transmit() && !pair.client.transmit());
    pair.deliver(true);
    let asked = pair.server.pending_answer.pop().unwrap();
    assert!(pair.server.endpoint.respond(asked, response()));
    pair.server.give(asked.id, 50);
    pair.server.end(asked.id, Some(0));
    assert!(pair.server.transmit() && !pair.server.transmit());
    assert_eq!(
        pair.server.wire[0].segments()[0][..22],
        *b"\x02\x07\x06\0\x01\0\0\0\x01\0\0\0\x8c\x00\x01x\x01y\x9f\x00\x01\x02"
    );
    pair.deliver(false);
    assert_eq!(pair.client.endpoint.open_calls(), 0);
    assert!(pair.client.endpoint.take_response(key).unwrap().is_ok());
    pair.finish();
    pair.check();
}

#[test]
fn a_large_body_shares_the_connection_with_small_calls() {
    let mut pair =
        Pair::new(Limits { call_window_bytes: 1 << 20, connection_window_bytes: 1 << 20, ..small() });
    let large = pair.open().unwrap();
    pair.client.endpoint.send_data(large, Bytes::from(vec![0; 100 << 10]));
    assert!(pair.client.transmit());
    let little = pair.open().unwrap();
    pair.client.end(little.id, None);
    assert!(pair.client.transmit() && pair.client.transmit());
    let sizes: Vec<usize> = pair.client.wire.iter().map(Message::len).collect();
    assert!(sizes.iter().all(|size| *size < 1200), "{sizes:?}");
    while pair.deliver(true) {}
    assert!(pair.server.calls.contains_key(&little.id), "it waited for at most one frame of the other");
}

#[test]
fn long_bodies_go_out_one_after_the_other_and_short_ones_between_their_frames() {
    let room = Limits { call_window_bytes: 4 << 20, connection_window_bytes: 8 << 20, ..small() };
    let mut pair = Pair::new(Limits { max_body_frame_bytes: 65_280, send_buffer_bytes: 2 << 20, ..room });
    let long = [pair.open().unwrap(), pair.open().unwrap()];
    for key in long {
        pair.client.endpoint.send_data(key, Bytes::from(vec![0; 700 << 10]));
    }
    let mut order = Vec::new();
    let mut send = |pair: &mut Pair, frames: usize| {
        for _ in 0..frames {
            let Some(message) = next(&mut pair.client.endpoint) else { break };
            order.push(CallHeader::decode(flat(&message).first_chunk().unwrap()).unwrap().call);
        }
    };
    send(&mut pair, 4);
    let short = pair.open().unwrap();
    pair.client.endpoint.send_data(short, Bytes::from_static(b"short"));
    send(&mut pair, usize::MAX);
    let [a, b] = long.map(|key| key.id);
    assert_eq!(order[..2], [a, b], "who begins, begins at once");
    assert!(order[..6].contains(&short.id), "it waits for one frame of another at most: {order:?}");
    // Half a megabyte each at a time; frame by frame there would be twenty changes.
    let turns = order[2..].iter().filter(|id| **id != short.id).collect::<Vec<_>>();
    let changes = turns.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 6, "{order:?}");
}

#[test]
fn newcomers_with_long_bodies_keep_nobody_from_its_turn() {
    let room = Limits { call_window_bytes: 8 << 20, connection_window_bytes: 100 << 20, ..small() };
    let room = Limits { max_body_frame_bytes: 65_280, send_buffer_bytes: 8 << 20, max_calls: 1000, ..room };
    let mut pair = Pair::new(room);
    let long = pair.open().unwrap();
    pair.client.endpoint.send_data(long, Bytes::from(vec![0; 4 << 20]));
    let mut order = Vec::new();
    for n in 0..200 {
        if n % 5 == 0 {
            // As much as five frames take: without turns the line would always be theirs.
            let other = pair.open().unwrap();
            pair.client.endpoint.send_data(other, Bytes::from(vec![0; 300 << 10]));
        }
        let message = next(&mut pair.client.endpoint).unwrap();
        order.push(CallHeader::decode(flat(&message).first_chunk().unwrap()).unwrap().call);
    }
    let of_long = order.iter().filter(|id| **id == long.id).count();
    assert!(of_long >= 20, "{of_long} of 65 in 200 turns: {order:?}");
}

#[test]
fn a_stalled_call_stops_at_its_window_and_others_go_on() {
    let mut pair = Pair::new(Limits { connection_window_bytes: 20_000, ..small() });
    let stalled = pair.open().unwrap();
    for _ in 0..20 {
        pair.client.give(stalled.id, 1000);
        pair.settle();
    }
    let arrived = pair.server.endpoint.calls.by_id(stalled.id).unwrap().1.rx.body.iter().map(Bytes::len);
    assert_eq!(arrived.sum::<usize>(), 3000);
    assert_eq!(pair.client.endpoint.send_room(stalled), SendRoom::Full);
    let other = pair.open().unwrap();
    pair.client.give(other.id, 500);
    pair.client.end(other.id, None);
    pair.settle();
    while pair.server.take(other.id) {}
    assert!(pair.server.calls[&other.id].1.got_end);
}

#[test]
fn what_a_stalled_call_leaves_of_the_window_is_used_again_and_again() {
    let mut pair = Pair::new(small());
    let stalled = pair.open().unwrap();
    for _ in 0..3 {
        pair.client.give(stalled.id, 1000);
        pair.settle();
    }
    // 2000 bytes are left, less than half of the connection's window.
    let other = pair.open().unwrap();
    for _ in 0..20 {
        pair.client.give(other.id, 500);
        pair.settle();
        while pair.server.take(other.id) {}
        pair.settle();
    }
    assert_eq!(pair.server.calls[&other.id].1.got.len(), 10_000);
    pair.finish();
    pair.check();
}

#[test]
fn what_was_read_before_the_window_was_used_up_is_granted_then() {
    let mut pair = Pair::new(small());
    let (read, stalled, other) = (pair.open().unwrap(), pair.open().unwrap(), pair.open().unwrap());
    pair.client.give(read.id, 1400);
    pair.settle();
    while pair.server.take(read.id) {}
    // Less than half of its window, and more than its reserve.
    for id in [stalled.id, other.id, stalled.id, other.id, stalled.id, other.id] {
        pair.client.give(id, 1000);
        pair.settle();
    }
    assert!(pair.server.endpoint.rx_window <= 0);
    pair.client.give(read.id, 600);
    pair.settle();
    while pair.server.take(read.id) {}
    assert_eq!(pair.server.calls[&read.id].1.got.len(), 2000);
    pair.finish();
    pair.check();
}

#[test]
fn a_peer_that_knows_of_no_reserve_gets_nothing_beyond_its_window() {
    let mut endpoint = server();
    let old = Limits { call_reserve_bytes: 0, ..small() };
    let mut settings = flat(&control(&Control::Settings(old.settings())));
    settings.truncate(36);
    let mut client = Endpoint::new(Role::Client, small());
    client.receive(settings.into(), Instant::now()).unwrap();
    let mut body = 0;
    for n in 0..4 {
        let key = client.open(&mut Some(request(n))).unwrap();
        client.send_data(key, Bytes::from(vec![0; 2000]));
    }
    while let Some(message) = next(&mut client) {
        if flat(&message)[0] == 2 {
            endpoint.receive(message, Instant::now()).unwrap();
        }
    }
    for call in endpoint.calls.in_use() {
        body += call.rx.body.iter().map(Bytes::len).sum::<usize>();
    }
    assert_eq!((body, client.tx_credit, client.starved.len()), (5000, 0, 4));
}

#[test]
fn an_answer_without_the_whole_question_stops_the_question() {
    let mut pair = Pair::new(small());
    let key = pair.open().unwrap();
    pair.client.give(key.id, 1500);
    pair.settle();
    let asked = pair.server.pending_answer.pop().unwrap();
    pair.server.release(asked.id, false, true);
    assert!(pair.server.endpoint.respond(asked, response()));
    pair.server.end(asked.id, Some(3));
    pair.settle();
    assert_eq!(pair.client.endpoint.send_room(key), SendRoom::Gone);
    assert!(pair.client.endpoint.take_response(key).unwrap().is_ok());
    while pair.client.take(key.id) {}
    assert_eq!(pair.client.calls[&key.id].1.got_trailers, Some(3));
    pair.client.calls.get_mut(&key.id).unwrap().1.given.clear();
    for side in [&mut pair.client, &mut pair.server] {
        side.release(key.id, true, true);
    }
    assert_eq!((pair.client.endpoint.held_calls(), pair.server.endpoint.held_calls()), (0, 0));
}

#[test]
fn a_call_given_up_before_it_was_sent_leaves_no_trace() {
    let mut pair = Pair::new(small());
    let key = pair.open().unwrap();
    pair.client.release(key.id, true, true);
    assert!(!pair.client.transmit());
    assert_eq!(pair.client.endpoint.held_calls(), 0);
    // Not even when it happens all the time on a connection that is stuck.
    for _ in 0..10_000 {
        let key = pair.open().unwrap();
        pair.client.release(key.id, true, true);
    }
    assert!(pair.client.endpoint.ready.len() + pair.client.endpoint.short.len() < 200);
}

#[test]
fn going_away_finishes_what_is_under_way_and_takes_nothing_new() {
    let mut pair = Pair::new(small());
    let taken = pair.open().unwrap();
    pair.settle();
    pair.server.endpoint.go_away(Code::DONE, "bye");
    let late = pair.open().unwrap();
    pair.client.end(late.id, None);
    while pair.client.transmit() {}
    pair.settle();
    assert_eq!(pair.client.endpoint.take_response(late).unwrap().unwrap_err(), Ended::NotTaken);
    assert_eq!(pair.open().unwrap_err(), OpenError::Closed);
    assert!(!pair.server.endpoint.is_finished());
    pair.finish();
    assert!(pair.client.calls[&taken.id].1.got_end);
    assert!(pair.server.endpoint.is_finished());
    pair.check();
}

#[test]
fn a_lost_connection_says_what_may_have_been_executed() {
    let mut pair = Pair::new(small());
    let sent = pair.open().unwrap();
    pair.settle();
    let unsent = pair.open().unwrap();
    pair.client.endpoint.fail();
    let mut ended = |key| pair.client.endpoint.take_response(key).unwrap().unwrap_err();
    assert_eq!(ended(sent), Ended::Connection { sent: true });
    assert_eq!(ended(unsent), Ended::Connection { sent: false });
}

#[test]
fn more_than_the_window_is_a_violation() {
    let mut endpoint = server();
    receive(&mut endpoint, frame(FLAG_HEADERS, 1, GET, b"", b"")).unwrap();
    for _ in 0..2 {
        receive(&mut endpoint, frame(0, 1, b"", b"", &[0; 1024])).unwrap();
    }
    let result = receive(&mut endpoint, frame(0, 1, b"", b"", &[0; 1024]));
    assert_eq!(result, Err(Violation::Window("of a call")));
    let mut endpoint = server();
    for call in 1..=4 {
        receive(&mut endpoint, frame(FLAG_HEADERS, call, GET, b"", &[0; 1024])).unwrap();
    }
    let result = receive(&mut endpoint, frame(0, 1, b"", b"", &[0; 1024]));
    assert_eq!(result, Err(Violation::Window("of the connection")));
    let result = receive(&mut server(), frame(FLAG_HEADERS, 1, GET, b"", &[0; 1025]));
    assert_eq!(result, Err(Violation::Frame("a body frame above the limit")));
}

#[test]
fn more_than_the_reserve_is_a_violation() {
    // Four calls of which 4900 bytes are held, and 100 are left.
    let full = || {
        let mut endpoint = server();
        for (call, body) in [(1, 1000), (2, 1000), (3, 1000), (4, 0)] {
            receive(&mut endpoint, frame(FLAG_HEADERS, call, GET, b"", &vec![0; body])).unwrap();
        }
        for call in [1, 2] {
            receive(&mut endpoint, frame(0, call, b"", b"", &[0; 950])).unwrap();
        }
        assert_eq!(endpoint.rx_window, 100);
        endpoint
    };
    let beyond = Err(Violation::Window("of the connection"));
    let say =
        |endpoint: &mut Endpoint, call, body| receive(endpoint, frame(0, call, b"", b"", &vec![0; body]));
    // A call that has more than its reserve outstanding gets what is left of the window, and no more.
    assert_eq!(say(&mut full(), 1, 101), beyond);
    let mut endpoint = full();
    assert_eq!(say(&mut endpoint, 1, 100), Ok(()));
    assert_eq!(say(&mut endpoint, 1, 1), beyond);
    // One that has nothing gets its reserve, in any number of frames.
    assert_eq!(say(&mut full(), 4, 701), beyond);
    let mut endpoint = full();
    (0..7).for_each(|_| assert_eq!(say(&mut endpoint, 4, 100), Ok(())));
    assert_eq!(endpoint.rx_window, -600);
    assert_eq!(say(&mut endpoint, 4, 0), Ok(()), "an empty frame needs no credit");
    assert_eq!(say(&mut endpoint, 4, 1), beyond);
    // A call that is over has none, but its late frames are not more than that.
    let over = || {
        let mut endpoint = full();
        let key = endpoint.calls.by_id(4).unwrap().0;
        endpoint.cancel(key, Code::CANCEL);
        endpoint
    };
    assert_eq!(say(&mut over(), 4, 701), beyond);
    let mut endpoint = over();
    (0..100).for_each(|_| assert_eq!(say(&mut endpoint, 4, 700), Ok(())));
    assert!(endpoint.rx_window + i64::from(endpoint.rx_taken) == 100, "dropped, and so taken");
}

#[test]
fn grants_can_lie_too() {
    for (call, add) in [(0, 0), (0, u32::MAX), (1, 0), (1, i32::MAX as u32), (2, 1)] {
        let mut endpoint = server();
        receive(&mut endpoint, frame(FLAG_HEADERS, 1, GET, b"", b"")).unwrap();
        let result = endpoint.receive(control(&Control::Window { call, add }), Instant::now());
        assert!(result.is_err(), "call {call}, add {add}");
    }
}

#[test]
fn more_calls_than_allowed_and_calls_out_of_order() {
    let mut endpoint = server();
    for call in 1..=4 {
        receive(&mut endpoint, frame(FLAG_HEADERS, call, GET, b"", b"")).unwrap();
    }
    let result = receive(&mut endpoint, frame(FLAG_HEADERS, 5, GET, b"", b""));
    assert_eq!(result, Err(Violation::TooManyCalls));
    for bad in [
        frame(FLAG_HEADERS, 1, GET, b"", b""),
        frame(0, 2, b"", b"", b"x"),
        frame(FLAG_END | FLAG_TRAILERS, 3, b"", b"\x9f", b""),
    ] {
        let mut endpoint = server();
        receive(&mut endpoint, frame(FLAG_HEADERS | FLAG_END, 1, GET, b"", b"")).unwrap();
        assert!(matches!(receive(&mut endpoint, bad), Err(Violation::Unexpected(_))));
    }
    let mut endpoint = server();
    receive(&mut endpoint, frame(FLAG_HEADERS | FLAG_END, 1, GET, b"", b"")).unwrap();
    let result = receive(&mut endpoint, frame(0, 1, b"", b"", b"x"));
    assert_eq!(result, Err(Violation::Unexpected("more after the end")));
}

#[test]
fn endless_headers_end_the_call_and_not_the_connection() {
    let mut endpoint = server();
    let mut block = GET.to_vec();
    (0..200).for_each(|_| block.extend_from_slice(b"\x00\x01a\x01b"));
    receive(&mut endpoint, frame(FLAG_HEADERS, 1, &block, b"", b"body")).unwrap();
    assert!(endpoint.events.is_empty());
    assert_eq!(next(&mut endpoint).unwrap(), b"\x03\x05\0\0\x01\0\0\0"[..]);
    receive(&mut endpoint, frame(FLAG_HEADERS, 2, GET, b"", b"")).unwrap();
    assert!(matches!(endpoint.events.pop_front(), Some(Event::Request(..))));
}

#[test]
fn a_flood_of_resets_is_cut_off() {
    let mut endpoint = Endpoint::new(Role::Server, Limits { reset_burst: 10, resets_per_s: 1, ..small() });
    greet(&mut endpoint);
    let start = Instant::now();
    let mut reset = |call, now| {
        receive(&mut endpoint, frame(FLAG_HEADERS, call, GET, b"", b"")).unwrap();
        let result = endpoint.receive(control(&Control::Reset { call, code: Code::CANCEL }), now);
        while let Some(event) = endpoint.events.pop_front() {
            if let Event::Ended(key) = event {
                endpoint.release_tx(key);
                endpoint.release_rx(key);
            }
        }
        result
    };
    (1..=10).for_each(|call| reset(call, start).unwrap());
    reset(11, start + Duration::from_secs(2)).unwrap();
    reset(12, start + Duration::from_secs(2)).unwrap();
    assert_eq!(reset(13, start + Duration::from_secs(2)), Err(Violation::Flood("resets")));
}

#[test]
fn a_peer_that_pings_and_does_not_read_is_cut_off() {
    let mut endpoint = server();
    let ping = || control(&Control::Ping { answer: false, nonce: 1 });
    let flood = (0..100_000).find_map(|_| endpoint.receive(ping(), Instant::now()).err());
    assert_eq!(flood, Some(Violation::Flood("frames that want an answer")));
}

#[test]
fn the_first_frame_says_who_speaks() {
    for first in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), frame(FLAG_HEADERS, 1, GET, b"", b""), vec![0; 600]] {
        let mut endpoint = Endpoint::new(Role::Server, small());
        assert!(receive(&mut endpoint, first).is_err());
    }
    let mut endpoint = Endpoint::new(Role::Client, small());
    assert_eq!(endpoint.open(&mut Some(request(0))).unwrap_err(), OpenError::Busy);
    assert_eq!(receive(&mut endpoint, vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Violation::NotHttp));
}

#[test]
fn an_answer_before_its_question_was_sent_is_a_violation() {
    let mut endpoint = Endpoint::new(Role::Client, small());
    greet(&mut endpoint);
    endpoint.open(&mut Some(request(0))).unwrap();
    let result = receive(&mut endpoint, frame(FLAG_HEADERS | FLAG_END, 1, b"\x8c", b"", b""));
    assert_eq!(result, Err(Violation::Unexpected("an answer before the question")));
}
