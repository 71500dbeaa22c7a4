//! Who may send, how much, and when: turns, windows and reserves.

use super::*;

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
