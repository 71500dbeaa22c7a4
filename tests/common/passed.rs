//! A transport that passes a descriptor, for tests of the wire-up.

#![allow(dead_code, reason = "no test program uses all of it")]

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use zc::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkAddr, Offer, OfferContext, Role, Transport, Trust, Unavailable,
    WireupError,
};
use zc::{Connection, Fabric, FabricBuilder, Outcome, Policy, SelectionReport};
use zc_transport_tcp::{StreamLink, TcpTransport};

pub(crate) const GUARD: Duration = Duration::from_secs(60);

pub(crate) async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

/// Out-of-band: a stream lane on a socket pair, of which the client passes one end as a descriptor.
pub(crate) struct Passed {
    /// It fails: the client after it has announced a descriptor, the server before it takes one.
    pub(crate) torn: bool,
    /// What the policy must make of the peer.
    pub(crate) trust: Trust,
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
        let ours = cx.peer.unwrap().uid == rustix::process::geteuid().as_raw();
        assert!(ours || self.trust == Trust::Untrusted);
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

pub(crate) fn with(torn: bool, trust: Trust) -> FabricBuilder {
    let policy = Policy::default().prefer(["passed"]).with_override("^shm").unwrap();
    // Nothing fails because the machine is busy.
    let mut deadlines = zc::Deadlines::default();
    (deadlines.hello, deadlines.offers, deadlines.join, deadlines.total) = (GUARD, GUARD, GUARD, GUARD);
    Fabric::auto_builder().transport(Arc::new(Passed { torn, trust })).policy(policy).deadlines(deadlines)
}

pub(crate) fn passing() -> FabricBuilder {
    with(false, Trust::Cooperative)
}

pub(crate) fn outcome(report: &SelectionReport, name: &str) -> Outcome {
    let found = report.candidates().iter().find(|candidate| candidate.transport == name);
    found.unwrap_or_else(|| panic!("{name} is not in\n{report}")).outcome.clone()
}

pub(crate) async fn talk(one: &Connection, other: &mut Connection) {
    one.send(&b"over the lane"[..]).await.unwrap();
    assert_eq!(other.recv().await.unwrap().unwrap(), b"over the lane"[..]);
}
