//! Exact bytes. A change here is a change of the wire format.

use super::*;

const LIMITS: FrameLimits = FrameLimits { max_message: 0x0100_0000 };

#[track_caller]
fn frame(header: FrameHeader, expected: &str) {
    let bytes = header.encode();
    assert_eq!(hex(&bytes), expected);
    assert_eq!(FrameHeader::decode(&bytes, LIMITS).unwrap(), header);
}

#[test]
fn frames() {
    frame(FrameHeader::data(0x1234, 7), "00000000341200000700000000000000");
    let flags = FrameFlags { ext: true, ack_requested: true };
    frame(FrameHeader { flags, ..FrameHeader::data(1, 2) }, "00030000010000000200000000000000");
    frame(FrameHeader::session(12), "010000000c0000000000000000000000");
    frame(FrameHeader::credit(0x0102_0304_0506), "02000000000000000605040302010000");
    frame(FrameHeader::remote(24), "03000000180000000000000000000000");
}

#[test]
fn bad_frames() {
    let bad = |change: fn(&mut [u8; 16])| {
        let mut bytes = FrameHeader::data(1, 1).encode();
        change(&mut bytes);
        FrameHeader::decode(&bytes, LIMITS).unwrap_err().to_string()
    };
    assert_eq!(bad(|b| b[0] = 4), "bad value in field: frame type");
    assert_eq!(bad(|b| b[1] = 4), "bad value in field: frame flags");
    assert_eq!(bad(|b| b[2] = 1), "bad value in field: channel");
    assert_eq!(bad(|b| b[8] = 0), "bad value in field: sequence number");
    assert_eq!(bad(|b| b[7] = 2), "message is too long: 33554433, at most 16777216 allowed");
    assert_eq!(bad(|b| b[0] = 2), "credit frame is too long: 1, at most 0 allowed");
    assert_eq!(frame_ext_len([0, 4]), Ok(1024));
    assert!(frame_ext_len([1, 4]).is_err());
    assert_eq!(check_frame_ext(&[9, 0, 1, 0, 5]), Ok(()));
    assert_eq!(check_frame_ext(&[9, 0x80, 0, 0]), Err(WireError::UnknownRequiredTlv(0x8009)));
    assert_eq!(check_frame_ext(&[9, 0, 2, 0, 5]), Err(WireError::Truncated));
}

#[track_caller]
fn record(record: SessionRecord, expected: &str) {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(hex(&bytes), expected);
    assert_eq!(SessionRecord::decode(&bytes).unwrap(), record);
}

#[test]
fn records() {
    record(SessionRecord::Ping { nonce: 1 }, "010000000100000000000000");
    record(SessionRecord::Pong { nonce: 1 }, "020000000100000000000000");
    record(SessionRecord::Ack { seq: 0x1122 }, "030000002211000000000000");
    record(SessionRecord::Fin { last_seq: 9 }, "040000000900000000000000");
    let (code, last_seq, reason) = (CloseCode::GOING_AWAY, 5, "bye".to_owned());
    record(
        SessionRecord::GoAway { code, last_seq, reason: reason.clone() },
        "050000000100000005000000000000000300627965",
    );
    record(
        SessionRecord::Close { code: CloseCode(0x1001), last_seq, reason },
        "060000000110000005000000000000000300627965",
    );
}

#[test]
fn hello_smallest() {
    let mut bytes = Vec::new();
    hello(HelloRole::Client).encode(&mut bytes).unwrap();
    let expected = [
        "f57a6300",
        "01",
        "01",
        "00",
        "00",
        "24000000",
        "01801000",
        "30313233343536373839616263646566",
        "02800400",
        "00000001",
        "03800400",
        "00001000",
    ];
    assert_eq!(hex(&bytes), expected.concat());
    let (back, used) = Hello::decode(&bytes, VersionRange::SUPPORTED).unwrap().unwrap();
    assert_eq!((back, used), (hello(HelloRole::Client), bytes.len()));
}

#[test]
fn hello_full() {
    let full = Hello {
        auth_method: "psk".into(),
        keepalive_ms: 5000,
        agent: "zc/0.1".into(),
        same_host: Some(SameHost {
            socket_name: "zc-1".into(),
            nonce: [7; 16],
            host_tag: [8; 8],
            netns_tag: [9; 8],
        }),
        control_lane: true,
        remote: true,
        ..hello(HelloRole::Server)
    };
    let mut bytes = Vec::new();
    full.encode(&mut bytes).unwrap();
    let expected = [
        "f57a6300",
        "01",
        "01",
        "01",
        "00",
        "6d000000",
        "01801000",
        "30313233343536373839616263646566",
        "02800400",
        "00000001",
        "03800400",
        "00001000",
        "04800300",
        "70736b",
        "05000400",
        "88130000",
        "06000600",
        "7a632f302e31",
        "07002400",
        "07070707070707070707070707070707",
        "0808080808080808",
        "0909090909090909",
        "7a632d31",
        "08000000",
        "09000000",
    ];
    assert_eq!(hex(&bytes), expected.concat());
    assert_eq!(Hello::decode(&bytes, VersionRange::SUPPORTED).unwrap().unwrap().0, full);
    for end in 0..bytes.len() {
        assert_eq!(Hello::decode(&bytes[..end], VersionRange::SUPPORTED), Ok(None), "at {end}");
    }
}

#[test]
fn control() {
    let reason = || "no".to_owned();
    let index = 1;
    let all = [
        (ControlMessage::Auth { bytes: vec![1, 2] }, "01000000020000000102"),
        (ControlMessage::AuthOk, "0200000000000000"),
        (ControlMessage::Offers(vec![offer("shm")]), "030000000b000000010373686d01000200aabb"),
        (ControlMessage::Plan(vec![entry("shm"), entry("tcp")]), "0400000009000000020373686d03746370"),
        (ControlMessage::Plan(vec![]), "040000000100000000"),
        (
            ControlMessage::Reject { code: CloseCode::REJECTED, reason: reason() },
            "05000000080000000400000002006e6f",
        ),
        (ControlMessage::Join { index, bytes: vec![9] }, "06000000020000000109"),
        (ControlMessage::LaneUp { index }, "070000000100000001"),
        (ControlMessage::LaneDown { index, reason: reason() }, "08000000050000000102006e6f"),
        (ControlMessage::Commit { index: CONTROL_LANE }, "0900000001000000ff"),
    ];
    for (message, expected) in all {
        let bytes = encoded(&message);
        assert_eq!(hex(&bytes), expected, "{message:?}");
        assert_eq!(decode_all(&bytes), [message]);
    }
}

#[test]
fn magic_is_no_other_protocol() {
    for other in [
        &b"GET / HTTP/1.1"[..],
        b"PRI * HTTP/2.0\r\n",
        &[0x16, 3, 1, 2, 0],
        b"SSH-2.0",
        b"PROXY TCP4",
        b"\r\n\r\n\0",
    ] {
        assert_eq!(sniff(other), Sniff::NotZc);
        assert!(matches!(Hello::decode(other, VersionRange::SUPPORTED), Err(WireError::BadMagic { .. })));
    }
    assert_eq!(sniff(&[]), Sniff::NeedMore);
    assert_eq!(sniff(&MAGIC[..3]), Sniff::NeedMore);
    assert_eq!(sniff(&MAGIC), Sniff::Zc);
    assert_eq!(sniff(&[0xF5, b'x']), Sniff::NotZc);
}

#[test]
fn old_and_new_peers_agree_or_say_why() {
    let mut new = hello(HelloRole::Client);
    new.versions = VersionRange::new(1, 2).unwrap();
    let mut bytes = Vec::new();
    new.encode(&mut bytes).unwrap();
    // What a later version adds is skipped if it is optional.
    put_tlv(&mut bytes, 0x0777, b"later").unwrap();
    bytes[8] += 9;
    let mut server = ServerHandshake::new(hello(HelloRole::Server)).unwrap();
    assert_eq!(server.handle_hello(&bytes), Ok(Some(bytes.len())));
    assert_eq!(server.version(), Some(1));

    let mut client = ClientHandshake::new(new).unwrap();
    client.handle_hello(&server.take_output()).unwrap().unwrap();
    assert_eq!(client.version(), Some(1));
}

#[test]
fn required_extension_fails() {
    let mut bytes = Vec::new();
    hello(HelloRole::Client).encode(&mut bytes).unwrap();
    put_tlv(&mut bytes, 0x8777, b"").unwrap();
    bytes[8] += 4;
    let error = Hello::decode(&bytes, VersionRange::SUPPORTED).unwrap_err();
    assert_eq!(error.to_string(), "the peer requires extension 0x8777, which this version does not know");
}

#[test]
fn version_2_only_fails_clearly_on_both_sides() {
    let mut only2 = hello(HelloRole::Client);
    only2.versions = VersionRange::new(2, 2).unwrap();
    let mut client = ClientHandshake::new(only2).unwrap();
    let mut server = ServerHandshake::new(hello(HelloRole::Server)).unwrap();
    // The header is enough: a body that we could not read does not hide the reason.
    let error = server.handle_hello(&client.take_output()[..12]).unwrap_err();
    assert_eq!(error.to_string(), "no wire version in common: we speak v1, the peer speaks v2");
    let error = client.handle_hello(&server.take_output()).unwrap_err();
    assert_eq!(error.to_string(), "no wire version in common: we speak v2, the peer speaks v1");
    assert_eq!(client.state(), HandshakeState::Failed { stage: Stage::Hello });
}
