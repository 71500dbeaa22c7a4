//! A client: looks keys up by one-sided reads, changes what is there under a compare-and-swap lock, and asks the server by message
//! for what decides about slots.

use std::time::{Duration, Instant};

use zc::transport::OneSided;
use zc::{Connection, Fabric, RemoteError, RemoteFault, RemoteMemory};

use super::error::KvError;
use super::layout::{Look, NOBODY, State, WAYS};
use super::wire::{Answer, Broken, Request, Terms, bytes_of};

/// So long an operation is tried that others thwart.
const PATIENCE: Duration = Duration::from_secs(10);
/// So often a slot that changes while it is read is read again; then the server looks.
const LOOKS: usize = 16;
/// So often locks are waited for without a pause, and so long the pauses are then.
const EAGER: u32 = 64;
const PAUSE: Duration = Duration::from_millis(1);
/// After each so many pauses the server hears of the lock: it knows whether that has moved.
const COMPLAINT: u32 = 50;

pub(crate) struct Client {
    conn: Connection,
    memory: RemoteMemory,
    terms: Terms,
    /// The number of the last request.
    number: u64,
    /// Whether a lock may be held: a future was dropped on its way, or nobody knows yet how far it got.
    unsettled: bool,
    pub(crate) seen: Seen,
}

/// What a client has met with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Requests sent as messages.
    pub(crate) messages: u64,
    /// Of them, those for another lease.
    pub(crate) leases: u64,
    /// Slots that changed while they were read.
    pub(crate) torn: u64,
    /// Locks that somebody else had, or got first.
    pub(crate) contended: u64,
}

/// A slot with the key that was looked for.
struct Found {
    slot: u64,
    state: State,
    value: Vec<u8>,
}

/// A lock of ours.
pub(crate) struct Locked {
    slot: u64,
    /// As it is locked.
    state: State,
    pub(crate) value: Vec<u8>,
}

/// How others have thwarted an operation so far.
#[derive(Default)]
pub(crate) struct Thwarted {
    since: Option<Instant>,
    /// Waits for locks.
    waits: u32,
}

impl Thwarted {
    /// Once more, unless that goes on for too long.
    fn again(&mut self) -> Result<(), KvError> {
        let since = self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE { Ok(()) } else { Err(KvError::Busy) }
    }
}

impl Client {
    pub(crate) async fn connect(fabric: &Fabric, uri: &str) -> Result<Self, KvError> {
        let mut conn = fabric.connect(uri).await?;
        let (mut number, mut messages) = (0, 0);
        let terms = lease(&mut conn, &mut number, &mut messages).await?;
        let seen = Seen { messages, leases: 1, ..Seen::default() };
        Ok(Self { memory: conn.remote(), conn, terms, number, unsettled: false, seen })
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.conn
    }

    /// Whether the server's processor has no part in one-sided operations.
    pub(crate) fn is_native(&self) -> bool {
        self.conn.caps().one_sided == OneSided::Native
    }

    // ------------------------------------------------------------------------------------------ one-sided

    /// The value of a key.
    pub(crate) async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.find(key, &mut Thwarted::default()).await {
            // The server has seen it torn, and still: it does not change any more, or changes without end.
            Err(KvError::Busy) => self.get_by_message(key).await,
            found => Ok(found?.map(|found| found.value)),
        }
    }

    /// Sets a key that is there under its lock, and has the server find a place for another one.
    pub(crate) async fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.check(key, value)?;
        match self.update(key, |_| Some(Vec::from(value))).await {
            Ok(Some(_)) => Ok(()),
            // A damaged slot looks busy, too, and is the server's to mend.
            Ok(None) | Err(KvError::Busy) => self.put_by_message(key, value).await,
            Err(error) => Err(error),
        }
    }

    /// Changes the value of a key that is there, once, with nobody in between; `None` from `change` leaves it. What it was.
    pub(crate) async fn update(
        &mut self,
        key: &[u8],
        mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, KvError> {
        let mut thwarted = Thwarted::default();
        loop {
            let Some(mut locked) = self.lock(key, &mut thwarted).await? else { return Ok(None) };
            let old = std::mem::take(&mut locked.value);
            let new = change(&old);
            if self.unlock(locked, key, new.as_deref()).await? {
                return Ok(Some(old));
            }
            thwarted.again()?;
        }
    }

    /// Locks the slot of a key that is there, which [`Client::unlock`] opens. If it is not opened, the next operation has the
    /// server do it.
    pub(crate) async fn lock(
        &mut self,
        key: &[u8],
        thwarted: &mut Thwarted,
    ) -> Result<Option<Locked>, KvError> {
        loop {
            let Some(Found { slot, state, value }) = self.find(key, thwarted).await? else { return Ok(None) };
            if state.owner() != NOBODY {
                self.wait(thwarted, slot, state).await?;
                continue;
            }
            let (ours, at) = (state.with(self.terms.owner), self.terms.shape.state_at(slot));
            self.unsettled = true;
            match self.memory.compare_swap(&self.terms.key, at, state.0, ours.0).await {
                Ok(found) if found == state.0 => return Ok(Some(Locked { slot, state: ours, value })),
                Ok(found) => {
                    self.unsettled = false;
                    self.wait(thwarted, slot, State(found)).await?;
                }
                Err(error) => {
                    self.recover(error).await?;
                    thwarted.again()?;
                }
            }
        }
    }

    /// Writes the copy that is not current, makes it so, and opens the lock; or only opens the lock. `false`: it was not done, since the
    /// lock was broken.
    ///
    /// One word says that the copy is current, another step opens the lock: if the lease ends in between, the server finds in
    /// the word how far it got, which nobody else could change.
    pub(crate) async fn unlock(
        &mut self,
        locked: Locked,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<bool, KvError> {
        let Locked { slot, state, .. } = locked;
        if state.owner() != self.terms.owner {
            // Another operation came in between, and the lock went with the lease. The key that we have now would
            // write to a slot that is not ours.
            return Ok(false);
        }
        let (shape, next) = (self.terms.shape, if value.is_some() { state.next() } else { state });
        if let Some(value) = value
            && let Err(error) = self.check(key, value)
        {
            Box::pin(self.unlock(locked, key, None)).await?;
            return Err(error);
        }
        let (memory, lease, at) = (&self.memory, &self.terms.key, shape.state_at(slot));
        let write = async {
            if let Some(value) = value {
                let copy = shape.copy(slot, next.version(), key, value);
                memory.write(lease, shape.copy_at(slot, next.version()), copy).await?;
            }
            Ok(())
        };
        let publish = memory.compare_swap(lease, at, state.0, next.0);
        let open = memory.compare_swap(lease, at, next.0, next.with(NOBODY).0);
        // They take effect in the order in which they are polled first, and none after one whose key was revoked.
        let done = tokio::join!(biased; write, publish, open);
        let (write, publish, open): (Result<(), RemoteError>, _, _) = done;
        let error = match (write, publish, open) {
            (Ok(()), Ok(found), Ok(_)) => {
                self.unsettled = false;
                // Else somebody opened it who may not.
                return Ok(found == state.0);
            }
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => error,
        };
        let broken = self.recover(error).await?;
        Ok(broken == Some(Broken { slot, version: next.version() }))
    }

    /// The slot with the key. `Busy`: some slots can't be made out.
    async fn find(&mut self, key: &[u8], thwarted: &mut Thwarted) -> Result<Option<Found>, KvError> {
        self.check(key, &[])?;
        self.settle().await?;
        let mut looks = 0;
        loop {
            let shape = self.terms.shape;
            let (home, slot_bytes) = (shape.home(key), shape.slot_bytes());
            let at = shape.state_at(home);
            let read = match self.memory.read(&self.terms.key, at, slot_bytes * WAYS as usize).await {
                Ok(read) => read,
                Err(error) => {
                    self.recover(error).await?;
                    thwarted.again()?;
                    continue;
                }
            };
            // As a rule one piece, which is lent to us alone: nobody writes to it.
            let gathered;
            let bytes = match read.as_contiguous() {
                Some(bytes) => bytes,
                None => {
                    gathered = bytes_of(&read);
                    &gathered
                }
            };
            let mut torn = 0;
            for (slot, bytes) in (home..).zip(bytes.chunks(slot_bytes)) {
                match shape.look(slot, bytes) {
                    (state, Look::Pair { key: found, value }) if found == key => {
                        return Ok(Some(Found { slot, state, value: Vec::from(value) }));
                    }
                    (_, Look::Torn) => torn += 1,
                    _ => {}
                }
            }
            if torn == 0 {
                return Ok(None);
            }
            self.seen.torn += torn;
            looks += 1;
            if looks == LOOKS {
                return Err(KvError::Busy);
            }
        }
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        let shape = &self.terms.shape;
        if shape.admits(key, value) {
            return Ok(());
        }
        Err(KvError::Size { key: key.len(), value: value.len(), room: shape.room })
    }

    /// Waits a moment for a lock of somebody else's, and now and then has the server look at it.
    async fn wait(&mut self, thwarted: &mut Thwarted, slot: u64, state: State) -> Result<(), KvError> {
        thwarted.again()?;
        self.seen.contended += 1;
        thwarted.waits += 1;
        if thwarted.waits <= EAGER {
            tokio::task::yield_now().await;
            return Ok(());
        }
        if (thwarted.waits - EAGER).is_multiple_of(COMPLAINT) {
            self.ask(Request::Stuck { slot, state }).await?;
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ leases

    /// After a failed operation: if only the lease is over, there is another one, and the lock that the old one had.
    async fn recover(&mut self, error: RemoteError) -> Result<Option<Broken>, KvError> {
        match error.fault {
            RemoteFault::Revoked | RemoteFault::Busy => self.renew().await,
            _ => Err(error.into()),
        }
    }

    async fn settle(&mut self) -> Result<(), KvError> {
        if self.unsettled { self.renew().await.map(drop) } else { Ok(()) }
    }

    async fn renew(&mut self) -> Result<Option<Broken>, KvError> {
        self.unsettled = true;
        self.terms = lease(&mut self.conn, &mut self.number, &mut self.seen.messages).await?;
        self.seen.leases += 1;
        self.unsettled = false;
        Ok(self.terms.broken)
    }

    // ------------------------------------------------------------------------------------------ by messages

    pub(crate) async fn get_by_message(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.check(key, &[])?;
        match self.ask(Request::Get { key: Vec::from(key) }).await? {
            Answer::Value(value) => Ok(Some(value)),
            Answer::None => Ok(None),
            other => Err(self.failure(other, key, &[])),
        }
    }

    pub(crate) async fn put_by_message(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.check(key, value)?;
        self.settle().await?;
        match self.ask(Request::Put { key: Vec::from(key), value: Vec::from(value) }).await? {
            Answer::Done => Ok(()),
            other => Err(self.failure(other, key, value)),
        }
    }

    /// Whether it was there.
    pub(crate) async fn delete(&mut self, key: &[u8]) -> Result<bool, KvError> {
        self.check(key, &[])?;
        self.settle().await?;
        match self.ask(Request::Delete { key: Vec::from(key) }).await? {
            Answer::Done => Ok(true),
            Answer::None => Ok(false),
            other => Err(self.failure(other, key, &[])),
        }
    }

    /// What the server's processor had to do for this client: messages that it handled, and one-sided operations.
    pub(crate) async fn server_counts(&mut self) -> Result<(u64, u64), KvError> {
        match self.ask(Request::Counts).await? {
            Answer::Counts { messages, operations } => Ok((messages, operations)),
            _ => Err(KvError::Peer("an answer to another question")),
        }
    }

    fn failure(&self, answer: Answer, key: &[u8], value: &[u8]) -> KvError {
        match answer {
            Answer::Full => KvError::Full,
            Answer::Size => KvError::Size { key: key.len(), value: value.len(), room: self.terms.shape.room },
            Answer::Damaged => KvError::Damaged,
            Answer::Busy => KvError::Busy,
            _ => KvError::Peer("an answer to another question"),
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Answer, KvError> {
        ask(&mut self.conn, &mut self.number, &mut self.seen.messages, request).await
    }
}

async fn lease(conn: &mut Connection, number: &mut u64, messages: &mut u64) -> Result<Terms, KvError> {
    match ask(conn, number, messages, Request::Lease).await? {
        Answer::Lease(terms) => Ok(terms),
        _ => Err(KvError::Peer("an answer to another question")),
    }
}

async fn ask(
    conn: &mut Connection,
    number: &mut u64,
    messages: &mut u64,
    request: Request,
) -> Result<Answer, KvError> {
    *number += 1;
    *messages += 1;
    conn.send(request.encode(*number)).await?;
    loop {
        let message = conn.recv().await?.ok_or(KvError::Peer("it said nothing more"))?;
        let (of, answer) = Answer::decode(&message).ok_or(KvError::Peer("a message that is no answer"))?;
        // Older ones are for requests that nobody waits for any more.
        match of.cmp(number) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(answer),
            std::cmp::Ordering::Greater => return Err(KvError::Peer("an answer to no question")),
        }
    }
}
