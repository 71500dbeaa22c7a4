//! Connections over an interface: who gets it, what is left of it, and what those do to each other who share it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bed;
mod inside;

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bed::{Bed, GUARD, NAME, skipped, until};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use zc::transport::{LaneLimits, LinkAddr, OfferContext, Reactor, Transport, UriParams};
use zc::{Connection, Deadlines, Fabric, FabricBuilder, Outcome, Stage};
use zc_transport_xdp::device::{Device, DeviceOptions, Grant, OpenError, Umem, UmemOptions};
use zc_transport_xdp::netlink::{Interface, NetlinkError};
use zc_transport_xdp::program::Faults;
use zc_transport_xdp::{UdpTransport, XdpOptions, XdpTransport};

/// Of a connection from the near end to the far one, in a runtime.
fn from_near(bed: &Bed) -> OfferContext {
    let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
    let pool = zc::BufPool::builder().build();
    let mut cx = OfferContext::new(reactor, pool, Arc::default(), LaneLimits::default());
    cx.params = UriParams::new([("if".to_owned(), NAME.to_owned())]);
    (cx.local, cx.remote) = (Some((bed.near.v4, 1).into()), Some((bed.far.v4, 1).into()));
    cx
}

fn both(options: &XdpOptions) -> Vec<Arc<dyn Transport>> {
    vec![Arc::new(XdpTransport::new(options.clone())), Arc::new(UdpTransport::default())]
}

fn run<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async { tokio::time::timeout(GUARD, what).await.expect("it hangs") })
}

/// In this thread alone, where it is and with the rights that it has.
fn run_alone<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async { tokio::time::timeout(GUARD, what).await.expect("it hangs") })
}

async fn pair(client: &Fabric, server: &Fabric, uri: &str) -> (Connection, Connection) {
    let mut listener = server.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    tokio::try_join!(client.connect(&uri), listener.accept()).unwrap()
}

/// Whether it is AF_XDP that carries it; else that is said.
fn is_xdp(connection: &Connection) -> bool {
    let chosen = connection.report().chosen();
    if chosen != "xdp" {
        skipped("AF_XDP", connection.report());
    }
    chosen == "xdp"
}

async fn ask(client: &mut Connection, server: &mut Connection, len: usize) {
    client.send(vec![5; len]).await.unwrap();
    let message = server.recv().await.unwrap().unwrap();
    server.send(message).await.unwrap();
    assert!(client.recv().await.unwrap().unwrap() == vec![5; len][..]);
}

#[test]
fn an_interface_goes_back_to_the_kernel() {
    let Some(bed) = Bed::new(2, 1500) else { return };
    let program = || bed.near.run(|| Interface::find(NAME).unwrap().program);
    let (near, far, uri) = inside::fabrics(&bed, || both(&XdpOptions::default()), bed.near.v4);
    run(async {
        let queue = format!("{uri}&queue=1");
        let (mut client, mut server) = pair(&far, &near, &queue).await;
        if !is_xdp(&client) {
            return;
        }
        assert_eq!(server.report().chosen(), "xdp");
        let report = client.report().to_string();
        assert!(bed.modes.iter().any(|mode| report.contains(&format!("chosen: {mode}"))), "{report}");
        assert!(program().is_some());
        ask(&mut client, &mut server, 3000).await;
        drop((client, server));
        let gone = async {
            while program().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(GUARD, gone).await.expect("it stays");
        let (mut client, mut server) = pair(&far, &near, &uri).await;
        assert!(is_xdp(&client), "and can be had again");
        ask(&mut client, &mut server, 3000).await;
    });
    // The runtime is gone, and with it the engine.
    until("the program to go", || program().is_none().then_some(()));
}

/// The kernel polls the device when it is looked at: then, and when nobody looks for long.
#[test]
fn connections_over_a_polled_device_carry_messages() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let (near, far, uri) = inside::fabrics(&bed, || both(&XdpOptions::default()), bed.near.v4);
    run(async {
        for wrong in ["0", "often", "4000000000"] {
            let (client, server) = pair(&far, &near, &format!("{uri}&busy_poll_us={wrong}")).await;
            for end in [client, server] {
                let report = end.report();
                let xdp = report.candidates().iter().find(|candidate| candidate.transport == "xdp").unwrap();
                let Outcome::Unavailable(why) = &xdp.outcome else { panic!("{report}") };
                assert_eq!(why.code(), "bad_parameter", "{report}");
            }
        }
        let (mut client, mut server) = pair(&far, &near, &format!("{uri}&busy_poll_us=20")).await;
        if !is_xdp(&client) {
            return;
        }
        for len in [1, 3000, 1 << 20] {
            ask(&mut client, &mut server, len).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// The engine's task leaves what comes to him while he spins, and the runtime is told of nothing. Both must be over when he waits.
#[test]
fn one_who_has_spun_for_long_is_woken() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let (near, far, uri) = inside::fabrics(&bed, || both(&XdpOptions::default()), bed.near.v4);
    run(async {
        let (mut client, server) = pair(&far, &near, &uri).await;
        if !is_xdp(&client) {
            return;
        }
        for _ in 0..5 {
            let since = Instant::now();
            // The task asks each millisecond.
            while since.elapsed() < Duration::from_millis(20) {
                assert!(client.try_recv().unwrap().is_none());
                tokio::task::yield_now().await;
            }
            let say = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                server.send(vec![5; 100]).await.unwrap();
            };
            let (message, ()) = tokio::join!(client.recv(), say);
            assert_eq!(message.unwrap().unwrap().len(), 100);
        }
    });
}

/// The runtime has one thread, which has nothing to wait for when it is asked for an offer.
#[test]
fn no_thread_of_the_runtime_waits_for_an_interface() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let offered = bed.near.run(|| {
        runtime().block_on(async {
            let cx = from_near(&bed);
            let transport = XdpTransport::default();
            let mut first = transport.offer_soon(&cx);
            let is_done = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_ready())).await;
            assert!(!is_done, "a thread opens it");
            // What was opened for one that is given up is for the next.
            drop(first);
            tokio::time::timeout(GUARD, transport.offer_soon(&cx)).await.expect("it hangs")
        })
    });
    match offered {
        Ok(offer) => assert!(!offer.bytes.is_empty()),
        Err(why) => skipped("AF_XDP", why),
    }
}

#[test]
fn an_interface_of_somebody_else_is_left_to_him() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let umem = Umem::new(&UmemOptions::default()).unwrap();
    let Ok(_device) = bed.far.run(|| Device::open(NAME, &umem, &DeviceOptions::default())) else {
        return skipped("AF_XDP", "no device");
    };
    let transports = || vec![Arc::new(UdpTransport::default()) as Arc<dyn Transport>];
    let (_, far, uri) = inside::fabrics(&bed, || both(&XdpOptions::default()), bed.near.v4);
    let (near_udp, ..) = inside::fabrics(&bed, transports, bed.near.v4);
    let (near, ..) = inside::fabrics(&bed, || both(&XdpOptions::default()), bed.near.v4);
    run(async {
        // To a peer that has nothing else, and to one that has AF_XDP: each end is its own.
        let plain = format!("zc+udp://{}:0", bed.near.v4);
        for (server, at, theirs) in [(near_udp, &plain, "udp"), (near, &uri, "xdp")] {
            let mut listener = server.listen(at).await.unwrap();
            let LinkAddr::Tcp(at) = listener.local_uri().addr().clone() else { panic!("no TCP") };
            let at = format!("zc+xdp://{at}?if={NAME}");
            let (mut client, mut server) = tokio::try_join!(far.connect(&at), listener.accept()).unwrap();
            assert_eq!((client.report().chosen(), server.report().chosen()), ("udp", theirs));
            let report = client.report();
            let xdp = report.candidates().iter().find(|candidate| candidate.transport == "xdp").unwrap();
            let Outcome::Unavailable(why) = &xdp.outcome else { panic!("{:?}", xdp.outcome) };
            assert_eq!(why.code(), "interface_in_use");
            assert!(why.remedy().contains(NAME), "{why}");
            ask(&mut client, &mut server, 100_000).await;
        }
    });
}

/// What comes in by AF_XDP is lost, so no ping comes through; the kernel's own sockets carry the connection then, and the report says
/// why.
#[test]
fn where_an_interface_carries_nothing_udp_does() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let mut options = XdpOptions::default();
    options.faults = Some(Faults { lost: 1.0, damaged: 0.0 });
    let deadlines = || {
        let mut deadlines = Deadlines::default();
        deadlines.join = Duration::from_secs(2);
        deadlines
    };
    let build = |builder: FabricBuilder| builder.deadlines(deadlines()).build().unwrap();
    let [near, far] = inside::builders(&bed, || both(&options)).map(build);
    let [near_udp, _] = inside::builders(&bed, || vec![Arc::new(UdpTransport::default()) as _]).map(build);
    run(async {
        let plain = format!("zc+udp://{}:0", bed.near.v4);
        let named = format!("zc+xdp://{}:0?if={NAME}", bed.near.v4);
        for (server, at) in [(near, &named), (near_udp, &plain)] {
            let mut listener = server.listen(at).await.unwrap();
            let LinkAddr::Tcp(at) = listener.local_uri().addr().clone() else { panic!("no TCP") };
            let at = format!("zc+xdp://{at}?if={NAME}");
            let (mut client, mut server) = tokio::try_join!(far.connect(&at), listener.accept()).unwrap();
            assert_eq!((client.report().chosen(), server.report().chosen()), ("udp", "udp"));
            let report = client.report();
            let xdp = report.candidates().iter().find(|candidate| candidate.transport == "xdp").unwrap();
            let Outcome::Unavailable(why) = &xdp.outcome else { panic!("{:?}", xdp.outcome) };
            println!("{report}");
            if xdp.stage == Stage::Offers {
                return skipped("AF_XDP", why);
            }
            assert_eq!(xdp.stage, Stage::Join, "it opened, and did not carry: {why}");
            ask(&mut client, &mut server, 100_000).await;
        }
    });
}

/// The server has no rights: a thread that has them grants the interface, in parts that could go to another process.
#[test]
fn an_interface_is_granted_by_a_broker() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let (ask, asked) = channel::<(String, DeviceOptions)>();
    let (answer, answered) = channel();
    let (say, hear) = channel();
    let bed = &bed;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            bed.near.run(|| {
                for (name, options) in asked {
                    answer.send(Grant::open(&name, &options).map(Grant::into_parts)).unwrap();
                }
            });
        });
        scope.spawn(move || {
            bed.near.run(|| {
                let memory = CapabilitySet::IPC_LOCK;
                let sets = CapabilitySets { effective: memory, permitted: memory, inheritable: memory };
                set_capabilities(None, sets).unwrap();
                let channels = Mutex::new((ask, answered));
                let broker = move |name: &str, options: &DeviceOptions| {
                    let (ask, answered) = &*channels.lock().unwrap();
                    ask.send((name.to_owned(), options.clone())).unwrap();
                    // SAFETY: the sockets are of this process, and whoever opened them has none any more.
                    unsafe { Grant::from_parts(answered.recv().unwrap()?) }
                };
                let transport = XdpTransport::by_broker(XdpOptions::default(), broker);
                let server = zc::testing::fabric_over(Arc::new(transport)).build().unwrap();
                run_alone(async {
                    let mut listener =
                        server.listen(&format!("zc+xdp://{}:0?if={NAME}", bed.near.v4)).await.unwrap();
                    say.send(listener.local_uri().to_string()).unwrap();
                    let Ok(mut connection) = listener.accept().await else { return };
                    while let Ok(Some(message)) = connection.recv().await {
                        connection.send(message).await.unwrap();
                    }
                });
            });
        });
        bed.far.run(move || {
            let uri = hear.recv().unwrap();
            let client = zc::testing::fabric_over(Arc::new(XdpTransport::default())).build().unwrap();
            run_alone(async {
                let mut client = match client.connect(&uri).await {
                    Ok(client) => client,
                    Err(why) if bed.modes.len() < 3 => return skipped("AF_XDP", why),
                    Err(why) => panic!("{why}"),
                };
                client.send(vec![7; 100_000]).await.unwrap();
                assert_eq!(client.recv().await.unwrap().unwrap().len(), 100_000);
                client.drain(GUARD).await.unwrap();
            });
        });
    });
}

/// Packets would leave by another interface than routes and addresses are asked for, or by queues that it does not have.
#[test]
fn a_grant_of_another_interface_is_refused() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let granted = Arc::new(AtomicUsize::new(0));
    let count = granted.clone();
    let broker = move |name: &str, options: &DeviceOptions| {
        let mut parts = Grant::open(name, options)?.into_parts();
        count.fetch_add(1, Ordering::Relaxed);
        // The index, little-endian.
        parts.bytes[8] ^= 0x40;
        // SAFETY: the sockets are of this process, and whoever opened them has none any more.
        unsafe { Grant::from_parts(parts) }
    };
    let refused = bed.near.run(|| {
        run_alone(async {
            let cx = from_near(&bed);
            let transport = XdpTransport::by_broker(XdpOptions::default(), broker);
            transport.offer_soon(&cx).await.unwrap_err()
        })
    });
    if granted.load(Ordering::Relaxed) == 0 {
        return skipped("AF_XDP", refused);
    }
    assert!(refused.code() == "options" && refused.remedy().contains("another interface"), "{refused}");
}

/// Who grants the interface does not answer: the connection comes up over the kernel's sockets, soon, and says why; so does the next.
#[test]
fn a_slow_interface_keeps_no_connection_waiting() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    if let Err(why) = XdpTransport::default().probe() {
        return skipped("AF_XDP", why);
    }
    let (answer, answered) = channel::<()>();
    let answered = Mutex::new(answered);
    let [_, server] = inside::builders(&bed, || vec![Arc::new(UdpTransport::default()) as _]);
    let server = server.build().unwrap();
    bed.near.run(move || {
        let broker = move |_: &str, _: &DeviceOptions| {
            let _ = answered.lock().unwrap().recv();
            Err(OpenError::from(NetlinkError::Malformed))
        };
        let client =
            zc::testing::fabric_over(Arc::new(XdpTransport::by_broker(XdpOptions::default(), broker)));
        let client = client.transport(Arc::new(UdpTransport::default())).build().unwrap();
        run_alone(async {
            let mut listener = server.listen(&format!("zc+udp://{}:0", bed.far.v4)).await.unwrap();
            let LinkAddr::Tcp(at) = listener.local_uri().addr().clone() else { panic!("no TCP") };
            let at = format!("zc+xdp://{at}?if={NAME}");
            for _ in 0..2 {
                let (mut client, mut server) =
                    tokio::try_join!(client.connect(&at), listener.accept()).unwrap();
                assert_eq!(client.report().chosen(), "udp");
                let candidates = client.report().candidates();
                let xdp = candidates.iter().find(|candidate| candidate.transport == "xdp").unwrap();
                let Outcome::Unavailable(why) = &xdp.outcome else { panic!("{:?}", xdp.outcome) };
                assert_eq!(why.code(), "interface_opening");
                ask(&mut client, &mut server, 3000).await;
            }
        });
        drop(answer);
    });
}

/// A connection of an address that the interface has not is no reason for the next one not to have it.
#[test]
fn who_can_not_have_an_interface_leaves_it_to_others() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let offered = bed.near.run(|| {
        run_alone(async {
            let mut cx = from_near(&bed);
            let here = (cx.local, cx.remote);
            let transport = XdpTransport::default();
            (cx.local, cx.remote) = (Some(([127, 0, 0, 1], 1).into()), Some(([127, 0, 0, 1], 2).into()));
            let why = transport.offer_soon(&cx).await.err().map(|why| why.code());
            assert_eq!(why, Some("other_interface"));
            (cx.local, cx.remote) = here;
            transport.offer_soon(&cx).await
        })
    });
    match offered {
        Ok(offer) => assert!(!offer.bytes.is_empty()),
        Err(why) => {
            assert_ne!(why.code(), "other_interface");
            skipped("AF_XDP", why);
        }
    }
}

/// Connections that come up over something else leave it open for the next for a while.
#[test]
fn an_interface_stays_for_those_who_come_and_go() {
    let Some(bed) = Bed::new(1, 1500) else { return };
    let granted = Arc::new(AtomicUsize::new(0));
    let broker = {
        let granted = granted.clone();
        move |name: &str, options: &DeviceOptions| {
            granted.fetch_add(1, Ordering::Relaxed);
            Grant::open(name, options)
        }
    };
    let mut options = XdpOptions::default();
    options.stays_for = GUARD;
    let refused = bed.near.run(|| {
        run_alone(async {
            let cx = from_near(&bed);
            let transport = XdpTransport::by_broker(options, broker);
            for _ in 0..10 {
                let offer = match transport.offer_soon(&cx).await {
                    Ok(offer) => offer,
                    Err(why) => return Some(why),
                };
                transport.withdraw(&offer);
                tokio::task::yield_now().await;
            }
            None
        })
    });
    match refused {
        Some(why) => skipped("AF_XDP", why),
        None => {
            let granted = granted.load(Ordering::Relaxed);
            assert!(granted <= 2, "{granted} times; each way to open it asks once");
        }
    }
}

/// However many frames one keeps, the other can still send and receive.
#[test]
fn who_keeps_all_frames_keeps_nobody_waiting() {
    const KEPT: usize = 2000;
    let Some(bed) = Bed::new(1, 1500) else { return };
    let mut options = XdpOptions::default();
    options.frames = 1024;
    let (near, far, uri) = inside::fabrics(&bed, || both(&options), format!("[{}]", bed.near.v6));
    run(async {
        let (client, mut server) = pair(&far, &near, &uri).await;
        if !is_xdp(&client) {
            return;
        }
        let (mut other, mut other_server) = pair(&far, &near, &uri).await;
        let sending = tokio::spawn(async move {
            for n in 0..KEPT {
                client.send(vec![n as u8; 1000]).await.unwrap();
            }
            client
        });
        let mut kept = Vec::new();
        for _ in 0..KEPT {
            kept.push(server.recv().await.unwrap().unwrap());
        }
        for _ in 0..20 {
            ask(&mut other, &mut other_server, 20_000).await;
        }
        for (n, message) in kept.iter().enumerate() {
            assert!(*message == vec![n as u8; 1000][..], "message {n} stays as it was");
        }
        drop(sending.await.unwrap());
    });
}
