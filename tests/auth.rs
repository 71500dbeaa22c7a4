//! Authentication: who is let in, under which name, and how a refusal reads at both ends.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use zc::transport::BoxFuture;
use zc::wire::WireError;
use zc::{
    AuthClient, AuthError, AuthServer, AuthStep, Authenticator, Connection, Error, Fabric, HandshakeFailed,
    Observer, PeerIdentity, SharedSecret, Stage,
};

type Ends = (Result<Connection, Error>, Stages);
type Stages = Arc<std::sync::Mutex<Vec<Stage>>>;

/// The stages in which a listener's handshakes failed.
struct Seen(Stages);

impl Observer for Seen {
    fn handshake_failed(&self, event: &HandshakeFailed) {
        self.0.lock().unwrap().push(event.stage);
    }
}

fn fabric(method: Option<Arc<dyn Authenticator>>, seen: &Stages) -> Fabric {
    let builder = Fabric::auto_builder().observer(Arc::new(Seen(seen.clone())));
    method.into_iter().fold(builder, |builder, method| builder.authenticator(method)).build().unwrap()
}

async fn connect(
    client: Option<Arc<dyn Authenticator>>,
    server: Option<Arc<dyn Authenticator>>,
) -> (Ends, Option<Connection>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let uri = format!("zc+mem://auth-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (seen, ours) = (Stages::default(), Stages::default());
    let mut listener = fabric(server, &seen).listen(&uri).await.unwrap();
    let connected = fabric(client, &ours).connect(&uri).await;
    let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await;
    ((connected, seen), accepted.ok().map(Result::unwrap))
}

fn secret(name: &str, secret: &[u8]) -> Option<Arc<dyn Authenticator>> {
    Some(Arc::new(SharedSecret::new(name, secret).unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_shared_secret_names_both_ends() {
    let ((client, _), server) =
        connect(secret("the server", b"sixteen bytes ok"), secret("the client", b"sixteen bytes ok")).await;
    assert_eq!(client.unwrap().peer().authenticated.as_deref(), Some("the server"));
    assert_eq!(server.unwrap().peer().authenticated.as_deref(), Some("the client"));
}

#[tokio::test(start_paused = true)]
async fn without_a_method_nobody_is_authenticated() {
    let ((client, _), server) = connect(None, None).await;
    assert_eq!(client.unwrap().peer().authenticated, None);
    assert_eq!(server.unwrap().peer().authenticated, None);
}

#[tokio::test(start_paused = true)]
async fn another_secret_is_refused() {
    let ((client, seen), server) =
        connect(secret("a", b"sixteen bytes ok"), secret("a", b"sixteen bytes no")).await;
    let error = client.err().unwrap();
    assert!(matches!(&error, Error::Auth(why) if why.reason.contains("server")), "{error}");
    assert_eq!(error.stage(), Some(Stage::Authenticate));
    assert!(error.to_string().starts_with("authenticate: "), "{error}");
    assert!(!error.is_retryable());
    assert!(server.is_none());
    assert_eq!(*seen.lock().unwrap(), [Stage::Authenticate]);
}

#[tokio::test(start_paused = true)]
async fn methods_that_differ_are_named_on_both_sides() {
    for (client, server) in [(None, true), (secret("a", b"sixteen bytes ok"), false)] {
        let (ours, with) = (client.is_some(), server.then(|| Arc::new(Scripted::good()) as _));
        let ((client, seen), accepted) = connect(client, with).await;
        let error = client.err().unwrap();
        let Error::Wire { stage: Stage::Hello, source: WireError::AuthMethod { ours: method, theirs } } =
            error
        else {
            panic!("{error}")
        };
        assert_eq!(!method.is_empty(), ours);
        assert_eq!(theirs == "scripted", server);
        assert!(accepted.is_none());
        assert_eq!(*seen.lock().unwrap(), [Stage::Hello]);
    }
}

/// What one side does at each step.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Good,
    /// The client wants a proof that never comes.
    WantsProof,
    Refuses,
    Stalls,
    /// Goes on for ever.
    Talks,
}

#[derive(Clone)]
struct Scripted {
    client: Act,
    server: Act,
}

impl Scripted {
    fn good() -> Self {
        Self { client: Act::Good, server: Act::Good }
    }
}

impl Authenticator for Scripted {
    fn method(&self) -> &str {
        "scripted"
    }
    fn client(&self, _: &PeerIdentity) -> Box<dyn AuthClient> {
        Box::new(self.clone())
    }
    fn server(&self, _: &PeerIdentity) -> Box<dyn AuthServer> {
        Box::new(self.clone())
    }
}

impl AuthClient for Scripted {
    fn step<'a>(&'a mut self, _: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>> {
        match self.client {
            Act::Stalls => Box::pin(std::future::pending()),
            Act::Refuses => Box::pin(ready(Err(AuthError::new("no")))),
            _ => Box::pin(ready(Ok(vec![1]))),
        }
    }
    fn accepted(&mut self) -> Result<Option<String>, AuthError> {
        if self.client == Act::WantsProof { Err(AuthError::new("too early")) } else { Ok(None) }
    }
}

impl AuthServer for Scripted {
    fn step<'a>(&'a mut self, _: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>> {
        match self.server {
            Act::Stalls => Box::pin(std::future::pending()),
            Act::Refuses => Box::pin(ready(Err(AuthError::new("a secret reason")))),
            Act::Talks => Box::pin(ready(Ok(AuthStep::Continue(vec![2])))),
            _ => Box::pin(ready(Ok(AuthStep::Accept(None)))),
        }
    }
}

async fn scripted(client: Act, server: Act) -> (Error, Vec<Stage>) {
    let method = Arc::new(Scripted { client, server });
    let ((client, seen), _) = connect(Some(method.clone()), Some(method)).await;
    let seen = seen.lock().unwrap().clone();
    (client.err().unwrap(), seen)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_tell_why() {
    let (error, seen) = scripted(Act::Good, Act::Refuses).await;
    let rejected = matches!(
        &error,
        Error::Wire { stage: Stage::Authenticate, source: WireError::Rejected { reason, .. } }
            if reason == "authentication failed"
    );
    assert!(rejected, "{error}");
    assert_eq!(seen, [Stage::Authenticate]);
}

#[tokio::test(start_paused = true)]
async fn acceptance_before_the_proof_is_refused() {
    let (error, seen) = scripted(Act::WantsProof, Act::Good).await;
    assert!(matches!(&error, Error::Auth(why) if why.reason == "too early"), "{error}");
    // The server had accepted: to it, the client went away before its offers.
    assert_eq!(seen, [Stage::Offers]);
    let (error, seen) = scripted(Act::Refuses, Act::Good).await;
    assert!(matches!(error, Error::Auth(_)), "{error}");
    assert_eq!(seen, [Stage::Authenticate]);
}

#[tokio::test(start_paused = true)]
async fn the_stage_has_a_deadline_and_a_bound() {
    let start = tokio::time::Instant::now();
    let (error, seen) = scripted(Act::Stalls, Act::Good).await;
    assert!(matches!(error, Error::Timeout { stage: Stage::Authenticate }), "{error}");
    assert_eq!(seen, [Stage::Authenticate]);
    let (error, seen) = scripted(Act::Good, Act::Stalls).await;
    assert!(matches!(error.stage(), Some(Stage::Authenticate)), "{error}");
    assert_eq!(seen, [Stage::Authenticate]);
    assert!(start.elapsed() >= zc::DEFAULT_STAGE * 2);
    let (error, seen) = scripted(Act::Good, Act::Talks).await;
    assert_eq!(error.stage(), Some(Stage::Authenticate), "{error}");
    assert_eq!(seen, [Stage::Authenticate]);
}

/// A method by any other name.
struct Named(&'static str, std::sync::atomic::AtomicBool);

impl Authenticator for Named {
    fn method(&self) -> &str {
        // It loses its name once it was checked.
        if self.1.swap(true, Ordering::Relaxed) { "" } else { self.0 }
    }
    fn client(&self, _: &PeerIdentity) -> Box<dyn AuthClient> {
        Box::new(Scripted::good())
    }
    fn server(&self, _: &PeerIdentity) -> Box<dyn AuthServer> {
        Box::new(Scripted::good())
    }
}

fn named(name: &'static str) -> Option<Arc<dyn Authenticator>> {
    Some(Arc::new(Named(name, false.into())))
}

#[tokio::test(start_paused = true)]
async fn a_method_without_a_name_does_not_turn_authentication_off() {
    for name in ["", "a\nb", "a name that is far too long for the field in HELLO that it has to go into"] {
        let built = Fabric::auto_builder().authenticator(named(name).unwrap()).build();
        assert!(matches!(built.err(), Some(Error::Auth(_))), "{name}");
    }
    // Nor does one that loses it later.
    let ((client, seen), server) = connect(None, named("good")).await;
    assert!(client.is_err() && server.is_none());
    assert_eq!(*seen.lock().unwrap(), [Stage::Authenticate]);
    let ((client, _), server) = connect(named("good"), None).await;
    assert!(matches!(client, Err(Error::Auth(_))) && server.is_none());
}
