//! What is in flight: the ring, the table of operations, and the receive buffers, which only go together.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use io_uring::squeue;
use zc_core::memory::{AllocError, Region};

use super::area::{Area, AreaCounts};
use super::buffers::{BufferCounts, Buffers, Pieces};
use super::fixed::{Fixed, Settled};
use super::grave::{self, Kept};
use super::request::{self, Completion, NOBODYS, Request};
use super::ring::Ring;
use crate::limits::{MAX_CANCELS, SQ_ENTRIES};
use crate::slab::{Release, Slab, Step, Token};

struct Flight<T> {
    request: Request,
    tag: T,
    /// How often the kernel was asked to end it.
    cancels: u8,
}

/// A completion, for whoever `tag` says.
pub(crate) struct Event<'a, T> {
    pub(crate) tag: &'a mut T,
    pub(crate) result: i32,
    /// Another one follows.
    pub(crate) more: bool,
    /// Of the notification of a zero-copy send: whether the kernel copied.
    pub(crate) copied: Option<bool>,
    /// What was received, where the kernel chose to put it.
    pub(crate) pieces: Pieces,
    /// It lies in the ring's area, of which so much is lent that it should not stay there.
    pub(crate) is_short: bool,
    /// The operation is over and has no owner: this is what it had.
    pub(crate) left: Option<Request>,
}

/// What a ring that closes leaves behind.
pub(crate) struct Left<T> {
    /// Those of operations that were in flight.
    pub(crate) tags: Vec<T>,
    /// Memory that it was to know. Letting go of it runs other people's code, for which no lock may be held.
    pub(crate) wanted: Vec<Region>,
}

/// A ring and everything that it may still touch.
pub(crate) struct Flights<T> {
    /// `None` once it is closed.
    ring: Option<Ring>,
    slab: Slab<Flight<T>>,
    /// What has no place in the submission queue yet. At most one entry for each operation, and one to cancel it.
    queue: VecDeque<squeue::Entry>,
    buffers: Option<Buffers>,
    /// Into which a NIC receives.
    area: Option<Area>,
    /// Memory that the ring knows ahead.
    fixed: Option<Arc<Fixed>>,
    /// Operations that began on such memory.
    on_fixed: u64,
    repeated: u64,
    misnamed: u64,
}

impl<T> Flights<T> {
    pub(crate) fn new(ring: Ring, buffers: Option<Buffers>, max: usize) -> Self {
        let (ring, slab, queue) = (Some(ring), Slab::new(max), VecDeque::new());
        Self { ring, slab, queue, buffers, area: None, fixed: None, on_fixed: 0, repeated: 0, misnamed: 0 }
    }

    /// With what its ring knows ahead.
    pub(crate) fn with_fixed(mut self, fixed: Option<Arc<Fixed>>) -> Self {
        self.fixed = fixed;
        self
    }

    /// With an area that is registered with its ring.
    pub(crate) fn with_area(mut self, area: Option<Area>) -> Self {
        self.area = area;
        self
    }

    pub(crate) fn area(&mut self) -> Option<&mut Area> {
        self.area.as_mut()
    }

    pub(crate) fn area_counts(&self) -> AreaCounts {
        self.area.as_ref().map(Area::counts).unwrap_or_default()
    }

    pub(crate) fn flying(&self) -> usize {
        self.slab.flying()
    }

    /// Operations in flight, and those whose results were not taken yet.
    pub(crate) fn places_taken(&self) -> usize {
        self.slab.len()
    }

    /// Completions that named no operation of ours, or no buffer.
    pub(crate) fn unknown(&self) -> u64 {
        self.slab.unknown() + self.misnamed
    }

    /// Operations that began on memory that the ring knows ahead.
    pub(crate) fn on_fixed(&self) -> u64 {
        self.on_fixed
    }

    /// Operations that were done once more because their thread had ended.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// The receive buffers' group, if there are any.
    pub(crate) fn group(&self) -> Option<u16> {
        self.buffers.as_ref().map(Buffers::group)
    }

    pub(crate) fn buffer_counts(&self) -> BufferCounts {
        self.buffers.as_ref().map(Buffers::counts).unwrap_or_default()
    }

    /// See [`Buffers::poll_provide`].
    pub(crate) fn poll_provide(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AllocError>> {
        self.buffers.as_mut().map_or(Poll::Ready(Ok(())), |buffers| buffers.poll_provide(cx))
    }

    /// See [`Buffers::stop_waiting`].
    pub(crate) fn stop_waiting(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.stop_waiting();
        }
    }

    pub(crate) fn ring(&mut self) -> Option<&mut Ring> {
        self.ring.as_mut()
    }

    /// Begins an operation; `None`: there is no place for it.
    pub(crate) fn start(&mut self, owned: bool, request: Request, tag: T) -> Option<Token> {
        let is_on_fixed = request.is_on_fixed();
        let flight = Flight { request, tag, cancels: 0 };
        let token = self.slab.insert(owned, flight).ok()?;
        self.on_fixed += u64::from(is_on_fixed);
        if let Some(flight) = self.slab.flying_mut(token) {
            self.queue.push_back(flight.request.entry(token));
        }
        Some(token)
    }

    /// Asks the kernel to end an operation soon, once, and again where it did not find it.
    pub(crate) fn cancel(&mut self, token: Token) {
        if let Some(flight) = self.slab.flying_mut(token)
            && flight.cancels == 0
        {
            flight.cancels = 1;
            self.queue.push_back(request::cancel(token));
        }
    }

    /// Asks the kernel to end all of them.
    pub(crate) fn cancel_all(&mut self) {
        for token in self.slab.tokens() {
            if let Some(flight) = self.slab.flying_mut(token) {
                flight.cancels = flight.cancels.max(1);
            }
        }
        self.queue.push_back(request::cancel_all());
    }

    /// The tag of an operation that is in flight or waits for its owner.
    pub(crate) fn tag_mut(&mut self, token: Token) -> Option<&mut T> {
        self.slab.value_mut(token).map(|flight| &mut flight.tag)
    }

    /// The request and tag of an owned operation that is over.
    pub(crate) fn take(&mut self, token: Token) -> Option<(Request, T)> {
        self.slab.take(token).map(|flight| (flight.request, flight.tag))
    }

    /// The owner of an operation goes, and with `cancel` takes it back. What comes back was over already.
    pub(crate) fn release(&mut self, token: Token, cancel: bool) -> Option<(Request, T)> {
        match self.slab.release(token) {
            Release::Landed(flight) => Some((flight.request, flight.tag)),
            Release::Flying => {
                if cancel {
                    self.cancel(token);
                }
                None
            }
            Release::Unknown => None,
        }
    }

    /// Whether a turn would find something to do.
    pub(crate) fn has_work(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let has_word = self.fixed.as_ref().is_some_and(|fixed| fixed.has_word());
        has_word
            || !self.queue.is_empty()
            || ring.has_submissions()
            || ring.has_completions()
            || ring.has_hidden_work()
    }

    /// Has `cx` woken when memory is to be made known to the ring, or forgotten; whoever then finds no work may sleep.
    pub(crate) fn park(&self, cx: &Context<'_>) {
        if let Some(fixed) = &self.fixed {
            fixed.park(cx);
        }
    }

    /// Tells the ring which memory has come and gone; if it is about to close, only which has gone.
    pub(crate) fn settle(&mut self, goes_on: bool, settled: &mut Settled) {
        if let Some((ring, fixed)) = self.ring.as_ref().zip(self.fixed.as_ref()) {
            fixed.settle(ring, goes_on, settled);
        }
        self.settle_area();
    }

    /// Has the kernel take what came back to the area, where that is due.
    pub(crate) fn settle_area(&mut self) {
        if let Some((ring, area)) = self.ring.as_ref().zip(self.area.as_mut()) {
            area.settle(ring);
        }
    }

    /// How many system calls it takes to submit what is queued.
    pub(crate) fn batches(&self) -> usize {
        self.queue.len().div_ceil(SQ_ENTRIES as usize)
    }

    /// Submits what is queued, as much as the submission queue holds, with one system call.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        while let Some(entry) = self.queue.front() {
            // SAFETY: what the entry points to is owned by a request in `slab`, which gives it away with the last
            // completion, and which the undertaker keeps if the ring closes before (M1, M2, M4).
            if !unsafe { ring.push(entry) } {
                break;
            }
            self.queue.pop_front();
        }
        if !ring.has_submissions() && !ring.has_hidden_work() {
            return Ok(());
        }
        match ring.enter() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, completions must be taken first, or memory is short: the next turn tries again.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes the completions that are there now and tells `each`; how many there were.
    pub(crate) fn reap(&mut self, mut each: impl FnMut(Event<'_, T>)) -> usize {
        self.settle_area();
        let Some(ring) = &mut self.ring else { return 0 };
        let mut count = 0;
        for mut completion in ring.completions() {
            count += 1;
            if completion.user_data == NOBODYS {
                continue;
            }
            if let Some(token) = Token::from_cancel_bits(completion.user_data) {
                // One that became ready while it was submitted is in no list of the kernel's until the end of that call.
                if completion.result == -libc::ENOENT
                    && let Some(flight) = self.slab.flying_mut(token)
                    && flight.cancels < MAX_CANCELS
                {
                    flight.cancels += 1;
                    self.queue.push_back(request::cancel(token));
                }
                continue;
            }
            let token = Token::from_bits(completion.user_data);
            let mut pieces = match completion.buffer.zip(self.buffers.as_mut()) {
                Some((number, buffers)) => {
                    let len = usize::try_from(completion.result).unwrap_or(0);
                    buffers.take(number, len, completion.buffer_more).unwrap_or_else(|| {
                        self.misnamed += 1;
                        completion.result = -libc::EIO;
                        Pieces::new()
                    })
                }
                None => Pieces::new(),
            };
            let Some(flight) = self.slab.flying_mut(token) else {
                self.slab.step(token, completion.more);
                continue;
            };
            let is_result = !completion.more && !completion.is_notification;
            let mut is_short = false;
            if flight.request.is_into_area()
                && let Some(area) = &mut self.area
            {
                match usize::try_from(completion.result) {
                    // The end of the stream names no place.
                    Ok(0) => {}
                    Ok(len) => match area.take(completion.offset, len) {
                        Ok(lent) => (pieces, is_short) = (lent, area.is_short()),
                        Err(errno) => {
                            self.misnamed += u64::from(errno == libc::EIO);
                            completion.result = -errno;
                        }
                    },
                    Err(_) => area.ended(completion.result),
                }
            }
            if is_result && flight.cancels == 0 && flight.request.may_repeat(completion.result) {
                self.queue.push_back(flight.request.entry(token));
                self.repeated += 1;
                continue;
            }
            if is_result {
                flight.request.landed(completion.result);
            }
            Self::tell(&mut self.slab, token, &completion, (pieces, is_short), &mut each);
        }
        count
    }

    fn tell(
        slab: &mut Slab<Flight<T>>,
        token: Token,
        completion: &Completion,
        (pieces, is_short): (Pieces, bool),
        each: &mut impl FnMut(Event<'_, T>),
    ) {
        let copied = completion.is_notification.then(|| completion.was_copied());
        let (result, more) = (completion.result, completion.more);
        match slab.step(token, more) {
            Step::Gone(Flight { request, mut tag, .. }) => {
                each(Event { tag: &mut tag, result, more, copied, pieces, is_short, left: Some(request) });
            }
            Step::More | Step::Landed => {
                if let Some(flight) = slab.value_mut(token) {
                    each(Event { tag: &mut flight.tag, result, more, copied, pieces, is_short, left: None });
                }
            }
            Step::Unknown => {}
        }
    }

    /// What is in flight, with the ring closed, for who buries it in another way.
    #[cfg(test)]
    pub(super) fn close_for_test(&mut self) -> (std::os::fd::OwnedFd, Kept) {
        let mut kept = Kept::new(self.buffers.take(), Vec::new());
        let ring = self.ring.take().expect("a ring that is open");
        self.slab.take_flying().into_iter().for_each(|(_, flight)| kept.push(flight.request));
        (ring.close().0, kept)
    }

    /// Closes the ring. The memory of what is in flight stays until the kernel is done with it; results that are there
    /// stay for their owners.
    pub(crate) fn close(&mut self) -> Left<T> {
        let mut tags = Vec::new();
        let Some(ring) = self.ring.take() else { return Left { tags, wanted: Vec::new() } };
        let mut unseen: Vec<_> = self.queue.drain(..).map(|entry| entry.get_user_data()).collect();
        unseen.sort_unstable();
        let mut never_began = Vec::new();
        let (mut locked, wanted) = self.fixed.as_ref().map(|fixed| fixed.close()).unwrap_or_default();
        locked.extend(self.area.as_mut().and_then(Area::close));
        // Kept from here on: what closes the ring may log, which is other people's code (M4).
        let mut kept = Kept::new(self.buffers.take(), locked);
        for (token, Flight { mut request, tag, .. }) in self.slab.take_flying() {
            tags.push(tag);
            if unseen.binary_search(&token.to_bits()).is_ok() {
                never_began.push(request);
                continue;
            }
            request.lost();
            // A ring that goes takes back what is lent while its receives go on: they must find nothing to write (M5).
            if request.is_into_area() {
                request.cut();
            }
            kept.push(request);
        }
        let (gone, goes) = ring.close();
        if !goes {
            kept.hang_up();
        }
        // With nothing in flight nobody receives into the buffers.
        if kept.operations() == 0 {
            kept.let_go_of_buffers();
        }
        if kept.is_over() {
            kept.let_go()
        } else {
            grave::bury(gone, kept)
        }
        // The kernel has never heard of these: a descriptor that was to be closed is closed here.
        drop(never_began);
        Left { tags, wanted }
    }
}

impl<T> Drop for Flights<T> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::Setup;
    use super::*;
    use std::os::fd::OwnedFd;
    use zc_core::memory::{BufPool, RegionId, RegisterError, Registrar, RegistrarId, RegistrarSlot};

    /// Panics wherever something is logged.
    struct Panics;
    impl tracing::Subscriber for Panics {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            panic!("a subscriber panics, as the test wants it");
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    /// Can't let go of anything, which is logged.
    struct Refuses(RegistrarSlot);
    impl Registrar for Refuses {
        fn id(&self) -> RegistrarId {
            self.0.id()
        }
        fn register(&self, _: &Region) -> Result<u64, RegisterError> {
            Ok(1)
        }
        fn deregister(&self, _: RegionId, _: u64) -> io::Result<()> {
            Err(io::Error::other("busy"))
        }
    }

    /// Other people's code that unwinds while the ring closes takes no memory from the kernel.
    #[test]
    fn a_panic_while_it_closes_lets_go_of_nothing() {
        let setup = Setup { single_issuer: false, defer_taskrun: false, coop_taskrun: false, wide: false };
        let Ok(ring) = Ring::new(setup, 4, 8) else { return };
        let Some(fixed) = Fixed::new(&ring, 1) else { return };
        // As long as this is open the kernel uses the memory.
        let still_open = ring.duplicate();
        let mut flights = Flights::new(ring, None, 1).with_fixed(Some(fixed.clone()));
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = Arc::new(OwnedFd::from(socket));
        flights.start(true, Request::recv(&file, pool.try_alloc(1000).unwrap(), 1000, true), ()).unwrap();
        flights.submit().unwrap();
        let refuses: Arc<dyn Registrar> = Arc::new(Refuses(RegistrarSlot::allocate().unwrap()));
        let region = Region::builder(4096).build().unwrap();
        region.register_with(&refuses).unwrap();
        fixed.register(&region).unwrap();
        drop(region);
        let close = std::panic::AssertUnwindSafe(|| drop(flights.close()));
        let closed = std::panic::catch_unwind(|| tracing::subscriber::with_default(Panics, close));
        assert!(closed.is_err(), "nothing was logged");
        drop(flights);
        assert!(pool.stats().in_use_bytes >= 1000, "the kernel's memory was let go of");
        drop(still_open);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while pool.stats().in_use_bytes > 0 {
            assert!(std::time::Instant::now() < until, "it was never let go of");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// The kernel does not find what it is to cancel, and has it a moment later.
    #[test]
    fn what_was_not_found_is_cancelled_again() {
        let setup = Setup { single_issuer: false, defer_taskrun: false, coop_taskrun: false, wide: false };
        let Ok(ring) = Ring::new(setup, 4, 8) else { return };
        let mut flights = Flights::new(ring, None, 1);
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = Arc::new(OwnedFd::from(socket));
        let request = Request::recv(&file, pool.try_alloc(10).unwrap(), 10, true);
        let token = flights.start(false, request, ()).unwrap();
        flights.cancel(token);
        flights.queue.swap(0, 1);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while flights.flying() > 0 {
            assert!(std::time::Instant::now() < until, "it was never cancelled");
            flights.submit().unwrap();
            flights.reap(|event| assert_eq!(event.result, -libc::ECANCELED));
        }
        assert_eq!(flights.unknown(), 0);
    }
}
