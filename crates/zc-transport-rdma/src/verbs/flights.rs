//! What devices have in hand: work requests with their memory, in the order in which queues took them. No I/O.
//!
//! ```text
//! send queue: posted ... posted ... signalled      one completion ends all up to its own: they end in order
//! receive queue: any order
//! ```

use std::collections::VecDeque;

use zc_core::memory::PinnedBufMut;

use super::error::WorkError;
use super::slab::{Slab, Token};
use super::work::Work;

/// Names one send or receive queue of a completion queue, and no later one.
///
/// ```
/// use zc_transport_rdma::{Completion, QueueId};
///
/// /// Whether this is about what the queue pair with that id sent.
/// fn is_of(completion: &Completion, id: QueueId) -> bool {
///     matches!(completion, Completion::Sent { queue, .. } if *queue == id)
/// }
/// # let _ = is_of;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueueId(pub(super) Token);

/// What came in.
///
/// ```
/// use zc_transport_rdma::Received;
///
/// let received = Received { bytes: 4, immediate: Some(7), was_write: false };
/// assert_eq!(received.immediate, Some(7));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The length of the message, or of what was written.
    pub bytes: u32,
    /// The word that went with it.
    pub immediate: Option<u32>,
    /// The peer wrote into memory that it was given, and the buffer came back empty.
    pub was_write: bool,
}

/// A work request is over, and its memory is ours again.
///
/// ```
/// use zc_transport_rdma::Completion;
///
/// fn failed(completion: &Completion) -> bool {
///     match completion {
///         Completion::Sent { result, .. } => result.is_err(),
///         Completion::Received { result, .. } => result.is_err(),
///     }
/// }
/// # let _ = failed;
/// ```
#[derive(Debug)]
pub enum Completion {
    /// Of a queue pair; what it fills is filled.
    Sent {
        /// [`QueuePair::id`](super::QueuePair::id).
        queue: QueueId,
        /// As it was posted.
        work: Work,
        /// How it ended.
        result: Result<(), WorkError>,
    },
    /// Of a shared receive queue.
    Received {
        /// The number of the queue pair that took the buffer; of no meaning if that one is gone.
        queue_pair: u32,
        /// The buffer, with what was received.
        buf: PinnedBufMut,
        /// How it ended.
        result: Result<Received, WorkError>,
    },
}

/// Something in a device's hands.
#[derive(Debug)]
pub(super) enum Flight {
    Send { queue: QueueId, work: Work },
    Recv { queue: QueueId, buf: PinnedBufMut },
}

impl Flight {
    fn queue(&self) -> QueueId {
        match self {
            Self::Send { queue, .. } | Self::Recv { queue, .. } => *queue,
        }
    }
}

struct Queue {
    depth: u32,
    count: u32,
    /// Of a send queue, oldest first.
    order: VecDeque<Token>,
    /// Posted since the last that is signalled.
    unsignalled: u32,
}

pub(super) struct Flights {
    flights: Slab<Flight>,
    queues: Slab<Queue>,
    /// Completions that named nothing (M3).
    unknown: u64,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self { flights: Slab::new(), queues: Slab::new(), unknown: 0 }
    }

    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(super) fn flying(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn open(&mut self, depth: u32) -> QueueId {
        QueueId(self.queues.insert(Queue { depth, count: 0, order: VecDeque::new(), unsignalled: 0 }))
    }

    /// The device is done with the queue: what was in it, and how deep it was.
    pub(super) fn close(&mut self, queue: QueueId) -> (Vec<Flight>, u32) {
        let depth = self.queues.remove(queue.0).map_or(0, |queue| queue.depth);
        (self.flights.extract(|flight| flight.queue() == queue), depth)
    }

    pub(super) fn count(&self, queue: QueueId) -> u32 {
        self.queues.value(queue.0).map_or(0, |queue| queue.count)
    }

    /// How many more the queue takes.
    pub(super) fn room(&self, queue: QueueId) -> u32 {
        self.queues.value(queue.0).map_or(0, |queue| queue.depth - queue.count)
    }

    /// Whether the next one is to be signalled, at the latest after `every`.
    pub(super) fn signal(&mut self, queue: QueueId, wanted: bool, every: u32) -> bool {
        let Some(queue) = self.queues.value_mut(queue.0) else { return true };
        let signal = wanted || queue.unsignalled + 1 >= every;
        queue.unsignalled = if signal { 0 } else { queue.unsignalled + 1 };
        signal
    }

    /// The one before is signalled after all.
    pub(super) fn was_signalled(&mut self, queue: QueueId) {
        if let Some(queue) = self.queues.value_mut(queue.0) {
            queue.unsignalled = 0;
        }
    }

    /// Notes what is handed to the device next. The caller has looked for [`room`](Self::room).
    pub(super) fn begin(&mut self, flight: Flight) -> Token {
        let (id, is_send) = (flight.queue(), matches!(flight, Flight::Send { .. }));
        let token = self.flights.insert(flight);
        if let Some(queue) = self.queues.value_mut(id.0) {
            queue.count += 1;
            if is_send {
                queue.order.push_back(token);
            }
        }
        token
    }

    /// The device did not take it. Of a send queue it is the last one.
    pub(super) fn undo(&mut self, token: Token) -> Option<Flight> {
        let flight = self.flights.remove(token)?;
        if let Some(queue) = self.queues.value_mut(flight.queue().0) {
            queue.count -= 1;
            if queue.order.back() == Some(&token) {
                queue.order.pop_back();
            }
        }
        Some(flight)
    }

    /// A completion came in. One of a send queue also ends what was posted before it.
    pub(super) fn complete(
        &mut self,
        token: Token,
        queue_pair: u32,
        result: Result<Received, WorkError>,
        out: &mut Vec<Completion>,
    ) {
        match self.flights.value(token) {
            None => self.unknown += 1,
            Some(Flight::Send { queue, .. }) => {
                let queue = *queue;
                while let Some(first) =
                    self.queues.value_mut(queue.0).and_then(|queue| queue.order.pop_front())
                {
                    let is_last = first == token;
                    self.sent(first, if is_last { result.map(drop) } else { Ok(()) }, out);
                    if is_last {
                        break;
                    }
                }
            }
            Some(Flight::Recv { .. }) => {
                let Some(Flight::Recv { queue, buf }) = self.flights.remove(token) else { return };
                if let Some(queue) = self.queues.value_mut(queue.0) {
                    queue.count -= 1;
                }
                out.push(received(queue_pair, buf, result));
            }
        }
    }

    fn sent(&mut self, token: Token, result: Result<(), WorkError>, out: &mut Vec<Completion>) {
        let Some(Flight::Send { queue, mut work }) = self.flights.remove(token) else { return };
        if let Some(queue) = self.queues.value_mut(queue.0) {
            queue.count -= 1;
        }
        if result.is_ok()
            && let Some((buf, filled)) = work.target_mut()
        {
            buf.set_len(filled);
        }
        out.push(Completion::Sent { queue, work, result });
    }
}

fn received(queue_pair: u32, mut buf: PinnedBufMut, result: Result<Received, WorkError>) -> Completion {
    let result = result.and_then(|received| {
        let filled = if received.was_write { 0 } else { received.bytes as usize };
        if filled > buf.capacity() {
            // A device that says so has not kept to what it was given.
            return Err(WorkError { status: -1, vendor: 0 });
        }
        buf.set_len(filled);
        Ok(received)
    });
    Completion::Received { queue_pair, buf, result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zc_core::memory::{BufPool, Message};

    const DONE: Result<Received, WorkError> = Ok(Received { bytes: 0, immediate: None, was_write: false });

    fn tags(out: &[Completion]) -> Vec<(u64, bool)> {
        out.iter()
            .map(|one| match one {
                Completion::Sent { work, result, .. } => (work.tag, result.is_ok()),
                Completion::Received { .. } => panic!("{one:?}"),
            })
            .collect()
    }

    fn send(flights: &mut Flights, queue: QueueId, tag: u64) -> Token {
        flights.begin(Flight::Send { queue, work: Work::send(tag, Message::new()) })
    }

    #[test]
    fn one_completion_ends_all_before_it() {
        let mut flights = Flights::new();
        let (a, b) = (flights.open(10), flights.open(10));
        let of_a: Vec<_> = (0..3).map(|tag| send(&mut flights, a, tag)).collect();
        send(&mut flights, b, 9);
        assert_eq!((flights.room(a), flights.count(b)), (7, 1));
        let mut out = Vec::new();
        let failed = Err(WorkError { status: 12, vendor: 0 });
        flights.complete(of_a[1], 0, failed, &mut out);
        assert_eq!(tags(&out), [(0, true), (1, false)], "what came before was done");
        out.clear();
        flights.complete(of_a[0], 0, DONE, &mut out);
        flights.complete(Token::from_bits(77 << 32), 0, DONE, &mut out);
        assert!(out.is_empty());
        assert_eq!(flights.unknown(), 2);
        let (left, depth) = flights.close(a);
        assert_eq!((left.len(), depth, flights.flying()), (1, 10, 1));
        flights.complete(of_a[2], 0, DONE, &mut out);
        assert!(out.is_empty(), "it was given back already");
    }

    #[test]
    fn what_the_device_did_not_take_is_as_if_it_had_never_been() {
        let mut flights = Flights::new();
        let queue = flights.open(4);
        let (a, b) = (send(&mut flights, queue, 1), send(&mut flights, queue, 2));
        assert!(matches!(flights.undo(b), Some(Flight::Send { work, .. }) if work.tag == 2));
        assert!(flights.undo(b).is_none());
        let mut out = Vec::new();
        flights.complete(a, 0, DONE, &mut out);
        assert_eq!((tags(&out), flights.room(queue), flights.flying()), (vec![(1, true)], 4, 0));
    }

    #[test]
    fn a_device_that_claims_too_much_is_not_believed() {
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut flights = Flights::new();
        let queue = flights.open(4);
        let mut out = Vec::new();
        for (bytes, was_write) in [(u32::MAX, false), (10, false), (u32::MAX, true)] {
            let token = flights.begin(Flight::Recv { queue, buf: pool.try_alloc(100).unwrap() });
            flights.complete(token, 5, Ok(Received { bytes, immediate: None, was_write }), &mut out);
        }
        let lens: Vec<_> = out
            .iter()
            .map(|one| match one {
                Completion::Received { buf, result, queue_pair: 5 } => (buf.len(), result.is_ok()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lens, [(0, false), (10, true), (0, true)]);
    }

    proptest! {
        /// Against the plainest model: whatever is completed, undone and closed, each request ends once and in order.
        #[test]
        fn every_request_ends_once(steps in prop::collection::vec((0..4u8, 0..20usize), 1..80)) {
            let mut flights = Flights::new();
            let queue = flights.open(16);
            let (mut posted, mut ended, mut out) = (Vec::new(), 0, Vec::new());
            for (step, which) in steps {
                match step {
                    0 | 1 if flights.room(queue) > 0 => {
                        let tag = posted.len() as u64;
                        posted.push(send(&mut flights, queue, tag));
                    }
                    2 => if let Some(token) = posted.get(which) {
                        flights.complete(*token, 0, DONE, &mut out);
                        ended = ended.max(which + 1);
                    },
                    3 => if ended < posted.len() && let Some(token) = posted.pop() {
                        prop_assert!(flights.undo(token).is_some());
                    },
                    _ => {}
                }
                prop_assert_eq!(flights.count(queue) as usize, posted.len() - ended);
            }
            let order: Vec<_> = tags(&out).iter().map(|(tag, _)| *tag).collect();
            prop_assert_eq!(order, (0..ended as u64).collect::<Vec<_>>());
            prop_assert_eq!(flights.close(queue).0.len(), posted.len() - ended);
            prop_assert_eq!(flights.flying(), 0);
        }
    }
}
