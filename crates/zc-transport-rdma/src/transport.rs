//! The transport: which device, the exchange over the control link, and who the peer may say that it is.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use parking_lot::Mutex;
use zc_core::memory::Deferral;
use zc_core::transport::{
    BoxFuture, Caps, ControlLink, Isolation, Lane, LinkAddr, LinkError, Offer, OfferContext, OneSided, Role,
    Scope, SourceMatrix, Transport, Unavailable, WireupError, ZeroCopy,
};
use zc_core::wire::WireError;

use crate::engine::{Endpoint, EndpointError, Engine, RdmaOptions, WeakEngine};
use crate::gid::{DeviceChoice, Gid};
use crate::lane::{self, Terms};
use crate::limits::{
    COPY_MAX_BYTES, INLINE_BYTES, MAX_ENGINES, MAX_LANE_READS, MAX_SLOTS, MIN_EAGER_BYTES, MIN_LANE_DEPTH,
    RECEIVE_BYTES, SEND_SEGMENTS,
};
use crate::verbs::{Device, RemoteAccess};
use crate::wire::{END_BYTES, End, VERSION};

/// Messages over RDMA: reliable connected queue pairs, which are brought up over the control link.
///
/// Connections of one runtime over one device share its [`Engine`], which begins with the first of them and ends with the last.
///
/// ```
/// use zc_core::transport::Transport;
/// use zc_transport_rdma::RdmaTransport;
///
/// let transport = RdmaTransport::default(); // `zc::FabricBuilder::transport` takes it
/// assert_eq!(transport.params(), ["dev", "gid"]);
/// match transport.probe() {
///     Ok(caps) => println!("messages up to {} bytes go at once", caps.eager_max),
///     Err(why) => println!("{why}: {}", why.remedy()),
/// }
/// ```
pub struct RdmaTransport {
    options: RdmaOptions,
    engines: Mutex<Vec<Known>>,
}

impl Default for RdmaTransport {
    fn default() -> Self {
        Self::new(RdmaOptions::default())
    }
}

/// An engine, for as long as a lane uses it.
struct Known {
    /// Of which runtime.
    home: (usize, u64),
    choice: DeviceChoice,
    engine: WeakEngine,
}

impl std::fmt::Debug for RdmaTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl RdmaTransport {
    /// With these options, or with as much as a lane needs of what they give less of.
    pub fn new(options: RdmaOptions) -> Self {
        Self { options: options.for_lanes(), engines: Mutex::default() }
    }

    /// The engine for that choice, which is begun if there is none that works.
    fn engine(&self, choice: &DeviceChoice, cx: &OfferContext) -> Result<Engine, Unavailable> {
        let home = (std::sync::Arc::as_ptr(&cx.reactor).cast::<()>().addr(), cx.reactor.runtime());
        let _deferral = Deferral::begin();
        let mut all = self.engines.lock();
        let is_it = |known: &Known| known.home == home && known.choice == *choice;
        let known = all.iter().find(|known| is_it(known)).and_then(|known| known.engine.upgrade());
        if let Some(engine) = known.filter(|engine| engine.end().is_none()) {
            return Ok(engine);
        }
        all.retain(|known| !is_it(known) && known.engine.upgrade().is_some());
        if all.len() >= MAX_ENGINES {
            let remedy = "use fewer devices and addresses, or close connections".to_owned();
            return Err(Unavailable::Other { code: "too_many_engines", remedy });
        }
        let engine = Engine::start(cx.reactor.clone(), &cx.pool, choice, self.options.clone())?;
        all.push(Known { home, choice: choice.clone(), engine: engine.downgrade() });
        Ok(engine)
    }

    fn endpoint(&self, choice: &DeviceChoice, cx: &OfferContext) -> Result<(Engine, Endpoint), Unavailable> {
        let engine = self.engine(choice, cx)?;
        let endpoint = engine.strict_endpoint().map_err(refusal)?;
        Ok((engine, endpoint))
    }

    async fn exchange(&self, link: &mut dyn ControlLink, cx: OfferContext) -> Result<Lane, WireupError> {
        let peer_ip = match link.peer() {
            LinkAddr::Tcp(at) => at.parse::<SocketAddr>().ok().map(|at| at.ip().to_canonical()),
            _ => None,
        };
        let mut choice = DeviceChoice::from_params(&cx.params)?;
        choice.link = peer_ip.and_then(way_to);
        let (engine, endpoint) = self.endpoint(&choice, &cx)?;
        if !engine.has_windows() {
            return Err(no_windows().into());
        }
        if endpoint.depth() < MIN_LANE_DEPTH {
            return Err(too_shallow(endpoint.depth()).into());
        }
        let mine = endpoint.describe();
        send(link, &mine.encode()).await?;
        let mut theirs = [0; END_BYTES];
        receive(link, &mut theirs).await?;
        let theirs = End::decode(&theirs)?;
        let is_named = choice.device.is_some() || choice.gid.is_some();
        // The link may not leave this host.
        let beyond = peer_ip.filter(|ip| !ip.is_loopback() && choice.link != Some(*ip));
        admit(theirs.gid, beyond, is_named, |gid| engine.has_gid(gid))?;
        if (theirs.recv_bytes as usize) < MIN_EAGER_BYTES {
            return Err(WireError::BadValue { field: "rdma recv_bytes" }.into());
        }
        // What it shows us is read by us; what we show it is a window for this queue pair alone.
        let access = RemoteAccess { read: true, ..RemoteAccess::default() };
        endpoint.connect(&theirs, access).map_err(refusal)?;
        // What is sent to a queue pair that does not hear yet is only sent again after a while.
        send(link, &[READY]).await?;
        let mut ready = [0];
        receive(link, &mut ready).await?;
        if ready != [READY] {
            return Err(WireError::BadValue { field: "rdma ready" }.into());
        }
        let caps = granted(&endpoint, &theirs, &cx);
        let terms = Terms {
            eager_bytes: caps.eager_max as usize,
            theirs: theirs.recv_count.min(MAX_SLOTS),
            ours: mine.recv_count,
            max_reads: MAX_LANE_READS.min(theirs.reads.min(engine.reads_begun()).into()),
            packet_bytes: mine.mtu.min(theirs.mtu).bytes() as usize,
        };
        if terms.max_reads == 0 {
            return Err(Unavailable::Other {
                code: "no_reads",
                remedy: "use devices at both ends that serve RDMA reads".to_owned(),
            }
            .into());
        }
        Ok(lane::start(endpoint, terms, theirs, caps, &cx))
    }
}

const READY: u8 = 1;

fn refusal(error: EndpointError) -> Unavailable {
    match error {
        EndpointError::Verbs(error) => error.into(),
        EndpointError::NoReceiveBuffers => Unavailable::Other {
            code: "no_receive_buffers",
            remedy: "close connections, or raise RdmaOptions::recv_buffers or the pool's bound".to_owned(),
        },
        other => Unavailable::Other { code: "rdma", remedy: other.to_string() },
    }
}

/// Our address on the way to that one. Nothing is sent.
fn way_to(peer: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// Whether the peer may be at that address: at that of the control link; or at one of ours, if the link does not leave this host;
/// or wherever it says, if our user has named the device.
fn admit(
    gid: Gid,
    link: Option<IpAddr>,
    is_named: bool,
    is_ours: impl FnOnce(Gid) -> bool,
) -> Result<(), Unavailable> {
    let is_it = match link {
        Some(ip) => gid == Gid::from_ip(ip),
        None => is_ours(gid),
    };
    if is_it || is_named {
        return Ok(());
    }
    Err(Unavailable::Other {
        code: "other_address",
        remedy: format!(
            "the peer's port has the address {gid}, and the control link another: name the device (`?dev=`) if it may"
        ),
    })
}

async fn send(link: &mut dyn ControlLink, mut bytes: &[u8]) -> Result<(), WireupError> {
    while !bytes.is_empty() {
        let n = poll_fn(|cx| link.poll_write(cx, bytes)).await.map_err(failed("write"))?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}

async fn receive(link: &mut dyn ControlLink, mut bytes: &mut [u8]) -> Result<(), WireupError> {
    while !bytes.is_empty() {
        match poll_fn(|cx| link.poll_read(cx, bytes)).await.map_err(failed("read"))? {
            0 => return Err(Unavailable::PeerFailed { reason: "it gave the lane up".into() }.into()),
            n => bytes = bytes.get_mut(n..).unwrap_or_default(),
        }
    }
    Ok(())
}

fn failed(operation: &'static str) -> impl FnOnce(std::io::Error) -> WireupError {
    move |source| LinkError::Io { operation, source }.into()
}

fn caps() -> Caps {
    let mut caps = Caps::stream();
    caps.scope = Scope::Fabric;
    caps.max_segments = SEND_SEGMENTS as usize;
    caps.inline_size = INLINE_BYTES as usize;
    caps.eager_max = RECEIVE_BYTES as u32;
    caps.zero_copy_min = COPY_MAX_BYTES + 1;
    caps.zero_copy_tx = ZeroCopy::Conditional("memory of a pool, in few pieces or long ones");
    caps.zero_copy_rx = ZeroCopy::Conditional("until the soft lease limit");
    caps.user_polled = true;
    caps.sources = SourceMatrix { connection: true, pool: true, foreign: false };
    caps.one_sided = OneSided::Native;
    caps.isolation = Isolation::PerConnection;
    caps
}

fn granted(endpoint: &Endpoint, theirs: &End, cx: &OfferContext) -> Caps {
    let mut caps = caps();
    caps.max_message = cx.limits.send_max_message;
    caps.max_segments = endpoint.segments();
    caps.inline_size = endpoint.inline_bytes();
    caps.eager_max = endpoint.message_bytes().min(theirs.recv_bytes);
    caps
}

impl Transport for RdmaTransport {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn params(&self) -> &'static [&'static str] {
        DeviceChoice::PARAMS
    }

    fn probe(&self) -> Result<Caps, Unavailable> {
        usable(&DeviceChoice::default())?;
        Ok(caps())
    }

    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        // Which address it will be is only known with the peer's.
        usable(&DeviceChoice::from_params(&cx.params)?)?;
        Ok(Offer { version: VERSION, bytes: Vec::new() })
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
            if mine.version != VERSION || peer.version != VERSION {
                return Err(WireError::BadValue { field: "rdma version" }.into());
            }
            let Some(link) = link.as_deref_mut() else {
                return Err(LinkError::Address("the control link is gone".into()).into());
            };
            self.exchange(link, cx).await
        })
    }
}

fn no_windows() -> Unavailable {
    Unavailable::Other {
        code: "no_memory_windows",
        remedy: "use a device with memory windows of type 2B".to_owned(),
    }
}

fn too_shallow(depth: u32) -> Unavailable {
    Unavailable::Other {
        code: "too_few_requests",
        remedy: format!(
            "use a device whose queue pairs take {MIN_LANE_DEPTH} work requests; these take {depth}"
        ),
    }
}

/// Whether there is a device that can do what a lane needs.
fn usable(choice: &DeviceChoice) -> Result<(), Unavailable> {
    let mut why = Unavailable::NoDevice;
    for device in Device::all()? {
        if choice.device.as_deref().is_some_and(|name| name != device.name()) {
            continue;
        }
        match device.open().and_then(|context| Ok(context.limits()?)) {
            Ok(limits) if limits.windows && limits.work_requests < MIN_LANE_DEPTH => {
                why = too_shallow(limits.work_requests);
            }
            Ok(limits) if limits.windows => return Ok(()),
            Ok(_) => {
                why = no_windows();
            }
            Err(error) => why = error,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_where_its_link_comes_from_or_where_we_were_told() {
        let gid = |ip: [u8; 4]| Gid::from_ip(ip.into());
        let (us, them, other) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
        let ask = |at: [u8; 4], link: Option<[u8; 4]>, is_named| {
            admit(gid(at), link.map(IpAddr::from), is_named, |found| found == gid(us))
                .map_err(|why| why.code())
        };
        assert_eq!(ask(them, Some(them), false), Ok(()));
        assert_eq!(ask(other, Some(them), false), Err("other_address"));
        assert_eq!(ask(other, Some(them), true), Ok(()));
        assert_eq!(ask(us, Some(them), false), Err("other_address"));
        assert_eq!(ask(us, None, false), Ok(()));
        assert_eq!(ask(other, None, false), Err("other_address"));
    }

    /// With less no frame would ever go out, or the peer would refuse it.
    #[test]
    fn options_give_a_lane_what_it_needs() {
        let of = |options: RdmaOptions| RdmaTransport::new(options).options;
        let least = of(RdmaOptions { send_depth: 0, recv_buffer_bytes: 1, ..RdmaOptions::default() });
        assert_eq!((least.send_depth, least.recv_buffer_bytes), (MIN_LANE_DEPTH, MIN_EAGER_BYTES));
        let more = RdmaOptions { send_depth: 500, recv_buffer_bytes: 9000, ..RdmaOptions::default() };
        assert_eq!(of(more.clone()), more);
        assert_eq!(RdmaTransport::default().options, RdmaOptions::default());
    }

    #[test]
    fn the_way_to_ourselves_is_known() {
        assert_eq!(way_to([127, 0, 0, 1].into()), Some([127, 0, 0, 1].into()));
    }
}
