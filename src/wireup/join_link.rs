//! The control link as a transport sees it while it joins: a byte stream that travels in JOIN
//! messages, so that a side that gives up can say so at any time.
//!
//! Descriptors travel beside the stream: an empty JOIN announces the one byte that carries them, on the
//! control link itself or on the Unix socket of the same-host proof.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use rustix::io::Errno;
use zc_core::transport::{ControlLink, LinkAddr, PeerCred};
use zc_core::wire::ControlMessage;

use super::io::{IoFault, LinkIo};
use super::machine::Machine;

/// Most bytes of the transport in one JOIN.
const MAX_CHUNK: usize = 32 * 1024;
/// Bytes that wait for the transport before nothing more is read ahead of it.
const READ_AHEAD: usize = 32 * 1024;

/// The two ways to the peer. Away from the wire-up while a transport joins over them.
#[derive(Debug)]
pub(super) struct Ways {
    pub(super) io: LinkIo,
    pub(super) side: Side,
}

/// What descriptors travel over.
#[derive(Debug)]
pub(super) enum Side {
    /// The control link itself, if it can.
    Link,
    /// The Unix socket of the same-host proof.
    Socket(Box<dyn ControlLink>),
    /// That socket broke: nothing travels any more, and nothing is read for what is announced.
    Lost,
}

impl Ways {
    /// The link that descriptors travel over.
    pub(super) fn for_descriptors(&mut self) -> Option<&mut dyn ControlLink> {
        match &mut self.side {
            Side::Link => Some(&mut *self.io.link),
            Side::Socket(socket) => Some(&mut **socket),
            Side::Lost => None,
        }
    }

    pub(super) fn pass_descriptors(&self) -> bool {
        match &self.side {
            Side::Link => self.io.link.passes_descriptors(),
            Side::Socket(_) => true,
            Side::Lost => false,
        }
    }

    /// True when it was the side's own socket that broke, so that the control link goes on.
    pub(super) fn lose_side(&mut self) -> bool {
        let beside = !matches!(self.side, Side::Link);
        if beside {
            self.side = Side::Lost;
        }
        beside
    }
}

#[derive(Debug)]
struct Core {
    /// `None` once the wire-up has taken them back.
    ways: Option<Ways>,
    /// It knows which JOINs are in order, and how many there may be.
    machine: Machine,
    /// Descriptors may travel to this peer.
    descriptors: bool,
    incoming: VecDeque<u8>,
    /// An empty JOIN came: the next byte carries descriptors.
    descriptors_next: bool,
    /// We announced descriptors and have not sent them yet.
    announced: bool,
    /// The first message that is no JOIN, followed by the machine: the peer has spoken about this lane.
    spoken: Option<ControlMessage>,
    /// The link broke, or the peer broke the protocol.
    fault: Option<IoFault>,
    /// The transport waits for what the wire-up may read or write in its place.
    waiting: [Option<Waker>; 2],
}

const READ: usize = 0;
const WRITE: usize = 1;

/// What is left when the transport is done.
pub(super) struct Joined {
    pub(super) ways: Ways,
    pub(super) spoken: Option<ControlMessage>,
    pub(super) fault: Option<IoFault>,
    /// A byte with descriptors that the transport did not take is the next one.
    pub(super) descriptors_next: bool,
    /// Descriptors were announced to the peer and never sent: the byte must still go.
    pub(super) torn: bool,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Core {
    fn ways(&mut self) -> io::Result<&mut Ways> {
        self.ways.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads one message; false at the end of what the peer has to say about this lane.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(fault) = &self.fault {
            return Poll::Ready(Err(fault.as_io()));
        }
        if self.spoken.is_some() {
            return Poll::Ready(Ok(false));
        }
        let read = match ready!(self.ways()?.io.poll_message(cx)) {
            Ok(message) => self.take(message),
            Err(fault) => Err(fault),
        };
        Poll::Ready(read.map_err(|fault| {
            let error = fault.as_io();
            self.fault = Some(fault);
            error
        }))
    }

    fn take(&mut self, message: ControlMessage) -> Result<bool, IoFault> {
        self.machine.handle(&message).map_err(IoFault::Wire)?;
        let ControlMessage::Join { bytes, .. } = message else {
            self.spoken = Some(message);
            return Ok(false);
        };
        self.descriptors_next = bytes.is_empty();
        self.incoming.extend(bytes);
        Ok(true)
    }

    fn push_join(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        // The link is of no use any more once the ways are back.
        let io = &mut self.ways.as_mut().ok_or(io::ErrorKind::NotConnected)?.io;
        self.machine.send_join(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        io.push(self.machine.take_output());
        Ok(())
    }

    fn poll_push_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pushed = self.ways()?.io.poll_push_out(cx);
        if pushed.is_pending() {
            self.wait(WRITE, cx);
        }
        pushed
    }

    /// What was written before must not wait for what is read now.
    fn push_out(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.poll_push_out(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn wait(&mut self, what: usize, cx: &Context<'_>) {
        self.waiting[what] = Some(cx.waker().clone());
    }

    /// Reads until bytes or descriptors are there; false at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.push_out(cx)?;
        while self.incoming.is_empty() && !self.descriptors_next {
            match self.poll_next(cx)? {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Ok(false)),
                Poll::Pending => {
                    self.wait(READ, cx);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Whether there is no point in going on.
    fn given_up(&self) -> bool {
        self.fault.is_some()
            || self.spoken.as_ref().is_some_and(|said| !matches!(said, ControlMessage::LaneUp { .. }))
    }

    /// Whether the wire-up may read ahead of the transport.
    fn may_read_ahead(&self) -> bool {
        self.spoken.is_none() && !self.descriptors_next && self.incoming.len() < READ_AHEAD
    }

    fn passes_descriptors(&self) -> bool {
        self.descriptors && self.ways.as_ref().is_some_and(Ways::pass_descriptors)
    }
}

/// The wire-up's end of a [`JoinLink`].
pub(super) struct Joining(Arc<Mutex<Core>>);

impl Joining {
    pub(super) fn new(ways: Ways, machine: Machine, descriptors: bool) -> Self {
        Self(Arc::new(Mutex::new(Core {
            ways: Some(ways),
            machine,
            descriptors,
            incoming: VecDeque::new(),
            descriptors_next: false,
            announced: false,
            spoken: None,
            fault: None,
            waiting: [None, None],
        })))
    }

    /// The transport's end; of no use once [`Joining::finish`] was called.
    pub(super) fn link(&self, peer: LinkAddr) -> Box<dyn ControlLink> {
        Box::new(JoinLink { core: self.0.clone(), peer })
    }

    /// Ready once the peer has given the lane up or the link is broken, even if the transport does not
    /// read: what comes is read ahead of it, up to [`READ_AHEAD`].
    pub(super) fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut core = self.0.lock();
        let mut waiting: Vec<Waker> = Vec::new();
        while !core.given_up() && core.may_read_ahead() {
            let unsent = core.ways.as_ref().is_some_and(|ways| ways.io.unsent() > 0);
            let next = core.poll_next(cx);
            let sent = unsent && core.ways.as_ref().is_some_and(|ways| ways.io.unsent() == 0);
            if next.is_ready() || sent {
                waiting.extend(core.waiting.iter_mut().filter_map(Option::take));
            }
            if next.is_pending() {
                break;
            }
        }
        let given_up = core.given_up();
        drop(core);
        waiting.into_iter().for_each(Waker::wake);
        if given_up { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Takes the ways back, whatever the transport did with its end.
    pub(super) fn finish(self) -> Option<Joined> {
        let mut core = self.0.lock();
        Some(Joined {
            ways: core.ways.take()?,
            spoken: core.spoken.take(),
            fault: core.fault.take(),
            descriptors_next: core.descriptors_next,
            torn: core.announced,
        })
    }
}

struct JoinLink {
    core: Arc<Mutex<Core>>,
    peer: LinkAddr,
}

impl fmt::Debug for JoinLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinLink").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl ControlLink for JoinLink {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut core = self.core.lock();
        if !ready!(core.poll_more(cx))? {
            return Poll::Ready(Ok(0));
        }
        if core.incoming.is_empty() {
            return Poll::Ready(Err(invalid("descriptors come next, not bytes")));
        }
        Poll::Ready(io::Read::read(&mut core.incoming, buf))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut core = self.core.lock();
        if core.announced {
            return Poll::Ready(Err(invalid("announced descriptors go first")));
        }
        if core.ways()?.io.unsent() >= MAX_CHUNK {
            ready!(core.poll_push_out(cx))?;
        }
        let chunk: Vec<u8> = buf.iter().copied().take(MAX_CHUNK).collect();
        let count = chunk.len();
        core.push_join(chunk)?;
        core.push_out(cx)?;
        Poll::Ready(Ok(count))
    }

    /// The link goes on after the lane: only pushes out what was written.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.lock().poll_push_out(cx)
    }

    fn peer(&self) -> LinkAddr {
        self.peer.clone()
    }

    fn peer_cred(&self) -> Option<PeerCred> {
        match self.core.lock().ways.as_ref()? {
            Ways { side: Side::Socket(socket), .. } => socket.peer_cred(),
            ways => ways.io.link.peer_cred(),
        }
    }

    fn passes_descriptors(&self) -> bool {
        self.core.lock().passes_descriptors()
    }

    fn poll_send_descriptors(
        &mut self,
        cx: &mut Context<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<()>> {
        let mut core = self.core.lock();
        if !core.passes_descriptors() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        if !core.announced {
            core.push_join(Vec::new())?;
            core.announced = true;
        }
        ready!(core.poll_push_out(cx))?;
        let to = core.ways()?.for_descriptors().ok_or(io::ErrorKind::NotConnected)?;
        ready!(to.poll_send_descriptors(cx, fds))?;
        core.announced = false;
        Poll::Ready(Ok(()))
    }

    fn poll_recv_descriptors(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Vec<OwnedFd>>> {
        let mut core = self.core.lock();
        if !core.passes_descriptors() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        if !ready!(core.poll_more(cx))? {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        // Bytes that came before an announcement are read first.
        if !core.incoming.is_empty() {
            return Poll::Ready(Err(invalid("bytes come next, not descriptors")));
        }
        let from = core.ways()?.for_descriptors().ok_or(io::ErrorKind::NotConnected)?;
        let result = ready!(from.poll_recv_descriptors(cx, max));
        // For want of room they are left where they are.
        let left = |error: &io::Error| error.raw_os_error() == Some(Errno::MFILE.raw_os_error());
        core.descriptors_next = result.as_ref().is_err_and(left);
        Poll::Ready(result)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}
