//! Any order of things, and any frames.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn any_interleaving_delivers_what_was_sent(
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
    fn a_call_that_is_read_goes_on(
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
