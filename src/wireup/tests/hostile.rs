//! A client by hand, that stalls, hangs up, or says the wrong thing.

use super::*;

/// A peer driven by hand: sends bytes, then stays silent or hangs up. Returns how the server ended.
async fn hostile_to(server: FabricBuilder, bytes: &[u8], hang_up: bool) -> Error {
    let server = server.build().unwrap();
    let (mut near, far) = duplex("hostile");
    io::write_all(&mut near, bytes).await.unwrap();
    if hang_up {
        poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    }
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Server, &request, &progress);
    let result = run(server.shared(), side, Box::new(far), || 1).await;
    drop(near);
    result.err().unwrap()
}

async fn hostile(bytes: &[u8]) -> Error {
    hostile_to(with([stream(), fake("shm", Join::Works)]), bytes, false).await
}

/// Everything that a good client says, lane by lane, and the stage that follows each message.
fn good() -> Vec<(ControlMessage, Stage)> {
    let up = |index| ControlMessage::LaneUp { index };
    let down = ControlMessage::LaneDown { index: 0, reason: "no".into() };
    vec![(offers(&["shm", "mem"]), Stage::Join), (down, Stage::Join), (up(1), Stage::Commit)]
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_ends_in_the_stage_where_it_did() {
    let start = tokio::time::Instant::now();
    assert!(matches!(hostile(b"").await, Error::Timeout { stage: Stage::Hello }));
    assert!(start.elapsed() >= crate::options::DEFAULT_STAGE);
    let hello = hello();
    for len in [1, 4, 11, 12, hello.len() - 1] {
        assert!(matches!(hostile(&hello[..len]).await, Error::Timeout { stage: Stage::Hello }), "{len}");
    }
    assert!(matches!(hostile(&hello).await, Error::Timeout { stage: Stage::Offers }));
    for (at, (_, expected)) in good().into_iter().enumerate() {
        let said: Vec<_> = good().into_iter().take(at + 1).map(|(message, _)| message).collect();
        let bytes = encoded(&said);
        let error = hostile(&bytes).await;
        assert!(matches!(error, Error::Timeout { stage } if stage == expected), "{at}: {error}");
        let error = hostile(&bytes[..bytes.len() - 1]).await;
        assert!(matches!(error, Error::Timeout { .. }), "{at}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_is_noticed_at_once_at_every_byte() {
    let said: Vec<_> = good().into_iter().map(|(message, _)| message).collect();
    let bytes = encoded(&said);
    let start = tokio::time::Instant::now();
    for len in 0..bytes.len() {
        let error = hostile_to(with([stream()]), &bytes[..len], true).await;
        assert!(matches!(error, Error::Link { .. } | Error::Wire { .. }), "{len}: {error}");
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn messages_in_the_wrong_order_are_refused_at_once() {
    let start = tokio::time::Instant::now();
    let join = |index, len| ControlMessage::Join { index, bytes: vec![0; len] };
    let up = |index| ControlMessage::LaneUp { index };
    let commit = |index| ControlMessage::Commit { index };
    let reject = ControlMessage::Reject { code: zc_core::wire::CloseCode::REJECTED, reason: "no".into() };
    for (wrong, stage) in [
        (vec![ControlMessage::Auth { bytes: vec![1] }], Stage::Offers),
        (vec![ControlMessage::AuthOk], Stage::Offers),
        (vec![ControlMessage::Plan(vec![])], Stage::Offers),
        (vec![join(0, 1)], Stage::Offers),
        (vec![reject], Stage::Offers),
        (vec![commit(0)], Stage::Offers),
        (vec![offers(&["mem", "mem"])], Stage::Offers),
        (vec![offers(&["mem"]), offers(&["mem"])], Stage::Join),
        (vec![offers(&["mem"]), up(1)], Stage::Join),
        (vec![offers(&["mem"]), join(1, 1)], Stage::Join),
        (vec![offers(&["mem"]), commit(0)], Stage::Join),
        (vec![offers(&["mem"]), up(0), commit(1)], Stage::Commit),
        (vec![offers(&["mem"]), up(0), commit(CONTROL_LANE)], Stage::Commit),
        (vec![offers(&["mem"]), up(0), up(0)], Stage::Commit),
    ] {
        let error = hostile(&encoded(&wrong)).await;
        assert!(matches!(&error, Error::Wire { stage: at, .. } if *at == stage), "{wrong:?}: {error}");
    }
    let mut flood = vec![offers(&["mem"])];
    flood.extend((0..300).map(|_| join(0, 1)));
    let error = hostile(&encoded(&flood)).await;
    assert!(error.to_string().contains("join messages"), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_a_side_may_say_about_a_lane_is_counted_over_all_of_it() {
    let server = with([stream(), fake("shm", Join::Hangs)]).build().unwrap();
    let (mut near, far) = duplex("talkative");
    let joins = |count| {
        let mut bytes = Vec::new();
        for _ in 0..count {
            ControlMessage::Join { index: 0, bytes: vec![0] }.encode(&mut bytes).unwrap();
        }
        bytes
    };
    let talking = async {
        io::write_all(&mut near, &encoded(&[offers(&["shm", "mem"])])).await.unwrap();
        io::write_all(&mut near, &joins(200)).await.unwrap();
        // Once the server's end has given the lane up.
        tokio::time::sleep(crate::options::DEFAULT_STAGE + Duration::from_secs(1)).await;
        io::write_all(&mut near, &joins(57)).await.unwrap();
        std::future::pending::<()>().await;
    };
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Server, &request, &progress);
    let serving = run(server.shared(), side, Box::new(far), || 1);
    let ended = futures::future::select(Box::pin(talking), Box::pin(serving)).await;
    let futures::future::Either::Right((ended, _)) = ended else { panic!("it talks for ever") };
    let error = ended.err().unwrap();
    assert!(error.to_string().contains("join messages is too long: 257, at most 256"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn descriptors_announced_on_a_link_that_has_none_cost_the_lane_only() {
    // The byte behind an empty JOIN is read and dropped, so the link keeps its place.
    let mut bytes = encoded(&[offers(&["shm", "mem"]), ControlMessage::Join { index: 0, bytes: vec![] }]);
    bytes.push(0);
    ControlMessage::LaneDown { index: 0, reason: "no".into() }.encode(&mut bytes).unwrap();
    ControlMessage::LaneUp { index: 1 }.encode(&mut bytes).unwrap();
    let error = hostile(&bytes).await;
    assert!(matches!(error, Error::Timeout { stage: Stage::Commit }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn garbage_is_told_apart_at_once() {
    let start = tokio::time::Instant::now();
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n", &[0x16, 3, 1, 0]] {
        let error = hostile(bytes).await;
        let magic = matches!(error, Error::Wire { stage: Stage::Hello, source: WireError::BadMagic { .. } });
        assert!(magic, "{error}");
    }
    let mut long = hello();
    long[8..12].fill(0xFF);
    assert!(matches!(hostile(&long).await, Error::Wire { stage: Stage::Hello, .. }));
    let mut message = hello();
    message.extend([3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert!(matches!(hostile(&message).await, Error::Wire { stage: Stage::Offers, .. }));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn random_bytes_end_in_a_typed_error() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    for round in 0..200 {
        // Some get past the HELLO, some past the offers.
        let mut bytes = match round % 3 {
            0 => Vec::new(),
            1 => hello(),
            _ => encoded(&[offers(&["shm", "mem"])]),
        };
        bytes.extend((0..round).map(|_| random()));
        let error = hostile(&bytes).await;
        assert!(matches!(error, Error::Wire { .. } | Error::Timeout { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_bounded_too() {
    let deadlines = Deadlines { total: Duration::from_secs(7), ..Deadlines::default() };
    let hang = |name| fake(name, Join::Hangs);
    let side = || with([hang("shm"), hang("rdma"), hang("xdp")]).deadlines(deadlines.clone());
    let start = tokio::time::Instant::now();
    let (client, server) = connect(side(), side()).await;
    assert!(client.is_err() && server.is_err());
    assert!(start.elapsed() <= Duration::from_millis(7_100), "{:?}", start.elapsed());
}
