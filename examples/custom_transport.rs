//! A transport of one's own, without unsafe code: any reliable byte stream becomes one. Here it is a Unix
//! socket whose random name travels in the offer.
//!
//! `cargo run --release --example custom_transport` runs an echo over it; `zc-conformance` runs its whole suite on
//! it. A transport that moves whole messages implements `LaneTx` and `LaneRx` instead: see
//! `crates/zc-conformance/tests/queues`.
#![allow(clippy::print_stdout, reason = "a program")]

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use zc::transport::*;
use zc::{Fabric, FabricBuilder};
use zc_transport_tcp::TcpTransport;

/// Offers that wait for their peer; the oldest is given up for a newer one.
const MAX_OFFERS: usize = 1024;

/// Everything that is compiled in, and the transport of this file: `zc+own://host:port`.
pub(crate) fn fabric() -> FabricBuilder {
    Fabric::auto_builder().transport(Arc::new(Own::default()))
}

#[derive(Default)]
struct Own {
    offers: Mutex<VecDeque<(Vec<u8>, UnixListener)>>,
}

impl Transport for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        let mut caps = Caps::stream(); // what a plain copying stream can do
        caps.scope = Scope::Host;
        Ok(caps)
    }

    /// A listener of its own for each connection: the offer is its name. Whoever knows the name can connect, so
    /// a real transport would also ask the socket who is at the other end.
    fn offer(&self, _cx: &OfferContext) -> Result<Offer, Unavailable> {
        let refused = |error: io::Error| Unavailable::Other { code: "no_socket", remedy: error.to_string() };
        let (name, listener) = listen().map_err(refused)?;
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        if offers.len() == MAX_OFFERS {
            offers.pop_front();
        }
        offers.push_back((name.clone(), listener));
        Ok(Offer { version: 1, bytes: name })
    }

    /// Connects to the server's name. The control link stays where it is, and tells when the peer dies.
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        _link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let failed = |source| LinkError::Io { operation: "connect", source };
            let listener = self.take(&mine.bytes).ok_or(io::ErrorKind::NotFound.into()).map_err(failed)?;
            let stream = match role {
                Role::Server => accept(listener, &*cx.reactor).await,
                Role::Client => connect(&peer.bytes),
            };
            let stream = stream.and_then(|stream| Stream::new(stream, &*cx.reactor)).map_err(failed)?;
            // Framing, credit and leases are those of the stream lane, which runs on any byte stream.
            let mut lane = TcpTransport.join(role, mine, peer, &mut Some(Box::new(stream)), cx).await?;
            lane.caps.scope = Scope::Host;
            Ok(lane)
        })
    }
}

impl Own {
    fn take(&self, name: &[u8]) -> Option<UnixListener> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let at = offers.iter().position(|(offered, _)| offered == name)?;
        offers.remove(at).map(|(_, listener)| listener)
    }
}

fn listen() -> io::Result<(Vec<u8>, UnixListener)> {
    let mut name = vec![0; 16];
    getrandom::fill(&mut name).map_err(|error| io::Error::other(error.to_string()))?;
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok((name, listener))
}

fn connect(name: &[u8]) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)
}

async fn accept(listener: UnixListener, reactor: &dyn Reactor) -> io::Result<UnixStream> {
    let ready = reactor.register(listener.try_clone()?.into())?;
    let mut accepted = None;
    let mut take = |_: BorrowedFd<'_>| {
        accepted = Some(listener.accept()?.0);
        Ok(0)
    };
    poll_fn(|cx| ready.poll_io(cx, Interest::Read, &mut take)).await?;
    accepted.ok_or(io::ErrorKind::NotConnected.into())
}

/// The byte stream. `ready` watches a duplicate of its descriptor.
#[derive(Debug)]
struct Stream {
    stream: UnixStream,
    ready: Watched,
}

struct Watched(Box<dyn Readiness>);

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fd().fmt(f)
    }
}

impl Stream {
    fn new(stream: UnixStream, reactor: &dyn Reactor) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let ready = Watched(reactor.register(stream.try_clone()?.into())?);
        Ok(Self { stream, ready })
    }
}

impl ControlLink for Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.ready.0.poll_io(cx, Interest::Read, &mut |_| self.stream.read(buf))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.ready.0.poll_io(cx, Interest::Write, &mut |_| self.stream.write(buf))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }

    fn peer(&self) -> LinkAddr {
        LinkAddr::UnixAbstract("own".into())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut listener = fabric().build()?.listen("zc+own://127.0.0.1:0").await?;
    let uri = listener.local_uri().to_string();
    let server = tokio::spawn(async move {
        let mut connection = listener.accept().await?;
        while let Some(message) = connection.recv().await? {
            connection.send(message).await.map_err(|error| error.error)?;
        }
        Ok::<(), zc::Error>(())
    });
    let mut client = fabric().build()?.connect(&uri).await?;
    println!("{}", client.report());
    for size in [0, 64, 4 << 10, 1 << 20, 10 << 20] {
        let mut buf = client.alloc(size).await?;
        buf.resize(size, 0x5a);
        client.send(buf.freeze()).await?;
        let back = client.recv().await?.ok_or("the server finished early")?;
        let intact = back.len() == size && back.segments().iter().all(|s| s.iter().all(|&b| b == 0x5a));
        println!("{size:>9} bytes there and back: {}", if intact { "intact" } else { "damaged" });
    }
    client.drain(std::time::Duration::ZERO).await?;
    Ok(server.await??)
}
