//! What a peer can do wrong, and what becomes of it.

use super::*;

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
    for first in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"no".to_vec(),
        frame(FLAG_HEADERS, 1, GET, b"", b""),
        vec![2; 5],
        vec![0; 600],
    ] {
        let mut endpoint = Endpoint::new(Role::Server, small());
        assert_eq!(receive(&mut endpoint, first), Err(Violation::NotHttp));
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
