//! Fabrics whose sockets are in another network namespace than the process.

#![allow(dead_code, reason = "no test program uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zc::testing::fabric_over;
use zc::transport::{
    BoxFuture, Caps, ControlLink, Lane, LinkAddr, LinkError, LinkListener, LinkProvider, Offer, OfferContext,
    Reactor, Role, Transport, Unavailable, WireupError,
};
use zc::{Fabric, FabricBuilder};
use zc_conformance::Setup;
use zc_transport_tcp::StreamLinks;
use zc_transport_xdp::netlink::Interface;
use zc_transport_xdp::{UdpTransport, XdpOptions, XdpTransport};

use crate::bed::{Bed, GUARD, NAME, has_cards};

fn namespace_at(path: impl Into<PathBuf>) -> OwnedFd {
    std::fs::File::open(path.into()).unwrap().into()
}

/// A network namespace, and what keeps it.
#[derive(Clone)]
struct Place(Arc<OwnedFd>);

impl Place {
    /// Runs something there, and comes back.
    fn run<T>(&self, what: impl FnOnce() -> T) -> T {
        struct Back(OwnedFd);
        impl Drop for Back {
            fn drop(&mut self) {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            }
        }
        let _back = Back(namespace_at("/proc/thread-self/ns/net"));
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        what()
    }

    async fn run_all<T>(&self, mut what: impl Future<Output = T> + Unpin) -> T {
        poll_fn(|cx| self.run(|| Pin::new(&mut what).poll(cx))).await
    }
}

/// A transport that opens everything there.
pub(crate) struct Inside {
    place: Place,
    inner: Arc<dyn Transport>,
    /// Waits for who has the interface.
    patient: bool,
}

impl Transport for Inside {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn wire_name(&self) -> &'static str {
        self.inner.wire_name()
    }
    fn second_name(&self) -> Option<&'static str> {
        self.inner.second_name()
    }
    fn is_same_way(&self, first: &Offer, second: &Offer) -> bool {
        self.inner.is_same_way(first, second)
    }
    fn withdraw(&self, offer: &Offer) {
        self.inner.withdraw(offer);
    }
    fn stands_in_for(&self) -> Option<&'static str> {
        self.inner.stands_in_for()
    }
    fn suits(&self, cx: &OfferContext) -> Result<(), Unavailable> {
        self.inner.suits(cx)
    }
    fn probe(&self) -> Result<Caps, Unavailable> {
        self.place.run(|| self.inner.probe())
    }
    fn params(&self) -> &'static [&'static str] {
        self.inner.params()
    }
    fn offer(&self, cx: &OfferContext) -> Result<Offer, Unavailable> {
        let start = Instant::now();
        loop {
            let offer = self.place.run(|| self.inner.offer(cx));
            // Another process of the same behaviour may just be giving the interface back.
            let busy = matches!(&offer, Err(why) if why.code() == "interface_in_use");
            if !busy || !self.patient || start.elapsed() > GUARD / 4 {
                return offer;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn join<'a>(
        &'a self,
        role: Role,
        mine: Offer,
        peer: Offer,
        link: &'a mut Option<Box<dyn ControlLink>>,
        cx: OfferContext,
    ) -> BoxFuture<'a, Result<Lane, WireupError>> {
        self.inner.join(role, mine, peer, link, cx)
    }
}

/// Links that are opened there.
struct InsideLinks(Place);

struct InsideListener(Box<dyn LinkListener>);

impl LinkListener for InsideListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>> {
        self.0.poll_accept(cx)
    }
    fn local(&self) -> LinkAddr {
        self.0.local()
    }
}

impl LinkProvider for InsideLinks {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        StreamLinks.accepts(addr)
    }
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        Box::pin(self.0.run_all(StreamLinks.connect(addr, reactor)))
    }
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        Box::pin(async move {
            let listener = self.0.run_all(StreamLinks.bind(addr, reactor)).await?;
            Ok(Box::new(InsideListener(listener)) as _)
        })
    }
}

fn builder(place: &Place, transports: &[Arc<dyn Transport>], patient: bool) -> FabricBuilder {
    let builder = Fabric::builder().links(Arc::new(InsideLinks(place.clone())));
    let inside = |transport: &Arc<dyn Transport>| {
        Arc::new(Inside { place: place.clone(), inner: transport.clone(), patient }) as Arc<dyn Transport>
    };
    transports.iter().map(inside).fold(builder, FabricBuilder::transport)
}

/// Where the thread is.
fn here() -> Place {
    Place(Arc::new(namespace_at("/proc/thread-self/ns/net")))
}

/// What makes a fabric near, and one far.
pub(crate) fn builders(bed: &Bed, with: impl Fn() -> Vec<Arc<dyn Transport>>) -> [FabricBuilder; 2] {
    let place = |end: &crate::bed::End| Place(Arc::new(namespace_at(end.namespace.path())));
    [&bed.near, &bed.far].map(|end| builder(&place(end), &with(), false))
}

/// A fabric near and one far, and where the near one listens.
pub(crate) fn fabrics(
    bed: &Bed,
    with: impl Fn() -> Vec<Arc<dyn Transport>>,
    host: impl std::fmt::Display,
) -> (Fabric, Fabric, String) {
    let [near, far] = builders(bed, with).map(|builder| builder.build().unwrap());
    (near, far, format!("zc+xdp://{host}:0?if={NAME}"))
}

/// The server near, the client far. The thread moves there, and with it the threads and processes that it starts: the other
/// process of a behaviour is at the far end. One that plays both ends makes a bed of its own, but for the cards, which are there
/// once, and its parent's.
pub(crate) fn setup(queues: u32, host: &str, options: XdpOptions) -> Setup {
    let role = std::env::var(zc_conformance::ENV_ROLE).ok();
    let plays_both = role.as_ref().is_none_or(|role| role.starts_with("churn"));
    let has_parents = role.is_some() && plays_both && has_cards();
    let bed = if plays_both && !has_parents { Bed::new(queues, 1500) } else { None };
    if plays_both && !has_parents && bed.is_none() {
        let udp = || fabric_over(Arc::new(UdpTransport::default()));
        return Setup::new(udp, "zc+udp://127.0.0.1:0");
    }
    let near = match &bed {
        Some(bed) => Place(Arc::new(namespace_at(bed.near.namespace.path()))),
        None if has_parents => other_end_of_parent(),
        None => here(),
    };
    if let Some(bed) = &bed {
        let far = namespace_at(bed.far.namespace.path());
        move_into_link_name_space(far.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
    let (far, bed) = (here(), Arc::new(bed));
    let transport = || [Arc::new(XdpTransport::new(options.clone())) as Arc<dyn Transport>];
    let (server, client, kept) = (transport(), transport(), bed.clone());
    let uri = format!("zc+xdp://{host}:0?if={NAME}");
    let setup = Setup::new(move || (&kept, builder(&far, &client, true)).1, uri);
    setup.server(move || (&bed, builder(&near, &server, true)).1)
}

/// The namespace with an end of the bed that the parent has, and we are not in.
fn other_end_of_parent() -> Place {
    let inode = |place: &Place| rustix::fs::fstat(&*place.0).unwrap().st_ino;
    let ours = inode(&here());
    let all = std::fs::read_dir(format!("/proc/{}/fd", std::os::unix::process::parent_id())).unwrap();
    let paths = all.flatten().map(|descriptor| descriptor.path());
    let namespaces = paths.filter(|path| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("net:["))
    });
    let mut places = namespaces.map(|path| Place(Arc::new(namespace_at(path))));
    let found = places.find(|place| inode(place) != ours && place.run(|| Interface::find(NAME)).is_ok());
    found.expect("the parent has both ends")
}
