//! What policy, a URI, deadlines and strangers make of a connection.

use zc_core::wire::MAX_OFFERS;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_uri_that_names_a_transport_gets_that_or_nothing() {
    let only = |join| with([stream(), fake("shm", join), fake("rdma", Join::Works)]);
    both_chose(connect_as(only(Join::Works), only(Join::Works), Some("rdma")).await, "rdma").await;
    let (client, server) = connect_as(only(Join::Works), only(Join::Fails), Some("shm")).await;
    let (client, server) = (refused(client), refused(server));
    assert_eq!(outcome(&client, "rdma"), Outcome::Unavailable(Unavailable::ForbiddenByPolicy));
    assert!(
        matches!(outcome(&client, "shm"), Outcome::Unavailable(Unavailable::PeerFailed { .. })),
        "{client}"
    );
    assert_eq!(outcome(&server, "shm"), Outcome::Unavailable(Unavailable::NoDevice));
    let (client, _) = connect_as(only(Join::Works), only(Join::Works), Some("none")).await;
    assert!(refused(client).to_string().contains("register or compile in"));
}

#[tokio::test(start_paused = true)]
async fn fallback_is_told_or_denied() {
    let seen = Arc::new(Seen::default());
    let side = |rule, join| {
        let policy = Policy::default().fallback(rule);
        with([stream(), fake("shm", join)]).policy(policy).observer(seen.clone())
    };
    both_chose(connect(side(Fallback::Warn, Join::Fails), side(Fallback::Allow, Join::Works)).await, "mem")
        .await;
    let mut events = std::mem::take(&mut *seen.0.lock());
    events.sort();
    assert_eq!(events, ["Client connected over mem", "Server connected over mem", "fell back to mem"]);
    for (near, far) in [(Fallback::Deny, Fallback::Warn), (Fallback::Warn, Fallback::Deny)] {
        let (client, server) = connect(side(near, Join::Works), side(far, Join::Fails)).await;
        assert!(client.is_err() && server.is_err());
        let denier = if near == Fallback::Deny { client } else { server };
        assert!(refused(denier).to_string().contains("shm"));
    }
    let events = std::mem::take(&mut *seen.0.lock());
    assert_eq!(events.iter().filter(|event| event.contains("failed in")).count(), 4, "{events:?}");
    // What is not made for this link is missed only by name.
    let stranger = || fake("xdp", Join::NotHere);
    for (policy, told) in [(Policy::default(), false), (Policy::default().prefer(["xdp"]), true)] {
        let side = || with([stream(), stranger()]).policy(policy.clone()).observer(seen.clone());
        both_chose(connect(side(), side()).await, "mem").await;
        let events = std::mem::take(&mut *seen.0.lock());
        assert_eq!(events.iter().any(|event| event.contains("fell back")), told, "{events:?}");
        let deny = || side().policy(policy.clone().fallback(Fallback::Deny));
        let (client, server) = connect(deny(), deny()).await;
        assert_eq!((client.is_err(), server.is_err()), (told, told));
        seen.0.lock().clear();
    }
    // The first choice is no fallback.
    let deny = || side(Fallback::Deny, Join::Works);
    both_chose(connect(deny(), deny()).await, "shm").await;
}

/// Policy ranks what is spoken to the peer. Which engine does it is in the report, and matters to who asks for one.
#[tokio::test(start_paused = true)]
async fn another_engine_for_the_same_wire_is_no_fallback() {
    let seen = Arc::new(Seen::default());
    let told =
        || std::mem::take(&mut *seen.0.lock()).iter().filter(|event| event.contains("fell back")).count();
    let side = |policy: Policy, rule| {
        let transports = [stream(), engine("xdp", "wire", Join::Refused), engine("own", "wire", Join::Works)];
        with(transports).policy(policy.fallback(rule)).observer(seen.clone())
    };
    for rule in [Fallback::Warn, Fallback::Deny] {
        let any = || side(Policy::default().prefer(["own"]).with_override("^mem").unwrap(), rule);
        both_chose(connect(any(), any()).await, "own").await;
        let ranked = || side(Policy::default().with_override("^mem").unwrap(), rule);
        let ends = connect(ranked(), ranked()).await;
        let report = ends.0.as_ref().unwrap().report();
        assert_eq!(outcome(report, "xdp"), Outcome::Unavailable(Unavailable::NoDevice), "{report}");
        both_chose(ends, "own").await;
        assert_eq!(told(), 0, "{rule:?}");
    }
    let named = |rule| side(Policy::default().prefer(["xdp", "own"]), rule);
    both_chose(connect(named(Fallback::Warn), named(Fallback::Warn)).await, "own").await;
    assert_eq!(told(), 2);
    let (client, server) = connect(named(Fallback::Deny), named(Fallback::Deny)).await;
    assert!(client.is_err() && server.is_err());
}

/// An engine that makes no offer of its own takes no place among the offers.
#[tokio::test(start_paused = true)]
async fn what_stands_in_for_another_takes_no_place_among_the_offers() {
    let names = (0..MAX_OFFERS).map(|n| &*Box::leak(format!("fake-{n}").into_boxed_str()));
    let names: Vec<&'static str> = names.collect();
    let side = || {
        let fakes = names.iter().map(|name| fake(name, Join::Works));
        with(fakes.chain([engine("spare", names[0], Join::Works), fake("beyond", Join::Works)]))
    };
    let (client, server) = connect(side(), side()).await;
    let report = client.as_ref().unwrap().report();
    assert_eq!(outcome(report, "spare"), Outcome::NotNeeded);
    assert!(matches!(outcome(report, "beyond"), Outcome::Unavailable(_)), "{report}");
    both_chose((client, server), names[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_ranks_otherwise_is_why_something_better_was_not_taken() {
    let seen = Arc::new(Seen::default());
    let side = |first: &str, rule, shm| {
        let policy = Policy::default().prefer([first]).fallback(rule);
        with([stream(), fake("shm", shm), fake("rdma", Join::Works)]).policy(policy).observer(seen.clone())
    };
    let told =
        || std::mem::take(&mut *seen.0.lock()).iter().filter(|event| event.contains("fell back")).count();
    let outranked = Outcome::Unavailable(Unavailable::OutrankedByPeer);
    let works = Join::Works;
    // The server decides, by its own ranking; the client says what that costs it.
    for (first, chosen) in [("shm", "shm"), ("mem", "mem")] {
        let ends = connect(side("rdma", Fallback::Warn, works), side(first, Fallback::Warn, works)).await;
        let (client, server) = (ends.0.as_ref().unwrap().report(), ends.1.as_ref().unwrap().report());
        assert_eq!(outcome(client, "rdma"), outranked);
        assert_eq!(outcome(server, "rdma"), Outcome::NotNeeded);
        both_chose(ends, chosen).await;
        assert_eq!(told(), 1, "the client alone");
        let (client, server) =
            connect(side("rdma", Fallback::Deny, works), side(first, Fallback::Warn, works)).await;
        let report = refused(client);
        assert_eq!(outcome(&report, "rdma"), outranked);
        assert!(report.to_string().contains("outranked_by_peer; remedy: rank"), "{report}");
        assert!(server.is_err());
        told();
    }
    // What was outranked has its turn when what the peer prefers fails; that is the server's loss.
    let ends = connect(side("rdma", Fallback::Warn, works), side("shm", Fallback::Warn, Join::Fails)).await;
    both_chose(ends, "rdma").await;
    assert_eq!(told(), 1, "the server alone");
    // Nor is anything lost where both rank alike.
    let ends = connect(side("rdma", Fallback::Deny, works), side("rdma", Fallback::Deny, works)).await;
    both_chose(ends, "rdma").await;
    assert_eq!(told(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_by_name_and_not_there_is_in_the_report() {
    let seen = Arc::new(Seen::default());
    let side =
        |policy: Policy| with([stream(), fake("shm", Join::Works)]).policy(policy).observer(seen.clone());
    let named = || Policy::default().prefer(["gone", "shm"]);
    let (client, server) = connect(side(named()), side(Policy::default())).await;
    let report = client.as_ref().unwrap().report().to_string();
    assert!(report.lines().next().unwrap().contains("not_registered"), "best first: {report}");
    both_chose((client, server), "shm").await;
    assert!(seen.0.lock().iter().any(|event| event.contains("fell back")), "it was asked for by name");
    let (client, _) = connect(side(named().fallback(Fallback::Deny)), side(Policy::default())).await;
    assert!(refused(client).to_string().contains("register or compile in the transport `gone`"));
    // The other name of the control link's stream is made for other links.
    let (client, server) = connect(side(Policy::default().prefer(["tcp"])), side(Policy::default())).await;
    assert!(!client.as_ref().unwrap().report().to_string().contains("tcp"));
    both_chose((client, server), "shm").await;
}

#[tokio::test]
async fn a_transport_that_nothing_could_name_is_refused() {
    for name in ["", "two words", "a,b", "^a", "a-name-of-more-than-thirty-two-bytes"] {
        let error = with([fake(name, Join::Works)]).build().err().unwrap();
        assert!(matches!(&error, Error::TransportName(bad) if bad == name), "{error}");
    }
    let own = "my-own_v1.2";
    assert_eq!(format!("zc+{own}://h:1").parse::<crate::Uri>().unwrap().transport(), Some(own));
    with([fake(own, Join::Works)]).policy(Policy::default().with_override(own).unwrap()).build().unwrap();
}

fn longest() -> Deadlines {
    let max = Duration::MAX;
    Deadlines { connect: max, hello: max, authenticate: max, offers: max, join: max, total: max }
}

#[tokio::test(start_paused = true)]
async fn no_deadline_is_too_long() {
    let side = |join| with([stream(), fake("shm", join), fake("rdma", Join::Dead)]).deadlines(longest());
    both_chose(connect(side(Join::Works), side(Join::Works)).await, "shm").await;
    both_chose(connect(side(Join::Fails), side(Join::Works)).await, "mem").await;
    let only = |join| with([fake("shm", join)]).deadlines(longest());
    both_chose(connect(only(Join::Works), only(Join::Fails)).await, "mem").await;
    let (client, server) = connect_as(only(Join::Works), only(Join::Fails), Some("shm")).await;
    assert!(outcome(&refused(client), "shm") != Outcome::Chosen && server.is_err());
}

/// A link at an abstract name, whose other end is a process of this user.
#[derive(Debug)]
struct At {
    link: PipeLink,
    uid: u32,
}

impl ControlLink for At {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<stdio::Result<usize>> {
        self.link.poll_read(cx, buf)
    }
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<stdio::Result<usize>> {
        self.link.poll_write(cx, buf)
    }
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<stdio::Result<()>> {
        self.link.poll_shutdown(cx)
    }
    fn peer(&self) -> LinkAddr {
        LinkAddr::UnixAbstract("squatted".into())
    }
    fn peer_cred(&self) -> Option<zc_core::transport::PeerCred> {
        Some(zc_core::transport::PeerCred { pid: 1, uid: self.uid, gid: 0 })
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// Opens links whose other end is a process of this user.
struct Squatted(u32);

impl zc_core::transport::LinkProvider for Squatted {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        matches!(addr, LinkAddr::UnixAbstract(_))
    }
    fn connect<'a>(
        &'a self,
        _: &'a LinkAddr,
        _: &'a Arc<dyn zc_core::transport::Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        let link = At { link: duplex("squatted").0, uid: self.0 };
        Box::pin(async move { Ok(Box::new(link) as Box<dyn ControlLink>) })
    }
    fn bind<'a>(
        &'a self,
        _: &'a LinkAddr,
        _: &'a Arc<dyn zc_core::transport::Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn zc_core::transport::LinkListener>, LinkError>> {
        unreachable!("a client only")
    }
}

/// It must never be called.
struct Secretive;

impl crate::auth::Authenticator for Secretive {
    fn method(&self) -> &str {
        "secretive"
    }
    fn client(&self, _: &PeerIdentity) -> Box<dyn crate::auth::AuthClient> {
        unreachable!("a squatter was spoken to")
    }
    fn server(&self, _: &PeerIdentity) -> Box<dyn crate::auth::AuthServer> {
        unreachable!("a client only")
    }
}

const STRANGER: u32 = 4_000_001;

fn plain_outcome(failed: Result<crate::PlainStream, Error>) -> Outcome {
    let Err(Error::NoTransport(report)) = failed else { panic!("{:?}", failed.err()) };
    outcome(&report, crate::PLAIN)
}

#[tokio::test(start_paused = true)]
async fn a_plain_link_to_an_abstract_name_is_for_the_same_users() {
    let fabric = |uid| Fabric::builder().links(Arc::new(Squatted(uid))).build().unwrap();
    let refused = plain_outcome(fabric(STRANGER).connect_plain("zc+unix://@squatted").await);
    assert_eq!(refused, Outcome::Unavailable(Unavailable::PeerUid { uid: STRANGER }));
    // Root is accepted.
    fabric(0).connect_plain("zc+unix://@squatted").await.unwrap();

    let server = with([stream()]).build().unwrap();
    for (uid, accepted) in [(STRANGER, false), (0, true)] {
        let (mut near, far) = duplex("squatted");
        io::write_all(&mut near, b"GET /").await.unwrap();
        let (request, progress, plain) = (Request::default(), Progress::default(), Mutex::new(None));
        let side = Side { plain: Some(&plain), ..side_of(Role::Server, &request, &progress) };
        let mut failures = 0;
        let count = || {
            failures += 1;
            failures
        };
        let result = run(server.shared(), side, Box::new(At { link: far, uid }), count).await;
        assert!(matches!(result, Err(Error::Wire { source: WireError::BadMagic { .. }, .. })));
        assert_eq!((plain.into_inner().is_some(), failures), (accepted, u64::from(!accepted)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_link_is_what_the_uri_allows_or_none() {
    let fabric = with([fake("shm", Join::Works), fake("rdma", Join::Works)]);
    let fabric = fabric.links(Arc::new(Squatted(0))).build().unwrap();
    for uri in ["zc+shm://orders", "zc+rdma://127.0.0.1:1"] {
        let refused = plain_outcome(fabric.connect_plain(uri).await);
        assert_eq!(refused, Outcome::Unavailable(Unavailable::ForbiddenByPolicy), "{uri}");
    }
    let misspelt = fabric.connect_plain("zc+unix://@squatted?dve=1").await;
    assert!(
        matches!(misspelt, Err(Error::Uri(crate::UriError::UnknownParam { .. }))),
        "{:?}",
        misspelt.err()
    );
    fabric.connect_plain("zc+unix://@squatted?dev=1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_squats_on_a_name_hears_nothing() {
    let client = with([Arc::new(TcpTransport) as _]).authenticator(Arc::new(Secretive)).build().unwrap();
    let (near, mut far) = duplex("squatted");
    // It would answer, if it were asked.
    let mut theirs = Vec::new();
    let hello =
        Hello { auth_method: "secretive".into(), ..hello_of(HelloRole::Server, VersionRange::SUPPORTED) };
    hello.encode(&mut theirs).unwrap();
    io::write_all(&mut far, &theirs).await.unwrap();
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Client, &request, &progress);
    let link = Box::new(At { link: near, uid: STRANGER });
    let report = refused(run(client.shared(), side, link, || 1).await);
    assert_eq!(outcome(&report, "tcp"), Outcome::Unavailable(Unavailable::PeerUid { uid: STRANGER }));
    assert_eq!(report.stage(), Stage::Connect);
    assert_eq!(poll_fn(|cx| far.poll_read(cx, &mut [0])).await.unwrap(), 0, "it sent something");
}

#[tokio::test(start_paused = true)]
async fn encryption_can_not_be_had() {
    let policy = Policy::default().require_encrypted();
    let (client, server) = connect(with([stream()]).policy(policy), with([stream()])).await;
    assert_eq!(outcome(&refused(client), "mem"), Outcome::Unavailable(Unavailable::NoEncryption));
    refused(server);
}

/// A half of a lane may cost much: an interface that is opened.
#[tokio::test(start_paused = true)]
async fn who_accepts_makes_no_half_that_the_peer_does_not_offer() {
    let costly = || with([stream(), fake("shm", Join::NoHalf)]);
    let (client, server) = connect(costly(), costly()).await;
    let of = |end: Result<Connection, Error>| outcome(end.unwrap().report(), "shm");
    assert_eq!(of(client), Outcome::Unavailable(Unavailable::NoDevice));
    assert_eq!(of(server), Outcome::Unavailable(Unavailable::PeerLacks));
}
