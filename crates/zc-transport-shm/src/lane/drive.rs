//! What goes on while the application polls neither half: the link, credit that was withheld, and the look
//! for unused arenas.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use zc_core::transport::{ControlLink, LaneDrive, LaneError};

use super::credit::Credit;
use super::shared::Shared;
use crate::limits::{DESCRIPTOR_LOOK_MS, DESCRIPTOR_WAIT_MS, TRIM_INTERVAL_MS};

pub(super) struct Drive {
    shared: Arc<Shared>,
    credit: Arc<Credit>,
    next_trim: Option<Instant>,
    /// Until then descriptors are waited for.
    gives_up: Option<Instant>,
}

impl Drive {
    pub(super) fn new(shared: Arc<Shared>, credit: Arc<Credit>) -> Self {
        Self { shared, credit, next_trim: None, gives_up: None }
    }
}

impl LaneDrive for Drive {
    fn poll_drive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, LaneError> {
        let shared = &self.shared;
        shared.wakers.drive.register(cx.waker());
        shared.chores.register(cx.waker());
        if shared.read_link(cx) {
            shared.wakers.rx.wake();
        }
        self.credit.drive(cx, shared);
        // The end is told by the halves: what was sent before it is delivered first.
        if shared.ended().is_some() {
            if shared.lacks_descriptors() {
                // Behind it may be the end of the peer's stream, of which nobody would hear.
                shared.give_up_descriptors();
            }
            self.next_trim = None;
            return Ok(self.wait_after_the_end(now));
        }
        let looks = self.wait_for_descriptors(now);
        Ok(self.trim(now).into_iter().chain(looks).min())
    }

    fn adopt_link(&mut self, link: Box<dyn ControlLink>) -> Option<Box<dyn ControlLink>> {
        if !link.passes_descriptors() {
            return Some(link);
        }
        self.shared.adopt(link);
        None
    }

    fn heard(&mut self) -> bool {
        self.shared.take_heard()
    }
}

impl Drive {
    /// If memory came for which there is no descriptor: when to look again. The lane ends when there has been none for long, but
    /// not while it can do without: memory may be ready long before a message lies in it.
    fn wait_for_descriptors(&mut self, now: Instant) -> Option<Instant> {
        if !self.shared.lacks_descriptors() {
            self.gives_up = None;
            return None;
        }
        let next = now + Duration::from_millis(DESCRIPTOR_LOOK_MS);
        if !self.shared.waits_for_descriptors() {
            self.gives_up = None;
            return Some(next);
        }
        let until = *self.gives_up.get_or_insert(now + Duration::from_millis(DESCRIPTOR_WAIT_MS));
        if now >= until {
            self.shared.end_without_descriptors();
            return None;
        }
        Some(until.min(next))
    }

    /// The lane has ended, and one of the halves is at memory that has not come: until when that is waited for. A peer that lives may
    /// never send it, nor end its link.
    fn wait_after_the_end(&mut self, now: Instant) -> Option<Instant> {
        if !self.shared.may_get_descriptors() {
            self.gives_up = None;
            return None;
        }
        let until = *self.gives_up.get_or_insert(now + Duration::from_millis(DESCRIPTOR_WAIT_MS));
        if now >= until {
            self.shared.give_up_descriptors();
            return None;
        }
        Some(until)
    }

    /// Has unused arenas looked for, and what is gone of groups, and says when next; never, while all are in use.
    fn trim(&mut self, now: Instant) -> Option<Instant> {
        let shared = &self.shared;
        if !shared.aging.load(Ordering::Acquire) && !shared.chores.any() {
            self.next_trim = None;
            return None;
        }
        let interval = Duration::from_millis(TRIM_INTERVAL_MS);
        let due = *self.next_trim.get_or_insert(now + interval);
        if now >= due {
            self.next_trim = Some(now + interval);
            shared.trim.store(true, Ordering::Release);
            shared.wakers.tx.wake();
        }
        self.next_trim
    }
}
