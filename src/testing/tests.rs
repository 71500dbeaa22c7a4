use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::{
    After, Crossing, FaultPlan, FaultTransport, TraceEvent, Tracer, fabric_over, mem_transport, pair,
    stream_transport,
};
use crate::transport::{Completion, FrameKind, LaneError, Transport};
use crate::{Connection, ConnectionError, ConnectionOptions, Delivery, FabricBuilder, FileFault, Polling};

const HOUR: Duration = Duration::from_secs(3600);

fn calm(transport: Arc<dyn Transport>) -> FabricBuilder {
    let options = ConnectionOptions {
        keepalive_interval: Duration::ZERO,
        polling: Polling::Interrupt,
        ..ConnectionOptions::default()
    };
    fabric_over(transport).options(options)
}

async fn faulty(plan: FaultPlan) -> (Connection, Connection, super::FaultSwitch) {
    let transport = FaultTransport::new(mem_transport(), plan);
    let switch = transport.switch();
    let (client, server) = pair(&calm(Arc::new(transport)).build().unwrap()).await.unwrap();
    (client, server, switch)
}

async fn numbered(client: &Connection, count: u8) {
    for n in 0..count {
        client.send(vec![n; 100]).await.unwrap();
    }
}

async fn expect(server: &mut Connection, count: u8) {
    for n in 0..count {
        assert_eq!(server.recv().await.unwrap().unwrap(), [n; 100][..]);
    }
}

#[tokio::test(start_paused = true)]
async fn delays_batches_and_early_polls_keep_the_order() {
    let plan = FaultPlan::new(3).delay(Duration::from_millis(1), HOUR).batch(1).pending(2);
    let (client, mut server, _) = faulty(plan).await;
    let began = Instant::now();
    numbered(&client, 200).await;
    expect(&mut server, 200).await;
    assert!(began.elapsed() > HOUR / 2, "{:?}", began.elapsed());
    assert!(began.elapsed() <= HOUR + Duration::from_secs(1), "delays overlap: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_receiver_ends_when_it_is_released() {
    let (client, mut server, switch) = faulty(FaultPlan::new(1)).await;
    switch.stall_receiving();
    numbered(&client, 5).await;
    assert!(tokio::time::timeout(HOUR, server.recv()).await.is_err());
    switch.release();
    expect(&mut server, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_sender_holds_back_records_too() {
    let (client, mut server, switch) = faulty(FaultPlan::new(1)).await;
    numbered(&client, 3).await;
    expect(&mut server, 3).await;
    switch.stall_sending();
    // The message below can't leave; neither could an acknowledgement.
    assert!(client.send(vec![9; 100]).now_or_never().is_none());
    assert!(tokio::time::timeout(HOUR, client.drain(2 * HOUR)).await.is_err());
    switch.release();
    client.drain(HOUR).await.unwrap();
    assert!(server.recv().await.unwrap().is_none(), "the dropped send sent nothing");
}

#[tokio::test(start_paused = true)]
async fn planned_stalls_last_as_long_as_planned() {
    let sending = FaultPlan::new(1).stall_sending(3, HOUR);
    let receiving = FaultPlan::new(1).stall_receiving(3, HOUR);
    for plan in [sending, receiving] {
        let (client, mut server, _) = faulty(plan).await;
        let began = Instant::now();
        let all = async {
            numbered(&client, 6).await;
            client.sender().finish().await.unwrap();
        };
        let (_, ()) = tokio::join!(all, expect(&mut server, 6));
        assert!(server.recv().await.unwrap().is_none());
        let took = began.elapsed();
        assert!(took >= HOUR && took < HOUR + Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn room_comes_back_with_time() {
    let second = Duration::from_secs(1);
    let (client, mut server, _) = faulty(FaultPlan::new(1).room(10, second)).await;
    let began = Instant::now();
    let ((), ()) = tokio::join!(numbered(&client, 100), expect(&mut server, 100));
    assert!(began.elapsed() >= 9 * second && began.elapsed() < 11 * second, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_ends_on_both_sides() {
    // Both ends count: the cut comes at whichever sees its eleventh frame first.
    let (client, mut server, _) = faulty(FaultPlan::new(1).drop_after(After::Bytes(1000))).await;
    let mut sent = 0_u8;
    let error = loop {
        match client.send(vec![sent; 100]).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(sent, 10);
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert!(matches!(error.error, ConnectionError::Lane(LaneError::PeerGone(_))), "{error}");
    let mut received = 0;
    while let Ok(message) = server.recv().await {
        assert_eq!(message.unwrap(), [received; 100][..]);
        received += 1;
    }
    assert!(received <= sent);
}

#[tokio::test(start_paused = true)]
async fn the_given_error_is_the_one_that_comes_out() {
    let error = LaneError::Other("the cable was pulled".into());
    let (client, server, switch) = faulty(FaultPlan::new(1)).await;
    switch.cut(&error);
    for mut end in [client, server] {
        let found = end.recv().await.unwrap_err();
        assert!(matches!(&found, ConnectionError::Lane(LaneError::Other(_))), "{found}");
    }
}

#[tokio::test(start_paused = true)]
async fn reports_come_late() {
    let (client, _server, _) = faulty(FaultPlan::new(1).late_reports(HOUR)).await;
    let began = Instant::now();
    client.sender().send_with(vec![1; 100], Completion::Sent).await.unwrap();
    assert!(began.elapsed() >= HOUR);
}

#[tokio::test]
async fn memory_is_refused_by_chance() {
    use crate::memory::{BufPool, CopyLedger};
    use crate::transport::{LaneLimits, LinkAddr, Offer, OfferContext, Reactor, Role};
    let reactor: Arc<dyn Reactor> = Arc::new(crate::TokioReactor::new());
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    let watched = reactor.register(one.into()).unwrap();
    let link = zc_transport_tcp::StreamLink::new(watched, LinkAddr::UnixAbstract("pair".into()));
    let mut link = Some(Box::new(link) as _);
    let pool = BufPool::builder().build();
    let cx = OfferContext::new(reactor, pool, Arc::new(CopyLedger::new()), LaneLimits::default());
    let transport = FaultTransport::new(super::stream_transport(), FaultPlan::new(5).refuse_alloc(3));
    let (mine, peer) = (Offer::default(), Offer::default());
    let mut lane = transport.join(Role::Client, mine, peer, &mut link, cx).await.unwrap();
    let mut refused = 0;
    for _ in 0..300 {
        let got = std::future::poll_fn(|cx| lane.tx.poll_alloc(cx, 64)).await;
        refused += u32::from(got.is_err());
    }
    assert!((60..140).contains(&refused), "{refused} of 300");
}

async fn traced(seed: u64) -> Vec<TraceEvent> {
    let plan = FaultPlan::new(seed).delay(Duration::ZERO, Duration::from_secs(9)).pending(3).batch(2);
    let tracer = Tracer::new(Arc::new(FaultTransport::new(mem_transport(), plan)));
    let trace = tracer.trace();
    let (client, mut server) = pair(&calm(Arc::new(tracer)).build().unwrap()).await.unwrap();
    let echo = async {
        while let Some(message) = server.recv().await.unwrap() {
            server.send(message).await.unwrap();
        }
        server.drain(HOUR).await.unwrap();
    };
    let ask = async {
        let mut client = client;
        for round in 0..20 {
            numbered(&client, round).await;
            for n in 0..round {
                assert_eq!(client.recv().await.unwrap().unwrap(), [n; 100][..]);
            }
        }
        client.drain(HOUR).await.unwrap();
        assert!(client.recv().await.unwrap().is_none());
    };
    tokio::join!(echo, ask);
    assert_eq!(trace.lost(), 0);
    trace.events()
}

#[test]
fn a_run_over_memory_repeats_itself() {
    let run = |seed| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(traced(seed))
    };
    let (one, again, other) = (run(1), run(1), run(2));
    assert!(one.iter().any(|event| matches!(event.what, Crossing::Received { .. })));
    assert_eq!(one.len(), again.len());
    for (one, again) in one.iter().zip(&again) {
        assert_eq!(one, again);
    }
    assert_ne!(one, other, "another seed is another run");
}

#[tokio::test(start_paused = true)]
async fn no_time_of_a_plan_is_too_long() {
    let never = Duration::MAX;
    let plan = || FaultPlan::new(1);
    for (plan, arrives) in [
        (plan().delay(never, never), false),
        (plan().stall_sending(1, never), false),
        (plan().stall_receiving(1, never), false),
        (plan().room(1, never), false),
        (plan().late_reports(never), true),
    ] {
        let (client, mut server, _) = faulty(plan.clone()).await;
        let both = async { tokio::join!(numbered(&client, 2), expect(&mut server, 2)) };
        assert_eq!(tokio::time::timeout(HOUR, both).await.is_ok(), arrives, "{plan:?}");
    }
}

/// A file's pages go by reference through both of them: they are seen, held back, and cut off like others.
#[tokio::test]
async fn files_are_spliced_through_middleware() {
    const LEN: u64 = 1 << 20;
    let faults = FaultTransport::new(stream_transport(), FaultPlan::new(7).drop_after(After::Bytes(LEN)));
    let switch = faults.switch();
    let tracer = Tracer::new(Arc::new(faults));
    let trace = tracer.trace();
    let fabric = calm(Arc::new(tracer)).build().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    let (client, mut server) = futures::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &vec![7; LEN as usize]).unwrap();
    let (file, sender, half) = (Arc::new(file), client.sender(), LEN / 2);

    switch.stall_sending();
    let sending = sender.send_file(file.clone(), 0..half, Default::default());
    let sending = async { sending.await.unwrap() };
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(20)).await; // long enough to be got
        assert!(server.recv().now_or_never().is_none(), "it is held back");
        switch.release();
        let mut got = 0;
        while got < half {
            let message = server.recv().await.unwrap().unwrap();
            assert!(message.segments().iter().all(|part| part.iter().all(|byte| *byte == 7)));
            got += message.len() as u64;
        }
    };
    let (sent, ()) = futures::join!(sending, releasing);
    assert_eq!((sent.bytes, sent.spliced_bytes), (half, half));
    let seen = |event: TraceEvent| match event.what {
        Crossing::Sent { kind: FrameKind::Data, len, .. } => len as u64,
        _ => 0,
    };
    assert_eq!(trace.events().into_iter().map(seen).sum::<u64>(), half);

    let receiving = async { while let Ok(Some(_)) = server.recv().await {} };
    let sending = sender.send_file(file, 0..LEN, Default::default());
    let (sent, ()) = futures::join!(sending, receiving);
    let error = sent.unwrap_err();
    assert!(matches!(error.fault, FileFault::Connection(_)) && error.sent() < LEN, "{error}");
}
