//! Buffers of lanes that are gone, which the peer may still read and of which the application keeps a clone.
//!
//! Whoever keeps the clone must not be able to write it, so one more is kept here (M4): until the peer's
//! last reader is gone, or the application's clone is. Memory of a group outlives the lane, and would be written again
//! at once: what the peer holds of that is kept until its last reader is gone, whoever else has it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zc_core::memory::{PinnedBuf, PinnedBufMut};

use crate::group::{Chores, Left};
use crate::lane::Link;
use crate::layout::PASSED_ON;
use crate::limits::{MAX_ABANDONED_LINKS, TRIM_INTERVAL_MS};
use crate::words::{PeerWords, ReadWords};

static ABANDONED: Mutex<Vec<Abandoned>> = Mutex::new(Vec::new());
/// How many of them have something of a group; changed under the lock.
static OF_GROUPS: AtomicUsize = AtomicUsize::new(0);
/// At most one entry per lane that is in a group.
static WATCHERS: Mutex<Vec<Weak<Chores>>> = Mutex::new(Vec::new());

/// Whether somebody has to look, for the sake of groups.
pub(crate) fn any_of_groups() -> bool {
    OF_GROUPS.load(Ordering::Acquire) > 0
}

/// From now on the lane is woken when there is.
pub(crate) fn watch(lane: &Arc<Chores>) {
    let mut watchers = WATCHERS.lock();
    watchers.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(lane)));
    watchers.push(Arc::downgrade(lane));
}

fn wake_watchers() {
    let watchers: Vec<_> = WATCHERS.lock().iter().filter_map(Weak::upgrade).collect();
    watchers.iter().for_each(|lane| lane.wake());
}

fn count_of_groups(all: &[Abandoned]) {
    OF_GROUPS.store(all.iter().filter(|one| !one.lent.is_empty()).count(), Ordering::Release);
}

struct Abandoned {
    buffers: Vec<PinnedBuf>,
    /// Of groups.
    lent: Vec<Left>,
    /// Who reads them; `None` when too many were watched, or others may still read them when the peer is gone.
    reader: Option<Reader>,
}

struct Reader {
    /// Its end says that the peer does not any more ...
    link: Arc<Link>,
    /// ... and this, whether it has passed our arenas on.
    words: PeerWords,
}

/// What is to be dropped when the lock is released: that may wake somebody.
#[derive(Default)]
struct Gone {
    left: Vec<Left>,
    writable: Vec<PinnedBufMut>,
    shared: Vec<PinnedBuf>,
    readers: Vec<Reader>,
}

/// Keeps `buffers`, as long as they are not unique, and what was `lent` of groups.
pub(crate) fn keep(buffers: Vec<PinnedBuf>, lent: Vec<Left>, link: Arc<Link>, words: PeerWords) {
    if buffers.is_empty() && lent.is_empty() {
        return;
    }
    let kept = buffers.len() + lent.len();
    tracing::debug!(kept, "the lane is gone while the peer may read what is kept here");
    look_at_links();
    let mut gone = Gone::default();
    {
        let mut all = ABANDONED.lock();
        all.push(Abandoned { buffers, lent, reader: Some(Reader { link, words }) });
        all.retain_mut(|one| one.look(&mut gone));
        let watched = all.iter().filter(|one| one.reader.is_some()).count();
        let too_many = watched.saturating_sub(MAX_ABANDONED_LINKS);
        for one in all.iter_mut().filter(|one| one.reader.is_some()).take(too_many) {
            gone.readers.extend(one.reader.take());
            // Nobody will hear when they are done with: never written again (M4).
            one.lent.drain(..).for_each(std::mem::forget);
        }
        all.retain(|one| !one.is_empty());
        count_of_groups(&all);
    }
    drop(gone);
    if any_of_groups() {
        wake_watchers();
    }
}

/// Lets go of what nobody reads or keeps any more.
pub(crate) fn sweep() {
    look_at_links();
    let mut gone = Gone::default();
    {
        let mut all = ABANDONED.lock();
        all.retain_mut(|one| one.look(&mut gone));
        count_of_groups(&all);
    }
    drop(gone);
}

/// The same, unless it was done a moment ago.
pub(crate) fn sweep_at_times() {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let now = Instant::now();
    let due = Duration::from_millis(TRIM_INTERVAL_MS / 2);
    let mut last = LAST.lock();
    if last.is_some_and(|last| now.duration_since(last) < due) {
        return;
    }
    *last = Some(now);
    drop(last);
    sweep();
}

/// Not under the lock of the table: an old waker may be dropped here, and much with it.
fn look_at_links() {
    let links: Vec<_> =
        ABANDONED.lock().iter().filter_map(|one| Some(one.reader.as_ref()?.link.clone())).collect();
    links.iter().for_each(|link| link.look_for_end());
}

impl Abandoned {
    /// Whether anything is left to keep.
    fn look(&mut self, gone: &mut Gone) -> bool {
        let buffers = std::mem::take(&mut self.buffers);
        let left = self.reader.take_if(|reader| reader.link.readers_gone());
        if left.is_some() {
            gone.left.append(&mut self.lent);
        }
        if left.as_ref().is_some_and(|reader| reader.words.load(PASSED_ON) == 0) {
            gone.shared.extend(buffers);
        } else {
            for buffer in buffers {
                match buffer.try_into_mut() {
                    Ok(unique) => gone.writable.push(unique),
                    Err(shared) => self.buffers.push(shared),
                }
            }
        }
        gone.readers.extend(left);
        if self.is_empty() {
            gone.readers.extend(self.reader.take());
        }
        !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.buffers.is_empty() && self.lent.is_empty()
    }
}
