//! A lane before it is committed to.

use super::*;
use crate::wireup::trial::Trial;

/// A frame as a stream lane writes it.
fn frame(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    header.encode().into_iter().chain(payload.iter().copied()).collect()
}

/// Runs a trial against bytes that a peer wrote.
async fn trial(bytes: &[u8]) -> Result<(), LaneError> {
    let fabric = with([]).build().unwrap();
    let shared = fabric.shared();
    let (mut near, far) = duplex("trial");
    io::write_all(&mut near, bytes).await.unwrap();
    let ledger = Arc::new(CopyLedger::new());
    let cx = OfferContext::new(shared.reactor.clone(), shared.pool.clone(), ledger, shared.limits);
    let link: Box<dyn ControlLink> = Box::new(far);
    let lane = TcpTransport.join(Role::Server, Offer::default(), Offer::default(), &mut Some(link), cx).await;
    let mut trial =
        Trial::new(Role::Server, lane.unwrap(), shared.pool.clone(), shared.reactor.clone()).unwrap();
    poll_fn(|cx| trial.poll_pinged(cx)).await
}

#[tokio::test(start_paused = true)]
async fn only_a_ping_and_a_pong_may_come_before_commit() {
    let record = |record: SessionRecord| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        frame(FrameHeader::session(bytes.len() as u32), &bytes)
    };
    let (ping, pong) = (record(SessionRecord::Ping { nonce: 5 }), record(SessionRecord::Pong { nonce: 1 }));
    let good = [ping.clone(), pong.clone()].concat();
    trial(&good).await.unwrap();
    let flags = FrameFlags { ext: false, ack_requested: true };
    for wrong in [
        frame(FrameHeader { flags, ..FrameHeader::data(1, 1) }, b"x"),
        record(SessionRecord::Fin { last_seq: 0 }),
        record(SessionRecord::Pong { nonce: 2 }),
        [ping.clone(), ping.clone()].concat(),
        [good, pong].concat(),
        frame(FrameHeader::session(3), b"xyz"),
    ] {
        let error = trial(&wrong).await.unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
