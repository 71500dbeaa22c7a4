//! Wire-up from outside: the same-host proof with descriptors, listeners under load, URI parameters.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::spawn_blocking;
use zc::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkAddr, LinkProvider, Offer, OfferContext, Role, Transport, Trust,
    Unavailable, WireupError,
};
use zc::wire::{
    ClientHandshake, CloseCode, ControlDecoder, ControlMessage, Hello, HelloRole, OfferEntry, SameHost,
    ServerHandshake, VersionRange,
};
use zc::{
    AcceptFailed, Connection, Error, Fabric, FabricBuilder, HandshakeFailed, Listener, Observer, Outcome,
    Policy, SelectionReport, Stage, UriError,
};
use zc_transport_tcp::{StreamLink, StreamLinks, TcpTransport};

const GUARD: Duration = Duration::from_secs(60);

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

/// Out-of-band: a stream lane on a socket pair, of which the client passes one end as a descriptor.
struct Passed {
    /// It fails: the client after it has announced a descriptor, the server before it takes one.
    torn: bool,
    /// What the policy must make of the peer.
    trust: Trust,
}

fn os(operation: &'static str) -> impl Fn(std::io::Error) -> WireupError {
    move |error| Unavailable::os(operation, &error).into()
}

impl Transport for Passed {
    fn name(&self) -> &'static str {
        "passed"
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        Ok(Caps::stream())
    }
    fn wants_descriptors(&self) -> bool {
        true
    }
    fn params(&self) -> &'static [&'static str] {
        &["if"]
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        assert!(cx.descriptors && cx.same_host.is_ok(), "asked only once descriptors can travel");
        assert_eq!(cx.peer.unwrap().uid, rustix::process::geteuid().as_raw());
        assert_eq!(cx.trust, self.trust);
        let interface = cx.params.value("if").unwrap_or_default();
        Ok(Offer { version: 1, bytes: interface.into() })
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let stream = link.as_mut().unwrap();
            let own: OwnedFd = match role {
                Role::Client => {
                    let (ours, theirs) = UnixStream::pair().map_err(os("socketpair"))?;
                    if self.torn {
                        let too_many = [theirs.as_fd(); zc_transport_tcp::MAX_DESCRIPTORS + 1];
                        let sent = poll_fn(|cx| stream.poll_send_descriptors(cx, &too_many)).await;
                        assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
                        return Err(Unavailable::NoDevice.into());
                    }
                    let fds = [theirs.as_fd()];
                    poll_fn(|cx| stream.poll_send_descriptors(cx, &fds)).await.map_err(os("send"))?;
                    ours.into()
                }
                Role::Server if self.torn => return Err(Unavailable::NoDevice.into()),
                Role::Server => {
                    let fds =
                        poll_fn(|cx| stream.poll_recv_descriptors(cx, 1)).await.map_err(os("receive"))?;
                    fds.into_iter().next().ok_or(Unavailable::NoDevice)?
                }
            };
            rustix::io::ioctl_fionbio(&own, true).map_err(|error| os("nonblocking")(error.into()))?;
            let io = cx.reactor.register(own).map_err(os("register"))?;
            let pair = StreamLink::new(io, LinkAddr::UnixAbstract("pair".into()));
            TcpTransport.join(role, mine, peer, &mut Some(Box::new(pair)), cx).await
        })
    }
}

fn with(torn: bool, trust: Trust) -> FabricBuilder {
    let policy = Policy::default().prefer(["passed"]);
    Fabric::auto_builder().transport(Arc::new(Passed { torn, trust })).policy(policy)
}

fn passing() -> FabricBuilder {
    with(false, Trust::Cooperative)
}

async fn pair_on(uri: &str, client: FabricBuilder, server: FabricBuilder) -> (Connection, Connection) {
    let mut listener = server.build().unwrap().listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let client = client.build().unwrap();
    let (client, server) = guarded(async { tokio::join!(client.connect(&uri), listener.accept()) }).await;
    (client.unwrap(), server.unwrap())
}

const TCP: &str = "zc://127.0.0.1:0";

fn outcome(report: &SelectionReport, name: &str) -> Outcome {
    let found = report.candidates().iter().find(|candidate| candidate.transport == name);
    found.unwrap_or_else(|| panic!("{name} is not in\n{report}")).outcome.clone()
}

async fn talk(one: &Connection, other: &mut Connection) {
    one.send(&b"over the lane"[..]).await.unwrap();
    assert_eq!(other.recv().await.unwrap().unwrap(), b"over the lane"[..]);
}

/// The other process of the next test; without the variable there is nothing to do.
#[tokio::test]
async fn peer_process() {
    let Ok(uri) = std::env::var("ZC_TEST_WIREUP_URI") else { return };
    let mut connection = passing().build().unwrap().connect(&uri).await.unwrap();
    assert_eq!(connection.report().chosen(), "passed", "{}", connection.report());
    assert_eq!(
        connection.peer().cred.unwrap().pid,
        rustix::process::getppid().unwrap().as_raw_nonzero().get()
    );
    let message = connection.recv().await.unwrap().unwrap();
    connection.send(message).await.unwrap();
    connection.drain(GUARD).await.unwrap();
}

#[tokio::test]
async fn descriptors_travel_between_processes_after_the_proof() {
    let mut listener = passing().build().unwrap().listen(TCP).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer_process", "--nocapture"])
        .env("ZC_TEST_WIREUP_URI", listener.local_uri().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let test = async {
        let mut connection = listener.accept().await.unwrap();
        assert_eq!(connection.report().chosen(), "passed", "{}", connection.report());
        let cred = connection.peer().cred.unwrap();
        assert_eq!(cred.pid.unsigned_abs(), child.id());
        connection.send(&b"ping"[..]).await.unwrap();
        assert_eq!(connection.recv().await.unwrap().unwrap(), b"ping"[..]);
        assert!(connection.recv().await.unwrap().is_none());
    };
    let done = tokio::time::timeout(GUARD, test).await;
    if done.is_err() {
        let _ = child.kill();
    }
    assert!(child.wait().unwrap().success());
    done.expect("it hangs");
}

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
            assert_eq!((client.report().chosen(), server.report().chosen()), ("tcp", "tcp"));
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
    use sha2::{Digest, Sha256};
    Sha256::new().chain_update(label).chain_update(nonce).finalize().into()
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
        assert!(hand.offers().contains(&"tcp".to_owned()));
    }))
    .await
    .unwrap();
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
    let (client, server) = guarded(async { tokio::join!(client.connect(&uri), listener.accept()) }).await;
    assert_eq!(client.unwrap().report().chosen(), "passed");
    assert_eq!(server.unwrap().report().chosen(), "passed");
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
    assert_eq!(passed(told(place("", 0)).await), Unavailable::HostNotProved);

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
    for _ in 0..zc::MAX_HANDSHAKES + 300 {
        silent.push(zc::MemLinks.connect(&addr, &reactor).await.unwrap());
        tokio::task::yield_now().await;
    }
    let client = fabric.connect("zc+mem://flooded").await.unwrap();
    let mut server = listener.accept().await.unwrap();
    talk(&client, &mut server).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody had to time out");
    assert_eq!(listener.failed_handshakes(), 301);
    {
        let failed = seen.failed.lock().unwrap();
        assert!(failed.iter().all(|(stage, reason)| *stage == Stage::Hello && reason.contains("evicted")));
    }
    // The oldest went first; the youngest still have their time.
    assert_eq!(poll_fn(|cx| silent[0].poll_read(cx, &mut [0])).await.unwrap(), 0);
    let youngest = silent.last_mut().unwrap();
    assert!(futures::poll!(std::pin::pin!(poll_fn(|cx| youngest.poll_read(cx, &mut [0])))).is_pending());
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
    let listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
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
    unknown(fabric.connect("zc://127.0.0.1:1?dev=x").await.err().unwrap(), "dev");
    unknown(fabric.listen("zc://127.0.0.1:0?queue=1").await.err().unwrap(), "queue");
    unknown(fabric.connect("zc+tcp://127.0.0.1:1?if=eth1").await.err().unwrap(), "if");
    let mut listener = fabric.listen("zc://127.0.0.1:0?if=lo").await.unwrap();
    let uri = listener.local_uri().to_string();
    assert!(uri.ends_with("?if=lo"), "{uri}");
    let (client, server) = guarded(async { tokio::join!(fabric.connect(&uri), listener.accept()) }).await;
    assert_eq!(client.unwrap().report().chosen(), "passed");
    server.unwrap();
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
    let (client, server) = guarded(async { tokio::join!(fabric.connect(&uri), listener.accept()) }).await;
    talk(&client.unwrap(), &mut server.unwrap()).await;
    println!("recovered");
}

#[tokio::test]
async fn a_listener_without_descriptors_recovers() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "starved_process", "--nocapture"])
        .env("ZC_TEST_STARVED", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = guarded(spawn_blocking(move || child)).await.unwrap().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("recovered"));
}
