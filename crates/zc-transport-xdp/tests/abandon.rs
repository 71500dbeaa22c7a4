//! What a lane gives back when it has failed.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::time::Duration;

use zc::TokioReactor;
use zc::transport::{
    ControlLink, Frame, FrameKind, Lane, LaneLimits, LinkAddr, LinkProvider, Offer, OfferContext, Reactor,
    Role, Transport,
};
use zc_transport_tcp::StreamLinks;
use zc_transport_xdp::UdpTransport;

/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(60);

fn run<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async { tokio::time::timeout(GUARD, what).await.expect("it hangs") })
}

fn context(reactor: &Arc<dyn Reactor>) -> OfferContext {
    let pool = zc::BufPool::builder().build();
    let mut cx = OfferContext::new(reactor.clone(), pool, Arc::default(), LaneLimits::default());
    (cx.local, cx.remote) = (Some(([127, 0, 0, 1], 1).into()), Some(([127, 0, 0, 1], 1).into()));
    cx
}

/// A lane over UDP on the loopback interface, and the control link beside it.
async fn join(
    role: Role,
    mut link: Option<Box<dyn ControlLink>>,
    reactor: &Arc<dyn Reactor>,
    exchange: impl FnOnce(Offer) -> Offer,
) -> (Lane, Box<dyn ControlLink>) {
    let (transport, cx) = (UdpTransport::default(), context(reactor));
    let mine = transport.offer(&cx).unwrap();
    let theirs = exchange(mine.clone());
    let lane = transport.join(role, mine, theirs, &mut link, cx).await.unwrap();
    (lane, link.unwrap())
}

/// The peer joins, and then neither receives nor says anything; its control link ends.
#[test]
fn what_the_peer_has_not_acknowledged_comes_back() {
    let ((to_server, from_client), (to_client, from_server)) = (channel(), channel());
    let ((at, here), (sent, is_sent), (done, is_done)) = (channel(), channel::<()>(), channel::<()>());
    // Who panics drops his ends of the channels, so that the other does not wait for ever.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            run(async {
                let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
                let any = LinkAddr::Tcp("127.0.0.1:0".into());
                let mut listener = StreamLinks.bind(&any, &reactor).await.unwrap();
                at.send(listener.local()).unwrap();
                let link = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
                let exchange = |mine| {
                    to_client.send(mine).unwrap();
                    from_client.recv().unwrap()
                };
                let (_lane, link) = join(Role::Server, Some(link), &reactor, exchange).await;
                // The runtime has one thread, and that waits: nothing is received.
                is_sent.recv().unwrap();
                drop(link);
                is_done.recv().unwrap();
            });
        });
        run(async move {
            let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
            let link = StreamLinks.connect(&here.recv().unwrap(), &reactor).await.unwrap();
            let exchange = |mine| {
                to_server.send(mine).unwrap();
                from_server.recv().unwrap()
            };
            let (mut lane, link) = join(Role::Client, Some(link), &reactor, exchange).await;
            let mut drive = lane.drive.take().unwrap();
            assert!(drive.adopt_link(link).is_none());
            for seq in 1..=3 {
                let payload = zc::Message::from(vec![seq as u8; 1000]);
                let frame = Frame { kind: FrameKind::Data, ack: false, seq, payload };
                lane.tx.start_send(frame, false).unwrap();
            }
            poll_fn(|cx| lane.tx.poll_flush(cx)).await.unwrap();
            lane.tx.abandon(&mut |_| panic!("it has not failed"));
            sent.send(()).unwrap();
            poll_fn(|cx| {
                drive.poll_drive(cx, reactor.now()).unwrap();
                match lane.tx.poll_flush(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            })
            .await;
            let mut back = Vec::new();
            lane.tx.abandon(&mut |frame| back.push((frame.seq, frame.payload.len())));
            assert_eq!(back, [(1, 1000), (2, 1000), (3, 1000)]);
            done.send(()).unwrap();
        });
    });
}
