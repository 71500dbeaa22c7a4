//! Handshake messages over a control link. Never reads a byte past the message that it is reading.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use zc_core::transport::{ControlLink, LinkError, Reactor};
use zc_core::wire::{CONTROL_HEADER_BYTES, ControlDecoder, ControlMessage, MAX_CONTROL, Stage, WireError};

use crate::error::Error;
use crate::time::later;

/// Runs a future for at most `limit`.
pub(crate) async fn deadline<T>(
    reactor: &dyn Reactor,
    stage: Stage,
    limit: Duration,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut timer = reactor.timer().map_err(|error| Error::NoRuntime(error.to_string()))?;
    timer.reset(later(reactor.now(), limit));
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(done) = future.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        timer.poll_expired(cx).map(|()| Err(Error::Timeout { stage }))
    })
    .await
}

/// A length field, little-endian.
pub(super) fn length(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte))
}

/// Fills `buf` from a link.
pub(super) async fn read_exact(link: &mut dyn ControlLink, buf: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match poll_fn(|cx| link.poll_read(cx, &mut buf[at..])).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => at += count,
        }
    }
    Ok(())
}

/// Writes all of `buf` to a link.
pub(super) async fn write_all(link: &mut dyn ControlLink, buf: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match poll_fn(|cx| link.poll_write(cx, &buf[at..])).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => at += count,
        }
    }
    Ok(())
}

/// What can go wrong while a message is read or written.
#[derive(Debug)]
pub(super) enum IoFault {
    Io(io::Error),
    Wire(WireError),
}

impl IoFault {
    pub(super) fn at(self, stage: Stage) -> Error {
        match self {
            Self::Io(source) => {
                Error::Link { stage, source: LinkError::Io { operation: "control link", source } }
            }
            Self::Wire(source) => Error::Wire { stage, source },
        }
    }

    /// The same as a transport sees it.
    pub(super) fn as_io(&self) -> io::Error {
        match self {
            Self::Io(error) => io::Error::new(error.kind(), error.to_string()),
            Self::Wire(error) => io::Error::new(io::ErrorKind::InvalidData, error.clone()),
        }
    }
}

impl From<io::Error> for IoFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A control link with the message that is half read and the bytes that are half written: whoever
/// drops a future in between loses nothing.
#[derive(Debug)]
pub(super) struct LinkIo {
    pub(super) link: Box<dyn ControlLink>,
    /// The message being read: `filled` of its bytes are there.
    partial: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    written: usize,
}

impl LinkIo {
    pub(super) fn new(link: Box<dyn ControlLink>) -> Self {
        Self { link, partial: Vec::new(), filled: 0, out: Vec::new(), written: 0 }
    }

    /// The link, once nothing is half read or written.
    pub(super) fn into_link(self) -> Box<dyn ControlLink> {
        self.link
    }

    /// Appends to what is to be written.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.extend(bytes);
        }
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.written
    }

    pub(super) fn poll_push_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            match ready!(self.link.poll_write(cx, &self.out[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.out.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes everything that was pushed.
    pub(super) async fn flush(&mut self) -> Result<(), IoFault> {
        Ok(poll_fn(|cx| self.poll_push_out(cx)).await?)
    }

    /// Reads until `want` bytes of the current message are there.
    fn poll_fill(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<()>> {
        self.partial.resize(want.max(self.filled), 0);
        while self.filled < want {
            match ready!(self.link.poll_read(cx, &mut self.partial[self.filled..want]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.filled += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The current message, done with.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.filled = 0;
        std::mem::take(&mut self.partial)
    }

    /// What was read of the current message.
    pub(super) fn take_filled(&mut self) -> Vec<u8> {
        let filled = self.filled;
        let mut bytes = self.take();
        bytes.truncate(filled);
        bytes
    }

    /// Bytes of the current message, read up to `want`; they stay until [`LinkIo::take`].
    pub(super) async fn fill(&mut self, want: usize) -> Result<&[u8], IoFault> {
        poll_fn(|cx| self.poll_fill(cx, want)).await?;
        Ok(&self.partial)
    }

    /// The next control message. What was pushed before does not wait for it.
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<ControlMessage, IoFault>> {
        if let Poll::Ready(Err(error)) = self.poll_push_out(cx) {
            return Poll::Ready(Err(error.into()));
        }
        ready!(self.poll_fill(cx, CONTROL_HEADER_BYTES))?;
        let len = length(&self.partial[4..CONTROL_HEADER_BYTES]);
        // The decoder refuses a length above the bound by itself.
        if len <= MAX_CONTROL {
            ready!(self.poll_fill(cx, CONTROL_HEADER_BYTES + len))?;
        }
        let bytes = self.take();
        let mut decoder = ControlDecoder::new();
        let taken = decoder.push(&bytes);
        debug_assert_eq!(taken, bytes.len());
        Poll::Ready(match decoder.next_message() {
            Some(result) => result.map_err(IoFault::Wire),
            None => Err(IoFault::Wire(WireError::Truncated)),
        })
    }
}
