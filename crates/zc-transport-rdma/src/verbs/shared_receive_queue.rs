//! Receive buffers for all queue pairs of an engine.

use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use smallvec::SmallVec;
use zc_core::memory::{PinnedBufMut, Region, RegisterError};

use super::completion_queue::CompletionQueue;
use super::error::{PostError, VerbsError};
use super::flights::{Flight, QueueId};
use super::protection_domain::ProtectionDomain;
use super::slab::Token;
use crate::limits::POST_BATCH;
use crate::sys;

/// A shared receive queue.
///
/// ```
/// use zc_core::memory::BufPool;
/// use zc_transport_rdma::{CompletionQueue, Device, ProtectionDomain, SharedReceiveQueue};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = Device::all() else { return Ok(()) };
/// let context = devices[0].open()?;
/// let (domain, completions) = (ProtectionDomain::new(&context)?, CompletionQueue::new(&context, 64)?);
/// let queue = SharedReceiveQueue::new(&domain, &completions, 16)?;
/// let mut buffers = vec![BufPool::builder().build().try_alloc(4096)?];
/// queue.post(&mut buffers)?;
/// assert_eq!(queue.posted(), 1);
/// # Ok(())
/// # }
/// ```
pub struct SharedReceiveQueue {
    domain: Arc<ProtectionDomain>,
    completions: Arc<CompletionQueue>,
    raw: NonNull<sys::ibv_srq>,
    id: QueueId,
}

// SAFETY: the library's objects may be used from any thread, several at a time (its manual).
unsafe impl Send for SharedReceiveQueue {}
// SAFETY: as for Send.
unsafe impl Sync for SharedReceiveQueue {}

impl std::fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedReceiveQueue").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SharedReceiveQueue {
    /// A queue for `depth` buffers.
    ///
    /// # Errors
    /// What the library says; `ENOSPC` if the completion queue is too short for it.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        depth: u32,
    ) -> Result<Arc<Self>, VerbsError> {
        // By their handles alone the kernel would take another device's queues for its own.
        if !Arc::ptr_eq(domain.context(), completions.context()) {
            return Err(VerbsError { operation: "a receive queue of two devices", errno: libc::EINVAL });
        }
        let id = completions.open(depth)?;
        let attr = sys::ibv_srq_attr { max_wr: depth, max_sge: 1, srq_limit: 0 };
        let mut attr = sys::ibv_srq_init_attr { srq_context: null_mut(), attr };
        // SAFETY: the domain exists (M4).
        let raw = unsafe { (domain.context().verbs().create_srq)(domain.raw(), &mut attr) };
        let raw = VerbsError::non_null("ibv_create_srq", raw).inspect_err(|_| completions.close(id))?;
        Ok(Arc::new(Self { domain: domain.clone(), completions: completions.clone(), raw, id }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_srq {
        self.raw.as_ptr()
    }

    pub(super) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(super) fn completions(&self) -> &Arc<CompletionQueue> {
        &self.completions
    }

    /// How many buffers wait for messages.
    pub fn posted(&self) -> u32 {
        self.completions.state().flights.count(self.id)
    }

    /// How many more it takes.
    pub fn room(&self) -> u32 {
        self.completions.state().flights.room(self.id)
    }

    /// Posts buffers from the end of `buffers`, as many as there is room for; says how many. Of each the whole capacity
    /// may be filled. Those whose memory can't be registered are passed over.
    ///
    /// # Errors
    /// No memory that can be registered, or what the library says; buffers that were not posted are still there.
    pub fn post(&self, buffers: &mut Vec<PinnedBufMut>) -> Result<u32, PostError> {
        // Before anything is locked: it takes a while.
        let (unfit, why) = take_unfit(buffers, |region| self.domain.lkey(region));
        let posted = self.post_all(buffers);
        buffers.extend(unfit);
        match (posted?, why) {
            (0, Some(error)) => Err(error.into()),
            (posted, Some(error)) => {
                tracing::debug!(%error, posted, "not all receive buffers can be posted");
                Ok(posted)
            }
            (posted, None) => Ok(posted),
        }
    }

    fn post_all(&self, buffers: &mut Vec<PinnedBufMut>) -> Result<u32, VerbsError> {
        let mut posted = 0;
        loop {
            match self.post_some(buffers)? {
                0 => return Ok(posted),
                some => posted += some,
            }
        }
    }

    /// Rings the doorbell once.
    fn post_some(&self, buffers: &mut Vec<PinnedBufMut>) -> Result<u32, VerbsError> {
        let mut state = self.completions.state();
        let count = buffers.len().min(POST_BATCH).min(state.flights.room(self.id) as usize);
        if count == 0 {
            return Ok(0);
        }
        let mut pieces = SmallVec::<[sys::ibv_sge; POST_BATCH]>::new();
        let mut requests = SmallVec::<[sys::ibv_recv_wr; POST_BATCH]>::new();
        let mut tokens = SmallVec::<[Token; POST_BATCH]>::new();
        for mut buf in buffers.drain(buffers.len() - count..) {
            let lkey = buf.region().and_then(|region| self.domain.known(region)).unwrap_or(0);
            buf.clear();
            let memory = buf.unfilled_mut();
            let length = u32::try_from(memory.len()).unwrap_or(u32::MAX);
            pieces.push(sys::ibv_sge { addr: memory.as_mut_ptr().expose_provenance() as u64, length, lkey });
            let token = state.flights.begin(Flight::Recv { queue: self.id, buf });
            let wr_id = token.to_bits();
            tokens.push(token);
            requests.push(sys::ibv_recv_wr { wr_id, next: null_mut(), sg_list: null_mut(), num_sge: 1 });
        }
        let (first, pieces) = (requests.as_mut_ptr(), pieces.as_mut_ptr());
        for index in 0..count {
            // SAFETY: both lists have `count` entries and do not move any more.
            unsafe {
                let request = first.add(index);
                (*request).sg_list = pieces.add(index);
                (*request).next = if index + 1 < count { first.add(index + 1) } else { null_mut() };
            }
        }
        let mut bad = null_mut();
        let post = self.domain.context().operations().post_srq_recv;
        // SAFETY: a list that ends with null, and is the caller's again when this returns. The memory in it is owned by
        // the completion queue until its completions were taken (M1, M2); the queue exists (M4).
        let returned = unsafe { post(self.raw.as_ptr(), first, &mut bad) };
        let Err(error) = VerbsError::check("ibv_post_srq_recv", returned) else { return Ok(count as u32) };
        let taken = taken(first, bad, count);
        for token in tokens.drain(taken..).rev() {
            if let Some(Flight::Recv { buf, .. }) = state.flights.undo(token) {
                buffers.push(buf);
            }
        }
        Err(error)
    }
}

/// Takes out the buffers that a device can't be given, and says why of the last. A region that is refused is not tried again.
fn take_unfit(
    buffers: &mut Vec<PinnedBufMut>,
    mut register: impl FnMut(&Region) -> Result<u32, RegisterError>,
) -> (Vec<PinnedBufMut>, Option<RegisterError>) {
    let (mut refused, mut why) = (None, None);
    let is_unfit = |buf: &mut PinnedBufMut| {
        let error = match buf.region() {
            None => RegisterError::Unsupported("memory that lies in no region"),
            // To some devices a length of 0 means 2 GiB.
            Some(_) if buf.capacity() == 0 => RegisterError::Unsupported("a buffer for no bytes"),
            Some(region) if refused == Some(region.id()) => return true,
            Some(region) => match register(region) {
                Ok(_) => return false,
                Err(error) => {
                    refused = Some(region.id());
                    error
                }
            },
        };
        why = Some(error);
        true
    };
    let unfit = buffers.extract_if(.., is_unfit).collect();
    (unfit, why)
}

/// How many of a list the device has: those before the first bad one. If that is not said, all may be the device's (M2).
pub(super) fn taken<T>(first: *const T, bad: *const T, count: usize) -> usize {
    let at = bad.addr().wrapping_sub(first.addr()) / size_of::<T>();
    if bad.addr() >= first.addr() && at < count { at } else { count }
}

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        if !self.domain.context().is_ours() {
            return;
        }
        // SAFETY: the queue pairs that used it are gone, for each of those holds it (M4).
        let returned = unsafe { (self.domain.context().verbs().destroy_srq)(self.raw.as_ptr()) };
        match VerbsError::check("ibv_destroy_srq", returned) {
            Ok(()) => self.completions.close(self.id),
            Err(error) => {
                tracing::error!(%error, "a shared receive queue and its buffers are leaked (M4)");
                std::mem::forget((self.domain.clone(), self.completions.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zc_core::memory::BufPool;

    #[test]
    fn one_region_that_is_refused_does_not_keep_others_back() {
        let (good, bad) = (BufPool::builder().build(), BufPool::builder().build());
        let alloc = |pool: &BufPool| pool.try_alloc(100).unwrap();
        let mut buffers = vec![alloc(&good), alloc(&bad), alloc(&bad), alloc(&good), alloc(&bad)];
        let (of_good, of_bad) = (buffers[0].region().unwrap().id(), buffers[1].region().unwrap().id());
        assert!(buffers.iter().all(|buf| [of_good, of_bad].contains(&buf.region().unwrap().id())));
        let mut refusals = 0;
        let (unfit, why) = take_unfit(&mut buffers, |region| {
            if region.id() != of_bad {
                return Ok(1);
            }
            refusals += 1;
            Err(RegisterError::Unsupported("a test"))
        });
        let all_of =
            |buffers: &[PinnedBufMut], id| buffers.iter().all(|buf| buf.region().unwrap().id() == id);
        assert!(all_of(&buffers, of_good) && all_of(&unfit, of_bad));
        assert_eq!((buffers.len(), unfit.len(), refusals), (2, 3, 1));
        assert!(matches!(why, Some(RegisterError::Unsupported("a test"))));
    }

    #[test]
    fn what_a_device_has_is_rather_overestimated() {
        let list = [0u64; 4];
        let first = list.as_ptr();
        assert_eq!(taken(first, first, 4), 0);
        assert_eq!(taken(first, &list[3], 4), 3);
        assert_eq!(taken(first, null_mut(), 4), 4);
        assert_eq!(taken(first, first.wrapping_add(4), 4), 4);
        assert_eq!(taken(first, first.wrapping_sub(1), 4), 4);
    }
}
