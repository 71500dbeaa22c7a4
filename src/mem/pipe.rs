//! A bounded duplex pipe of bytes in memory: it stands for a socket, and its copies for the kernel's.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use zc_core::transport::{ControlLink, LinkAddr};

/// Bytes that one direction holds at most.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The writer is done or gone.
    ended: bool,
    /// The reader is gone.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

type Half = Arc<Mutex<State>>;

/// One end of a pipe.
pub(crate) struct PipeLink {
    name: String,
    incoming: Half,
    outgoing: Half,
}

/// Two ends that are connected with each other.
pub(crate) fn duplex(name: &str) -> (PipeLink, PipeLink) {
    let (one, other) = (Half::default(), Half::default());
    let a = PipeLink { name: name.into(), incoming: one.clone(), outgoing: other.clone() };
    let b = PipeLink { name: name.into(), incoming: other, outgoing: one };
    (a, b)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl PipeLink {
    /// The same at either end, and of no other pipe that lives.
    #[cfg(test)]
    pub(crate) fn id(&self) -> [u8; 16] {
        let [mut one, mut other] = [&self.incoming, &self.outgoing].map(|half| Arc::as_ptr(half).addr());
        if one > other {
            std::mem::swap(&mut one, &mut other);
        }
        ((one as u128) << 64 | other as u128).to_le_bytes()
    }

    fn end(&self) {
        let waker = {
            let mut out = self.outgoing.lock();
            out.ended = true;
            out.reader.take()
        };
        wake(waker);
    }
}

impl ControlLink for PipeLink {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = self.incoming.lock();
        if state.bytes.is_empty() && !state.ended {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.bytes.read(buf)?;
        let waker = state.writer.take();
        drop(state);
        wake(waker);
        Poll::Ready(Ok(count))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.outgoing.lock();
        if state.broken || state.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = PIPE_BYTES - state.bytes.len();
        if room == 0 && !buf.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = room.min(buf.len());
        state.bytes.extend(&buf[..count]);
        let waker = state.reader.take();
        drop(state);
        wake(waker);
        Poll::Ready(Ok(count))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }

    fn peer(&self) -> LinkAddr {
        LinkAddr::Memory(self.name.clone())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl Drop for PipeLink {
    fn drop(&mut self) {
        self.end();
        let waker = {
            let mut incoming = self.incoming.lock();
            incoming.broken = true;
            incoming.writer.take()
        };
        wake(waker);
    }
}

impl fmt::Debug for PipeLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeLink").field("name", &self.name).finish_non_exhaustive()
    }
}
