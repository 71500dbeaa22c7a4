//! Round trips, and hostile bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn words(max: usize) -> impl Strategy<Value = String> {
    vec(prop_oneof![Just('a'), Just('ß'), Just(' '), Just('9')], 0..max / 2).prop_map(String::from_iter)
}

fn name() -> impl Strategy<Value = String> {
    vec(prop::char::range('a', 'z'), 1..MAX_TRANSPORT_NAME).prop_map(String::from_iter)
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn record() -> impl Strategy<Value = SessionRecord> {
    prop_oneof![
        any::<u64>().prop_map(|nonce| SessionRecord::Ping { nonce }),
        any::<u64>().prop_map(|nonce| SessionRecord::Pong { nonce }),
        any::<u64>().prop_map(|seq| SessionRecord::Ack { seq }),
        any::<u64>().prop_map(|last_seq| SessionRecord::Fin { last_seq }),
        (any::<u32>(), any::<u64>(), words(MAX_REASON))
            .prop_map(|(c, last_seq, reason)| SessionRecord::GoAway { code: CloseCode(c), last_seq, reason }),
        (any::<u32>(), any::<u64>(), words(MAX_REASON))
            .prop_map(|(c, last_seq, reason)| SessionRecord::Close { code: CloseCode(c), last_seq, reason }),
    ]
}

fn control() -> impl Strategy<Value = ControlMessage> {
    let offer = (name(), any::<u16>(), bytes(64)).prop_map(|(transport, version, bytes)| OfferEntry {
        transport,
        version,
        bytes,
    });
    prop_oneof![
        bytes(300).prop_map(|bytes| ControlMessage::Auth { bytes }),
        Just(ControlMessage::AuthOk),
        vec(offer, 0..=MAX_OFFERS).prop_map(ControlMessage::Offers),
        vec(name().prop_map(|transport| PlanEntry { transport }), 0..=MAX_OFFERS)
            .prop_map(ControlMessage::Plan),
        (any::<u32>(), words(MAX_REASON))
            .prop_map(|(c, reason)| ControlMessage::Reject { code: CloseCode(c), reason }),
        (any::<u8>(), bytes(300)).prop_map(|(index, bytes)| ControlMessage::Join { index, bytes }),
        any::<u8>().prop_map(|index| ControlMessage::LaneUp { index }),
        (any::<u8>(), words(MAX_REASON))
            .prop_map(|(index, reason)| ControlMessage::LaneDown { index, reason }),
        any::<u8>().prop_map(|index| ControlMessage::Commit { index }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frame_round_trip(kind in 0..4u8, bits in 0..4u8, length: u32, seq: u64) {
        let mut raw = FrameHeader::data(length, seq).encode();
        (raw[0], raw[1]) = (kind, bits);
        if let Ok(header) = FrameHeader::decode(&raw, FrameLimits { max_message: u32::MAX }) {
            prop_assert_eq!(header.encode(), raw);
        }
    }

    #[test]
    fn record_round_trip(record in record()) {
        let mut out = Vec::new();
        record.encode(&mut out);
        prop_assert!(out.len() <= MAX_RECORD);
        prop_assert_eq!(SessionRecord::decode(&out), Ok(record));
        for end in 0..out.len() {
            prop_assert_eq!(SessionRecord::decode(&out[..end]), Err(WireError::Truncated));
        }
    }

    #[test]
    fn hello_round_trip(
        instance: [u8; 16], max_message in 1..u32::MAX, window in 1..u32::MAX, keepalive_ms: u32,
        auth_method in words(MAX_AUTH_METHOD), agent in words(MAX_AGENT),
        same in prop::option::of((words(MAX_SOCKET_NAME), any::<([u8; 16], [u8; 8], [u8; 8])>())),
        control_lane: bool, remote: bool, tail in bytes(20),
    ) {
        let same_host = same.map(|(socket_name, (nonce, host_tag, netns_tag))| {
            SameHost { socket_name, nonce, host_tag, netns_tag }
        });
        let (role, versions) = (HelloRole::Server, VersionRange::SUPPORTED);
        let hello = Hello {
            versions, role, instance, max_message, window, auth_method, keepalive_ms, agent, same_host, control_lane,
            remote,
        };
        let mut out = Vec::new();
        hello.encode(&mut out).unwrap();
        let len = out.len();
        out.extend(tail);
        prop_assert_eq!(Hello::decode(&out, versions), Ok(Some((hello, len))));
    }

    #[test]
    fn control_round_trip_in_any_pieces(messages in vec(control(), 1..4), piece in 1..40usize) {
        let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
        let mut decoder = ControlDecoder::new();
        let mut back = Vec::new();
        for piece in stream.chunks(piece) {
            prop_assert_eq!(decoder.push(piece), piece.len());
            while let Some(message) = decoder.next_message() {
                back.push(message.unwrap());
            }
        }
        prop_assert_eq!(back, messages);
    }

    #[test]
    fn random_bytes_never_panic(raw in bytes(400), kind in 0..11u8, header: [u8; 16]) {
        let _ = FrameHeader::decode(&header, FrameLimits { max_message: 100 });
        let _ = check_frame_ext(&raw);
        let _ = SessionRecord::decode(&raw);
        let mut typed = vec![kind, 0, 0, 0];
        typed.extend(&raw);
        let _ = SessionRecord::decode(&typed);
        let _ = Hello::decode(&raw, VersionRange::SUPPORTED);
        let mut after_magic = [&MAGIC[..], &[1, 1, 0, 0], &(raw.len() as u32).to_le_bytes()[..]].concat();
        after_magic.extend(&raw);
        let _ = Hello::decode(&after_magic, VersionRange::SUPPORTED);
        let mut message = vec![kind, 0, 0, 0];
        message.extend((raw.len() as u32).to_le_bytes());
        message.extend(&raw);
        for input in [&raw, &message] {
            let mut decoder = ControlDecoder::new();
            let _ = decoder.push(input);
            let _ = decoder.next_message();
        }
    }

    #[test]
    fn machines_survive_any_order(messages in vec(control(), 0..12)) {
        let mut server = ServerHandshake::new(hello(HelloRole::Server)).unwrap();
        let mut client = ClientHandshake::new(hello(HelloRole::Client)).unwrap();
        server.handle_hello(&client.take_output()).unwrap();
        client.handle_hello(&server.take_output()).unwrap();
        for message in &messages {
            let _ = server.handle(message);
            let _ = client.handle(message);
        }
    }
}

#[test]
fn an_endless_message_is_bounded() {
    let mut decoder = ControlDecoder::new();
    let mut header = vec![1, 0, 0, 0];
    header.extend((MAX_CONTROL as u32).to_le_bytes());
    assert_eq!(decoder.push(&header), 8);
    assert_eq!(decoder.push(&vec![0; 2 * MAX_CONTROL]), MAX_CONTROL);
    assert_eq!(decoder.push(&[0]), 0);
    assert!(decoder.next_message().unwrap().is_ok());

    let mut decoder = ControlDecoder::new();
    header[6] = 2;
    assert_eq!(decoder.push(&header), 8);
    let error = decoder.next_message().unwrap();
    assert!(matches!(error, Err(WireError::TooLong { .. })));
    assert_eq!(decoder.next_message(), Some(error));
}
