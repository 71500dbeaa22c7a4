//! A flood of peers that go wrong in every stage in every way, beside good ones: the observer of the listener
//! hears of each, with the stage and the reason, and the good ones notice nothing. Time is simulated.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test helpers")]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use zc::transport::{LinkAddr, LinkProvider, Reactor};
use zc::wire::{ControlMessage, Hello, HelloRole, OfferEntry, VersionRange};
use zc::{Fabric, FabricBuilder, HandshakeFailed, Listener, MemLinks, Observer, SharedSecret, Stage};

/// Peers of one kind.
const EACH: usize = 20;
/// Peers at a time.
const AT_A_TIME: usize = 100;
const SECRET: &[u8] = b"sixteen bytes ok";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Says nothing more.
    Stalls,
    /// Says half of what comes next, then nothing more.
    StallsHalfway,
    /// Says half of what comes next, and hangs up.
    Truncates,
    /// Announces far more than is allowed.
    Oversizes,
    /// Sends what is no message.
    Noise,
    /// Sends what belongs elsewhere.
    Disorder,
    /// Speaks only versions to come.
    OtherVersion,
}

impl Fault {
    /// What the reason says.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Stalls | Self::StallsHalfway => &["the deadline has passed"],
            Self::Truncates => &["end of file"],
            Self::Oversizes => &["too long"],
            Self::Noise => &["not a zc peer", "too long", "bad value"],
            Self::Disorder => &["unexpected COMMIT"],
            Self::OtherVersion => &["no wire version in common"],
        }
    }

    fn happens_in(self, stage: Stage) -> bool {
        match self {
            Self::OtherVersion => stage == Stage::Hello,
            Self::Disorder => stage != Stage::Hello,
            _ => true,
        }
    }
}

const FAULTS: [Fault; 7] = [
    Fault::Stalls,
    Fault::StallsHalfway,
    Fault::Truncates,
    Fault::Oversizes,
    Fault::Noise,
    Fault::Disorder,
    Fault::OtherVersion,
];
const STAGES: [Stage; 5] = [Stage::Hello, Stage::Authenticate, Stage::Offers, Stage::Join, Stage::Commit];

fn hello(versions: VersionRange, auth_method: &str) -> Vec<u8> {
    let hello = Hello {
        versions,
        role: HelloRole::Client,
        instance: [1; 16],
        max_message: 1 << 20,
        window: 1 << 20,
        auth_method: auth_method.into(),
        keepalive_ms: 0,
        agent: "by hand".into(),
        same_host: None,
        control_lane: true,
        remote: false,
    };
    let mut bytes = Vec::new();
    hello.encode(&mut bytes).unwrap();
    bytes
}

fn encoded(message: &ControlMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

/// What a good client says: before this stage, and in it.
fn good(stage: Stage) -> (Vec<u8>, Vec<u8>) {
    let offer = OfferEntry { transport: "mem".into(), version: 1, bytes: Vec::new() };
    let method = if stage == Stage::Authenticate { "zc-shared-secret-1" } else { "" };
    let hello = hello(VersionRange::SUPPORTED, method);
    let offers = encoded(&ControlMessage::Offers(vec![offer]));
    let up = encoded(&ControlMessage::LaneUp { index: 0 });
    match stage {
        Stage::Connect | Stage::Hello => (Vec::new(), hello),
        Stage::Authenticate => (hello, encoded(&ControlMessage::Auth { bytes: vec![7; 32] })),
        Stage::Offers => (hello, offers),
        Stage::Join => ([hello, offers].concat(), up),
        Stage::Commit => ([hello, offers, up].concat(), encoded(&ControlMessage::Commit { index: 0 })),
    }
}

fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(2 * seed as u64 + 1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// All that a peer says, and whether it then hangs up.
fn said(stage: Stage, fault: Fault, seed: usize) -> (Vec<u8>, bool) {
    let (mut bytes, next) = good(stage);
    let half = next.len() / 2;
    bytes.extend(match fault {
        Fault::Stalls => Vec::new(),
        Fault::StallsHalfway | Fault::Truncates => next[..half].into(),
        Fault::Oversizes => {
            // Both headers end with the length.
            let header = if stage == Stage::Hello { 12 } else { 8 };
            [&next[..header - 4], &[0xFF; 4]].concat()
        }
        Fault::Noise => {
            let mut noise = noise(512, seed);
            // It is noise for sure: neither the magic, nor a type with a length that is allowed.
            (noise[0], noise[7]) = (0xFF, 0xFF);
            noise
        }
        Fault::Disorder => encoded(&ControlMessage::Commit { index: 9 }),
        Fault::OtherVersion => hello(VersionRange::new(200, 201).unwrap(), ""),
    });
    (bytes, fault == Fault::Truncates)
}

#[derive(Default)]
struct Heard(Mutex<Vec<(Stage, String, u64)>>);

impl Observer for Heard {
    fn handshake_failed(&self, event: &HandshakeFailed) {
        self.0.lock().unwrap().push((event.stage, event.reason.clone(), event.failures));
    }
}

/// One peer, from its first byte until the listener hangs up.
async fn peer(name: &str, stage: Stage, fault: Fault, seed: usize) {
    let reactor: Arc<dyn Reactor> = Arc::new(zc::TokioReactor::new());
    let mut link = MemLinks.connect(&LinkAddr::Memory(name.into()), &reactor).await.unwrap();
    let (bytes, hangs_up) = said(stage, fault, seed);
    let mut at = 0;
    while at < bytes.len() {
        at += poll_fn(|cx| link.poll_write(cx, &bytes[at..])).await.unwrap();
    }
    if hangs_up {
        poll_fn(|cx| link.poll_shutdown(cx)).await.unwrap();
    }
    let mut answer = [0; 4096];
    while !matches!(poll_fn(|cx| link.poll_read(cx, &mut answer)).await, Ok(0) | Err(_)) {}
}

async fn good_one(client: &Fabric, listener: &mut Listener) {
    let uri = listener.local_uri().to_string();
    let (connected, mut accepted) = tokio::try_join!(client.connect(&uri), listener.accept()).unwrap();
    connected.send(&b"good"[..]).await.unwrap();
    assert_eq!(accepted.recv().await.unwrap().unwrap(), b"good"[..]);
}

/// Floods one listener with these; what its observer heard.
async fn flood(name: &str, stages: &[Stage], with: impl Fn(FabricBuilder) -> FabricBuilder) {
    let heard = Arc::new(Heard::default());
    let server = with(Fabric::auto_builder()).observer(heard.clone()).build().unwrap();
    let mut listener = server.listen(&format!("zc+mem://{name}")).await.unwrap();
    let client = with(Fabric::auto_builder()).build().unwrap();
    let each = stages.iter().flat_map(|stage| FAULTS.map(|fault| (*stage, fault)));
    let kinds: Vec<_> = each.filter(|(stage, fault)| fault.happens_in(*stage)).collect();
    // All kinds at a time, not one after the other.
    let peers = (0..EACH).flat_map(|seed| kinds.iter().map(move |(stage, fault)| (*stage, *fault, seed)));
    let flooding = futures::stream::iter(peers)
        .for_each_concurrent(AT_A_TIME, |(stage, fault, seed)| peer(name, stage, fault, seed));
    let working = async {
        for _ in 0..EACH {
            good_one(&client, &mut listener).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::join!(flooding, working);
    good_one(&client, &mut listener).await;

    let total = kinds.len() * EACH;
    assert_eq!(listener.failed_handshakes(), total as u64);
    let mut expected = BTreeMap::<(Stage, &[&str]), usize>::new();
    kinds.iter().for_each(|(stage, fault)| *expected.entry((*stage, fault.words())).or_default() += EACH);
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.len(), total, "each is told once");
    assert!((1..=total as u64).eq(heard.iter().map(|heard| heard.2)), "and counted");
    for ((stage, words), count) in expected {
        let is_meant = |reason: &str| words.iter().any(|word| reason.contains(word));
        let found = heard.iter().filter(|(at, reason, _)| *at == stage && is_meant(reason)).count();
        // Noise may be found too long, as what is oversized always is.
        let more_may_be = words.contains(&"too long");
        assert!(found == count || more_may_be && found > count, "{stage}: {words:?}: {found} of {count}");
    }
    for stage in stages {
        let in_stage = kinds.iter().filter(|(at, _)| at == stage).count() * EACH;
        assert_eq!(heard.iter().filter(|(at, ..)| at == stage).count(), in_stage, "{stage}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_peer_of_a_flood_is_told_of_with_its_stage() {
    let stages: Vec<_> = STAGES.into_iter().filter(|stage| *stage != Stage::Authenticate).collect();
    flood("flood-of-all", &stages, |builder| builder).await;
}

#[tokio::test(start_paused = true)]
async fn so_is_each_that_goes_wrong_while_it_authenticates() {
    let secret: Arc<SharedSecret> = Arc::new(SharedSecret::new("both", SECRET).unwrap());
    flood("flood-of-auth", &[Stage::Authenticate], |builder| builder.authenticator(secret.clone())).await;
}
