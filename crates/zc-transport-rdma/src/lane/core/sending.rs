//! What is sent: frames, announcements, and how far we are.

use super::*;

impl Core {
    pub(in crate::lane) fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED_FRAMES
            && self.queued_bytes < MAX_QUEUED_BYTES
            && self.reports.len() < MAX_QUEUED_FRAMES
    }

    pub(in crate::lane) fn may_send(&self) -> bool {
        self.has_room() && self.credit.may_send()
    }

    pub(in crate::lane) fn check_message(&self, len: usize) -> Result<(), LaneError> {
        self.check()?;
        if self.is_shut {
            return Err(LaneError::Closed);
        }
        let max = self.limits.send_max_message as usize;
        if len > max {
            let text = format!("a message of {len} bytes; the peer takes {max}");
            return Err(LaneError::Other(text));
        }
        Ok(())
    }

    pub(in crate::lane) fn check_frame(&self, kind: FrameKind, len: usize) -> Result<(), LaneError> {
        let max = kind.max_bytes(self.limits.send_max_message as usize);
        self.check()?;
        if self.is_shut {
            Err(LaneError::Closed)
        } else if len > max || kind == FrameKind::Session && len > self.terms.eager_bytes {
            Err(LaneError::Other(format!("a frame of {len} bytes; at most {max} are taken")))
        } else if self.queue.len() >= 2 * MAX_QUEUED_FRAMES && kind == FrameKind::Data {
            Err(LaneError::Other("the queue is full".into()))
        } else if kind != FrameKind::Data && self.record_bytes >= MAX_QUEUED_RECORD_BYTES {
            Err(LaneError::Other("the peer does not read: too many records wait for it".into()))
        } else {
            Ok(())
        }
    }

    /// Takes a frame that was checked.
    pub(in crate::lane) fn enqueue(&mut self, frame: Frame, report: bool) -> SendToken {
        let Frame { kind, ack, seq, payload } = frame;
        self.tokens += 1;
        let (token, len) = (SendToken(self.tokens), payload.len());
        if report {
            self.reports.ask(token);
        }
        if kind == FrameKind::Data {
            self.credit.spend(len);
            if seq != self.next_seq {
                self.push(Out::Seq(seq));
            }
            self.next_seq = seq.wrapping_add(1);
        }
        let asked = report.then_some(token);
        if len > self.terms.eager_bytes {
            let id = self.shown.begin(asked);
            let ack = ack && kind == FrameKind::Data;
            self.push(Out::Large(Left { id, kind, ack, len: len as u32, is_first: true, left: payload }));
        } else {
            self.push(Out::Frame { kind, ack: ack && kind == FrameKind::Data, payload, token: asked });
        }
        token
    }

    pub(in crate::lane) fn push(&mut self, out: Out) {
        self.queued_bytes += out.bytes();
        self.record_bytes += if out.is_record() { out.bytes() } else { 0 };
        self.queue.push_back(out);
    }

    /// Hands over what can go now.
    pub(in crate::lane) fn pump(&mut self) -> Result<(), LaneError> {
        self.starving.begin();
        if self.failed.is_some() {
            return Ok(());
        }
        let done = self.try_pump();
        self.endpoint.flush();
        self.call_drive();
        done.map_err(|error| self.fail(error))
    }

    /// Has the drive ask again for memory that there was not.
    pub(super) fn call_drive(&mut self) {
        if self.starving.calls_drive()
            && let Some(drive) = self.wakers.drive.take()
        {
            Deferral::wake(drive);
        }
    }

    fn try_pump(&mut self) -> Result<(), LaneError> {
        self.fetch()?;
        self.grant();
        self.advance_one_sided()?;
        while self.endpoint.room() > RESERVED_WORK && self.slots.may_send_frame() && self.send_next()? {}
        // What went out may have said it.
        self.tell_state()
    }

    /// Lets the peer send on.
    fn grant(&mut self) {
        self.slots.withhold(self.inbound.excess());
        let wanted = self.slots.wanted();
        if wanted > 0 {
            let granted = self.endpoint.promise(wanted);
            self.slots.grant(granted);
        }
        if self.credit.is_due()
            && self.leases.poll_below_hard(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.credit.tell();
        }
    }

    fn state(&self) -> State {
        State { allowed: self.credit.allowed_to_peer(), done: self.inbound.done(), seq: 0, end: false }
    }

    /// Says how far we are, if the peer waits for that.
    fn tell_state(&mut self) -> Result<(), LaneError> {
        let state = self.state();
        let is_news = (state.allowed, state.done) != self.told || self.slots.must_tell();
        if is_news && self.slots.may_send_state() && self.endpoint.room() > 0 {
            self.send_state(state)?;
        }
        Ok(())
    }

    /// False: there is no memory for it.
    fn send_state(&mut self, state: State) -> Result<bool, LaneError> {
        let sent = self.send_bytes(Kind::State, false, &state.encode())?;
        if sent {
            self.told = (state.allowed, state.done);
        }
        Ok(sent)
    }

    /// As long as the path's packets, as far as the peer's receive buffers are. False: there is no memory for it.
    fn send_probe(&mut self) -> Result<bool, LaneError> {
        let len = self.terms.packet_bytes.min(self.peer.recv_bytes as usize);
        self.send_bytes(Kind::State, false, &self.state().padded(len))
    }

    /// Sends bytes of our own. False: there is no memory for them.
    fn send_bytes(&mut self, kind: Kind, ack: bool, bytes: &[u8]) -> Result<bool, LaneError> {
        let Some(memory) = self.record_memory(bytes.len())? else { return Ok(false) };
        self.send(kind, ack, memory.filled(bytes), About::Nothing)?;
        Ok(true)
    }

    /// Memory for a record of at most so many bytes.
    pub(super) fn record_memory(&mut self, len: usize) -> Result<Option<RecordMemory>, LaneError> {
        // What travels in the request itself may lie anywhere.
        let is_inline = len <= self.endpoint.inline_bytes();
        match self.tx_pool.try_alloc(len) {
            Ok(buf) if is_inline || self.is_registered(&buf, Need::Record)? => {
                Ok(Some(RecordMemory::Pool(buf)))
            }
            Err(_) if is_inline => Ok(Some(RecordMemory::Heap)),
            Ok(_) => Ok(None),
            Err(_) => {
                self.starving.not_refused(Need::Record);
                self.starving.send();
                Ok(None)
            }
        }
    }

    /// Memory for a copy of payload, which the device knows unless it is `is_inline`.
    pub(super) fn copy_memory(
        &mut self,
        len: usize,
        is_inline: bool,
    ) -> Result<Option<PinnedBufMut>, LaneError> {
        match self.tx_pool.try_alloc(len) {
            Ok(buf) => {
                let is_fit = is_inline || self.is_registered(&buf, Need::Copy)?;
                Ok(is_fit.then_some(buf))
            }
            Err(AllocError::Exhausted { .. }) => {
                self.starving.not_refused(Need::Copy);
                self.starving.send();
                Ok(None)
            }
            Err(error) => Err(LaneError::Memory(error.to_string())),
        }
    }

    pub(super) fn send(
        &mut self,
        kind: Kind,
        ack: bool,
        payload: Message,
        about: About,
    ) -> Result<(), LaneError> {
        let word = Word { kind, ack, granted: self.slots.word() };
        self.slots.spend();
        let work = Work::new(about.tag(), Operation::Send { payload, immediate: Some(word.encode()) });
        self.stage(if about == About::Nothing { work.silent() } else { work })
    }

    pub(super) fn stage(&mut self, work: Work) -> Result<(), LaneError> {
        self.endpoint.stage(work).map_err(|(_work, why)| LaneError::Other(why.to_string()))
    }

    /// Sends the first of the queue, or a part of it; false if that must wait.
    fn send_next(&mut self) -> Result<bool, LaneError> {
        let Some(next) = self.queue.pop_front() else { return Ok(false) };
        let (bytes, record_bytes) = (next.bytes(), if next.is_record() { next.bytes() } else { 0 });
        let rest = match next {
            Out::Frame { kind, ack, payload, token } => self.send_frame(kind, ack, payload, token)?,
            Out::Large(large) => self.announce(large)?,
            Out::Probe => (!self.send_probe()?).then_some(Out::Probe),
            Out::Seq(seq) => {
                let state = State { seq, ..self.state() };
                (!self.send_state(state)?).then_some(Out::Seq(seq))
            }
            Out::End => {
                let state = State { end: true, ..self.state() };
                (!self.send_state(state)?).then_some(Out::End)
            }
        };
        let (left, left_records) = match &rest {
            Some(rest) => (rest.bytes(), if rest.is_record() { rest.bytes() } else { 0 }),
            None => (0, 0),
        };
        self.queued_bytes -= bytes - left;
        self.record_bytes -= record_bytes - left_records;
        let goes_on = rest.is_none() || bytes > left;
        if let Some(rest) = rest {
            self.queue.push_front(rest);
        }
        Ok(goes_on)
    }

    /// What could not be sent comes back.
    fn send_frame(
        &mut self,
        kind: FrameKind,
        ack: bool,
        payload: Message,
        token: Option<SendToken>,
    ) -> Result<Option<Out>, LaneError> {
        let is_inline = payload.len() <= self.endpoint.inline_bytes();
        let fits = payload.segments().len() <= self.endpoint.segments()
            && (is_inline || payload.segments().iter().all(|segment| self.endpoint.knows(segment)));
        let counted = kind != FrameKind::Session;
        let payload = if fits {
            payload
        } else {
            let Some(buf) = self.copy_memory(payload.len(), is_inline)? else {
                return Ok(Some(Out::Frame { kind, ack, payload, token }));
            };
            Message::from(gather(&payload, payload.len(), buf, &self.ledger, counted && !is_inline))
        };
        if counted && is_inline {
            self.ledger.inline(payload.len());
        }
        self.send(Kind::Frame(kind), ack, payload, token.map_or(About::Nothing, About::Report))?;
        Ok(None)
    }

    /// Shows the peer what comes next of a long message; what is left comes back.
    fn announce(&mut self, mut large: Left) -> Result<Option<Out>, LaneError> {
        let mut pieces = SmallVec::<[Piece; RECORD_PIECES]>::new();
        let Some(record) = self.record_memory(MAX_ANNOUNCE_BYTES)? else {
            return Ok(Some(Out::Large(large)));
        };
        while !large.left.is_empty() && pieces.len() < RECORD_PIECES && self.endpoint.room() > 2 {
            let Some(window) = self.free_window()? else { break };
            let Some(memory) = self.next_piece(&mut large.left)? else {
                self.free_windows.push(window);
                break;
            };
            let len = memory.len() as u32;
            let place = self.endpoint.aim(window, memory).map_err(|why| LaneError::Other(why.to_string()))?;
            self.stage(Work::new(0, Operation::Bind { window }).silent())?;
            self.shown.show(window, large.id);
            pieces.push(Piece { place, len });
        }
        if pieces.is_empty() {
            return Ok(Some(Out::Large(large)));
        }
        let is_all = large.left.is_empty();
        if is_all {
            self.shown.announced(large.id);
        }
        let is_remote = large.kind == FrameKind::Remote;
        let announce = Announce { len: large.len, is_first: large.is_first, is_remote, pieces };
        let ack = large.ack && large.is_first;
        self.send(Kind::Announce, ack, record.filled(&announce.encode()), About::Nothing)?;
        large.is_first = false;
        Ok((!is_all).then_some(Out::Large(large)))
    }

    fn free_window(&mut self) -> Result<Option<WindowId>, LaneError> {
        if let Some(window) = self.free_windows.pop() {
            return Ok(Some(window));
        }
        if self.windows >= MAX_PIECES {
            return Ok(None);
        }
        match self.endpoint.add_window() {
            Ok(window) => {
                self.windows += 1;
                Ok(Some(window))
            }
            // The device has no more: those that there are come back.
            Err(_) if self.windows > 0 => Ok(None),
            Err(error) => Err(LaneError::Other(error.to_string())),
        }
    }

    /// The memory of the next piece, taken off the message; none if there is none for a copy.
    fn next_piece(&mut self, left: &mut Message) -> Result<Option<PinnedBuf>, LaneError> {
        let endpoint = &self.endpoint;
        match cut(left, |segment| endpoint.knows(segment)) {
            Cut::Shown(len) => Ok(left.split_to(len).into_segments().next()),
            Cut::Copied(len) => Ok(self.copy_memory(len, false)?.map(|buf| {
                let piece = gather(left, len, buf, &self.ledger, true);
                drop(left.split_to(len));
                piece
            })),
        }
    }

    /// All that was taken is in the device's hands.
    pub(in crate::lane) fn is_flushed(&self) -> bool {
        self.queue.is_empty() && self.remote.as_ref().is_none_or(|remote| remote.out.first().is_none())
    }

    /// All that was taken has arrived, and the peer reads nothing of ours any more.
    pub(in crate::lane) fn is_at_rest(&self) -> bool {
        self.queue.is_empty() && self.shown.is_empty() && self.endpoint.is_idle()
    }
}

/// Where a record of our own lies.
pub(super) enum RecordMemory {
    Pool(PinnedBufMut),
    Heap,
}

impl RecordMemory {
    #[allow(clippy::disallowed_methods, reason = "a record of our own, not payload")]
    pub(super) fn filled(self, bytes: &[u8]) -> Message {
        match self {
            Self::Pool(mut buf) => {
                buf.put_slice(bytes);
                buf.freeze().into()
            }
            Self::Heap => Message::from(bytes.to_vec()),
        }
    }
}

/// The first `len` bytes of a message, in one buffer.
pub(super) fn gather(
    message: &Message,
    len: usize,
    mut into: PinnedBufMut,
    ledger: &CopyLedger,
    counted: bool,
) -> PinnedBuf {
    for segment in message.slice(..len).segments() {
        let n = segment.len();
        let to = &mut into.unfilled_mut()[..n];
        match (counted, segment.region().is_some()) {
            (false, _) => copy_unseen(to, segment),
            (true, true) => copy_payload(to, segment, ledger, CopyPlace::Gather),
            (true, false) => copy_payload(to, segment, ledger, CopyPlace::Foreign),
        }
        into.advance(n);
    }
    into.freeze()
}
