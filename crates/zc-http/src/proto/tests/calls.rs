//! Calls from their beginning to their end, whichever it is.

use super::*;

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
