//! The control link as a transport sees it while it joins: a byte stream that travels in JOIN
//! messages, so that a side that gives up can say so at any time.
//!
//! Descriptors travel beside the stream: an empty JOIN announces the one byte that carries them, on the
//! control link itself or on the Unix socket of the same-host proof.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use zc_core::transport::{ControlLink, LinkAddr, PeerCred};
use zc_core::wire::{ControlMessage, MAX_JOIN_MESSAGES};

use super::io::LinkIo;

/// Most bytes of the transport in one JOIN.
const MAX_CHUNK: usize = 32 * 1024;

/// The two ways to the peer. Away from the wire-up while a transport joins over them.
#[derive(Debug)]
pub(super) struct Ways {
    pub(super) io: LinkIo,
    /// A proved Unix socket for descriptors, where the control link is none.
    pub(super) side: Option<Box<dyn ControlLink>>,
}

impl Ways {
    /// The link that descriptors travel over.
    pub(super) fn for_descriptors(&mut self) -> &mut dyn ControlLink {
        match &mut self.side {
            Some(side) => &mut **side,
            None => &mut *self.io.link,
        }
    }

    pub(super) fn pass_descriptors(&self) -> bool {
        self.side.as_ref().unwrap_or(&self.io.link).passes_descriptors()
    }
}

#[derive(Debug)]
pub(super) struct JoinLink {
    ways: Ways,
    index: u8,
    sent: u16,
    received: u16,
    incoming: VecDeque<u8>,
    /// An empty JOIN came: the next byte carries descriptors.
    descriptors_next: bool,
    /// We announced descriptors and have not sent them yet.
    announced: bool,
    /// The first message that is no JOIN: the peer has spoken about this lane.
    spoken: Option<ControlMessage>,
}

/// What is left when the transport is done.
pub(super) struct Joined {
    pub(super) ways: Ways,
    pub(super) spoken: Option<ControlMessage>,
    /// A byte with descriptors that the transport did not take is the next one.
    pub(super) descriptors_next: bool,
    /// Descriptors were announced to the peer and never sent: the byte must still go.
    pub(super) torn: bool,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl JoinLink {
    pub(super) fn new(ways: Ways, index: u8) -> Self {
        Self {
            ways,
            index,
            sent: 0,
            received: 0,
            incoming: VecDeque::new(),
            descriptors_next: false,
            announced: false,
            spoken: None,
        }
    }

    pub(super) fn finish(self) -> Joined {
        Joined {
            ways: self.ways,
            spoken: self.spoken,
            descriptors_next: self.descriptors_next,
            torn: self.announced,
        }
    }

    /// Reads one message; false at the end of what the peer has to say about this lane.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.spoken.is_some() {
            return Poll::Ready(Ok(false));
        }
        let message = ready!(self.ways.io.poll_message(cx)).map_err(|fault| fault.into_io())?;
        let ControlMessage::Join { index, bytes } = message else {
            self.spoken = Some(message);
            return Poll::Ready(Ok(false));
        };
        self.received += 1;
        if index != self.index || self.received > MAX_JOIN_MESSAGES {
            return Poll::Ready(Err(invalid("an unexpected JOIN")));
        }
        self.descriptors_next = bytes.is_empty();
        self.incoming.extend(bytes);
        Poll::Ready(Ok(true))
    }

    fn push_join(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if self.sent == MAX_JOIN_MESSAGES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many messages of one join"));
        }
        self.sent += 1;
        let mut encoded = Vec::new();
        ControlMessage::Join { index: self.index, bytes }
            .encode(&mut encoded)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.ways.io.push(encoded);
        Ok(())
    }

    /// What was written before must not wait for what is read now.
    fn push_out(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ways.io.poll_push_out(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl ControlLink for JoinLink {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.push_out(cx)?;
        while self.incoming.is_empty() {
            if self.descriptors_next {
                return Poll::Ready(Err(invalid("descriptors, not bytes")));
            }
            if !ready!(self.poll_next(cx))? {
                return Poll::Ready(Ok(0));
            }
        }
        Poll::Ready(io::Read::read(&mut self.incoming, buf))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ways.io.unsent() >= MAX_CHUNK {
            ready!(self.ways.io.poll_push_out(cx))?;
        }
        let chunk: Vec<u8> = buf.iter().copied().take(MAX_CHUNK).collect();
        let count = chunk.len();
        self.push_join(chunk)?;
        self.push_out(cx)?;
        Poll::Ready(Ok(count))
    }

    /// The link goes on after the lane: only pushes out what was written.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ways.io.poll_push_out(cx)
    }

    fn peer(&self) -> LinkAddr {
        self.ways.io.link.peer()
    }

    fn peer_cred(&self) -> Option<PeerCred> {
        self.ways.side.as_ref().unwrap_or(&self.ways.io.link).peer_cred()
    }

    fn passes_descriptors(&self) -> bool {
        self.ways.pass_descriptors()
    }

    fn poll_send_descriptors(
        &mut self,
        cx: &mut Context<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<()>> {
        if !self.passes_descriptors() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        if !self.announced {
            self.push_join(Vec::new())?;
            self.announced = true;
        }
        ready!(self.ways.io.poll_push_out(cx))?;
        ready!(self.ways.for_descriptors().poll_send_descriptors(cx, fds))?;
        self.announced = false;
        Poll::Ready(Ok(()))
    }

    fn poll_recv_descriptors(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Vec<OwnedFd>>> {
        if !self.passes_descriptors() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        self.push_out(cx)?;
        while !self.descriptors_next {
            if !self.incoming.is_empty() {
                return Poll::Ready(Err(invalid("bytes, not descriptors")));
            }
            if !ready!(self.poll_next(cx))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let result = ready!(self.ways.for_descriptors().poll_recv_descriptors(cx, max));
        self.descriptors_next = false;
        Poll::Ready(result)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}
