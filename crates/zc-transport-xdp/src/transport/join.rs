//! From two offers to a lane, whatever carries the packets.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use zc_core::memory::KernelCopied;
use zc_core::transport::{
    Caps, ControlLink, Lane, LinkError, Offer as TransportOffer, OfferContext, Reactor, Role, Unavailable,
    WireupError,
};
use zc_core::wire::WireError;

use super::offer::{Endpoint, VERSION};
use super::offered::{Offered, Pending, Way};
use crate::engine::{Destination, Engine, Headers};
use crate::lane;
use crate::protocol::{Memory, OFFER_RANDOM_BYTES, Offer, Session, SessionOptions, Side};

/// The parameter of a URI that says whether the MAC covers payload.
pub(super) const PAYLOAD_MAC: &str = "payload_mac";

/// What a session may use, as the limits of the connection say.
pub(super) fn session_options(
    cx: &OfferContext,
    datagram_bytes: u16,
    authenticate_payload: bool,
) -> Result<SessionOptions, Unavailable> {
    let authenticate_payload = match cx.params.value(PAYLOAD_MAC) {
        None => authenticate_payload,
        Some("on") => true,
        Some("off") => false,
        Some(_) => {
            let remedy = format!("say {PAYLOAD_MAC}=on or {PAYLOAD_MAC}=off");
            return Err(Unavailable::Other { code: "bad_parameter", remedy });
        }
    };
    Ok(SessionOptions {
        datagram_bytes,
        authenticate_payload,
        max_message: cx.limits.recv_max_message,
        window_bytes: cx.limits.recv_window.max(1),
        lent_bytes: 2 * cx.limits.recv_window as usize,
        ..SessionOptions::default()
    })
}

/// An offer of this engine's.
pub(super) fn offer(
    engine: Arc<Engine>,
    port: u16,
    way: Way,
    options: SessionOptions,
    pending: &Pending,
    reactor: &Arc<dyn Reactor>,
) -> Result<TransportOffer, Unavailable> {
    loop {
        let mut random = [0; OFFER_RANDOM_BYTES];
        getrandom::fill(&mut random)
            .map_err(|e| Unavailable::Other { code: "random", remedy: e.to_string() })?;
        let offer = Offer::new(&options, &random);
        let session = offer.session();
        if pending.has(session) || engine.has(session) {
            continue;
        }
        pending.keep(session, engine, way, options, reactor)?;
        return Ok(TransportOffer { version: VERSION, bytes: Endpoint { offer, port }.encode() });
    }
}

/// A lane of both offers. `offered` finds what ours stands for, by the number of its session.
pub(super) async fn join(
    role: Role,
    mine: TransportOffer,
    peer: TransportOffer,
    link: &mut dyn ControlLink,
    mut caps: Caps,
    cx: OfferContext,
    offered: impl FnOnce(u32) -> Option<Offered>,
) -> Result<Lane, WireupError> {
    let mine = Endpoint::decode(mine.version, &mine.bytes)?.offer;
    let theirs = Endpoint::decode(peer.version, &peer.bytes)?;
    let forgotten = || Unavailable::Other { code: "offer_forgotten", remedy: "connect again".into() };
    let Offered { engine, way, options, .. } = offered(mine.session()).ok_or_else(forgotten)?;
    let remote = cx.remote.ok_or(NO_ADDRESS)?;
    let to = SocketAddr::new(remote.ip().to_canonical(), theirs.port);
    let to = with_scope(to, remote);
    let to = match way {
        Way::Kernel => Destination::Kernel(to.into()),
        Way::Device { face, next_hop, queue } => {
            caps.variant = Some(face.mode.name());
            let from = (local(&cx, face.port)?, face.mac);
            let headers = Headers::new(from, (to, next_hop), queue, cx.ledger.clone()).ok_or(NO_ADDRESS)?;
            Destination::Frame(Box::new(headers))
        }
    };

    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|e| Unavailable::Other { code: "random", remedy: e.to_string() })?;
    let side = if role == Role::Client { Side::Client } else { Side::Server };
    let memory = Memory { pool: cx.pool.with_origin("xdp rx"), ledger: cx.ledger.clone() };
    let (seed, now) = (u64::from_le_bytes(seed), engine.now());
    let session = Session::new(side, &mine, &theirs.offer, &options, memory, seed, now)
        .map_err(|_| WireError::BadValue { field: "xdp offer" })?;
    // What it copies between its memory and ours is its affair.
    cx.ledger.kernel_copied(KernelCopied::Unknown);
    let conn = engine.join(mine.session(), session, to)?;
    let lane = lane::start(engine, conn, caps, &cx);
    both_ready(link).await?;
    Ok(lane)
}

/// What comes before a side is ready is lost, and found out late: nothing has been measured by then.
async fn both_ready(link: &mut dyn ControlLink) -> Result<(), LinkError> {
    let failed = |operation| move |source| LinkError::Io { operation, source };
    poll_fn(|cx| link.poll_write(cx, &[0])).await.map_err(failed("say that we are ready"))?;
    let mut byte = [0];
    let read = poll_fn(|cx| link.poll_read(cx, &mut byte)).await;
    match read.map_err(failed("hear that the peer is ready"))? {
        0 => Err(failed("hear that the peer is ready")(std::io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}

/// Where packets go is what the control link leads to.
pub(super) const NO_ADDRESS: Unavailable = Unavailable::NotApplicable { needs: "host:port" };

/// A link-local address is one of an interface.
fn with_scope(mut to: SocketAddr, link: SocketAddr) -> SocketAddr {
    if let (SocketAddr::V6(to), SocketAddr::V6(link)) = (&mut to, link) {
        to.set_scope_id(link.scope_id());
    }
    to
}

/// The address of ours that the control link has, with another port.
pub(super) fn local(cx: &OfferContext, port: u16) -> Result<SocketAddr, Unavailable> {
    let local = cx.local.ok_or(NO_ADDRESS)?;
    Ok(with_scope(SocketAddr::new(local.ip().to_canonical(), port), local))
}
