//! The state machines, driven by hand.

use std::time::{Duration, Instant};

use super::*;

struct Pair {
    client: ClientHandshake,
    server: ServerHandshake,
}

impl Pair {
    fn new(auth: &str) -> Self {
        Self::of(|role| Hello { auth_method: auth.into(), ..hello(role) })
    }

    fn of(with: impl Fn(HelloRole) -> Hello) -> Self {
        let mut client = ClientHandshake::new(with(HelloRole::Client)).unwrap();
        let mut server = ServerHandshake::new(with(HelloRole::Server)).unwrap();
        server.handle_hello(&client.take_output()).unwrap().unwrap();
        client.handle_hello(&server.take_output()).unwrap().unwrap();
        Self { client, server }
    }

    fn planned(names: &[&str]) -> Self {
        Self::new("").plan(names)
    }

    fn plan(mut self, names: &[&str]) -> Self {
        let pair = &mut self;
        let offers: Vec<_> = names.iter().map(|n| offer(n)).collect();
        pair.client.send_offers(offers.clone()).unwrap();
        pair.run().unwrap();
        pair.server.send_plan(offers, names.iter().map(|n| entry(n)).collect()).unwrap();
        pair.run().unwrap();
        self
    }

    fn run(&mut self) -> Result<(), WireError> {
        decode_all(&self.client.take_output()).iter().try_for_each(|m| self.server.handle(m))?;
        decode_all(&self.server.take_output()).iter().try_for_each(|m| self.client.handle(m))
    }

    #[track_caller]
    fn both_at(&self, state: HandshakeState) {
        assert_eq!((self.client.state(), self.server.state()), (state, state));
    }
}

#[test]
fn second_lane_is_taken() {
    let mut pair = Pair::planned(&["shm", "tcp"]);
    pair.both_at(HandshakeState::Join { index: 0 });
    pair.client.lane_up().unwrap();
    pair.server.lane_down("no memfd").unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Join { index: 1 });
    pair.client.send_join(vec![1]).unwrap();
    pair.run().unwrap();
    pair.server.lane_up().unwrap();
    pair.client.lane_up().unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Commit { index: 1 });
    assert_eq!(pair.client.commit(), Ok(1));
    pair.run().unwrap();
    pair.both_at(HandshakeState::Committed { index: 1 });
}

#[test]
fn the_client_alone_gives_a_lane_up_in_place_of_commit() {
    let mut pair = Pair::planned(&["shm", "tcp"]);
    pair.client.lane_up().unwrap();
    pair.server.lane_up().unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Commit { index: 0 });
    // A COMMIT may be under way.
    assert!(pair.server.lane_down("broken").is_err());
    assert!(pair.server.reject(CloseCode::REJECTED, "no").is_err());
    let wrong = ControlMessage::LaneDown { index: 1, reason: String::new() };
    assert!(Pair::planned(&["shm"]).server.handle(&wrong).is_err());
    pair.client.lane_down("broken").unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Join { index: 1 });
    // The control link itself has no other to give way to.
    let mut pair = Pair::of(|role| Hello { control_lane: true, ..hello(role) }).plan(&[]);
    pair.both_at(HandshakeState::Commit { index: CONTROL_LANE });
    assert!(pair.client.lane_down("broken").is_err());
    let down = ControlMessage::LaneDown { index: CONTROL_LANE, reason: String::new() };
    assert!(pair.server.handle(&down).is_err());
}

#[test]
fn no_lane_leaves_the_control_link() {
    let willing = || Pair::of(|role| Hello { control_lane: true, ..hello(role) });
    let mut pair = willing().plan(&["shm"]);
    pair.client.lane_down("a").unwrap();
    // A JOIN that crossed our LANE_DOWN is in order.
    pair.client.handle(&ControlMessage::Join { index: 0, bytes: vec![] }).unwrap();
    pair.server.lane_down("b").unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Commit { index: CONTROL_LANE });
    assert_eq!(pair.client.commit(), Ok(CONTROL_LANE));
    pair.run().unwrap();
    pair.both_at(HandshakeState::Committed { index: CONTROL_LANE });
    willing().plan(&[]).both_at(HandshakeState::Commit { index: CONTROL_LANE });
}

#[test]
fn the_control_link_needs_the_consent_of_both() {
    for consents in [HelloRole::Client, HelloRole::Server] {
        let mut pair = Pair::of(|role| Hello { control_lane: role == consents, ..hello(role) }).plan(&[]);
        pair.both_at(HandshakeState::Exhausted);
        assert!(matches!(pair.client.commit(), Err(WireError::OutOfOrder { .. })));
        let commit = ControlMessage::Commit { index: CONTROL_LANE };
        assert!(Pair::planned(&[]).server.handle(&commit).is_err());
        pair.server.reject(CloseCode::REJECTED, "no lane").unwrap();
        assert_eq!(pair.run().unwrap_err().to_string(), "rejected by the peer: rejected: no lane");
    }
}

#[test]
fn authentication_comes_first() {
    let mut pair = Pair::new("psk");
    assert!(matches!(pair.client.send_offers(vec![]), Err(WireError::OutOfOrder { .. })));
    pair.client.send_auth(vec![1]).unwrap();
    pair.run().unwrap();
    pair.server.send_auth(vec![2]).unwrap();
    pair.run().unwrap();
    pair.client.send_auth(vec![3]).unwrap();
    pair.run().unwrap();
    pair.server.accept_auth().unwrap();
    pair.run().unwrap();
    pair.both_at(HandshakeState::Offers);

    let mut pair = Pair::new("psk");
    let error = pair.server.handle(&ControlMessage::Offers(vec![])).unwrap_err();
    assert_eq!(error.to_string(), "unexpected OFFERS from the peer in stage authenticate");
    assert_eq!(pair.server.stage(), Stage::Authenticate);
}

#[test]
fn authentication_methods_must_match() {
    let mut server =
        ServerHandshake::new(Hello { auth_method: "psk".into(), ..hello(HelloRole::Server) }).unwrap();
    let mut client = ClientHandshake::new(hello(HelloRole::Client)).unwrap();
    let theirs = server.handle_hello(&client.take_output());
    assert!(matches!(theirs, Err(WireError::AuthMethod { .. })));
    let ours = client.handle_hello(&server.take_output()).unwrap_err();
    assert_eq!(ours.to_string(), "authentication methods differ: ours is \"\", the peer's is \"psk\"");
}

#[test]
fn rejection_says_why() {
    let mut pair = Pair::new("");
    pair.server.reject(CloseCode::REJECTED, "not\ntoday").unwrap();
    assert_eq!(pair.run().unwrap_err().to_string(), "rejected by the peer: rejected: not today");
}

#[test]
fn out_of_order_is_refused() {
    let up = ControlMessage::LaneUp { index: 1 };
    assert!(Pair::planned(&["shm", "tcp"]).server.handle(&up).is_err());
    let commit = ControlMessage::Commit { index: 0 };
    assert!(Pair::planned(&["shm"]).server.handle(&commit).is_err());
    let plan = ControlMessage::Plan(vec![]);
    assert!(Pair::new("").client.handle(&plan).is_err());
    assert!(Pair::new("").server.handle(&plan).is_err());
    let twice = ControlMessage::Offers(vec![offer("a"), offer("a")]);
    assert!(Pair::new("").server.handle(&twice).is_err());

    let mut pair = Pair::new("");
    pair.client.send_offers(vec![offer("tcp")]).unwrap();
    pair.client.handle(&ControlMessage::Offers(vec![offer("shm")])).unwrap();
    let plan = ControlMessage::Plan(vec![entry("shm")]);
    assert_eq!(pair.client.handle(&plan), Err(WireError::BadValue { field: "plan" }));
}

#[test]
fn data_after_commit_is_left_over() {
    let mut bytes = encoded(&ControlMessage::Commit { index: 0 });
    bytes.extend(FrameHeader::data(3, 1).encode());
    let mut decoder = ControlDecoder::new();
    assert_eq!(decoder.push(&bytes), bytes.len());
    decoder.next_message().unwrap().unwrap();
    assert_eq!(decoder.leftover(), FrameHeader::data(3, 1).encode());
}

#[test]
fn delivery_accounting() {
    let mut tx = TxSeq::new(3);
    assert_eq!([tx.assign(), tx.assign(), tx.assign()], [Ok(1), Ok(2), Ok(3)]);
    assert_eq!(tx.assign(), Err(SeqError::WindowFull { window: 3 }));
    assert_eq!(tx.on_ack(1), Ok(1));
    assert_eq!(tx.on_ack(1), Ok(0));
    assert!(tx.on_ack(4).is_err());
    assert_eq!([tx.delivery_of(1), tx.delivery_of(2)], [Delivery::Delivered, Delivery::Unknown]);
    assert_eq!([tx.delivery_of(0), tx.delivery_of(4)], [Delivery::NotSent; 2]);
    assert!(tx.on_go_away(0).is_err());
    tx.on_go_away(2).unwrap();
    assert_eq!([tx.delivery_of(2), tx.delivery_of(3)], [Delivery::Unknown, Delivery::NotSent]);
    assert_eq!(tx.assign(), Err(SeqError::GoneAway { last_seq: 2 }));
    assert!(tx.on_ack(3).is_err());
    assert_eq!(tx.on_close(2), Ok(1));
    assert_eq!(tx.delivery_of(2), Delivery::Delivered);
}

#[test]
fn receiving_in_order() {
    let mut rx = RxSeq::new(2);
    assert_eq!(rx.accept(2, false), Err(SeqError::Gap { expected: 1, got: 2 }));
    rx.accept(1, false).unwrap();
    assert_eq!(rx.accept(1, false), Err(SeqError::Duplicate { expected: 2, got: 1 }));
    assert_eq!(rx.take_ack(), None);
    rx.accept(2, false).unwrap();
    assert_eq!(rx.take_ack(), Some(2));
    rx.accept(3, true).unwrap();
    assert_eq!(rx.take_ack(), Some(3));
    rx.accept(4, false).unwrap();
    assert_eq!([rx.flush_ack(), rx.flush_ack()], [Some(4), None]);
    assert_eq!(rx.check_fin(4), Ok(()));
    assert!(rx.check_fin(5).is_err());
}

#[test]
fn keepalive_pings_then_gives_up() {
    let (start, s) = (Instant::now(), Duration::from_secs);
    let mut k = Keepalive::new(s(10), s(3), start);
    assert_eq!(k.poll(start), KeepaliveAction::Idle(start + s(10)));
    assert_eq!(k.poll(start + s(10)), KeepaliveAction::SendPing(1));
    assert_eq!(k.poll(start + s(11)), KeepaliveAction::Idle(start + s(13)));
    k.on_rx(start + s(12));
    assert_eq!(k.on_pong(1, start + s(12)), Some(s(2)));
    assert_eq!(k.on_pong(1, start + s(12)), None);
    assert_eq!(k.poll(start + s(22)), KeepaliveAction::SendPing(2));
    assert_eq!(k.poll(start + s(25)), KeepaliveAction::Dead);
}
