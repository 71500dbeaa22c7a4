//! The proof that both ends of a TCP link are on one host: `docs/wire.md` draws it.
//!
//! The server awaits it on an abstract Unix socket, in a task of its own; the client connects there. The
//! Unix link that comes out of it carries descriptors while lanes join.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt;
use futures::channel::oneshot;
use hmac_sha256::Hash;
use parking_lot::Mutex;
use zc_core::transport::{
    BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, PeerCred, TaskHandle, Unavailable,
};
use zc_core::wire::{SameHost, Stage};

use super::Shared;
use super::io::{deadline, read_exact, write_all};
use crate::error::Error;
use crate::fabric::MIN_HANDSHAKE;
use crate::pause::Pause;

/// Links on one proof socket that have not finished their proof. A further one ends the oldest of a user
/// that is not accepted; if there is none, the oldest, once that one has had
/// [`MIN_HANDSHAKE`](crate::MIN_HANDSHAKE); until then it is not accepted.
pub const MAX_HALF_PROOFS: usize = 64;
/// Proof sockets have names of this form, and a client connects to no other.
const NAME_PREFIX: &str = "zc-host-";

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

type Nonce = [u8; 16];
type Key = [u8; 32];
type Tag = [u8; 8];

static BOOT_ID: LazyLock<Option<String>> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
});

fn digest(parts: &[&[u8]]) -> Key {
    let mut hash = Hash::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize()
}

fn tag(parts: &[&[u8]]) -> Tag {
    let mut tag = Tag::default();
    tag.iter_mut().zip(digest(parts)).for_each(|(to, from)| *to = from);
    tag
}

fn client_key(nonce: &Nonce) -> Key {
    digest(&[b"zc same host client 1", nonce])
}

fn server_key(nonce: &Nonce) -> Key {
    digest(&[b"zc same host server 1", nonce])
}

/// Where a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    boot_id: Option<String>,
    netns: Option<(u64, u64)>,
}

impl Place {
    fn here() -> Self {
        // A namespace belongs to a thread: that of this one is where its sockets are made.
        let netns = std::fs::metadata("/proc/thread-self/ns/net").ok().map(|meta| (meta.dev(), meta.ino()));
        Self { boot_id: BOOT_ID.clone(), netns }
    }

    /// Zeros where it is not known.
    fn tags(&self, nonce: &Nonce) -> (Tag, Tag) {
        let Some(boot_id) = &self.boot_id else { return Default::default() };
        let host = tag(&[b"zc host 1", nonce, boot_id.as_bytes()]);
        let netns = self.netns.map_or(Tag::default(), |(dev, ino)| {
            tag(&[b"zc netns 1", nonce, boot_id.as_bytes(), &dev.to_le_bytes(), &ino.to_le_bytes()])
        });
        (host, netns)
    }

    /// Why a proof can't succeed, if the peer's tags say so.
    fn judge(&self, peer: &SameHost) -> Result<(), Unavailable> {
        let (host, netns) = self.tags(&peer.nonce);
        let differ = |ours: Tag, theirs: Tag| {
            let known = ours != Tag::default() && theirs != Tag::default();
            known && ours != theirs
        };
        if differ(host, peer.host_tag) {
            return Err(Unavailable::DifferentHost);
        }
        if differ(netns, peer.netns_tag) {
            return Err(Unavailable::DifferentNetns);
        }
        Ok(())
    }
}

/// What HELLO says; `name` is the proof socket, if there is one.
pub(super) fn hello(name: &str) -> Result<SameHost, Error> {
    let nonce: Nonce = random()?;
    let (host_tag, netns_tag) = Place::here().tags(&nonce);
    Ok(SameHost { socket_name: name.to_owned(), nonce, host_tag, netns_tag })
}

/// Why a proof can't succeed, if the peer's HELLO says so.
pub(super) fn judge(peer: Option<&SameHost>) -> Result<&SameHost, Unavailable> {
    let peer = peer.ok_or(Unavailable::HostNotProved)?;
    Place::here().judge(peer)?;
    Ok(peer)
}

fn random() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    Ok(bytes)
}

/// A peer that is on this host, and the Unix link to it.
pub(super) struct Proved {
    pub(super) link: Box<dyn ControlLink>,
    pub(super) cred: PeerCred,
}

/// Looks at the kernel's word on who is at the other end.
pub(super) fn accepted(shared: &Shared, cred: Option<PeerCred>) -> Result<PeerCred, Unavailable> {
    let cred = cred.ok_or(Unavailable::HostNotProved)?;
    if shared.policy.accepts_uid(cred.uid) { Ok(cred) } else { Err(Unavailable::PeerUid { uid: cred.uid }) }
}

/// The client's side.
pub(super) async fn prove(shared: &Shared, server: &SameHost) -> Result<Proved, Unavailable> {
    // No name: it has no use for a proof, or could not bind its socket. And a peer must not make us talk to whatever socket it likes.
    if !server.socket_name.starts_with(NAME_PREFIX) {
        return Err(Unavailable::HostNotProved);
    }
    let addr = LinkAddr::UnixAbstract(server.socket_name.clone());
    let provider = shared.provider(&addr).map_err(|_| Unavailable::HostNotProved)?;
    let mut link = provider.connect(&addr, &shared.reactor).await.map_err(|error| match error {
        LinkError::Io { operation, source } => refused(operation, &source, server),
        _ => Unavailable::HostNotProved,
    })?;
    let cred = accepted(shared, link.peer_cred())?;
    let failed = |error: io::Error| Unavailable::os("prove that both are on one host", &error);
    write_all(&mut *link, &client_key(&server.nonce)).await.map_err(failed)?;
    let mut status = [0];
    read_exact(&mut *link, &mut status).await.map_err(failed)?;
    match status {
        [ACCEPTED] => {}
        [REFUSED] => return Err(Unavailable::UidRefused { uid: rustix::process::geteuid().as_raw() }),
        _ => return Err(impostor()),
    }
    let mut answer = Key::default();
    read_exact(&mut *link, &mut answer).await.map_err(failed)?;
    // How long this takes tells nothing: a nonce is good for one answer.
    if answer != server_key(&server.nonce) {
        return Err(impostor());
    }
    Ok(Proved { link, cred })
}

fn impostor() -> Unavailable {
    let remedy = "find out who squats on the abstract socket".to_owned();
    Unavailable::Other { code: "same_host_impostor", remedy }
}

/// Nobody listens there: on another host, unless the tags say that this is the one.
fn refused(operation: &'static str, error: &io::Error, server: &SameHost) -> Unavailable {
    let known = server.host_tag != Tag::default() && BOOT_ID.is_some();
    if !known && error.kind() == io::ErrorKind::ConnectionRefused {
        return Unavailable::DifferentHost;
    }
    Unavailable::os(operation, error)
}

type Outcome = Result<Proved, Unavailable>;
type Table = Arc<Mutex<HashMap<Key, (Nonce, oneshot::Sender<Outcome>)>>>;

/// A connection that awaits its proof; gone with it.
pub(super) struct Claim {
    key: Key,
    table: Table,
    outcome: oneshot::Receiver<Outcome>,
}

impl Claim {
    /// What came of it, once the peer can't begin any more. Waits only for a proof that has begun.
    pub(super) async fn close(mut self) -> Outcome {
        let unclaimed = self.table.lock().remove(&self.key);
        if unclaimed.is_some() {
            return Err(Unavailable::HostNotProved);
        }
        (&mut self.outcome).await.unwrap_or(Err(Unavailable::HostNotProved))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _sender = self.table.lock().remove(&self.key);
    }
}

/// The server's side: the abstract socket of one listener. Dropping it ends everything half done.
pub(crate) struct Prover {
    name: String,
    table: Table,
    _task: Box<dyn TaskHandle>,
}

impl Prover {
    /// Binds a socket with a random name. Without it a listener goes on, and its reports say why.
    pub(crate) async fn start(shared: &Arc<Shared>) -> Result<Self, Unavailable> {
        let other = |error: Error| Unavailable::Other { code: "no_proof_socket", remedy: error.to_string() };
        let name = format!("{NAME_PREFIX}{:032x}", u128::from_le_bytes(random().map_err(other)?));
        let addr = LinkAddr::UnixAbstract(name.clone());
        let bound = shared.provider(&addr).map_err(other)?.bind(&addr, &shared.reactor).await;
        let links = bound.map_err(|error| match error {
            LinkError::Io { operation, source } => Unavailable::os(operation, &source),
            source => other(Error::Open { at: addr.to_string(), source }),
        })?;
        let no_runtime = |error: io::Error| Unavailable::os("run the proof socket", &error);
        let table = Table::default();
        let mut acceptor = Acceptor {
            shared: shared.clone(),
            links,
            table: table.clone(),
            half: Vec::new(),
            pause: Pause::new(&*shared.reactor).map_err(no_runtime)?,
        };
        let task = shared.reactor.spawn(Box::pin(async move { poll_fn(|cx| acceptor.poll(cx)).await }));
        Ok(Self { name, table, _task: task.map_err(no_runtime)? })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// From now on a proof with this nonce is taken.
    pub(super) fn expect(&self, nonce: Nonce) -> Claim {
        let (sender, outcome) = oneshot::channel();
        let key = client_key(&nonce);
        self.table.lock().insert(key, (nonce, sender));
        Claim { key, table: self.table.clone(), outcome }
    }
}

/// A link that has not finished its proof.
struct Half {
    refused: bool,
    since: Instant,
    proof: BoxFuture<'static, ()>,
}

struct Acceptor {
    shared: Arc<Shared>,
    links: Box<dyn LinkListener>,
    table: Table,
    /// Oldest first.
    half: Vec<Half>,
    pause: Pause,
}

/// No proof can begin now.
struct Full;

impl Acceptor {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waits = !self.pause.lasts(cx) && self.accept_some(cx).is_err();
        let before = self.half.len();
        self.half.retain_mut(|half| half.proof.poll_unpin(cx).is_pending());
        if waits && self.half.len() < before {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Takes at most a table full in one turn.
    fn accept_some(&mut self, cx: &mut Context<'_>) -> Result<(), Full> {
        for _ in 0..MAX_HALF_PROOFS {
            let victim = self.room(cx)?;
            match self.links.poll_accept(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(link)) => self.begin(link, victim),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a same-host proof could not be accepted");
                    self.pause.begin(cx, self.shared.reactor.now());
                    return Ok(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Which proof has to go for one more to begin, if any; an error if that must wait, after which the task
    /// is woken.
    fn room(&mut self, cx: &mut Context<'_>) -> Result<Option<usize>, Full> {
        let oldest = match self.half.first() {
            Some(oldest) if self.half.len() >= MAX_HALF_PROOFS => oldest,
            _ => return Ok(None),
        };
        if let Some(refused) = self.half.iter().position(|half| half.refused) {
            return Ok(Some(refused));
        }
        let due = oldest.since + MIN_HANDSHAKE;
        if due > self.shared.reactor.now() {
            self.pause.wake_at(cx, due);
            return Err(Full);
        }
        Ok(Some(0))
    }

    fn begin(&mut self, link: Box<dyn ControlLink>, victim: Option<usize>) {
        let who = accepted(&self.shared, link.peer_cred());
        let refused = who.is_err();
        if let Some(victim) = victim {
            // Users that are not accepted must not be able to push out those that are.
            if refused && !self.half[victim].refused {
                return;
            }
            self.half.remove(victim);
        }
        let (shared, table) = (self.shared.clone(), self.table.clone());
        let proof = Box::pin(async move {
            let limit = shared.deadlines.offers;
            let proof = async { answer(link, who, table).await.map_err(|_| Error::ListenerClosed) };
            let _ = deadline(&*shared.reactor, Stage::Offers, limit, proof).await;
        });
        self.half.push(Half { refused, since: self.shared.reactor.now(), proof });
    }
}

/// Takes one proof and answers it; the connection that it belongs to hears how it went.
async fn answer(
    mut link: Box<dyn ControlLink>,
    who: Result<PeerCred, Unavailable>,
    table: Table,
) -> io::Result<()> {
    let mut key = Key::default();
    read_exact(&mut *link, &mut key).await?;
    let claimed = table.lock().remove(&key);
    let Some((nonce, outcome)) = claimed else { return Err(io::ErrorKind::PermissionDenied.into()) };
    match who {
        Err(why) => {
            // The connection hears of it even if the client does not wait for the answer.
            let _ = outcome.send(Err(why));
            write_all(&mut *link, &[REFUSED]).await?;
        }
        Ok(cred) => {
            write_all(&mut *link, &[ACCEPTED]).await?;
            write_all(&mut *link, &server_key(&nonce)).await?;
            let _ = outcome.send(Ok(Proved { link, cred }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(boot_id: &str, netns: u64) -> Place {
        Place { boot_id: Some(boot_id.into()), netns: Some((4, netns)) }
    }

    fn said_by(place: &Place) -> SameHost {
        let nonce = [3; 16];
        let (host_tag, netns_tag) = place.tags(&nonce);
        SameHost { socket_name: String::new(), nonce, host_tag, netns_tag }
    }

    #[test]
    fn tags_tell_another_host_from_another_namespace() {
        let here = place("boot", 1);
        assert_eq!(here.judge(&said_by(&here)), Ok(()));
        assert_eq!(here.judge(&said_by(&place("other", 1))), Err(Unavailable::DifferentHost));
        assert_eq!(here.judge(&said_by(&place("boot", 2))), Err(Unavailable::DifferentNetns));
        let unknown = Place { boot_id: None, netns: None };
        assert_eq!(here.judge(&said_by(&unknown)), Ok(()), "only the proof can tell");
        assert_eq!(unknown.judge(&said_by(&here)), Ok(()));
    }

    #[test]
    fn tags_and_keys_are_those_of_the_documented_format() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let (host, netns) = place("f0e1", 2).tags(&[7; 16]);
        assert_eq!([hex(&host), hex(&netns)], ["987fd4a50dbe03b6", "cb3463cd838c9b14"]);
        assert_eq!(
            hex(&client_key(&[7; 16])),
            "cfd98c8e6172ec04e316d19efd7c6046401ddd8c477da6a5e1eb2888eb53885a"
        );
        assert_eq!(
            hex(&server_key(&[7; 16])),
            "0798c7afb9de66126d8ad7b626d5b17cba6ded74ade9d8cb9c1c4ba73c8cce7e"
        );
    }

    #[test]
    fn this_machine_knows_its_place() {
        let here = Place::here();
        assert!(here.boot_id.is_some() && here.netns.is_some(), "{here:?}");
    }
}
