//! Tries the plan's lanes in order until one is up at both ends.
//!
//! A lane's failure never fails the control link: both sides say how it went, and go to the next.

use std::future::poll_fn;

use zc_core::transport::{Lane, Offer, Unavailable};
use zc_core::wire::{CONTROL_LANE, ControlMessage, HandshakeState, OfferEntry, Stage};

use super::Attempt;
use super::io::deadline;
use super::offers::Mine;
use super::trial::Trial;
use crate::error::Error;
use crate::policy::Fallback;
use crate::report::Outcome;
use crate::time::later;

/// The peer's word on a lane is awaited this many times a join's own deadline: it may have begun later.
pub(super) const SETTLE_FACTOR: u32 = 2;

/// A lane of the plan that is being tried.
pub(super) struct Try<'m> {
    pub(super) mine: &'m Mine,
    pub(super) peer: Offer,
    /// The peer's word, once it came.
    pub(super) theirs: Option<bool>,
    /// Why we gave it up is in the report.
    is_explained: bool,
}

impl Attempt<'_> {
    pub(super) async fn bring_up(&mut self, mine: &[Mine], theirs: &[OfferEntry]) -> Result<Lane, Error> {
        let mut trial = None;
        loop {
            match self.machine.state() {
                HandshakeState::Join { index } => {
                    // Again and again: a lane may break at its COMMIT, and the next one joins.
                    self.reached(Stage::Join);
                    let mut lane = self.planned(index, mine, theirs)?;
                    if self.denied(lane.mine.transport.name()) {
                        return Err(self.give_up("fallback is denied here").await);
                    }
                    trial = self.try_lane(&mut lane).await?;
                    self.settle(&mut lane, &mut trial).await?;
                    if lane.theirs != Some(true) {
                        trial = None;
                    }
                }
                HandshakeState::Commit { index } => {
                    if index == CONTROL_LANE {
                        self.commit(&mut None, self.stream_name()).await?;
                        return self.control_lane().await;
                    }
                    let lane = self.planned(index, mine, theirs)?;
                    if self.commit(&mut trial, lane.mine.transport.name()).await? {
                        return self.chosen(lane.mine, lane.peer, trial).await;
                    }
                    trial = None;
                }
                _ => return Err(self.give_up("no lane came up").await),
            }
        }
    }

    fn planned<'m>(&self, index: u8, mine: &'m [Mine], theirs: &[OfferEntry]) -> Result<Try<'m>, Error> {
        let found = self.machine.planned(index).and_then(|name| {
            let us = mine.iter().find(|mine| mine.wire == name)?;
            let them = theirs.iter().find(|offer| offer.transport == name)?;
            Some((us, Offer { version: them.version, bytes: them.bytes.clone() }))
        });
        match found {
            Some((mine, peer)) => Ok(Try { mine, peer, theirs: None, is_explained: false }),
            None => Err(self.bad("a plan entry that was not offered")),
        }
    }

    /// Whether fallback to this entry is denied. What we rank above it is not needed but refused, for the peer
    /// ranked it otherwise; its turn may still come.
    pub(super) fn denied(&mut self, name: &str) -> bool {
        self.report.outranked(name);
        self.shared.policy.fallback_rule() == Fallback::Deny
            && self.report.lost_above(name, &self.shared.policy)
    }

    /// Lets an out-of-band transport join, pings, and says how it went. An in-band one joins after COMMIT.
    async fn try_lane(&mut self, lane: &mut Try<'_>) -> Result<Option<Trial>, Error> {
        if lane.mine.transport.in_band() {
            let said = self.machine.lane_up();
            return self.wire(said).map(|()| None);
        }
        let end = later(self.shared.reactor.now(), self.limit(self.shared.deadlines.join));
        let tried = match self.join(lane, end).await? {
            Ok(joined) => self.ping(lane, joined, end).await?,
            Err(why) => Err(why),
        };
        let (trial, said) = match tried {
            Ok(trial) => (Some(trial), self.machine.lane_up()),
            Err(why) => {
                let said = self.machine.lane_down(&why.to_string());
                self.lost(lane, why);
                (None, said)
            }
        };
        self.wire(said)?;
        Ok(trial)
    }

    /// Follows a message that came while a lane is tried.
    pub(super) async fn hear(&mut self, lane: &mut Try<'_>, message: &ControlMessage) -> Result<(), Error> {
        let handled = self.machine.handle(message);
        self.wire(handled)?;
        self.heard(lane, message).await
    }

    /// The same for one that the machine has followed.
    pub(super) async fn heard(&mut self, lane: &mut Try<'_>, message: &ControlMessage) -> Result<(), Error> {
        match message {
            ControlMessage::LaneUp { .. } => lane.theirs = Some(true),
            ControlMessage::LaneDown { reason, .. } => {
                lane.theirs = Some(false);
                self.peer_failed(lane, reason);
            }
            ControlMessage::Join { bytes, .. } if bytes.is_empty() => self.drop_descriptors().await?,
            _ => {}
        }
        Ok(())
    }

    /// Our own reason says more than the peer's, when both failed; unless ours is only that it gave up.
    fn lost(&mut self, lane: &mut Try<'_>, why: Unavailable) {
        if !(lane.theirs == Some(false) && matches!(why, Unavailable::PeerFailed { .. })) {
            lane.is_explained = true;
            self.report.set(lane.mine.transport.name(), Stage::Join, Outcome::Unavailable(why));
        }
    }

    /// What was said of a lane of the same transport, under its other name, is another matter.
    fn peer_failed(&mut self, lane: &Try<'_>, reason: &str) {
        if !lane.is_explained {
            let why = Unavailable::PeerFailed { reason: reason.to_owned() };
            self.report.set(lane.mine.transport.name(), Stage::Join, Outcome::Unavailable(why));
        }
    }

    /// Tells the peer our word on the lane, and waits for its own.
    async fn settle(&mut self, lane: &mut Try<'_>, trial: &mut Option<Trial>) -> Result<(), Error> {
        let limit = self.limit(self.shared.deadlines.join.saturating_mul(SETTLE_FACTOR));
        let reactor = &*self.shared.reactor;
        deadline(reactor, Stage::Join, limit, async {
            self.flush().await?;
            while lane.theirs.is_none() {
                let message = self.next_while(trial).await?;
                self.hear(lane, &message).await?;
            }
            Ok(())
        })
        .await
    }

    /// The next message; meanwhile the lane is kept going.
    pub(super) async fn next_while(&mut self, trial: &mut Option<Trial>) -> Result<ControlMessage, Error> {
        let stage = self.machine.stage();
        let gone = self.link_gone();
        let Some(ways) = &mut self.ways else { return Err(gone) };
        let message = poll_fn(|cx| {
            if let Some(trial) = trial {
                trial.keep(cx);
            }
            ways.io.poll_message(cx)
        });
        message.await.map_err(|fault| fault.at(stage))
    }
}
