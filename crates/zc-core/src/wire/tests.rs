//! Tests of the wire module: exact bytes, properties, and the state machines.

mod golden;
mod machines;
mod properties;

use super::*;

fn hello(role: HelloRole) -> Hello {
    Hello {
        versions: VersionRange::SUPPORTED,
        role,
        instance: *b"0123456789abcdef",
        max_message: 0x0100_0000,
        window: 0x0010_0000,
        auth_method: String::new(),
        keepalive_ms: 0,
        agent: String::new(),
        same_host: None,
        control_lane: false,
        remote: false,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn encoded(message: &ControlMessage) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    out
}

fn offer(name: &str) -> OfferEntry {
    OfferEntry { transport: name.into(), version: 1, bytes: vec![0xAA, 0xBB] }
}

fn entry(name: &str) -> PlanEntry {
    PlanEntry { transport: name.into() }
}

/// All messages in `bytes`, of which nothing may be left.
fn decode_all(bytes: &[u8]) -> Vec<ControlMessage> {
    let mut decoder = ControlDecoder::new();
    assert_eq!(decoder.push(bytes), bytes.len());
    let mut all = Vec::new();
    while let Some(message) = decoder.next_message() {
        all.push(message.unwrap());
    }
    assert!(decoder.leftover().is_empty());
    all
}
