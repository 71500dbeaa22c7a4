//! Buffers of lanes that are gone, which the peer may still read and of which the application keeps a clone.
//!
//! Whoever keeps the clone must not be able to write it, so one more is kept here (M4): until the peer's
//! last reader is gone, or the application's clone is.

use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::memory::{PinnedBuf, PinnedBufMut};

use crate::lane::Link;
use crate::limits::MAX_ABANDONED_LINKS;

static ABANDONED: Mutex<Vec<Abandoned>> = Mutex::new(Vec::new());

struct Abandoned {
    buffers: Vec<PinnedBuf>,
    /// Whose end says that nobody reads them; `None` when too many were watched.
    link: Option<Arc<Link>>,
}

/// What is to be dropped when the lock is released: that may wake somebody.
#[derive(Default)]
struct Gone {
    writable: Vec<PinnedBufMut>,
    shared: Vec<PinnedBuf>,
    links: Vec<Arc<Link>>,
}

/// Keeps what is not unique.
pub(crate) fn keep(buffers: Vec<PinnedBuf>, link: Arc<Link>) {
    look_at_links();
    let mut gone = Gone::default();
    {
        let mut all = ABANDONED.lock();
        all.push(Abandoned { buffers, link: Some(link) });
        all.retain_mut(|one| one.look(&mut gone));
        let watched = all.iter().filter(|one| one.link.is_some()).count();
        let too_many = watched.saturating_sub(MAX_ABANDONED_LINKS);
        let links = all.iter_mut().filter_map(|one| one.link.take());
        gone.links.extend(links.take(too_many));
    }
    drop(gone);
}

/// Lets go of what nobody reads or keeps any more.
pub(crate) fn sweep() {
    look_at_links();
    let mut gone = Gone::default();
    ABANDONED.lock().retain_mut(|one| one.look(&mut gone));
    drop(gone);
}

/// Not under the lock of the table: an old waker may be dropped here, and much with it.
fn look_at_links() {
    let links: Vec<_> = ABANDONED.lock().iter().filter_map(|one| one.link.clone()).collect();
    links.iter().for_each(|link| link.look_for_end());
}

impl Abandoned {
    /// Whether anything is left to keep.
    fn look(&mut self, gone: &mut Gone) -> bool {
        let buffers = std::mem::take(&mut self.buffers);
        if self.link.as_ref().is_some_and(|link| link.readers_gone()) {
            gone.shared.extend(buffers);
        } else {
            for buffer in buffers {
                match buffer.try_into_mut() {
                    Ok(unique) => gone.writable.push(unique),
                    Err(shared) => self.buffers.push(shared),
                }
            }
        }
        if self.buffers.is_empty() {
            gone.links.extend(self.link.take());
        }
        !self.buffers.is_empty()
    }
}
