//! What an engine sends and receives through.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::SocketAddrAny;
use zc_core::memory::{PinnedBuf, PinnedBufMut};

use super::Headers;
use crate::protocol::Transmit;

/// A datagram that came.
pub(crate) enum Datagram<'a> {
    /// It stays where it is for as long as anybody has it.
    Lent(PinnedBuf),
    /// It is gone once it was looked at: whoever wants it copies it.
    Shown(&'a [u8]),
}

/// Where a session's packets go.
pub(crate) enum Destination {
    /// By the kernel.
    Kernel(SocketAddrAny),
    /// In frames of ours.
    Frame(Box<Headers>),
}

/// Takes what comes.
pub(crate) type Sink<'a> = dyn FnMut(Datagram<'_>) + 'a;

/// One local address: datagrams in and out. It has locks of its own, and calls nobody with one of those held that
/// [`Port::send`] takes.
pub(crate) trait Port: Send + Sync + 'static {
    /// Hands out what has come, a bounded part of it, and arms nothing; false if there was nothing. If somebody else is at it, then
    /// nothing is done, unless this is `patient`.
    fn receive(&self, patient: bool, sink: &mut Sink<'_>) -> io::Result<bool>;

    /// The same for the engine's task. Pending: there is no more, and the task is woken when there is.
    fn poll_receive(&self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<io::Result<()>>;

    /// The engine's task need not be woken by what comes, until the next [`Port::poll_receive`]: somebody has looked for it for a while.
    fn leave_it(&self) {}

    /// Sends packets; so many have gone, which are never none. One that the system refuses for itself counts as gone, and as
    /// lost on the way.
    ///
    /// # Errors
    /// `WouldBlock`: there is no room now. Others: there never will be.
    fn send(&self, to: &Destination, packets: &[Transmit]) -> io::Result<usize>;

    /// Calls `send` when there is room, until it does not say `WouldBlock`; wakes the task when there is room again.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: &mut dyn FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>>;

    /// Memory that is sent as it is, if there is any of that length.
    fn alloc(&self, _len: usize) -> Option<PinnedBufMut> {
        None
    }

    /// After how long the task has to come again, although nothing wakes it; `someone_waits` for room.
    fn again_in(&self, _someone_waits: bool) -> Option<Duration> {
        None
    }

    /// How long it stays open without a session.
    fn stays_for(&self) -> Duration {
        Duration::ZERO
    }
}
