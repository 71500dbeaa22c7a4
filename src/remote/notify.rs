//! What peers told an export, until its owner takes it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use zc_core::memory::Deferral;
use zc_core::transport::{NotifySink, RemoteKey};

use crate::connection::{quietly, renew};

/// Notifications of one export and connection that wait to be taken, whatever its keys; more fail at the peer with
/// [`RemoteFault::Busy`](crate::RemoteFault::Busy), so that one peer can't fill the queue for others.
pub const MAX_NOTIFICATIONS_PER_CONNECTION: usize = 256;
/// Notifications of one export that wait to be taken, all connections together.
pub const MAX_NOTIFICATIONS: usize = 4096;

/// A peer wrote and said so ([`RemoteMemory::write_with_notify`](crate::RemoteMemory::write_with_notify)). What
/// it wrote is there.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let fabric = zc::Fabric::auto()?;
/// # let mut listener = fabric.listen("zc+mem://notification").await?;
/// # let (client, server) = tokio::try_join!(fabric.connect("zc+mem://notification"), listener.accept())?;
/// use zc::transport::Access;
///
/// let export = fabric.export(4096)?;
/// let key = export.grant(&server, Access::WRITE, ..)?;
/// client.remote().write_with_notify(&key, 0, &b"hello"[..], 42).await?;
/// let told = export.notified().await;
/// assert_eq!((told.key, told.value), (key, 42));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notification {
    /// Which grant, and thereby which connection.
    pub key: RemoteKey,
    /// The peer's value.
    pub value: u64,
}

#[derive(Default)]
struct Queue {
    /// With the count of the connection that each belongs to.
    arrived: VecDeque<(Notification, Arc<AtomicUsize>)>,
    /// Places promised to writes under way.
    reserved: usize,
    /// Futures that wait, by number.
    waiting: Vec<(u64, Waker)>,
    next: u64,
    /// Connections that have more, for which there was no room.
    full: Vec<(Weak<AtomicUsize>, Waker)>,
}

#[derive(Default)]
pub(super) struct Notifications(Mutex<Queue>);

/// A place in the queue; given back if it is not used.
pub(super) struct Reserved<'a> {
    queue: &'a Notifications,
    of_connection: &'a Arc<AtomicUsize>,
}

impl Queue {
    fn has_room(&self, of_connection: &AtomicUsize) -> bool {
        self.arrived.len() + self.reserved < MAX_NOTIFICATIONS
            && of_connection.load(Relaxed) < MAX_NOTIFICATIONS_PER_CONNECTION
    }

    /// Has a connection woken when there may be room. Returns what is to be dropped outside of the lock.
    fn wait_for_room(
        &mut self,
        of_connection: &Arc<AtomicUsize>,
        waker: &Waker,
    ) -> Vec<(Weak<AtomicUsize>, Waker)> {
        let gone = self.full.extract_if(.., |(whose, _)| whose.strong_count() == 0).collect();
        match self.full.iter_mut().find(|(whose, _)| whose.as_ptr() == Arc::as_ptr(of_connection)) {
            Some((_, old)) => renew(old, waker),
            None => self.full.push((Arc::downgrade(of_connection), waker.clone())),
        }
        gone
    }
}

impl Notifications {
    /// A place for one of a connection that `of_connection` counts, if there is one.
    pub(super) fn reserve<'a>(&'a self, of_connection: &'a Arc<AtomicUsize>) -> Option<Reserved<'a>> {
        let mut queue = self.0.lock();
        if !queue.has_room(of_connection) {
            return None;
        }
        queue.reserved += 1;
        of_connection.fetch_add(1, Relaxed);
        Some(Reserved { queue: self, of_connection })
    }

    /// The same, and if there is none the waker is woken when one is taken.
    fn poll_reserve<'a>(
        &'a self,
        cx: &Context<'_>,
        of_connection: &'a Arc<AtomicUsize>,
    ) -> Poll<Reserved<'a>> {
        if let Some(place) = self.reserve(of_connection) {
            return Poll::Ready(place);
        }
        let gone = self.0.lock().wait_for_room(of_connection, cx.waker());
        drop(gone);
        // One that was taken in between has woken nobody.
        self.reserve(of_connection).map_or(Poll::Pending, Poll::Ready)
    }

    pub(super) fn take(&self) -> Option<Notification> {
        let mut queue = self.0.lock();
        let (notification, of_connection) = queue.arrived.pop_front()?;
        of_connection.fetch_sub(1, Relaxed);
        let full = std::mem::take(&mut queue.full);
        drop(queue);
        full.into_iter().for_each(|(_, waker)| Deferral::wake(waker));
        Some(notification)
    }

    pub(super) async fn next(&self) -> Notification {
        let mut wait = Wait { queue: self, number: None };
        poll_fn(|cx| wait.poll(cx)).await
    }
}

impl Reserved<'_> {
    pub(super) fn notify(self, key: RemoteKey, value: u64) {
        let waiting = {
            let mut queue = self.queue.0.lock();
            queue.arrived.push_back((Notification { key, value }, self.of_connection.clone()));
            // Counted again, for the one that is dropped now.
            self.of_connection.fetch_add(1, Relaxed);
            std::mem::take(&mut queue.waiting)
        };
        // All of them: the one that is first may be about to go away.
        waiting.into_iter().for_each(|(_, waker)| Deferral::wake(waker));
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.queue.0.lock().reserved -= 1;
        self.of_connection.fetch_sub(1, Relaxed);
    }
}

struct Wait<'a> {
    queue: &'a Notifications,
    number: Option<u64>,
}

impl Wait<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Notification> {
        if let Some(notification) = self.queue.take() {
            return Poll::Ready(notification);
        }
        quietly(|| self.register(cx.waker()));
        // One that came in between has woken nobody.
        self.queue.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn register(&mut self, waker: &Waker) {
        let mut queue = self.queue.0.lock();
        let number = *self.number.get_or_insert_with(|| {
            queue.next += 1;
            queue.next
        });
        match queue.waiting.iter_mut().find(|(n, _)| *n == number) {
            Some((_, old)) => renew(old, waker),
            None => queue.waiting.push((number, waker.clone())),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut queue = self.queue.0.lock();
            let at = queue.waiting.iter().position(|(n, _)| *n == number);
            let left = at.map(|at| queue.waiting.remove(at));
            drop(queue);
            drop(left);
        }
    }
}

/// Where a lane of its own puts the notifications of one key.
pub(super) struct KeySink {
    pub(super) export: Weak<super::export::Shared>,
    pub(super) key: std::sync::OnceLock<RemoteKey>,
    pub(super) of_connection: Arc<AtomicUsize>,
}

impl NotifySink for KeySink {
    fn poll_notify(&self, cx: &mut Context<'_>, value: u64) -> Poll<()> {
        // Of an export that is gone it is nobody's, and so is one in front of the key.
        if let (Some(export), Some(key)) = (self.export.upgrade(), self.key.get()) {
            let place = std::task::ready!(export.notifications.poll_reserve(cx, &self.of_connection));
            place.notify(*key, value);
        }
        Poll::Ready(())
    }
}
