//! The transport: offers, the exchange of memory and bells, and who may take part.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Isolation, Lane, LinkError, Offer, OfferContext, OneSided, Role, Scope,
    SourceMatrix, Transport, Trust, Unavailable, WireupError, ZeroCopy,
};
use zc_core::wire::WireError;

use crate::bell::{Bell, BellKind, PeerBell};
use crate::lane::{self, Half, Joined};
use crate::layout::Geometry;
use crate::limits::INLINE_MAX;
use crate::offer::{ShmOffer, VERSION};
use crate::options::ShmOptions;
use crate::sys::{self, PeerMemory};
use crate::words::{OwnWords, PeerWords};

/// Which messages are lent where they lie ...
const LENDS: &str = "until the soft lease limit, or half of the peer's arenas are kept";
/// ... as long as it is not known who the peer is.
const LENDS_FRIENDS: &str =
    "peers of the same user, until the soft lease limit, or half of the peer's arenas are kept";

/// Who we are to a peer.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Messages through shared memory, between processes of one host.
///
/// ```
/// use zc_core::transport::{Scope, Transport};
/// use zc_transport_shm::ShmTransport;
///
/// let transport = ShmTransport::default(); // `zc::FabricBuilder::transport` takes it
/// match transport.probe() {
///     Ok(caps) => assert_eq!(caps.scope, Scope::Host),
///     Err(why) => println!("{why}: {}", why.remedy()),
/// }
/// assert!(transport.wants_descriptors());
/// ```
#[derive(Debug, Clone, Default)]
pub struct ShmTransport {
    options: ShmOptions,
}

impl ShmTransport {
    /// With these options.
    pub fn new(options: ShmOptions) -> Self {
        Self { options }
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.options.ring_slots)
    }

    /// Makes our half, and the two descriptors for the peer.
    fn make(&self, offer: &ShmOffer, kind: BellKind, cx: &OfferContext) -> Result<Made, Unavailable> {
        let os = |what| move |e: io::Error| Unavailable::os(what, &e);
        let region = sys::create(offer.geometry.bytes()).map_err(os("make shared memory"))?;
        offer.geometry.write(&OwnWords::new(&region, offer.geometry.control_bytes()));
        let (bell, bell_fd) = Bell::new(kind, &*cx.reactor).map_err(os("make a bell"))?;
        let half = Half { region, geometry: offer.geometry, max_arena_bytes: offer.max_arena_bytes };
        Ok(Made { half, bell, bell_fd })
    }

    async fn exchange(
        &self,
        mine: &Offer,
        peer: &Offer,
        link: &mut dyn ControlLink,
        cx: OfferContext,
    ) -> Result<Lane, WireupError> {
        let prepared = self.prepare(mine, peer, link, &cx);
        // One byte goes each way whatever happens here, so that the link stays in step: with two
        // descriptors, or with none from a side that can't.
        let memory = prepared.as_ref().ok().and_then(|p| p.made.half.region.fd());
        let bell = prepared.as_ref().ok().map(|p| p.made.bell_fd.as_fd());
        let fds: &[_] = &memory.zip(bell).map_or(vec![], |(memory, bell)| vec![memory, bell]);
        let failed = |operation| move |source| LinkError::Io { operation, source };
        poll_fn(|cx| link.poll_send_descriptors(cx, fds)).await.map_err(failed("send descriptors"))?;
        let got = poll_fn(|cx| link.poll_recv_descriptors(cx, 2)).await;
        let Prepared { made, theirs, kind, cooperative } = prepared?;
        // Both sides come to the same answer, as for the bells.
        let native = cooperative && kind == BellKind::Eventfd;
        let got = got.map_err(|error| match sys::is_out_of_descriptors(&error) {
            // They were left where they are, so the link is good for another transport.
            true => Unavailable::os("receive the peer's memory", &error).into(),
            false => WireupError::from(failed("receive descriptors")(error)),
        })?;
        let Ok([memory, bell]) = <[OwnedFd; 2]>::try_from(got) else {
            return Err(Unavailable::PeerFailed { reason: "it sent no memory".into() }.into());
        };
        let peer_bell = PeerBell::new(bell, kind).ok_or(WireError::BadValue { field: "shm bell" })?;
        let region = sys::map_peer(memory, theirs.geometry.bytes()).map_err(|e| match e {
            PeerMemory::Bad(field) => WireupError::from(WireError::BadValue { field }),
            PeerMemory::Os(error) => Unavailable::os("map the peer's memory", &error).into(),
        })?;
        theirs.geometry.verify(&PeerWords::new(&region, theirs.geometry.control_bytes()))?;
        let max_arena_bytes = made.half.max_arena_bytes.min(theirs.max_arena_bytes);
        let joined = Joined {
            theirs: Half { region, geometry: theirs.geometry, max_arena_bytes },
            mine: Half { max_arena_bytes, ..made.half },
            bell: made.bell,
            peer_bell,
            cooperative,
            native,
            longer_in_parts: self.options.longer_in_parts,
            streaming_copies: self.options.streaming_copies,
        };
        let mut caps = self.caps();
        caps.zero_copy_rx = match cooperative {
            true => ZeroCopy::Conditional(LENDS),
            false => ZeroCopy::Never,
        };
        caps.one_sided = if native { OneSided::Native } else { OneSided::Emulated };
        lane::start(joined, caps, cx)
            .map_err(|e| Unavailable::Other { code: "shm", remedy: e.to_string() }.into())
    }

    fn prepare(
        &self,
        mine: &Offer,
        peer: &Offer,
        link: &dyn ControlLink,
        cx: &OfferContext,
    ) -> Result<Prepared, WireupError> {
        if mine.version != VERSION || peer.version != VERSION {
            return Err(WireError::BadValue { field: "shm version" }.into());
        }
        let (mine, theirs) = (ShmOffer::decode(&mine.bytes)?, ShmOffer::decode(&peer.bytes)?);
        cx.same_host.clone()?;
        let cred = link.peer_cred().ok_or(Unavailable::HostNotProved)?;
        let (kind, cooperative) = terms(&mine, &theirs, cred.uid, cx.trust)?;
        Ok(Prepared { made: self.make(&mine, kind, cx)?, theirs, kind, cooperative })
    }

    fn caps(&self) -> Caps {
        let mut caps = Caps::stream();
        caps.scope = Scope::Host;
        caps.max_segments = zc_core::memory::MAX_SEGMENTS;
        caps.inline_size = INLINE_MAX;
        caps.zero_copy_min = INLINE_MAX + 1;
        caps.zero_copy_tx = ZeroCopy::Conditional(
            "memory of the connection, the peer's included, or of a group that it is in",
        );
        caps.zero_copy_rx = ZeroCopy::Conditional(LENDS_FRIENDS);
        caps.user_polled = true;
        caps.sources = SourceMatrix { connection: true, pool: false, foreign: false };
        caps.one_sided = OneSided::Native;
        caps.isolation = Isolation::PerConnection;
        caps
    }
}

/// The kind of bell, and whether the peer's messages may be lent: `kernel_uid` is who it is, to us.
fn terms(
    mine: &ShmOffer,
    theirs: &ShmOffer,
    kernel_uid: u32,
    trust: Trust,
) -> Result<(BellKind, bool), Unavailable> {
    // What was offered is a number of the offerer's user namespace, or a lie. It only chooses the bells, for which both sides
    // come to the same answer.
    let wary = mine.wary || theirs.wary || mine.uid != theirs.uid;
    let kind = if wary { BellKind::Socket } else { BellKind::Eventfd };
    let same_user = kernel_uid == mine.uid;
    if kind == BellKind::Eventfd && !same_user {
        return Err(Unavailable::PeerUid { uid: kernel_uid });
    }
    Ok((kind, same_user && trust == Trust::Cooperative))
}

/// Our half, not yet handed out.
struct Made {
    half: Half,
    bell: Bell,
    bell_fd: OwnedFd,
}

/// All that is settled before descriptors travel.
struct Prepared {
    made: Made,
    theirs: ShmOffer,
    kind: BellKind,
    cooperative: bool,
}

impl Transport for ShmTransport {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        // One page shows whether memfds, their seals and prefaulting work here.
        sys::create(4096).map_err(|e| Unavailable::os("make shared memory", &e))?;
        Ok(self.caps())
    }

    fn wants_descriptors(&self) -> bool {
        true
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let offer = ShmOffer {
            geometry: self.geometry(),
            max_arena_bytes: self.options.max_arena_bytes,
            uid: own_uid(),
            pid: std::process::id(),
            wary: cx.trust == Trust::Untrusted,
        };
        Ok(Offer { version: VERSION, bytes: offer.encode() })
    }

    fn join<'a>(
        &'a self,
        _role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        Box::pin(async move {
            let Some(link) = link.as_deref_mut() else {
                return Err(LinkError::Address("the control link is gone".into()).into());
            };
            if !link.passes_descriptors() {
                return Err(Unavailable::DifferentHost.into());
            }
            self.exchange(&mine, &peer, link, cx).await
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Whatever a peer offers, only our own user is lent from, and nobody else gets an eventfd.
    #[test]
    fn trust_is_what_the_kernel_says() {
        let offer =
            |uid, wary| ShmOffer { geometry: Geometry::new(32), max_arena_bytes: 0, uid, pid: 1, wary };
        let (open, closed) = (Trust::Cooperative, Trust::Untrusted);
        let (eventfd, socket) = (BellKind::Eventfd, BellKind::Socket);
        let refused = Err(Unavailable::PeerUid { uid: 7 });
        // What was offered, wariness, the kernel's uid, our trust; we are 5.
        for (offered, wary, kernel, trust, expected) in [
            (5, false, 5, open, Ok((eventfd, true))),
            (5, true, 5, open, Ok((socket, true))),
            (5, true, 5, closed, Ok((socket, false))),
            // One user in two namespaces.
            (0, false, 5, open, Ok((socket, true))),
            // Another user, honest or not.
            (7, false, 7, open, Ok((socket, false))),
            (9, false, 7, open, Ok((socket, false))),
            (5, true, 7, open, Ok((socket, false))),
            (5, false, 7, open, refused.clone()),
        ] {
            let mine = offer(5, trust == closed);
            assert_eq!(terms(&mine, &offer(offered, wary), kernel, trust), expected);
        }
    }
}
