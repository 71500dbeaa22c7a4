//! Peers of other versions.

use super::*;

/// A client of other versions, as far as HELLO.
async fn other_client(versions: VersionRange) -> (Error, Result<Option<u8>, WireError>) {
    let (mut near, far) = duplex("version");
    let mut hs = ClientHandshake::new(hello_of(HelloRole::Client, versions)).unwrap();
    io::write_all(&mut near, &hs.take_output()).await.unwrap();
    poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    let server = with([stream()]).build().unwrap();
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Server, &request, &progress);
    let ours = run(server.shared(), side, Box::new(far), || 1).await.err().unwrap();
    let mut answer = vec![0; 4096];
    let count = poll_fn(|cx| near.poll_read(cx, &mut answer)).await.unwrap();
    let theirs = hs.handle_hello(&answer[..count]).map(|_| hs.version());
    (ours, theirs)
}

#[tokio::test(start_paused = true)]
async fn a_newer_peer_agrees_or_both_say_why() {
    let (ours, theirs) = other_client(VersionRange::new(1, 2).unwrap()).await;
    assert_eq!(theirs, Ok(Some(1)));
    assert!(matches!(ours, Error::Link { stage: Stage::Offers, .. }), "it only hung up: {ours}");

    let newer = VersionRange::new(2, 3).unwrap();
    let (ours, theirs) = other_client(newer).await;
    let mismatch = |ours, theirs| WireError::VersionMismatch { ours, theirs };
    assert_eq!(theirs, Err(mismatch(newer, VersionRange::SUPPORTED)));
    let Error::Wire { stage: Stage::Hello, source } = ours else { panic!("{ours}") };
    assert_eq!(source, mismatch(VersionRange::SUPPORTED, newer));
}

/// A server of other versions by hand, against our client.
async fn other_server(versions: VersionRange) -> (Error, Result<Option<u8>, WireError>) {
    let (near, mut far) = duplex("version");
    let mut hs = ServerHandshake::new(hello_of(HelloRole::Server, versions)).unwrap();
    let by_hand = async move {
        let mut bytes = vec![0; 4096];
        let count = poll_fn(|cx| far.poll_read(cx, &mut bytes)).await.unwrap();
        let taken = hs.handle_hello(&bytes[..count]).map(|_| hs.version());
        io::write_all(&mut far, &hs.take_output()).await.unwrap();
        taken
    };
    let client = with([stream()]).build().unwrap();
    let (request, progress) = (Request::default(), Progress::default());
    let side = side_of(Role::Client, &request, &progress);
    let ours = run(client.shared(), side, Box::new(near), || 1);
    let (ours, theirs) = futures::future::join(ours, by_hand).await;
    (ours.err().unwrap(), theirs)
}

#[tokio::test(start_paused = true)]
async fn a_newer_server_agrees_or_both_say_why() {
    let (ours, theirs) = other_server(VersionRange::new(1, 2).unwrap()).await;
    assert_eq!(theirs, Ok(Some(1)));
    assert!(matches!(ours, Error::Link { stage: Stage::Offers, .. }), "it only hung up: {ours}");

    let newer = VersionRange::new(2, 3).unwrap();
    let (ours, theirs) = other_server(newer).await;
    let mismatch = |ours, theirs| WireError::VersionMismatch { ours, theirs };
    assert_eq!(theirs, Err(mismatch(newer, VersionRange::SUPPORTED)));
    let Error::Wire { stage: Stage::Hello, source } = ours else { panic!("{ours}") };
    assert_eq!(source, mismatch(VersionRange::SUPPORTED, newer));
}

#[tokio::test]
async fn a_client_of_another_version_hears_of_it_over_tcp_before_the_end() {
    let mut listener = Fabric::auto().unwrap().listen("zc://127.0.0.1:0").await.unwrap();
    let address = listener.local_uri().to_string().replace("zc://", "");
    let newer = VersionRange::new(2, 3).unwrap();
    let mut bytes = Vec::new();
    hello_of(HelloRole::Client, newer).encode(&mut bytes).unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        // A reset here could overtake what was said before it.
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let heard = futures::future::select(Box::pin(listener.accept()), heard).await;
    let futures::future::Either::Right((heard, _)) = heard else { panic!("accepted") };
    let theirs = Hello::decode(&heard.unwrap(), newer);
    let mismatch = WireError::VersionMismatch { ours: newer, theirs: VersionRange::SUPPORTED };
    assert_eq!(theirs, Err(mismatch));
}

/// The first bytes of a HELLO whose body never comes.
fn only_header(role: HelloRole, versions: VersionRange) -> Vec<u8> {
    let mut bytes = Vec::new();
    hello_of(role, versions).encode(&mut bytes).unwrap();
    bytes.truncate(zc_core::wire::HELLO_HEADER_BYTES);
    bytes
}

#[tokio::test(start_paused = true)]
async fn the_versions_are_why_even_if_the_rest_of_the_hello_never_comes() {
    let newer = VersionRange::new(2, 3).unwrap();
    for (role, theirs) in [(Role::Client, HelloRole::Server), (Role::Server, HelloRole::Client)] {
        let (near, mut far) = duplex("header");
        io::write_all(&mut far, &only_header(theirs, newer)).await.unwrap();
        let fabric = with([stream()]).build().unwrap();
        let (request, progress) = (Request::default(), Progress::default());
        let start = tokio::time::Instant::now();
        let ours = run(fabric.shared(), side_of(role, &request, &progress), Box::new(near), || 1).await;
        let Err(Error::Wire { stage: Stage::Hello, source }) = ours else { panic!("{:?}", ours.err()) };
        assert_eq!(source, WireError::VersionMismatch { ours: VersionRange::SUPPORTED, theirs: newer });
        let waited = start.elapsed();
        let limit = crate::options::DEFAULT_STAGE;
        assert!(waited >= limit && waited < 2 * limit, "{waited:?}");
    }
}
