//! Both sides know one secret, and prove it to each other without telling it.

use std::fmt;
use std::sync::Arc;

use hmac_sha256::HMAC;
use zc_core::transport::BoxFuture;

use super::{AuthClient, AuthError, AuthServer, AuthStep, Authenticator};
use crate::identity::PeerIdentity;

/// The shortest secret that is taken, bytes.
pub const MIN_SECRET_BYTES: usize = 16;

const METHOD: &str = "zc-shared-secret-1";
const NONCE: usize = 32;
const PROOF: usize = 32;
const CLIENT: &[u8] = b"zc shared secret 1 client";
const SERVER: &[u8] = b"zc shared secret 1 server";

/// Authentication by a secret that both sides hold: challenge and response with HMAC-SHA-256 (RFC 2104),
/// in both directions.
///
/// ```text
/// client                                                 server
/// client nonce (32) ------------------------------------>
///        <------ server nonce (32), HMAC(SERVER | client nonce | server nonce)
/// HMAC(CLIENT | client nonce | server nonce) ----------->
/// ```
///
/// The proof of one direction is of no use in the other, and fresh nonces on both sides make one of no
/// use later. A secret should be random: whoever can connect, or observes a link, can try guesses at home.
/// Whoever sits in the middle of a link can relay the proofs and then has it (`docs/wire.md`).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret = zc::SharedSecret::new("orders", b"0123456789abcdef0123456789abcdef")?;
/// let fabric = zc::Fabric::auto_builder().authenticator(std::sync::Arc::new(secret)).build()?;
/// # let mut listener = fabric.listen("zc+mem://shared-secret").await?;
/// # let (client, _server) = tokio::try_join!(fabric.connect("zc+mem://shared-secret"), listener.accept())?;
/// assert_eq!(client.peer().authenticated.as_deref(), Some("orders"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SharedSecret {
    name: String,
    keyed: Arc<HMAC>,
}

impl SharedSecret {
    /// Whoever proves to know `secret` is known by `name`.
    ///
    /// # Errors
    /// The secret is shorter than [`MIN_SECRET_BYTES`].
    pub fn new(name: impl Into<String>, secret: &[u8]) -> Result<Self, AuthError> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(AuthError::new(format!("a secret has at least {MIN_SECRET_BYTES} bytes")));
        }
        Ok(Self { name: name.into(), keyed: Arc::new(HMAC::new(secret)) })
    }

    fn mac(&self, label: &[u8], client: &[u8; NONCE], server: &[u8; NONCE]) -> HMAC {
        let mut mac = (*self.keyed).clone();
        mac.update(label);
        mac.update(client);
        mac.update(server);
        mac
    }

    fn run(&self) -> Run {
        Run { secret: self.clone(), nonce: [0; NONCE], state: State::Start }
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSecret").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Authenticator for SharedSecret {
    fn method(&self) -> &str {
        METHOD
    }

    fn client(&self, _peer: &PeerIdentity) -> Box<dyn AuthClient> {
        Box::new(self.run())
    }

    fn server(&self, _peer: &PeerIdentity) -> Box<dyn AuthServer> {
        Box::new(self.run())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// The peer has our nonce; the server also has the client's.
    Challenged {
        theirs: [u8; NONCE],
    },
    Proved,
}

struct Run {
    secret: SharedSecret,
    nonce: [u8; NONCE],
    state: State,
}

fn random() -> Result<[u8; NONCE], AuthError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|error| AuthError::new(format!("no random numbers: {error}")))?;
    Ok(nonce)
}

/// Takes the same time wherever the two differ.
fn proves(expected: HMAC, proof: &[u8]) -> bool {
    <&[u8; PROOF]>::try_from(proof).is_ok_and(|proof| expected.finalize_verify(proof))
}

fn wrong_form() -> AuthError {
    AuthError::new("a message of the wrong form")
}

impl Run {
    fn client_step(&mut self, from_server: Option<&[u8]>) -> Result<Vec<u8>, AuthError> {
        match (self.state, from_server) {
            (State::Start, None) => {
                self.nonce = random()?;
                self.state = State::Challenged { theirs: [0; NONCE] };
                Ok(self.nonce.into())
            }
            (State::Challenged { .. }, Some(answer)) => {
                let (theirs, proof) = answer.split_first_chunk::<NONCE>().ok_or_else(wrong_form)?;
                if !proves(self.secret.mac(SERVER, &self.nonce, theirs), proof) {
                    return Err(AuthError::new("the server does not know the secret"));
                }
                self.state = State::Proved;
                Ok(self.secret.mac(CLIENT, &self.nonce, theirs).finalize().into())
            }
            _ => Err(wrong_form()),
        }
    }

    fn server_step(&mut self, from_client: &[u8]) -> Result<AuthStep, AuthError> {
        match self.state {
            State::Start => {
                let theirs: [u8; NONCE] = from_client.try_into().map_err(|_| wrong_form())?;
                self.nonce = random()?;
                self.state = State::Challenged { theirs };
                let proof = self.secret.mac(SERVER, &theirs, &self.nonce).finalize();
                let mut answer = Vec::with_capacity(NONCE + PROOF);
                answer.extend(self.nonce);
                answer.extend(proof);
                Ok(AuthStep::Continue(answer))
            }
            State::Challenged { theirs } => {
                if !proves(self.secret.mac(CLIENT, &theirs, &self.nonce), from_client) {
                    return Err(AuthError::new("the client does not know the secret"));
                }
                self.state = State::Proved;
                Ok(AuthStep::Accept(Some(self.secret.name.clone())))
            }
            State::Proved => Err(wrong_form()),
        }
    }
}

impl AuthClient for Run {
    fn step<'a>(&'a mut self, from_server: Option<&'a [u8]>) -> BoxFuture<'a, Result<Vec<u8>, AuthError>> {
        Box::pin(async move { self.client_step(from_server) })
    }

    fn accepted(&mut self) -> Result<Option<String>, AuthError> {
        if self.state != State::Proved {
            return Err(AuthError::new("the server accepted before it proved that it knows the secret"));
        }
        Ok(Some(self.secret.name.clone()))
    }
}

impl AuthServer for Run {
    fn step<'a>(&'a mut self, from_client: &'a [u8]) -> BoxFuture<'a, Result<AuthStep, AuthError>> {
        Box::pin(async move { self.server_step(from_client) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(secret: &[u8]) -> Run {
        SharedSecret::new("test", secret).unwrap().run()
    }

    #[test]
    fn both_sides_prove_the_secret() {
        let (mut client, mut server) = (run(b"sixteen bytes ok"), run(b"sixteen bytes ok"));
        let hello = client.client_step(None).unwrap();
        assert!(client.accepted().is_err(), "too early");
        let AuthStep::Continue(challenge) = server.server_step(&hello).unwrap() else { panic!("accepted") };
        let proof = client.client_step(Some(&challenge)).unwrap();
        assert_eq!(server.server_step(&proof).unwrap(), AuthStep::Accept(Some("test".into())));
        assert_eq!(client.accepted().unwrap().as_deref(), Some("test"));
    }

    #[test]
    fn another_secret_is_refused_by_the_client_first() {
        let (mut client, mut server) = (run(b"sixteen bytes ok"), run(b"sixteen bytes no"));
        let hello = client.client_step(None).unwrap();
        let AuthStep::Continue(challenge) = server.server_step(&hello).unwrap() else { panic!("accepted") };
        let error = client.client_step(Some(&challenge)).unwrap_err();
        assert!(error.reason.contains("the server does not know"), "{error}");
        assert!(client.accepted().is_err());
        assert!(server.server_step(&[0; PROOF]).is_err());
    }

    #[test]
    fn a_proof_can_not_be_reflected_or_replayed() {
        let secret = b"sixteen bytes ok";
        let (mut client, mut server) = (run(secret), run(secret));
        let hello = client.client_step(None).unwrap();
        let AuthStep::Continue(challenge) = server.server_step(&hello).unwrap() else { panic!("accepted") };
        assert!(server.server_step(&challenge[NONCE..]).is_err(), "its own proof sent back");
        let mut other = run(secret);
        other.client_step(None).unwrap();
        assert!(other.client_step(Some(&challenge)).is_err(), "a challenge of another run");
    }

    #[test]
    fn proofs_are_those_of_the_documented_format() {
        let hex = |mac: HMAC| mac.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>();
        let proof = |label| hex(run(b"sixteen bytes ok").secret.mac(label, &[1; NONCE], &[2; NONCE]));
        assert_eq!(proof(CLIENT), "27d90d8621fb652f4a4832649ba520c3750f4793ca2027e1b4e0846ce99b0806");
        assert_eq!(proof(SERVER), "21705744b28f7a4d125044bbfb66fc5d3109e8eb2c4e75b7e59d4159339e846e");
        // A key longer than a block is hashed first (RFC 2104).
        let long = run(&[b'k'; 100]).secret.mac(CLIENT, &[1; NONCE], &[2; NONCE]);
        assert_eq!(hex(long), "6c2d5c59f0a596e4181913f8d4ea6700905c951a356da99520bf6185392e3f03");
    }

    #[test]
    fn wrong_forms_are_errors() {
        assert!(SharedSecret::new("test", b"short").is_err());
        for len in [0, 1, 31, 33, 64] {
            assert!(run(b"sixteen bytes ok").server_step(&vec![0; len]).is_err(), "{len}");
            let mut client = run(b"sixteen bytes ok");
            client.client_step(None).unwrap();
            assert!(client.client_step(Some(&vec![0; len])).is_err(), "{len}");
        }
        assert!(!format!("{:?}", SharedSecret::new("n", b"sixteen bytes ok").unwrap()).contains("sixteen"));
    }
}
