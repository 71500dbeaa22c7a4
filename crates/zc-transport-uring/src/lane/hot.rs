//! Reading past the ring while somebody looks again and again.
//!
//! Who looks and finds pays for the ring without need of it: the kernel's work for the operation, a completion, a
//! buffer, where one `read` has the bytes. So a lane that has found something by so many looks in a row, without sleeping in
//! between, stops receiving by itself and reads its socket when it looks, until it is to sleep. Only a few lanes of an
//! engine may: with many at once one call of the ring serves all of them.

use std::io;

use zc_core::memory::{BufPool, PinnedBufMut};
use zc_core::stream::Parser;

use crate::engine::{Place, SocketRx};
use crate::limits::{HOT_LOOKS, HOT_READ_BYTES};

#[derive(Default)]
pub(super) struct Hot {
    /// So many looks in a row have found something.
    found: u32,
    place: Option<Place>,
    /// The next read goes there.
    chunk: Option<PinnedBufMut>,
}

impl Hot {
    /// Whether a look is a read, once the socket is [quiet](SocketRx::is_quiet).
    pub(super) fn is_hot(&self) -> bool {
        self.place.is_some()
    }

    /// A look has found something.
    pub(super) fn found(&mut self, socket: &SocketRx, pool: &BufPool) {
        self.found = self.found.saturating_add(1);
        if self.found < HOT_LOOKS || self.is_hot() {
            return;
        }
        self.found = 0;
        // The ring has buffers, also while the pool has nothing.
        self.chunk = pool.try_alloc_spare(HOT_READ_BYTES).ok();
        if self.chunk.is_some() {
            self.place = socket.hot_place();
        }
        match self.is_hot() {
            true => socket.pause(),
            false => self.chunk = None,
        }
    }

    /// Somebody sleeps until something comes.
    pub(super) fn cool(&mut self) {
        *self = Self::default();
    }

    /// Whether there is memory for the next read.
    pub(super) fn has_chunk(&mut self, pool: &BufPool) -> bool {
        if self.chunk.is_none() {
            self.chunk = pool.try_alloc_spare(HOT_READ_BYTES).ok();
        }
        self.chunk.is_some()
    }

    /// One read of what comes next in the stream, none of it at its end; `None`: nothing has come.
    pub(super) fn read(&mut self, socket: &SocketRx, parser: &mut Parser) -> io::Result<Option<usize>> {
        let Some(chunk) = &mut self.chunk else { return Ok(None) };
        // What goes on in pieces, or waits on the heap, is fed.
        let is_fed = parser.body_missing() > 0 && (parser.is_rope() || parser.is_spilled());
        let space = &mut chunk.unfilled_mut()[..HOT_READ_BYTES];
        let received = if is_fed {
            socket.try_recv_into([space])
        } else {
            let [body, head] = parser.spaces(true);
            socket.try_recv_into([body, head, space])
        };
        let n = match received {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let of_chunk = if is_fed { n } else { parser.filled(n) };
        if of_chunk > 0
            && let Some(mut chunk) = self.chunk.take()
        {
            chunk.advance(of_chunk);
            chunk.attach_lease(parser.leases().clone());
            parser.feed(chunk.freeze());
        }
        Ok(Some(n))
    }
}
