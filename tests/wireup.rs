//! Wire-up from outside: the same-host proof with descriptors, listeners under load, URI parameters.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::future::poll_fn;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::spawn_blocking;
use zc::transport::{
    BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor, Trust, Unavailable,
};
use zc::wire::{
    ClientHandshake, CloseCode, ControlDecoder, ControlMessage, Hello, HelloRole, OfferEntry, SameHost,
    ServerHandshake, VersionRange,
};
use zc::{
    AcceptFailed, Connection, Error, Fabric, FabricBuilder, HandshakeFailed, Listener, Observer, Outcome,
    Policy, SelectionReport, Stage, UriError,
};
use zc_transport_tcp::StreamLinks;

#[path = "common/passed.rs"]
mod passed;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/streams.rs"]
mod streams;

use passed::{GUARD, Passed, guarded, outcome, passing, talk, with};
use streams::is_stream;

async fn pair_on(uri: &str, client: FabricBuilder, server: FabricBuilder) -> (Connection, Connection) {
    let mut listener = server.build().unwrap().listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let client = client.build().unwrap();
    guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await.unwrap()
}

const TCP: &str = "zc://127.0.0.1:0";

#[tokio::test]
async fn a_unix_link_passes_descriptors_itself() {
    let uri = format!("zc+unix://@wireup-{}", std::process::id());
    let (client, mut server) = pair_on(&uri, passing(), passing()).await;
    assert_eq!((client.report().chosen(), server.report().chosen()), ("passed", "passed"));
    talk(&client, &mut server).await;
}

#[tokio::test]
async fn the_policy_decides_about_trust() {
    let (client, _server) = pair_on(TCP, passing(), passing()).await;
    assert_eq!(client.report().chosen(), "passed");
    let policy = Policy::default().prefer(["passed"]).trust_nobody();
    let wary = with(false, Trust::Untrusted).policy(policy);
    let (client, mut server) = pair_on(TCP, wary, passing()).await;
    assert_eq!(client.report().chosen(), "passed");
    talk(&client, &mut server).await;
}

#[tokio::test]
async fn a_lane_that_fails_with_descriptors_under_way_costs_nothing_else() {
    for uri in [TCP.to_owned(), format!("zc+unix://@wireup-torn-{}", std::process::id())] {
        let torn = |torn| with(torn, Trust::Cooperative);
        // The server gives up before it takes the descriptor; the client before it sends it.
        for (client, server) in [(torn(false), torn(true)), (torn(true), torn(false))] {
            let (client, mut server) = pair_on(&uri, client, server).await;
            assert!([&client, &server].iter().all(|end| is_stream(end.report().chosen())));
            assert!(client.report().to_string().contains("unavailable"), "{}", client.report());
            assert!(server.report().to_string().contains("no_device"), "{}", server.report());
            talk(&client, &mut server).await;
        }
    }
}

/// A zc peer by hand, over a blocking socket.
struct Hand<H> {
    stream: TcpStream,
    hs: H,
    decoder: ControlDecoder,
}

fn hello(role: HelloRole, same_host: Option<SameHost>) -> Hello {
    Hello {
        versions: VersionRange::SUPPORTED,
        role,
        instance: [1; 16],
        max_message: 1 << 20,
        window: 1 << 20,
        auth_method: String::new(),
        keepalive_ms: 0,
        agent: "by hand".into(),
        same_host,
        control_lane: false,
        remote: false,
    }
}

fn place(name: &str, tag: u8) -> SameHost {
    SameHost { socket_name: name.into(), nonce: [9; 16], host_tag: [tag; 8], netns_tag: [tag; 8] }
}

impl<H> Hand<H> {
    fn new(stream: TcpStream, hs: H) -> Self {
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Self { stream, hs, decoder: ControlDecoder::new() }
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let count = self.stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the peer hung up");
        bytes.truncate(count);
        bytes
    }

    fn message(&mut self) -> ControlMessage {
        loop {
            if let Some(message) = self.decoder.next_message() {
                return message.unwrap();
            }
            let bytes = self.read();
            assert_eq!(self.decoder.push(&bytes), bytes.len());
        }
    }
}

impl Hand<ClientHandshake> {
    /// Connects and exchanges HELLO; returns where the server awaits proofs.
    fn connect(address: &str) -> (Self, SameHost) {
        let stream = TcpStream::connect(address).unwrap();
        let hs = ClientHandshake::new(hello(HelloRole::Client, Some(place("", 0)))).unwrap();
        let mut hand = Self::new(stream, hs);
        let ours = hand.hs.take_output();
        hand.stream.write_all(&ours).unwrap();
        let answer = hand.read();
        hand.hs.handle_hello(&answer).unwrap().expect("HELLO comes in one piece");
        let same_host = hand.hs.peer().unwrap().same_host.clone().expect("the server has a proof socket");
        (hand, same_host)
    }

    /// Offers "passed" and returns what the server offers.
    fn offers(&mut self) -> Vec<String> {
        let offer = OfferEntry { transport: "passed".into(), version: 1, bytes: vec![] };
        self.hs.send_offers(vec![offer]).unwrap();
        let bytes = self.hs.take_output();
        self.stream.write_all(&bytes).unwrap();
        match self.message() {
            ControlMessage::Offers(offers) => offers.into_iter().map(|offer| offer.transport).collect(),
            other => panic!("{}", other.name()),
        }
    }
}

fn proof_socket(name: &str) -> UnixStream {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

fn digest(label: &[u8], nonce: &[u8; 16]) -> [u8; 32] {
    let mut hash = hmac_sha256::Hash::new();
    hash.update(label);
    hash.update(nonce);
    hash.finalize()
}

/// Proves a nonce; the server's answer, or nothing if it hung up.
fn proves(to: &SameHost, nonce: &[u8; 16]) -> (UnixStream, Vec<u8>) {
    let mut stream = proof_socket(&to.socket_name);
    let _ = stream.write_all(&digest(b"zc same host client 1", nonce));
    let mut answer = vec![0; 33];
    let mut at = 0;
    while at < answer.len() {
        match stream.read(&mut answer[at..]) {
            Ok(count) if count > 0 => at += count,
            _ => break,
        }
    }
    answer.truncate(at);
    (stream, answer)
}

async fn tcp_listener(builder: FabricBuilder) -> (Listener, String) {
    let listener = builder.build().unwrap().listen("zc://127.0.0.1:0").await.unwrap();
    let address = listener.local_uri().to_string().strip_prefix("zc://").unwrap().to_owned();
    (listener, address)
}

#[tokio::test]
async fn a_nonce_serves_one_proof_of_its_own_connection() {
    let (_listener, address) = tcp_listener(passing()).await;
    guarded(spawn_blocking(move || {
        // Never told to anyone.
        let (mut hand, place) = Hand::connect(&address);
        assert!(place.socket_name.starts_with("zc-host-"));
        assert_eq!(proves(&place, &[0; 16]).1, b"");
        assert!(!hand.offers().contains(&"passed".to_owned()), "nothing was proved");

        // Its own, but too late: the offers are out.
        assert_eq!(proves(&place, &place.nonce).1, b"");

        // In time, and then once more.
        let (mut hand, place) = Hand::connect(&address);
        let (_link, answer) = proves(&place, &place.nonce);
        assert_eq!(answer[0], 0);
        assert_eq!(answer[1..], digest(b"zc same host server 1", &place.nonce));
        assert_eq!(proves(&place, &place.nonce).1, b"");
        assert!(hand.offers().contains(&"passed".to_owned()));

        // Of a connection that is gone.
        let (hand, place) = Hand::connect(&address);
        drop(hand);
        let (mut hand, other) = Hand::connect(&address);
        assert_ne!(place.nonce, other.nonce);
        assert!(!hand.offers().contains(&"passed".to_owned()), "another one's was proved");
    }))
    .await
    .unwrap();
}

#[tokio::test]
async fn descriptors_announced_after_their_socket_broke_leave_the_link_in_its_place() {
    let (mut listener, address) = tcp_listener(passing()).await;
    let by_hand = spawn_blocking(move || {
        let (mut hand, place) = Hand::connect(&address);
        drop(proves(&place, &place.nonce));
        assert!(hand.offers().contains(&"passed".to_owned()));
        let ControlMessage::Plan(plan) = hand.message() else { panic!("no PLAN") };
        assert_eq!(plan[0].transport, "passed");
        // No byte follows any of them. The first finds the socket broken.
        let mut bytes = Vec::new();
        for _ in 0..3 {
            ControlMessage::Join { index: 0, bytes: vec![] }.encode(&mut bytes).unwrap();
        }
        ControlMessage::LaneDown { index: 0, reason: "enough".into() }.encode(&mut bytes).unwrap();
        hand.stream.write_all(&bytes).unwrap();
        assert!(matches!(hand.message(), ControlMessage::LaneDown { index: 0, .. }));
        let ControlMessage::Reject { reason, .. } = hand.message() else { panic!("no REJECT") };
        assert_eq!(reason, "no lane came up");
    });
    guarded(by_hand).await.unwrap();
    assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());
}

#[tokio::test]
async fn half_done_proofs_do_not_hold_up_good_ones() {
    let (mut listener, address) = tcp_listener(passing()).await;
    let (to, flood) = (address.clone(), zc::MAX_HALF_PROOFS * 2);
    let silent = guarded(spawn_blocking(move || {
        let (hand, place) = Hand::connect(&to);
        let silent: Vec<_> = (0..flood).map(|_| proof_socket(&place.socket_name)).collect();
        (hand, silent)
    }));
    let _silent = silent.await.unwrap();
    let client = passing().build().unwrap();
    let uri = format!("zc://{address}");
    let (client, server) =
        guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await.unwrap();
    assert_eq!(client.report().chosen(), "passed");
    assert_eq!(server.report().chosen(), "passed");
}

#[tokio::test]
async fn a_burst_of_good_clients_does_not_throw_out_its_own_proofs() {
    const BURST: usize = 200;
    // No shorter time ends a proof on a busy machine.
    let patient = || {
        let mut deadlines = zc::Deadlines::default();
        (deadlines.offers, deadlines.join, deadlines.total) = (GUARD, GUARD, GUARD);
        passing().deadlines(deadlines)
    };
    let (mut listener, address) = tcp_listener(patient()).await;
    let client = patient().build().unwrap();
    let uri = format!("zc://{address}");
    let connecting = futures::future::try_join_all((0..BURST).map(|_| client.connect(&uri)));
    let accepting = async {
        let mut accepted = Vec::new();
        while accepted.len() < BURST {
            accepted.push(listener.accept().await?);
        }
        Ok(accepted)
    };
    let (clients, servers) = guarded(async { tokio::try_join!(connecting, accepting) }).await.unwrap();
    for client in clients {
        assert_eq!(client.report().chosen(), "passed", "{}", client.report());
    }
    assert!(servers.iter().all(|server| server.report().chosen() == "passed"));
}

/// Lets a client with "passed" connect to a server by hand that says `place`; the client's report.
async fn told(place: SameHost) -> SelectionReport {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("zc://{}", server.local_addr().unwrap());
    let by_hand = spawn_blocking(move || {
        let hs = ServerHandshake::new(hello(HelloRole::Server, Some(place))).unwrap();
        let mut hand = Hand::new(server.accept().unwrap().0, hs);
        let bytes = hand.read();
        hand.hs.handle_hello(&bytes).unwrap().expect("HELLO comes in one piece");
        let bytes = hand.hs.take_output();
        hand.stream.write_all(&bytes).unwrap();
        let offers = hand.message();
        hand.hs.handle(&offers).unwrap();
        let ControlMessage::Offers(offers) = offers else { panic!("no OFFERS") };
        assert!(offers.iter().all(|offer| offer.transport != "passed"), "nothing was proved");
        hand.hs.reject(CloseCode::REJECTED, "that will do").unwrap();
        let bytes = hand.hs.take_output();
        hand.stream.write_all(&bytes).unwrap();
        hand
    });
    let client = passing().build().unwrap();
    let (connected, by_hand) = guarded(async { tokio::join!(client.connect(&uri), by_hand) }).await;
    by_hand.unwrap();
    match connected {
        Err(Error::NoTransport(report)) => *report,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it connected"),
    }
}

#[tokio::test]
async fn what_a_server_says_about_its_place_is_typed_and_never_believed() {
    let passed = |report: SelectionReport| match outcome(&report, "passed") {
        Outcome::Unavailable(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(passed(told(place("zc-host-x", 7)).await), Unavailable::DifferentHost);
    assert_eq!(
        passed(told(place("zc-host-nobody", 0)).await),
        Unavailable::DifferentHost,
        "refused, unknown tags"
    );
    assert_eq!(passed(told(place("", 0)).await), Unavailable::HostNotProved, "it takes no proofs");

    // A socket that is none of ours is not even connected to.
    let name = format!("victim-{}", std::process::id());
    let victim = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    assert_eq!(passed(told(place(&name, 0)).await), Unavailable::HostNotProved);
    victim.set_nonblocking(true).unwrap();
    assert_eq!(victim.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    // A squatter gets a digest, and can't answer it.
    let name = format!("zc-host-squatter-{}", std::process::id());
    let squatter = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let squatting = spawn_blocking(move || {
        let mut key = [0; 32];
        let (mut stream, _) = squatter.accept().unwrap();
        stream.read_exact(&mut key).unwrap();
        stream.write_all(&[0]).unwrap();
        stream.write_all(&key).unwrap();
        stream
    });
    let why = passed(told(place(&name, 0)).await);
    assert_eq!(why.code(), "same_host_impostor");
    squatting.await.unwrap();
}

/// Opens no abstract Unix socket.
struct NoAbstract;

impl LinkProvider for NoAbstract {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        StreamLinks.accepts(addr)
    }
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        StreamLinks.connect(addr, reactor)
    }
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        match addr {
            LinkAddr::UnixAbstract(_) => {
                let source = rustix::io::Errno::ADDRINUSE.into();
                Box::pin(std::future::ready(Err(LinkError::Io { operation: "bind", source })))
            }
            _ => StreamLinks.bind(addr, reactor),
        }
    }
}

#[tokio::test]
async fn a_listener_without_a_proof_socket_says_why() {
    let server = Fabric::builder()
        .links(Arc::new(NoAbstract))
        .transport(Arc::new(Passed { torn: false, trust: Trust::Cooperative }))
        .transport(Arc::new(zc_transport_tcp::TcpTransport));
    let (client, server) = pair_on(TCP, passing(), server).await;
    assert!(is_stream(client.report().chosen()) && server.report().chosen() == "tcp");
    let why = |report| match outcome(report, "passed") {
        Outcome::Unavailable(why) => why,
        other => panic!("{other:?}"),
    };
    let errno = rustix::io::Errno::ADDRINUSE.raw_os_error();
    assert_eq!(why(server.report()), Unavailable::Os { errno, operation: "bind" });
    assert_eq!(why(client.report()), Unavailable::HostNotProved, "the transport is there, the proof is not");
}

#[derive(Default)]
struct Seen {
    failed: Mutex<Vec<(Stage, String)>>,
    accept_failed: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn handshake_failed(&self, event: &HandshakeFailed) {
        self.failed.lock().unwrap().push((event.stage, event.reason.clone()));
    }
    fn accept_failed(&self, event: &AcceptFailed) {
        self.accept_failed.lock().unwrap().push(event.reason.clone());
    }
}

#[tokio::test(start_paused = true)]
async fn silent_links_can_not_fill_a_listener() {
    let seen = Arc::new(Seen::default());
    let fabric = Fabric::auto_builder().observer(seen.clone()).build().unwrap();
    let mut listener = fabric.listen("zc+mem://flooded").await.unwrap();
    let (addr, reactor) = (LinkAddr::Memory("flooded".into()), Arc::new(zc::TokioReactor::new()) as _);
    let start = tokio::time::Instant::now();
    let mut silent = Vec::new();
    // What is above the bound waits in the backlog.
    for _ in 0..zc::MAX_HANDSHAKES + zc::MEM_BACKLOG / 2 {
        silent.push(zc::MemLinks.connect(&addr, &reactor).await.unwrap());
        tokio::task::yield_now().await;
    }
    let client = fabric.connect("zc+mem://flooded").await.unwrap();
    let mut server = listener.accept().await.unwrap();
    talk(&client, &mut server).await;
    assert!(start.elapsed() >= zc::MIN_HANDSHAKE, "everybody has some time");
    assert!(start.elapsed() < zc::DEFAULT_STAGE, "nobody had to time out");
    assert_eq!(listener.failed_handshakes(), zc::MEM_BACKLOG as u64 / 2 + 1);
    {
        let failed = seen.failed.lock().unwrap();
        assert!(failed.iter().all(|(stage, reason)| *stage == Stage::Hello && reason.contains("evicted")));
    }
    // The oldest went first; the youngest still have their time.
    assert_eq!(poll_fn(|cx| silent[0].poll_read(cx, &mut [0])).await.unwrap(), 0);
    let youngest = silent.last_mut().unwrap();
    assert!(futures::poll!(std::pin::pin!(poll_fn(|cx| youngest.poll_read(cx, &mut [0])))).is_pending());
}

/// A TCP connection from an address of our choice.
fn connect_from(ip: [u8; 4], to: &str) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &std::net::SocketAddr::from((ip, 0))).unwrap();
    connect(&socket, &to.parse::<std::net::SocketAddr>().unwrap()).unwrap();
    socket.into()
}

#[tokio::test]
async fn a_flood_from_one_address_pushes_out_only_itself() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < 4096) {
        return skipped::skipped("a flood", format!("it takes 4096 descriptors, the limit is {limit:?}"));
    }
    // Not its deadline ends the slow one.
    let mut deadlines = zc::Deadlines::default();
    (deadlines.hello, deadlines.total) = (GUARD, GUARD);
    let (mut listener, address) = tcp_listener(Fabric::auto_builder().deadlines(deadlines)).await;
    // The oldest of all, and silent; but the only one of its address.
    let mut slow = TcpStream::connect(&address).unwrap();
    let (to, flood) = (address.clone(), zc::MAX_HANDSHAKES + 500);
    let connecting = spawn_blocking(move || (0..flood).map(|_| connect_from([127, 0, 0, 2], &to)).collect());
    let _silent: Vec<TcpStream> = guarded(connecting).await.unwrap();
    guarded(async {
        while listener.failed_handshakes() < 500 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let client = Fabric::auto().unwrap();
    let uri = format!("zc://{address}");
    let (client, mut server) =
        guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await.unwrap();
    talk(&client, &mut server).await;
    let mut bytes = Vec::new();
    hello(HelloRole::Client, None).encode(&mut bytes).unwrap();
    guarded(spawn_blocking(move || {
        slow.set_read_timeout(Some(GUARD)).unwrap();
        slow.write_all(&bytes).unwrap();
        assert!(slow.read(&mut [0; 64]).unwrap() > 0, "it was not evicted");
    }))
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn handshakes_go_on_while_nobody_accepts() {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen("zc+mem://unattended").await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..zc::MAX_READY * 2 {
        clients.push(fabric.connect("zc+mem://unattended").await.unwrap());
    }
    for client in &clients {
        client.send(&b"early"[..]).await.unwrap();
    }
    for _ in &clients {
        let mut server = listener.accept().await.unwrap();
        assert_eq!(server.recv().await.unwrap().unwrap(), b"early"[..]);
    }
    assert_eq!(listener.failed_handshakes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_listener_lets_handshakes_finish() {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen("zc+mem://closing").await.unwrap();
    let (addr, reactor) = (LinkAddr::Memory("closing".into()), Arc::new(zc::TokioReactor::new()) as _);
    let _silent = zc::MemLinks.connect(&addr, &reactor).await.unwrap();
    let client = fabric.connect("zc+mem://closing").await.unwrap();
    listener.close();
    let error = fabric.connect("zc+mem://closing").await.err().unwrap();
    assert_eq!(error.stage(), Some(Stage::Connect));
    let _second = fabric.listen("zc+mem://closing").await.expect("the name is free at once");
    let mut server = listener.accept().await.unwrap();
    talk(&client, &mut server).await;
    let start = tokio::time::Instant::now();
    assert!(matches!(listener.accept().await, Err(Error::ListenerClosed)));
    assert!(start.elapsed() <= zc::DEFAULT_STAGE, "the silent one had its time");
    assert_eq!(listener.failed_handshakes(), 1);
    assert!(matches!(listener.accept().await, Err(Error::ListenerClosed)));
}

#[tokio::test]
async fn a_dropped_listener_frees_its_address_at_once() {
    let fabric = Fabric::auto().unwrap();
    // One whose ports no other test takes.
    let listener = fabric.listen("zc+tcp://127.0.0.77:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    drop(listener);
    fabric.listen(&uri).await.unwrap();
}

#[test]
fn without_a_runtime_there_is_an_error() {
    let fabric = Fabric::auto().unwrap();
    let connect = futures::FutureExt::now_or_never(fabric.connect("zc+mem://nobody"));
    assert!(matches!(connect, Some(Err(Error::NoRuntime(_)))));
    let listen = futures::FutureExt::now_or_never(fabric.listen("zc+mem://nowhere"));
    assert!(matches!(listen, Some(Err(Error::NoRuntime(_)))));
}

#[tokio::test]
async fn parameters_that_nobody_takes_are_named() {
    let unknown = |error: Error, expected: &str| {
        assert!(matches!(&error, Error::Uri(UriError::UnknownParam { name }) if name == expected), "{error}");
    };
    let fabric = passing().build().unwrap();
    unknown(fabric.connect("zc://127.0.0.1:1?colour=x").await.err().unwrap(), "colour");
    unknown(fabric.listen("zc://127.0.0.1:0?taste=1").await.err().unwrap(), "taste");
    unknown(fabric.connect("zc+tcp://127.0.0.1:1?if=eth1").await.err().unwrap(), "if");
    let mut listener = fabric.listen("zc://127.0.0.1:0?if=lo").await.unwrap();
    let uri = listener.local_uri().to_string();
    assert!(uri.ends_with("?if=lo"), "{uri}");
    let (client, _server) =
        guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
    assert_eq!(client.report().chosen(), "passed");
}

#[tokio::test]
async fn the_control_link_carries_what_no_lane_does() {
    let only = || {
        Fabric::builder()
            .links(Arc::new(StreamLinks))
            .transport(Arc::new(Passed { torn: true, trust: Trust::Cooperative }))
    };
    let (client, mut server) = pair_on(TCP, only(), only()).await;
    assert_eq!((client.report().chosen(), server.report().chosen()), ("tcp", "tcp"));
    assert!(client.report().to_string().contains("no_device"), "{}", client.report());
    talk(&client, &mut server).await;
}

/// The process of the next test that has too few descriptors.
#[tokio::test]
async fn starved_process() {
    if std::env::var_os("ZC_TEST_STARVED").is_none() {
        return;
    }
    let seen = Arc::new(Seen::default());
    let fabric = Fabric::auto_builder().observer(seen.clone()).build().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    let uri = listener.local_uri().to_string();
    let address = uri.strip_prefix("zc+tcp://").unwrap().to_owned();
    let waiting = TcpStream::connect(&address);
    let limit = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let waiting = (waiting.unwrap(), TcpStream::connect(&address).unwrap());
    let mut hoard = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
    }
    let starved = async {
        while seen.accept_failed.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    guarded(starved).await;
    drop((hoard, waiting));
    let (client, mut server) =
        guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
    guarded(talk(&client, &mut server)).await;
    println!("recovered");
}

#[tokio::test]
async fn a_listener_without_descriptors_recovers() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "starved_process", "--nocapture"]).env("ZC_TEST_STARVED", "1");
    child.stdin(Stdio::null()).stderr(Stdio::inherit());
    // It has guards of its own.
    let output = spawn_blocking(move || child.output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("recovered"));
}

/// The process of the next test: it has fewer descriptors than there are silent links.
#[tokio::test]
async fn crowded_process() {
    if std::env::var_os("ZC_TEST_CROWDED").is_none() {
        return;
    }
    let limit = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let seen = Arc::new(Seen::default());
    // Not their deadline ends the silent ones.
    let mut deadlines = zc::Deadlines::default();
    (deadlines.hello, deadlines.total) = (GUARD, GUARD);
    let fabric = Fabric::auto_builder().observer(seen.clone()).deadlines(deadlines).build().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    println!("\nuri={}", listener.local_uri());
    let mut connection = guarded(listener.accept()).await.unwrap();
    let message = guarded(connection.recv()).await.unwrap().unwrap();
    connection.send(message).await.unwrap();
    connection.drain(GUARD).await.unwrap();
    assert!(!seen.accept_failed.lock().unwrap().is_empty(), "it had descriptors enough");
    let failed = seen.failed.lock().unwrap();
    assert!(!failed.is_empty(), "nobody was evicted");
    assert!(
        failed.iter().all(|(stage, why)| *stage == Stage::Hello && why.contains("evicted")),
        "{failed:?}"
    );
    println!("\nserved");
}

#[tokio::test]
async fn silent_links_give_up_their_descriptors_when_there_are_none_left() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crowded_process", "--nocapture"])
        .env("ZC_TEST_CROWDED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let uri = lines.find_map(|line| line.strip_prefix("uri=").map(str::to_owned)).expect("no listener");
    let address = uri.strip_prefix("zc+tcp://").unwrap().to_owned();
    // More than it has descriptors for, also after each of them was taken once.
    let silent: Vec<_> = (0..150).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut deadlines = zc::Deadlines::default();
    (deadlines.hello, deadlines.total) = (GUARD, GUARD);
    let fabric = Fabric::auto_builder().deadlines(deadlines).build().unwrap();
    let connected = tokio::time::timeout(GUARD, async {
        let mut client = fabric.connect(&uri).await.unwrap();
        client.send(&b"good"[..]).await.unwrap();
        assert_eq!(client.recv().await.unwrap().unwrap(), b"good"[..]);
        assert!(client.recv().await.unwrap().is_none());
    })
    .await;
    if connected.is_err() {
        let _ = child.kill();
    }
    let said: Vec<String> = spawn_blocking(move || lines.collect()).await.unwrap();
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert!(said.iter().any(|line| line == "served"), "{said:?}");
    // Not before: the process looks at what became of them.
    drop(silent);
    connected.expect("it hangs");
}

#[tokio::test]
async fn deadlines_without_a_bound_are_no_panic() {
    let mut deadlines = zc::Deadlines::default();
    deadlines.connect = Duration::MAX;
    deadlines.hello = Duration::MAX;
    deadlines.authenticate = Duration::MAX;
    deadlines.offers = Duration::MAX;
    deadlines.join = Duration::MAX;
    deadlines.total = Duration::MAX;
    for uri in [format!("zc+mem://unbounded-{}", std::process::id()), "zc://127.0.0.1:0".into()] {
        let fabric = Fabric::auto_builder().deadlines(deadlines.clone()).build().unwrap();
        let mut listener = fabric.listen(&uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        guarded(async {
            let (client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
            client.send(&b"hello"[..]).await.unwrap();
            assert_eq!(server.recv().await.unwrap().unwrap(), b"hello"[..]);
        })
        .await;
    }
}
