//! What comes: frames, announcements that are fetched, and how far the peer is.

use super::*;

impl Core {
    pub(super) fn take_in(&mut self, buf: PinnedBufMut, info: Received) -> Result<(), LaneError> {
        let lie = |field| LaneError::from(WireError::BadValue { field });
        if info.was_write {
            return Err(lie("rdma write"));
        }
        let word = Word::decode(info.immediate)?;
        if self.peer_ended && !word.may_follow_end() {
            return Err(lie("rdma message after the end"));
        }
        self.tx_news |= self.slots.heard(word.granted)?;
        match word.kind {
            Kind::State => {
                let state = self.record(buf, State::decode)?;
                self.take_state(&state)?;
            }
            Kind::OneSided => {
                let record = self.record(buf, one_sided::decode)?;
                self.heard_one_sided(record)?;
            }
            Kind::Announce => {
                let announce = self.record(buf, Announce::decode)?;
                let seq = if announce.is_remote { 0 } else { self.expected_seq };
                if announce.is_first && !announce.is_remote {
                    self.begin_data(announce.len as usize)?;
                }
                self.inbound.announce(&announce, word.ack, seq)?;
            }
            Kind::Frame(kind) => {
                let len = buf.len();
                if len > kind.max_bytes(self.limits.recv_max_message as usize) {
                    return Err(lie("rdma frame too long"));
                }
                let mut seq = 0;
                if kind == FrameKind::Data {
                    seq = self.expected_seq;
                    self.begin_data(len)?;
                }
                let payload = self.payload(kind, buf)?;
                self.inbound.frame(Frame { kind, ack: word.ack, seq, payload })?;
            }
        }
        Ok(())
    }

    fn begin_data(&mut self, len: usize) -> Result<(), LaneError> {
        self.credit.received(len)?;
        self.expected_seq = self.expected_seq.wrapping_add(1);
        Ok(())
    }

    /// A record, parsed from memory that the device has let go of.
    fn record<T>(
        &mut self,
        buf: PinnedBufMut,
        decode: impl FnOnce(&[u8]) -> Result<T, WireError>,
    ) -> Result<T, LaneError> {
        let found = decode(&buf);
        self.endpoint.recycle(buf);
        self.slots.freed();
        Ok(found?)
    }

    fn take_state(&mut self, state: &State) -> Result<(), LaneError> {
        if self.peer_ended && !state.may_follow_end() {
            return Err(WireError::BadValue { field: "rdma state after the end" }.into());
        }
        self.tx_news |= self.credit.heard(state.allowed)?;
        let news = self.shown.heard(state.done)?;
        for _ in 0..news {
            self.life.show();
            if let Some(window) = self.shown.take_read() {
                // Only when it is invalid the memory is ours alone again, whatever the peer says.
                let work = Work::new(About::Window(window).tag(), Operation::Invalidate { window });
                self.stage(work)?;
            }
        }
        if state.seq != 0 {
            self.expected_seq = state.seq;
        }
        if state.end {
            if self.inbound.is_open() {
                return Err(WireError::BadValue { field: "rdma end inside of a message" }.into());
            }
            self.peer_ended = true;
        }
        Ok(())
    }

    /// A payload out of a receive buffer: what is short is copied, and so is what comes while the application holds much.
    fn payload(&mut self, kind: FrameKind, mut buf: PinnedBufMut) -> Result<Message, LaneError> {
        self.slots.freed();
        let len = buf.len();
        let is_short = len <= COPY_MAX_BYTES;
        if is_short || self.leases.pressure() >= Pressure::Soft {
            match self.rx_pool.try_alloc(len) {
                Ok(mut copy) => {
                    let to = &mut copy.unfilled_mut()[..len];
                    match (kind, is_short) {
                        (FrameKind::Session, _) => copy_unseen(to, &buf),
                        (_, true) => copy_inline(to, &buf, &self.ledger),
                        (_, false) => copy_payload(to, &buf, &self.ledger, CopyPlace::CopyOut),
                    }
                    copy.advance(len);
                    self.endpoint.recycle(buf);
                    copy.attach_lease(self.leases.clone());
                    return Ok(copy.freeze().into());
                }
                Err(error) => tracing::debug!(%error, "a receive buffer is lent instead of copied"),
            }
        }
        buf.attach_lease(self.leases.clone());
        Ok(buf.freeze().into())
    }

    /// Begins reads, for what there is memory.
    pub(super) fn fetch(&mut self) -> Result<(), LaneError> {
        if self.is_stopped {
            return Ok(());
        }
        while let Some(fetch) = if self.endpoint.room() > 1 { self.inbound.next_fetch() } else { None } {
            let (len, from) = (fetch.len, fetch.from);
            let operation = Operation::Read { into: fetch.into, len, from };
            self.stage(Work::new(About::Read(fetch.id).tag(), operation))?;
        }
        Ok(())
    }

    /// Memory for messages that are to be fetched. Without a context nobody is woken when there is some.
    pub(in crate::lane) fn poll_memory(&mut self, mut cx: Option<&mut Context<'_>>) -> Result<(), LaneError> {
        self.starving.begin_fetch();
        while !self.is_stopped
            && self.failed.is_none()
            && let Some(len) = self.inbound.wants_memory()
        {
            let (pool, waiter) = (&self.rx_pool, &mut self.waiter);
            // Longer ones than what the peer was promised room for leave some to others.
            let sparing = len > self.limits.recv_window as usize;
            let got = match (&mut cx, sparing) {
                (Some(cx), false) => pool.poll_alloc(len, waiter, cx),
                (Some(cx), true) => pool.poll_alloc_sparing(len, waiter, cx),
                (None, false) => Poll::Ready(pool.try_alloc(len)),
                (None, true) => Poll::Ready(pool.try_alloc_sparing(len)),
            };
            match got {
                Poll::Pending | Poll::Ready(Err(AllocError::Exhausted { .. })) => {
                    self.starving.not_refused(Need::Fetch);
                    return Ok(());
                }
                Poll::Ready(Ok(memory)) => match self.is_registered(&memory, Need::Fetch) {
                    Ok(true) => self.inbound.give(memory),
                    Ok(false) => return Ok(()),
                    Err(error) => return Err(self.fail(error)),
                },
                Poll::Ready(Err(error)) => return Err(self.fail(LaneError::Memory(error.to_string()))),
            }
        }
        if self.waiter.is_queued() {
            // A place that nobody looks after holds up all others.
            self.waiter = AllocWaiter::new();
        }
        Ok(())
    }

    /// The next message, in order.
    pub(in crate::lane) fn next(&mut self) -> Option<Frame> {
        let leases = &self.leases;
        self.inbound.next(|mut memory| {
            memory.attach_lease(leases.clone());
            memory.freeze().into()
        })
    }

    /// Why nothing more comes, once all has been handed out that had.
    pub(in crate::lane) fn over(&self) -> Option<Result<(), LaneError>> {
        if self.is_stopped {
            return Some(Err(self.ended.clone().unwrap_or(LaneError::Closed)));
        }
        if self.peer_ended && self.inbound.is_empty() {
            return Some(Ok(()));
        }
        // What is not fetched by now never will be.
        self.ended.clone().map(Err)
    }

    /// Reads nothing more.
    pub(in crate::lane) fn stop(&mut self) {
        self.is_stopped = true;
        self.inbound.close();
        self.waiter = AllocWaiter::new();
    }
}
