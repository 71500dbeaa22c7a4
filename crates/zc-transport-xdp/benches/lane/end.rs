//! One end of a lane, on a core and a runtime of its own.

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::task::{Context, Poll, Waker};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zc::TokioReactor;
use zc::transport::{
    Batch, ControlLink, Frame, FrameKind, Lane, LaneLimits, LinkAddr, LinkProvider, Offer, OfferContext,
    Reactor, Received, Role, Transport, UriParams,
};
use zc::{BufPool, Message};
use zc_transport_tcp::StreamLinks;
use zc_transport_xdp::{XdpOptions, XdpTransport};

use crate::bed::{Bed, End, NAME};
use crate::raw::pin;

/// The port of the control link.
const PORT: u16 = 7001;
/// Looks before others of the runtime have their turn, about ten microseconds' worth.
const LOOKS: usize = 128;

/// What an end of a lane is driven with.
pub(crate) struct LaneEnd {
    lane: Lane,
    reactor: Arc<dyn Reactor>,
    batch: Batch<Frame>,
    seq: u64,
    /// The lane ends with it.
    _link: Box<dyn ControlLink>,
}

/// What the two ends tell each other before there is a lane.
pub(crate) struct Meet {
    pub(crate) say: Sender<Offer>,
    pub(crate) hear: Receiver<Offer>,
}

/// Runs one end in this thread: the server near, the client far.
pub(crate) fn run<T>(
    bed: &Bed,
    role: Role,
    options: XdpOptions,
    meet: Meet,
    what: impl AsyncFnOnce(LaneEnd) -> T,
) -> T {
    let (end, core) = if role == Role::Server { (&bed.near, 1) } else { (&bed.far, 0) };
    enter(end);
    pin(core);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let end = LaneEnd::join(bed, role, options, meet).await;
        what(end).await
    })
}

pub(crate) fn enter(end: &End) {
    let namespace = std::fs::File::open(end.namespace.path()).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl LaneEnd {
    async fn join(bed: &Bed, role: Role, options: XdpOptions, meet: Meet) -> Self {
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let at = LinkAddr::Tcp(format!("{}:{PORT}", bed.near.v4));
        let mut listener = match role {
            Role::Server => Some(StreamLinks.bind(&at, &reactor).await.unwrap()),
            Role::Client => None,
        };
        // Both are there, and the server listens.
        meet.say.send(Offer::default()).unwrap();
        meet.hear.recv().unwrap();
        let link = match &mut listener {
            Some(listener) => poll_fn(|cx| listener.poll_accept(cx)).await.unwrap(),
            None => StreamLinks.connect(&at, &reactor).await.unwrap(),
        };
        let pool = BufPool::builder().build();
        let mut limits = LaneLimits::default();
        (limits.recv_window, limits.send_window) = (16 << 20, 16 << 20);
        let mut cx = OfferContext::new(reactor.clone(), pool, Arc::default(), limits);
        cx.params = UriParams::new([("if".to_owned(), NAME.to_owned())]);
        let (near, far) = ((bed.near.v4, PORT).into(), (bed.far.v4, PORT).into());
        (cx.local, cx.remote) = match role {
            Role::Server => (Some(near), Some(far)),
            Role::Client => (Some(far), Some(near)),
        };
        let transport = XdpTransport::new(options);
        let mine = transport.offer(&cx).unwrap();
        meet.say.send(mine.clone()).unwrap();
        let theirs = meet.hear.recv().unwrap();
        let mut link = Some(link);
        let lane = transport.join(role, mine, theirs, &mut link, cx).await.unwrap();
        Self { lane, reactor, batch: Batch::new(), seq: 0, _link: link.unwrap() }
    }

    /// Memory that the lane sends as well as it can.
    pub(crate) async fn payload(&mut self, len: usize) -> Message {
        let mut buf = poll_fn(|cx| self.lane.tx.poll_alloc(cx, len)).await.unwrap();
        buf.set_len(len);
        buf.fill(7);
        buf.freeze().into()
    }

    /// Queues a message if there is room; false if not.
    pub(crate) fn try_send(&mut self, payload: &Message) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        if self.lane.tx.poll_ready(cx, payload.len()).map(Result::unwrap).is_pending() {
            return false;
        }
        self.seq += 1;
        let frame = Frame { kind: FrameKind::Data, ack: false, seq: self.seq, payload: payload.clone() };
        self.lane.tx.start_send(frame, false).unwrap();
        true
    }

    pub(crate) fn flush(&mut self) {
        let _ = self.lane.tx.poll_flush(&mut Context::from_waker(Waker::noop())).map(Result::unwrap);
    }

    /// Takes what has come: messages, and their bytes. False: the peer has ended.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Message)) -> bool {
        match self.lane.rx.try_recv(&mut self.batch) {
            Ok(Some(Received::Some)) => {}
            Ok(None) => return true,
            Ok(Some(Received::Closed)) | Err(_) => return false,
        }
        for frame in self.batch.drain() {
            self.lane.rx.release(frame.payload.len());
            each(frame.payload);
        }
        true
    }

    /// Calls until there is something, and lets the rest of the runtime have its turn in between.
    pub(crate) async fn spin<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        poll_fn(|cx| {
            for _ in 0..LOOKS {
                if let Some(found) = look(self) {
                    return Poll::Ready(found);
                }
            }
            self.reactor.yield_now(cx);
            Poll::Pending
        })
        .await
    }
}
