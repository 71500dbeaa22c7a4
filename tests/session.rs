//! What the session layer promises beyond moving messages: permits, deadlines, GOAWAY, idling, liveness,
//! figures and events. Time is simulated.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::{FutureExt, SinkExt};
use tokio::time::{advance, sleep, timeout};
use zc::testing::{FaultPlan, FaultSwitch, FaultTransport, fabric_over, mem_transport};
use zc::transport::LaneLimits;
use zc::{
    CloseCode, Closed, Completion, Connection, ConnectionError, ConnectionOptions, Delivery, Fabric,
    FabricBuilder, Observer, Polling,
};

const LONG: Duration = Duration::from_secs(3600);

fn limits(recv_window: u32) -> LaneLimits {
    let mut limits = LaneLimits::default();
    limits.recv_window = recv_window;
    limits
}

fn options(change: impl FnOnce(&mut ConnectionOptions)) -> FabricBuilder {
    let mut options = ConnectionOptions::default();
    options.polling = Polling::Interrupt;
    change(&mut options);
    Fabric::auto_builder().options(options)
}

async fn pair_of(builder: FabricBuilder) -> (Connection, Connection) {
    zc::testing::pair(&builder.build().unwrap()).await.unwrap()
}

async fn pair() -> (Connection, Connection) {
    pair_of(options(|_| {})).await
}

/// A pair whose receiver stalls the sender after few bytes; the sender is stalled.
async fn stalled_pair() -> (Connection, Connection) {
    let (client, server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    while client.send(vec![1; 100_000]).now_or_never().is_some() {}
    (client, server)
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_good_for_one_message_and_holds_up_nobody() {
    let (client, mut server) = pair().await;
    let (one, other) = (client.sender(), client.sender());
    let permit = one.reserve(100).await.unwrap();
    drop(other.try_reserve(1).unwrap().expect("nothing is kept from others"));
    other.try_send(vec![2; 10]).unwrap();
    other.send(vec![2; 11]).await.unwrap();
    other.flush().await.unwrap();
    permit.send(vec![1; 100]).unwrap();
    for len in [10, 11, 100] {
        assert_eq!(server.recv().await.unwrap().unwrap().len(), len);
    }
    let error = one.reserve(3).await.unwrap().send(vec![1; 4]).unwrap_err();
    assert!(matches!(error.error, ConnectionError::TooLarge { len: 4, max: 3 }));
    assert_eq!(error.into_message().unwrap().len(), 4);

    let permit = one.reserve(1).await.unwrap();
    client.close(CloseCode::NORMAL, "").await;
    let error = permit.send(vec![1]).unwrap_err();
    assert!(error.is_retryable() && matches!(error.error, ConnectionError::ClosedHere), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_good_although_others_took_the_room() {
    let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    let sender = client.sender();
    let permits = [sender.reserve(1).await.unwrap(), sender.reserve(1).await.unwrap()];
    sender.send(vec![0; 100_000]).await.unwrap();
    assert!(sender.try_send(vec![0; 1]).is_err(), "there is no room");
    for permit in permits {
        permit.send(vec![1]).unwrap();
    }
    // Whoever comes later waits behind them.
    let later = tokio::spawn({
        let sender = client.sender();
        async move { sender.send(vec![2]).await }
    });
    sleep(Duration::from_secs(1)).await;
    assert_eq!((client.stats().sent_messages, client.stats().waiting_senders), (1, 3));
    assert_eq!(server.recv().await.unwrap().unwrap().len(), 100_000);
    for n in [1, 1, 2] {
        assert_eq!(server.recv().await.unwrap().unwrap(), [n][..]);
    }
    later.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_permit_waits_for_room() {
    let (client, mut server) = stalled_pair().await;
    let sender = client.sender();
    assert!(sender.try_reserve(1).unwrap().is_none());
    assert!(timeout(LONG, sender.reserve(1)).await.is_err());
    while timeout(Duration::from_secs(1), server.recv()).await.is_ok() {}
    sender.reserve(1).await.unwrap().send(vec![9]).unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), [9][..]);
}

#[tokio::test(start_paused = true)]
async fn a_send_that_had_no_room_in_time_gives_the_message_back() {
    let (client, mut server) = stalled_pair().await;
    let start = tokio::time::Instant::now();
    for completion in [Completion::Accepted, Completion::Sent, Completion::Delivered] {
        let sender = client.sender();
        let sending = sender.send_with(&b"late"[..], completion).timeout(Duration::from_secs(5));
        let error = sending.await.unwrap_err();
        assert!(matches!(error.error, ConnectionError::Deadline), "{error}");
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(error.is_retryable());
        assert_eq!(error.into_message().unwrap(), b"late"[..]);
    }
    assert!(start.elapsed() >= Duration::from_secs(15), "each had its time");
    assert_eq!((client.stats().waiting_senders, client.stats().awaited_sends), (0, 0));
    while timeout(Duration::from_secs(1), server.recv()).await.is_ok() {}
    client.send(&b"next"[..]).timeout(LONG).await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), b"next"[..], "what timed out was not sent");
}

/// A pair, and what stops both ends from reading.
async fn switched_pair() -> (Connection, Connection, FaultSwitch) {
    let transport = FaultTransport::new(mem_transport(), FaultPlan::new(1));
    let switch = transport.switch();
    let mut options = ConnectionOptions::default();
    (options.polling, options.keepalive_interval) = (Polling::Interrupt, Duration::ZERO);
    let (client, server) = pair_of(fabric_over(Arc::new(transport)).options(options)).await;
    (client, server, switch)
}

#[tokio::test(start_paused = true)]
async fn a_send_that_was_handed_over_in_time_is_unknown() {
    let (client, mut server, switch) = switched_pair().await;
    let sender = client.sender();
    sender.send_with(vec![1; 1], Completion::Delivered).timeout(LONG).await.unwrap();
    switch.stall_receiving();
    let sending = sender.send_with(vec![2; 100], Completion::Delivered).timeout(Duration::from_secs(1));
    let error = sending.await.unwrap_err();
    assert!(matches!(error.error, ConnectionError::Deadline), "{error}");
    assert_eq!((error.delivery(), error.is_retryable()), (Delivery::Unknown, false));
    switch.release();
    for len in [1, 100] {
        assert_eq!(server.recv().await.unwrap().unwrap().len(), len, "it arrived after all");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_lease_kills_neither_side() {
    let mut tight = LaneLimits::default();
    (tight.lease_soft, tight.lease_hard) = (1, 1);
    let (client, mut server) = pair_of(options(|_| {}).limits(tight)).await;
    client.send(vec![1; 100]).await.unwrap();
    let held = server.recv().await.unwrap().unwrap();
    assert!(timeout(LONG, server.recv()).await.is_err(), "nothing is read for an hour");
    assert!(client.stats().silence < Duration::from_secs(30), "{:?}", client.stats());
    client.send(vec![2; 100]).await.unwrap();
    drop(held);
    assert_eq!(server.recv().await.unwrap().unwrap(), [2; 100][..]);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_takes_long_does_not_look_dead() {
    let brisk = |o: &mut ConnectionOptions| {
        o.keepalive_interval = Duration::from_millis(50);
        o.keepalive_timeout = Duration::from_millis(50);
    };
    let (client, mut server) = pair_of(options(brisk)).await;
    for n in 0..20_u8 {
        client.send(vec![n; 10]).await.unwrap();
        assert_eq!(server.recv().await.unwrap().unwrap(), [n; 10][..]);
        // Served at once or not, neither side polls its connection for long.
        sleep(Duration::from_secs(1)).await;
    }
    client.send(vec![99]).await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), [99][..]);
}

/// One that failed while it waited for memory is kept, and must not be in front of those that wait, too.
#[tokio::test(start_paused = true)]
async fn a_failed_connection_has_no_place_in_the_queue_for_memory() {
    const POOL: usize = 64 << 10;
    let pool = zc::BufPool::builder().max_bytes(POOL).build();
    let brisk = |o: &mut ConnectionOptions| {
        o.keepalive_interval = Duration::from_millis(50);
        o.keepalive_timeout = Duration::from_millis(50);
    };
    let (client, mut server) = pair_of(options(brisk).pool(pool.clone())).await;
    pool.trim();
    let all = pool.try_alloc(POOL).unwrap();
    client.send(vec![1; 5000]).await.unwrap();
    assert!(server.recv().now_or_never().is_none());
    let mut second = Box::pin(pool.alloc(100));
    assert!((&mut second).now_or_never().is_none());
    // It can't read the answers to its pings.
    assert!(timeout(LONG, server.recv()).await.unwrap().is_err());
    drop(all);
    assert!(timeout(LONG, second).await.is_ok(), "nobody is in front of it");
    drop((client, server));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_does_not_wait_for_the_application() {
    let (client, mut server) = pair().await;
    let sender = client.sender();
    for n in 0..50_u8 {
        let start = tokio::time::Instant::now();
        sender.send_with(vec![n; 10], Completion::Delivered).await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(12), "{:?}", start.elapsed());
        server.recv().await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_in_order() {
    let idle = Duration::from_secs(100);
    let (mut client, mut server) = pair_of(options(|o| o.idle = Some(idle))).await;
    let start = tokio::time::Instant::now();
    sleep(Duration::from_secs(80)).await;
    client.send(vec![1]).await.unwrap();
    let closed = client.recv().await.unwrap_err();
    let after = start.elapsed();
    assert!((Duration::from_secs(180)..Duration::from_secs(210)).contains(&after), "{after:?}");
    // Both have the option; one of them was first, and the other sees its code.
    assert_eq!(server.recv().await.unwrap().unwrap(), [1][..], "what had arrived is not lost");
    let other = server.recv().await.unwrap_err();
    let by_peer = |error: &ConnectionError| {
        matches!(error, ConnectionError::ClosedByPeer { code: CloseCode::IDLE, .. })
    };
    let by_us = |error: &ConnectionError| matches!(error, ConnectionError::Idle { idle: i } if *i == idle);
    assert!(by_us(&closed) || by_us(&other), "{closed} {other}");
    for error in [&closed, &other] {
        assert!(by_peer(error) || by_us(error), "{error}");
    }
    let error = client.send(vec![2]).await.unwrap_err();
    assert!(error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn messages_keep_a_connection_from_idling() {
    let (client, mut server) = pair_of(options(|o| o.idle = Some(Duration::from_secs(10)))).await;
    for n in 0..20_u8 {
        sleep(Duration::from_secs(9)).await;
        client.send(vec![n]).await.unwrap();
        assert_eq!(server.recv().await.unwrap().unwrap(), [n][..]);
    }
}

#[tokio::test(start_paused = true)]
async fn go_away_finishes_what_is_under_way() {
    let (mut client, mut server) = pair().await;
    let sender = client.sender();
    for n in 0..3_u8 {
        sender.send_with(vec![n], Completion::Delivered).await.unwrap();
    }
    server.go_away("reloading").unwrap();
    server.go_away("again").unwrap();
    for n in 0..3_u8 {
        assert_eq!(server.recv().await.unwrap().unwrap(), [n][..], "what had arrived is taken");
    }
    assert!(server.recv().await.unwrap().is_none(), "and nothing after it");
    // Its answers still come.
    server.send(&b"answer"[..]).await.unwrap();
    assert_eq!(client.recv().await.unwrap().unwrap(), b"answer"[..]);
    let error = client.send(&b"new"[..]).await.unwrap_err();
    let ConnectionError::PeerGoesAway { code, reason } = &error.error else { panic!("{error}") };
    assert_eq!((*code, reason.as_str()), (CloseCode::GOING_AWAY, "reloading"));
    assert!(error.is_retryable());
    assert_eq!(error.into_message().unwrap(), b"new"[..]);
    client.drain(LONG).await.unwrap();
    server.drain(LONG).await.unwrap();
    assert!(client.recv().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_crosses_a_go_away_was_not_sent() {
    let (client, mut server) = pair().await;
    let sender = client.sender();
    sender.send_with(vec![1], Completion::Delivered).await.unwrap();
    // The peer's records are not read before these are on their way.
    let mut late: Vec<_> =
        (2..10_u8).map(|n| Box::pin(sender.send_with(vec![n], Completion::Delivered))).collect();
    server.go_away("full").unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(late.iter_mut().all(|send| send.poll_unpin(&mut cx).is_pending()), "handed over");
    for send in late {
        let error = send.await.unwrap_err();
        assert!(matches!(error.error, ConnectionError::PeerGoesAway { .. }), "{error}");
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(error.is_retryable());
    }
    assert_eq!(server.recv().await.unwrap().unwrap(), [1][..]);
    assert!(server.recv().await.unwrap().is_none(), "none of them is received");
    assert_eq!(server.stats().received_messages, 1);
    assert!(matches!(client.drain(LONG).await, Err(ConnectionError::PeerGoesAway { .. })));
    server.send(&b"still here"[..]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn flush_waits_until_all_is_out() {
    let (client, mut server, switch) = switched_pair().await;
    let mut sender = client.sender();
    // More than the pipe between the two holds.
    switch.stall_receiving();
    sender.feed(vec![2; 1 << 20]).await.unwrap();
    assert!(timeout(LONG, sender.flush()).await.is_err());
    assert!(timeout(LONG, SinkExt::<zc::Message>::flush(&mut sender)).await.is_err());
    let flushing = tokio::spawn(async move { sender.flush().await });
    switch.release();
    assert_eq!(server.recv().await.unwrap().unwrap().len(), 1 << 20);
    flushing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn sinks_that_were_ready_together_keep_order_and_bounds() {
    use futures::Sink;
    let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    let mut sinks: Vec<_> = (0..8).map(|_| Box::pin(client.sender())).collect();
    let mut cx = Context::from_waker(Waker::noop());
    for sink in &mut sinks {
        assert!(sink.as_mut().poll_ready(&mut cx).is_ready(), "there is room for one");
    }
    for (n, sink) in sinks.iter_mut().enumerate() {
        sink.as_mut().start_send(vec![n as u8; 100_000].into()).unwrap();
    }
    assert_eq!(client.stats().sent_messages, 1, "only one of them was handed over");
    for sink in &mut sinks[1..] {
        assert!(sink.as_mut().poll_ready(&mut cx).is_pending(), "one message each");
        assert!(sink.as_mut().poll_flush(&mut cx).is_pending());
        let error = sink.as_mut().start_send(vec![9].into()).unwrap_err();
        assert!(matches!(error.error, ConnectionError::NotReady) && error.is_retryable(), "{error}");
    }
    // What was given is sent, even if nobody flushes.
    drop(sinks);
    for n in 0..8 {
        let message = server.recv().await.unwrap().unwrap();
        assert_eq!((message.len(), message.segments()[0][0]), (100_000, n));
    }
    client.drain(LONG).await.unwrap();
    assert!(server.recv().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn fin_follows_what_sinks_had_taken() {
    use futures::Sink;
    for by_drop in [true, false] {
        let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
        let mut sinks: Vec<_> = (0..3).map(|_| Box::pin(client.sender())).collect();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sinks.iter_mut().all(|sink| sink.as_mut().poll_ready(&mut cx).is_ready()));
        for sink in &mut sinks {
            sink.as_mut().start_send(vec![1; 100_000].into()).unwrap();
        }
        if by_drop {
            drop((sinks, client));
        } else {
            client.sender().finish().await.unwrap();
            assert!(matches!(sinks[0].as_mut().poll_ready(&mut cx), Poll::Ready(Err(_))));
        }
        for _ in 0..3 {
            assert_eq!(server.recv().await.unwrap().unwrap().len(), 100_000);
        }
        assert!(server.recv().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn closing_a_sink_waits_for_fin_behind_what_others_gave() {
    use futures::Sink;
    for flush_first in [false, true] {
        let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
        let mut sinks: Vec<_> = (0..3).map(|_| Box::pin(client.sender())).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for sink in &mut sinks {
            sink.as_mut().start_send(vec![1; 100_000].into()).unwrap();
        }
        let mut last = Box::pin(client.sender());
        if flush_first {
            // In front of what comes after it.
            assert!(last.as_mut().poll_flush(&mut cx).is_pending());
        }
        let mut behind = Box::pin(client.sender());
        behind.as_mut().start_send(vec![2; 100_000].into()).unwrap();
        let closing = tokio::spawn(async move { SinkExt::close(&mut last).await });
        sleep(Duration::from_secs(1)).await;
        assert!(!closing.is_finished());
        for _ in 0..4 {
            assert_eq!(server.recv().await.unwrap().unwrap().len(), 100_000);
        }
        closing.await.unwrap().unwrap();
        // It is out, so it needs nobody at this end any more.
        assert!(server.recv().await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_left_alone_holds_up_nobody() {
    use futures::Sink;
    use tokio::io::AsyncWriteExt;
    let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    let (mut one, mut other) = (Box::pin(client.sender()), client.sender());
    let mut cx = Context::from_waker(Waker::noop());
    one.as_mut().start_send(vec![1; 100_000].into()).unwrap();
    one.as_mut().start_send(vec![2].into()).unwrap();
    // Each waits, and is never polled again.
    assert!(one.as_mut().poll_ready(&mut cx).is_pending());
    assert!(one.as_mut().poll_flush(&mut cx).is_pending());
    let mut stream = client.into_byte_stream().unwrap();
    stream.write_all(&[3]).await.unwrap();
    assert!(stream.write_all(&[4]).now_or_never().is_none());
    assert!(stream.flush().now_or_never().is_none());
    let sending = tokio::spawn(async move {
        other.send(vec![5]).await.unwrap();
        SinkExt::send(&mut other, vec![6].into()).await.unwrap();
        other
    });
    assert_eq!(server.recv().await.unwrap().unwrap().len(), 100_000);
    for n in [2, 3, 5, 6] {
        assert_eq!(server.recv().await.unwrap().unwrap(), [n][..]);
    }
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_receiver_the_peer_is_told() {
    let (mut client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    server.send(vec![1; 2000]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let (sender, receiver) = client.split();
    drop(receiver);
    let mut sent = 1;
    let error = loop {
        match timeout(LONG, server.send(vec![1; 2000])).await.expect("it never stalls") {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error.error, ConnectionError::PeerGoesAway { .. }), "{error}");
    assert!(error.is_retryable());
    sleep(Duration::from_secs(1)).await;
    let stats = client.stats();
    assert_eq!((stats.discarded_messages, stats.inbox_messages, stats.leased_bytes), (sent, 0, 0));
    // The other direction is open, and both end in order.
    sender.send(&b"still here"[..]).await.unwrap();
    assert_eq!(server.recv().await.unwrap().unwrap(), b"still here"[..]);
    client.drain(LONG).await.unwrap();
    drop((client, sender));
    assert!(server.recv().await.unwrap().is_none());
    assert!(matches!(server.closed().await, ConnectionError::ClosedByPeer { code: CloseCode::NORMAL, .. }));
}

#[tokio::test(start_paused = true)]
async fn closed_tells_either_end_why() {
    let (client, mut server) = pair().await;
    let (here, there, late) = (client.closed(), server.closed(), server.sender());
    let waiting = tokio::spawn(there);
    client.send(vec![1]).await.unwrap();
    assert!(timeout(LONG, client.closed()).await.is_err(), "it goes on");
    client.close(CloseCode::app(4).unwrap(), "enough").await;
    assert!(matches!(here.await, ConnectionError::ClosedHere));
    for reason in [waiting.await.unwrap(), late.closed().await] {
        let ConnectionError::ClosedByPeer { code, reason } = reason else { panic!("{reason}") };
        assert_eq!((code, reason.as_str()), (CloseCode::app(4).unwrap(), "enough"));
    }
    assert_eq!(server.recv().await.unwrap().unwrap(), [1][..], "what came before");

    // Waiting keeps nothing open.
    let (client, server) = pair().await;
    let (here, there) = (client.closed(), server.closed());
    drop(client);
    assert!(matches!(there.await, ConnectionError::ClosedByPeer { code: CloseCode::NORMAL, .. }));
    drop(server);
    assert!(matches!(here.await, ConnectionError::ClosedHere));
}

#[tokio::test(start_paused = true)]
async fn thousands_of_deliveries_are_awaited_at_once() {
    let (client, mut server) = pair_of(options(|_| {}).limits(limits(64 << 20))).await;
    let sender = client.sender();
    let sends: Vec<_> = (0..10_000_u32)
        .map(|n| {
            let sender = sender.clone();
            tokio::spawn(
                async move { sender.send_with(Vec::from(n.to_le_bytes()), Completion::Delivered).await },
            )
        })
        .collect();
    for _ in 0..10_000 {
        server.recv().await.unwrap().unwrap();
    }
    for send in sends {
        send.await.unwrap().unwrap();
    }
    assert_eq!(client.stats().awaited_sends, 0);
}

#[tokio::test(start_paused = true)]
async fn receiving_after_split_is_an_error() {
    let (mut client, _server) = pair().await;
    let (_sender, _receiver) = client.split();
    assert!(client.take_receiver().is_none());
    assert!(matches!(client.recv().await, Err(ConnectionError::ReceiverTaken)));
    assert!(matches!(client.into_byte_stream(), Err(ConnectionError::ReceiverTaken)));
}

#[tokio::test(start_paused = true)]
async fn stats_add_up() {
    let (client, mut server) = pair_of(options(|_| {}).limits(limits(4096))).await;
    advance(Duration::from_secs(2)).await;
    client.send(vec![1; 5000]).await.unwrap();
    let sender = client.sender();
    let waiting = sender.send(vec![1; 10]);
    tokio::pin!(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    sleep(Duration::from_millis(100)).await;
    let (here, there) = (client.stats(), server.stats());
    assert_eq!((here.sent_messages, here.sent_bytes), (1, 5000));
    assert_eq!((here.waiting_senders, here.stalls, here.unacknowledged_messages), (1, 1, 1));
    assert_eq!((there.received_messages, there.received_bytes, there.inbox_messages), (1, 5000, 1));
    assert!(here.age >= Duration::from_secs(2) && there.silence <= Duration::from_secs(1), "{there:?}");
    let held = server.recv().await.unwrap().unwrap();
    assert!(server.stats().leased_bytes >= 5000);
    drop(held);
    waiting.await.unwrap();
    assert_eq!(server.stats().inbox_messages + usize::from(server.recv().await.unwrap().is_some()), 1);
}

#[derive(Default)]
struct Ends(Mutex<Vec<Closed>>);

impl Observer for Ends {
    fn closed(&self, event: &Closed) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Ends {
    fn reasons(&self) -> Vec<Option<String>> {
        self.0.lock().unwrap().drain(..).map(|event| event.reason).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn every_end_is_told_once() {
    let ends = Arc::new(Ends::default());
    let build = || options(|_| {}).observer(ends.clone());
    let (client, mut server) = pair_of(build()).await;
    client.send(vec![1; 1000]).await.unwrap();
    drop(client);
    assert_eq!(server.recv().await.unwrap().unwrap().len(), 1000);
    assert!(server.recv().await.unwrap().is_none());
    drop(server);
    sleep(LONG).await;
    assert!(
        ends.0.lock().unwrap().iter().all(|end| end.transport == "mem" && end.ledger.moved_bytes == 1000)
    );
    assert_eq!(ends.reasons(), [None, None]);

    let (client, server) = pair_of(build()).await;
    client.close(CloseCode::app(3).unwrap(), "enough").await;
    sleep(LONG).await;
    let mut reasons = ends.reasons();
    reasons.sort();
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].is_none() && reasons[1].as_ref().unwrap().contains("enough"), "{reasons:?}");
    drop(server);
    sleep(LONG).await;
    assert!(ends.reasons().is_empty(), "not again");
}

#[test]
fn a_runtime_that_ends_ends_its_connections() {
    let ends = Arc::new(Ends::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, _server) = runtime.block_on(pair_of(options(|_| {}).observer(ends.clone())));
    drop(runtime);
    assert_eq!(ends.reasons().len(), 2);
    let polled = client.recv().now_or_never();
    assert!(matches!(polled, Some(Err(ConnectionError::NoRuntime(_)))), "{polled:?}");
}

#[tokio::test(start_paused = true)]
async fn try_recv_finds_what_arrived() {
    let (client, mut server) = pair().await;
    let (_, mut receiver) = server.split();
    assert!(receiver.try_recv().unwrap().is_none());
    client.send(vec![5]).await.unwrap();
    assert_eq!(receiver.try_recv().unwrap().unwrap(), [5][..]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(receiver.poll_recv(&mut cx), Poll::Pending));
    client.send(vec![6]).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), [6][..]);
}

#[tokio::test]
async fn who_always_finds_messages_gives_way() {
    const MESSAGES: usize = 500;
    let (client, mut server) = pair().await;
    for _ in 0..MESSAGES {
        client.send(vec![7]).await.unwrap();
    }
    // All are queued at the receiver: none has to be waited for.
    client.drain(LONG).await.unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let others = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            others.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    tokio::task::yield_now().await;
    let before = turns.load(Ordering::Relaxed);
    for _ in 0..MESSAGES {
        assert!(server.recv().await.unwrap().is_some());
    }
    assert!(turns.load(Ordering::Relaxed) > before, "nobody else had a turn");
    other.abort();
}
