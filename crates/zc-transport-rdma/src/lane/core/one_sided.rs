//! One-sided operations: their records among the messages, and work requests with memory for them.

use zc_core::memory::{ExportMemory, WordAtomics};
use zc_core::transport::{
    Batch, RemoteAtomics, RemoteCompletion, RemoteGrant, RemoteKey, RemoteOp, RemoteToken, Revoked,
};

use super::*;
use crate::lane::remote::{Next, Outbox, RECORD_BYTES, Record, User, What, key_of};
use crate::limits::GATHER_BYTES;
use crate::loopback::Loopback;
use crate::verbs::AtomicScope;
use crate::wire::QueuePairNumber;

pub(super) fn decode(bytes: &[u8]) -> Result<Record, WireError> {
    Record::decode(bytes)
}

impl Core {
    /// The peer said something.
    pub(super) fn heard_one_sided(&mut self, record: Record) -> Result<(), LaneError> {
        let mut remote = self.remote.take().unwrap_or_default();
        let heard = self.take_record(&mut remote, record);
        self.remote = Some(remote);
        heard
    }

    fn take_record(&self, remote: &mut Remote, record: Record) -> Result<(), LaneError> {
        let Remote { owner, user, out } = remote;
        match record {
            Record::Open(end) => owner.open(&self.endpoint, &self.peer, end, out)?,
            Record::Ask(key) => owner.asked(key, out)?,
            Record::Notify { key, value } => owner.notified(key, value)?,
            Record::Opened(end) => {
                user.opened(&self.peer, end).map_err(|error| LaneError::Other(error.to_string()))?;
            }
            Record::Closed { round } => user.closed(round),
            Record::Grant(granted) => user.granted(granted)?,
            Record::Refuse { round, key, later } => user.refused(round, key, later),
            Record::Revoke(key) => user.revoked(key),
            Record::Taken(count) => user.taken(count)?,
        }
        Ok(())
    }

    /// Everything that may have become possible.
    pub(super) fn advance_one_sided(&mut self) -> Result<(), LaneError> {
        let Some(mut remote) = self.remote.take() else { return Ok(()) };
        let advanced = self.advance(&mut remote);
        self.remote = Some(remote);
        advanced
    }

    fn advance(&mut self, remote: &mut Remote) -> Result<(), LaneError> {
        let Remote { owner, user, out } = remote;
        owner.advance(&self.remote_waker, out);
        user.look().map_err(|end| end_error(&end))?;
        loop {
            if user.is_handing_over() {
                if !self.hand_over(user)? {
                    break;
                }
            } else if let Next::Wait = user.next(&self.endpoint, out) {
                break;
            }
        }
        if let Some(endpoint) = user.endpoint() {
            endpoint.flush();
        }
        user.tell(out);
        self.send_records(out)?;
        if user.has_done() {
            self.wakers.remote.wake();
        }
        Ok(())
    }

    fn send_records(&mut self, out: &mut Outbox) -> Result<(), LaneError> {
        while let Some(record) = out.first() {
            if self.is_shut || !self.slots.may_send_frame() || self.endpoint.room() <= RESERVED_WORK {
                return Ok(());
            }
            let Some(memory) = self.record_memory(RECORD_BYTES)? else { return Ok(()) };
            let about = match record {
                Record::Notify { .. } => About::Notification,
                _ => About::Nothing,
            };
            self.send(Kind::OneSided, false, memory.filled(&record.encode()), about)?;
            out.sent();
        }
        Ok(())
    }

    /// Hands the operation that was begun last to the device. False: the rest of it must wait.
    fn hand_over(&mut self, user: &mut User) -> Result<bool, LaneError> {
        let is_fenced = user.must_fence();
        loop {
            let Some(endpoint) = user.endpoint().filter(|endpoint| !endpoint.has_ended()) else {
                // Goes back to those that wait, with another round.
                return Ok(false);
            };
            let terms = Wire {
                room: endpoint.room(),
                max: endpoint.message_bytes() as usize,
                segments: endpoint.segments(),
                inline: endpoint.inline_bytes(),
            };
            let Some(last) = user.flying.back_mut() else { return Ok(true) };
            let whole = last.len();
            if whole == 0 {
                last.is_handed = true;
                return Ok(true);
            }
            if terms.room == 0 {
                return Ok(false);
            }
            let is_atomic = matches!(last.operation.what, What::CompareSwap { .. } | What::FetchAdd { .. });
            let word = if is_atomic { user.word() } else { None };
            let Some(last) = user.flying.back_mut() else { return Ok(true) };
            let at = last.place.at(last.handed as u64);
            let (operation, len) = match &mut last.operation.what {
                What::Read { into, len, .. } => {
                    // If it is away, an earlier part is being read.
                    let Some(buf) = into.take() else { return Ok(false) };
                    match self.is_registered(&buf, Need::OneSided) {
                        Ok(true) => {}
                        other => {
                            *into = Some(buf);
                            return other;
                        }
                    }
                    let part = (*len - last.handed).min(terms.max);
                    (Operation::Read { into: buf, len: part, from: at }, part)
                }
                What::Write { message, .. } => {
                    let left = message.slice(last.handed..);
                    let Some(payload) = self.next_write(left, &terms)? else { return Ok(false) };
                    let len = payload.len();
                    (Operation::Write { payload, to: at, immediate: None }, len)
                }
                What::CompareSwap { expected, new } => {
                    let Some(into) = self.word(word)? else { return Ok(false) };
                    (Operation::CompareSwap { into, at, compare: *expected, swap: *new }, whole)
                }
                What::FetchAdd { add } => {
                    let Some(into) = self.word(word)? else { return Ok(false) };
                    (Operation::FetchAdd { into, at, add: *add }, whole)
                }
            };
            let is_write = matches!(operation, Operation::Write { .. });
            last.handed += len;
            last.is_handed = last.handed == whole;
            let mut work = Work::new(last.id, operation);
            work.fenced = is_write && is_fenced;
            // They end in order: of a write only the last says so.
            work.silent = is_write && !last.is_handed;
            work.signalled = !work.silent;
            last.works += u32::from(!work.silent);
            last.is_fenced |= work.fenced;
            let (is_handed, staged) = (last.is_handed, user.endpoint().map(|endpoint| endpoint.stage(work)));
            match staged {
                Some(Ok(())) if is_handed => return Ok(true),
                Some(Ok(())) => {}
                Some(Err((work, why))) => {
                    user.not_taken(work, why, len).map_err(|end| end_error(&end))?;
                    // It may have ended since it was looked at, and nothing else of it come back.
                    self.wakers.remote.wake();
                    return Ok(false);
                }
                None => return Ok(false),
            }
        }
    }

    fn word(&mut self, kept: Option<PinnedBufMut>) -> Result<Option<PinnedBufMut>, LaneError> {
        match kept {
            Some(word) => Ok(Some(word)),
            None => self.copy_memory(size_of::<u64>(), false),
        }
    }

    /// What one work request writes of a message; none if there is no memory for a copy.
    fn next_write(&mut self, left: Message, wire: &Wire) -> Result<Option<Message>, LaneError> {
        if left.len() <= wire.inline.min(wire.max) && left.segments().len() <= wire.segments {
            self.ledger.inline(left.len());
            return Ok(Some(left));
        }
        let (mut whole, mut len) = (true, 0);
        for segment in left.segments().iter().take(wire.segments) {
            if !whole || !self.endpoint.knows(segment) {
                break;
            }
            let part = segment.len().min(wire.max - len);
            whole = part == segment.len();
            len += part;
        }
        if len > 0 {
            return Ok(Some(left.slice(..len)));
        }
        let unknown = left.segments().iter().take_while(|segment| !self.endpoint.knows(segment));
        let len = unknown.map(|segment| segment.len()).sum::<usize>().min(GATHER_BYTES).min(wire.max);
        let Some(memory) = self.copy_memory(len, false)? else { return Ok(None) };
        Ok(Some(Message::from(sending::gather(&left, len, memory, &self.ledger, true))))
    }

    // For the one-sided half.

    pub(in crate::lane) fn grant_remote(&mut self, grant: RemoteGrant) -> Result<RemoteKey, LaneError> {
        self.check()?;
        let key = self.remote.get_or_insert_default().owner.grant(&self.endpoint, grant)?;
        // From now on it listens.
        self.wakers.remote.wake();
        Ok(key)
    }

    pub(in crate::lane) fn revoke_remote(&mut self, key: &RemoteKey) -> Revoked {
        // What the peer told of it before comes first.
        self.endpoint.turn();
        let _ = self.look(None);
        let _ = self.pump();
        let Some(remote) = &mut self.remote else { return Revoked::Done };
        let Remote { owner, out, .. } = &mut **remote;
        let revoked = owner.revoke(key, out);
        let _ = self.pump();
        revoked
    }

    pub(in crate::lane) fn remote_atomics(
        &mut self,
        memory: &ExportMemory,
    ) -> Result<RemoteAtomics, LaneError> {
        self.check()?;
        match self.endpoint.limits().atomics {
            AtomicScope::None => Ok(RemoteAtomics::None),
            AtomicScope::Everything => Ok(RemoteAtomics::Processor),
            AtomicScope::Device => {
                let (device, local) = self.endpoint.device();
                let known = memory.device().filter(|known| known.device() == device.name());
                if let Some(known) = known {
                    return Ok(RemoteAtomics::Device(known.clone()));
                }
                let loopback = Loopback::new(device, local, memory)
                    .map_err(|why| LaneError::Other(format!("no way to our own device: {why}")))?;
                let atomics: Arc<dyn WordAtomics> = Arc::new(loopback);
                Ok(RemoteAtomics::Device(atomics))
            }
        }
    }

    pub(in crate::lane) fn takes_operation(&self) -> Result<bool, LaneError> {
        self.check()?;
        Ok(self.remote.as_ref().is_none_or(|remote| remote.user.has_room()))
    }

    pub(in crate::lane) fn start_operation(
        &mut self,
        key: &RemoteKey,
        offset: u64,
        op: RemoteOp,
    ) -> Result<RemoteToken, LaneError> {
        self.check()?;
        let remote = self.remote.get_or_insert_default();
        let token = remote.user.start(key_of(key), offset, op);
        // A failure comes with the completions: the operation was taken.
        let _ = self.pump_one_sided();
        Ok(token)
    }

    /// Has the one-sided half woken when there is something for it; says for what. None: there never was anything.
    pub(in crate::lane) fn await_remote(&self) -> Option<Awaited> {
        let remote = self.remote.as_ref()?;
        let cx = Context::from_waker(&self.remote_waker);
        let serving = remote.owner.await_work(&cx);
        // The end of silent work counts only while there is something that takes its room.
        let sends = remote.user.is_handing_over();
        let using = remote.user.endpoint().map(|endpoint| {
            endpoint.await_work(&cx, sends);
            (endpoint.number(), sends)
        });
        if !remote.is_idle() {
            self.endpoint.await_message(&cx);
            self.endpoint.arm();
        }
        Some(Awaited { serving, using })
    }

    /// For one who looks again at once: takes what there is for the one-sided half, and leaves messages alone as far as it can.
    pub(in crate::lane) fn peek_remote(&mut self) {
        let Some(remote) = &self.remote else { return };
        self.endpoint.peek();
        if self.endpoint.has_news() {
            // Told by who asks for what has ended.
            let _ = self.look(None).and_then(|()| self.pump());
            return;
        }
        let Some(endpoint) = remote.user.endpoint() else { return };
        let has_news = endpoint.has_news();
        let mut goes_on = has_news || remote.user.is_handing_over() && endpoint.room() > 0;
        if has_news && remote.user.only_waits() {
            goes_on = !self.take_done();
        }
        if goes_on {
            let _ = self.pump_one_sided();
        }
    }

    /// Takes what the device has done of one-sided operations; says whether nothing else becomes possible by that. A failure is told
    /// by who asks for what has ended.
    fn take_done(&mut self) -> bool {
        let Some(remote) = &mut self.remote else { return true };
        match remote.user.look() {
            Ok(()) => remote.user.only_waits(),
            Err(end) => {
                self.fail(end_error(&end));
                true
            }
        }
    }

    /// Hands over what can go now of one-sided operations.
    fn pump_one_sided(&mut self) -> Result<(), LaneError> {
        if self.failed.is_some() {
            return Ok(());
        }
        let advanced = self.advance_one_sided();
        self.endpoint.flush();
        self.call_drive();
        advanced.map_err(|error| self.fail(error))
    }

    /// Hands out what has ended.
    pub(in crate::lane) fn operations_done(&mut self, out: &mut Batch<RemoteCompletion>) {
        let Some(remote) = &mut self.remote else { return };
        while !out.is_full()
            && let Some(done) = remote.user.next_done()
        {
            out.push(done);
        }
    }

    /// Nobody uses it any more: no peer gets in by a key from here on.
    pub(in crate::lane) fn shut_remote(&mut self) {
        if let Some(mut remote) = self.remote.take() {
            remote.shut();
        }
    }
}

/// Whose ends of work the one-sided half is woken for.
#[derive(PartialEq, Eq)]
pub(in crate::lane) struct Awaited {
    serving: Option<QueuePairNumber>,
    /// And whether silent ones count.
    using: Option<(QueuePairNumber, bool)>,
}

/// What the queue pair takes.
struct Wire {
    room: usize,
    max: usize,
    segments: usize,
    inline: usize,
}
