//! Code of the application that panics while a listener shakes hands: it costs that handshake, or ends in an
//! error, and never leaves a listener that looks alive and accepts nobody.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test helpers")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use zc::transport::{BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor};
use zc::{
    AcceptFailed, AuthClient, AuthError, AuthServer, AuthStep, Authenticator, Connected, Error, Fabric,
    FabricBuilder, HandshakeFailed, Listener, MemLinks, Observer, PeerIdentity, Stage,
};

const GUARD: Duration = Duration::from_secs(60);

/// Panics for the client that says so.
struct Touchy;

impl Authenticator for Touchy {
    fn method(&self) -> &str {
        "touchy"
    }
    fn client(&self, _: &PeerIdentity) -> Box<dyn AuthClient> {
        Box::new(Says(b"good"))
    }
    fn server(&self, _: &PeerIdentity) -> Box<dyn AuthServer> {
        Box::new(Touchy)
    }
}

impl AuthServer for Touchy {
    fn step<'a>(&'a mut self, from_client: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>> {
        Box::pin(async move {
            assert!(from_client != b"bad", "it said something bad");
            Ok(AuthStep::Accept(None))
        })
    }
}

struct Says(&'static [u8]);

impl Authenticator for Says {
    fn method(&self) -> &str {
        "touchy"
    }
    fn client(&self, _: &PeerIdentity) -> Box<dyn AuthClient> {
        Box::new(Says(self.0))
    }
    fn server(&self, _: &PeerIdentity) -> Box<dyn AuthServer> {
        unreachable!("a client only")
    }
}

impl AuthClient for Says {
    fn step<'a>(&'a mut self, _: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>> {
        Box::pin(async { Ok(self.0.into()) })
    }
    fn accepted(&mut self) -> Result<Option<String>, AuthError> {
        Ok(None)
    }
}

/// Notes failures, and panics where it is told to.
#[derive(Default)]
struct Noting {
    failed: Mutex<Vec<(Stage, String, u64)>>,
    panics_on_failure: bool,
    /// Once.
    panics_on_connection: AtomicBool,
}

impl Observer for Noting {
    fn handshake_failed(&self, event: &HandshakeFailed) {
        self.failed.lock().unwrap().push((event.stage, event.reason.clone(), event.failures));
        assert!(!self.panics_on_failure, "an observer");
    }
    fn connected(&self, _: &Connected) {
        assert!(!self.panics_on_connection.swap(false, Ordering::Relaxed), "an observer");
    }
    fn accept_failed(&self, _: &AcceptFailed) {
        panic!("an observer");
    }
}

async fn listen(name: &str, seen: &Arc<Noting>) -> Listener {
    let fabric =
        Fabric::auto_builder().authenticator(Arc::new(Touchy)).observer(seen.clone()).build().unwrap();
    fabric.listen(&format!("zc+mem://{name}")).await.unwrap()
}

fn client(says: &'static [u8]) -> Fabric {
    Fabric::auto_builder().authenticator(Arc::new(Says(says))).build().unwrap()
}

async fn one_good_comes_in(listener: &mut Listener) {
    let uri = listener.local_uri().to_string();
    let good = client(b"good");
    let both = async { tokio::try_join!(good.connect(&uri), listener.accept()) };
    let (connected, accepted) =
        tokio::time::timeout(GUARD, both).await.expect("the listener is dead").unwrap();
    drop((connected, accepted));
}

#[tokio::test(start_paused = true)]
async fn a_method_that_panics_costs_one_handshake() {
    let seen = Arc::new(Noting::default());
    let mut listener = listen("touchy", &seen).await;
    let error = client(b"bad").connect("zc+mem://touchy").await.err().expect("it was let in");
    assert_eq!(error.stage(), Some(Stage::Authenticate), "{error}");
    one_good_comes_in(&mut listener).await;
    assert_eq!(listener.failed_handshakes(), 1);
    let failed = seen.failed.lock().unwrap();
    let [(stage, reason, failures)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!((*stage, *failures), (Stage::Authenticate, 1));
    assert!(reason.contains("panicked: it said something bad"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_costs_nothing_but_what_it_was_told_of() {
    let seen = Arc::new(Noting { panics_on_failure: true, ..Noting::default() });
    let mut listener = listen("watched", &seen).await;
    client(b"bad").connect("zc+mem://watched").await.err().expect("it was let in");
    // One that fails without a panic of its own.
    drop(Fabric::auto().unwrap().connect("zc+mem://watched").await.err().expect("it has no method"));
    seen.panics_on_connection.store(true, Ordering::Relaxed);
    // It is connected at its end already.
    let _ = client(b"good").connect("zc+mem://watched").await;
    one_good_comes_in(&mut listener).await;
    assert_eq!(listener.failed_handshakes(), 3);
    let failures: Vec<u64> = seen.failed.lock().unwrap().iter().map(|failed| failed.2).collect();
    assert_eq!(failures, [1, 2, 3], "each is counted once");
}

/// Nor does its panic hide why a connection ended.
#[test]
fn an_observer_that_panics_at_the_end_costs_nobody_the_reason() {
    struct Last;
    impl Observer for Last {
        fn closed(&self, _: &zc::Closed) {
            panic!("an observer");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fabric = Fabric::auto_builder().observer(Arc::new(Last)).build().unwrap();
    let (client, _server) = runtime.block_on(zc::testing::pair(&fabric)).unwrap();
    drop(runtime);
    let reason = client.closed().now_or_never().expect("it has ended");
    assert!(matches!(reason, zc::ConnectionError::NoRuntime(_)), "{reason}");
}

/// A provider whose listener fails, or panics.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Fails,
    Panics,
}

struct Links {
    inner: Box<dyn LinkListener>,
    broken: Option<Broken>,
}

impl LinkListener for Links {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>> {
        match self.broken.take() {
            Some(Broken::Fails) => {
                let source = std::io::ErrorKind::Other.into();
                Poll::Ready(Err(LinkError::Io { operation: "accept", source }))
            }
            Some(Broken::Panics) => panic!("a provider"),
            None => self.inner.poll_accept(cx),
        }
    }
    fn local(&self) -> LinkAddr {
        self.inner.local()
    }
}

impl LinkProvider for Broken {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        MemLinks.accepts(addr)
    }
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        MemLinks.connect(addr, reactor)
    }
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        Box::pin(async move {
            let inner = MemLinks.bind(addr, reactor).await?;
            Ok(Box::new(Links { inner, broken: Some(*self) }) as Box<dyn LinkListener>)
        })
    }
}

fn over(broken: Broken) -> FabricBuilder {
    Fabric::builder().links(Arc::new(broken)).authenticator(Arc::new(Touchy))
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_over_a_link_leaves_the_listener() {
    let fabric = over(Broken::Fails).observer(Arc::new(Noting::default())).build().unwrap();
    let mut listener = fabric.listen("zc+mem://shaky").await.unwrap();
    one_good_comes_in(&mut listener).await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_whose_task_panicked_says_so() {
    let mut listener = over(Broken::Panics).build().unwrap().listen("zc+mem://rotten").await.unwrap();
    let accepted = tokio::time::timeout(GUARD, listener.accept()).await.expect("it waits for nobody");
    assert!(matches!(accepted, Err(Error::ListenerClosed)));
    Fabric::auto().unwrap().listen("zc+mem://rotten").await.expect("the name is free");
}

#[tokio::test]
async fn a_listener_whose_runtime_ended_says_so() {
    let made = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listening = async { Fabric::auto()?.listen("zc+mem://short-lived").await };
        runtime.block_on(listening).unwrap()
    });
    let mut listener = made.join().unwrap();
    let accepted = tokio::time::timeout(GUARD, listener.accept()).await.expect("it waits for nobody");
    assert!(matches!(accepted, Err(Error::ListenerClosed)));
}
