//! The bytes of `docs/xdp.md`. The MACs were computed by other programs (HMAC-SHA-256 of Python, SipHash by its paper).

use std::time::{Duration, Instant};

use zc_core::memory::{Message, PinnedBuf};
use zc_core::transport::{Frame, FrameKind};

use super::peer::{memory, sessions};
use crate::protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn transmit(session: &mut Session, now: Instant) -> Vec<u8> {
    let mut out = Transmit::default();
    assert!(session.poll_transmit(now, &mut out));
    out.to_datagram()
}

fn offers() -> [Offer; 2] {
    let options = SessionOptions::default();
    let random = |first: u8| std::array::from_fn(|i| first + i as u8);
    [Offer::new(&options, &random(0)), Offer::new(&options, &random(100))]
}

#[test]
fn offer() {
    let expected = [
        "01",               // version
        "01",               // flags: payload too
        "c005",             // 1472
        "00010203",         // session
        "0000400000000000", // window: 4 MiB
        "00100000",         // 4096 messages
        "00000040",         // 1 GiB
        "e8030000",         // 1000 us
        "00000000",
        "0405060708090a0b0c0d0e0f1011121314151617",
        "18191a1b1c1d1e1f20212223",
    ];
    let [offer, _] = offers();
    assert_eq!(hex(&offer.encode()), expected.concat());
    let mut bytes = offer.encode();
    assert_eq!(Offer::decode(&bytes), Ok(offer));
    assert_eq!(Offer::decode(&bytes[1..]), Err(OfferError::Length { bytes: 63 }));
    bytes[28] = 1;
    assert_eq!(Offer::decode(&bytes), Err(OfferError::BadValue { field: "reserved field" }));
}

#[test]
fn packets() {
    let [mine, theirs] = offers();
    let (options, now) = (SessionOptions::default(), Instant::now());
    let new = |side, mine, theirs| Session::new(side, mine, theirs, &options, memory(), 1, now).unwrap();
    let mut client = new(Side::Client, &mine, &theirs);
    let mut server = new(Side::Server, &theirs, &mine);
    for (kind, seq, bytes) in [(FrameKind::Data, 7, &b"payload"[..]), (FrameKind::Session, 0, &b"record"[..])]
    {
        client.send(Frame { kind, ack: seq == 7, seq, payload: Message::from(bytes) }, None).unwrap();
    }
    client.finish();
    let first = transmit(&mut client, now);
    let expected = [
        "01",
        "00",
        "6c00",
        "64656667",
        "0000000000000000",
        "00000000",
        "b509ac13e825ce411f31109846de4ce5",
        "06",
        "04",
        "0700",
        "00000000",
        "07000000",
        "0000000000000000",
        "0700000000000000",
        "06",
        "01",
        "0600",
        "00000000",
        "06000000",
        "0100000000000000",
        "0000000000000000",
        "04",
        "00000000000000",
        "0200000000000000",
        "7061796c6f6164",
        "7265636f7264",
    ];
    assert_eq!(hex(&first), expected.concat());
    server.handle(now, PinnedBuf::from(first)).unwrap();
    assert_eq!(
        server.recv().map(|frame| (frame.kind, frame.ack, frame.seq)),
        Some((FrameKind::Data, true, 7))
    );
    let later = now + Duration::from_millis(1);
    server.handle_timeout(later);
    let expected = [
        "01",
        "00",
        "4000",
        "00010203",
        "0000000000000000",
        "00000000",
        "51b8b8744e16c26584c8094886e4ea58",
        "01",
        "00",
        "0000",
        "e8030000",
        "0100000000000000",
        "0000000000000000",
        "00000000",
    ];
    assert_eq!(hex(&transmit(&mut server, later)), expected.concat());
    server.close(later, 0x1002);
    let expected = [
        "01",
        "00",
        "2c00",
        "00010203",
        "0100000000000000",
        "00000000",
        "dca98841cbc29aefabd9691554940167",
        "05",
        "000000",
        "02100000",
    ];
    assert_eq!(hex(&transmit(&mut server, later)), expected.concat());
}

/// Entries that the exchange above has not: credit, a ping, and ranges.
#[test]
fn entries() {
    use super::super::packet::{put_ack, put_credit, put_ping};
    let mut out = Vec::new();
    put_ack(&mut out, 5, 9, 8, [(90, 100), (80, 85), (3, 3)].into_iter());
    put_credit(&mut out, 10, 1 << 20);
    put_ping(&mut out);
    let expected = [
        "01",
        "02",
        "0000",
        "05000000",
        "0900000000000000",
        "6400000000000000",
        "0a000000",
        "03000000",
        "05000000",
        "4b000000",
        "00000000",
        "02",
        "00000000000000",
        "0a00000000000000",
        "0000100000000000",
        "03",
        "000000",
    ];
    assert_eq!(hex(&out), expected.concat());
}

/// Without the payload's MAC the head is still covered.
#[test]
fn payload_may_be_left_to_the_checksum() {
    let options = SessionOptions { authenticate_payload: false, ..SessionOptions::default() };
    let now = Instant::now();
    for (other, noticed) in [(options.clone(), false), (SessionOptions::default(), true)] {
        let [(mut client, _), (mut server, _)] = sessions([&options, &other], 1, now);
        client.send(super::peer::data(1, 100), None).unwrap();
        let mut packet = transmit(&mut client, now);
        let last = packet.len() - 1;
        packet[40] ^= 1;
        assert_eq!(server.handle(now, PinnedBuf::from(packet.clone())), Err(Dropped::Forged));
        packet[40] ^= 1;
        // Nor can a payload of another length be made of a genuine packet.
        let (cut, longer) = ([&packet[..last]].concat(), [&packet[..], &[0]].concat());
        for forged in [cut, longer] {
            assert_eq!(server.handle(now, PinnedBuf::from(forged)), Err(Dropped::Forged));
        }
        assert_eq!((server.stats().forged_packets, server.poll_event()), (3, None));
        packet[last] ^= 1;
        assert_eq!(server.handle(now, PinnedBuf::from(packet)).is_err(), noticed);
        assert_eq!(server.recv().is_none(), noticed);
    }
}
