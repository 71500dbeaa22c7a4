//! Tries the plan's lanes in order until one is up at both ends.
//!
//! A lane's failure never fails the control link: both sides say how it went, and go to the next.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use zc_core::transport::{Lane, Offer, Role, Transport, Unavailable, WireupError};
use zc_core::wire::{CONTROL_LANE, ControlMessage, HandshakeState, OfferEntry, Stage, WireError};

use super::Attempt;
use super::io::{deadline, read_exact, write_all};
use super::join_link::{Joined, Joining, Side};
use super::offers::Mine;
use super::trial::Trial;
use crate::connection::ConnectionError;
use crate::error::{Error, join_reason, lane_reason};
use crate::policy::Fallback;
use crate::report::Outcome;
use crate::time::later;

/// The peer's word on a lane is awaited this many times a join's own deadline: it may have begun later.
const SETTLE_FACTOR: u32 = 2;

/// A lane of the plan that is being tried.
struct Try<'m> {
    index: u8,
    mine: &'m Mine,
    peer: Offer,
    /// The peer's word, once it came.
    theirs: Option<bool>,
}

impl Attempt<'_> {
    pub(super) async fn bring_up(&mut self, mine: &[Mine], theirs: &[OfferEntry]) -> Result<Lane, Error> {
        let mut trial = None;
        loop {
            match self.machine.state() {
                HandshakeState::Join { index } => {
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
                        return self.chosen(&*lane.mine.transport, &lane.mine.offer, lane.peer, trial).await;
                    }
                    trial = None;
                }
                _ => return Err(self.give_up("no lane came up").await),
            }
        }
    }

    fn planned<'m>(&self, index: u8, mine: &'m [Mine], theirs: &[OfferEntry]) -> Result<Try<'m>, Error> {
        let entry = self.machine.plan().get(usize::from(index));
        let found = entry.and_then(|entry| {
            let us = mine.iter().find(|mine| mine.transport.name() == entry.transport)?;
            let them = theirs.iter().find(|offer| offer.transport == entry.transport)?;
            Some((us, Offer { version: them.version, bytes: them.bytes.clone() }))
        });
        match found {
            Some((mine, peer)) => Ok(Try { index, mine, peer, theirs: None }),
            None => Err(self.bad("a plan entry that was not offered")),
        }
    }

    fn denied(&self, name: &str) -> bool {
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

    /// Runs the transport's own part. `Err` inside is the lane's failure, `Err` outside the link's.
    async fn join(&mut self, lane: &mut Try<'_>, end: Instant) -> Result<Result<Trial, Unavailable>, Error> {
        let ways = self.ways.take().ok_or_else(|| self.link_gone())?;
        let joining = Joining::new(ways, lane.index, self.cx.descriptors);
        let result = self.join_while_wanted(lane, &joining, self.until(end)).await;
        let joined = joining.finish().ok_or_else(|| self.link_gone())?;
        let spoken = self.take_back(joined).await?;
        if let Some(message) = &spoken {
            self.hear(lane, message).await?;
        }
        Ok(match result {
            Ok(Ok(made)) => {
                Ok(Trial::new(self.role, made, self.cx.pool.clone(), self.shared.reactor.clone())?)
            }
            Ok(Err(error)) => Err(why(error, spoken.as_ref())),
            Err(Error::Timeout { stage }) => Err(Unavailable::Timeout { stage }),
            Err(error) => return Err(error),
        })
    }

    /// Lets the transport join until the peer gives up.
    async fn join_while_wanted(
        &mut self,
        lane: &Try<'_>,
        joining: &Joining,
        limit: Duration,
    ) -> Result<Result<Lane, WireupError>, Error> {
        let mut slot = Some(joining.link(self.identity.addr.clone()));
        let (us, peer) = (lane.mine, lane.peer.clone());
        let mut join = us.transport.join(self.role, us.offer.clone(), peer, &mut slot, self.cx.clone());
        let wanted = poll_fn(|cx| match join.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => joining.poll_given_up(cx).map(|()| {
                let reason = "it gave the lane up".to_owned();
                Ok(Err(Unavailable::PeerFailed { reason }.into()))
            }),
        });
        deadline(&*self.shared.reactor, Stage::Join, limit, wanted).await
    }

    /// Takes the link back, and brings it to its place: a byte that was announced must go, and one that
    /// was announced to us must be read.
    async fn take_back(&mut self, joined: Joined) -> Result<Option<ControlMessage>, Error> {
        let Joined { mut ways, spoken, fault, descriptors_next, torn } = joined;
        if let Some(fault) = fault {
            self.ways = Some(ways);
            return Err(fault.at(Stage::Join));
        }
        if torn {
            match &mut ways.side {
                Side::Link => ways.io.push(vec![0]),
                Side::Lost => {}
                Side::Socket(side) => {
                    let (limit, gone) = (self.limit(self.shared.deadlines.join), self.link_gone());
                    let sent = async { write_all(&mut **side, &[0]).await.map_err(|_| gone) };
                    let sent = deadline(&*self.shared.reactor, Stage::Join, limit, sent).await;
                    if sent.is_err() {
                        ways.lose_side();
                    }
                }
            }
        }
        self.ways = Some(ways);
        if descriptors_next {
            self.drop_descriptors().await?;
        }
        self.cx.descriptors &= self.ways.as_ref().is_some_and(|ways| ways.pass_descriptors());
        Ok(spoken)
    }

    /// Reads the byte that carried descriptors which nobody wants any more; the kernel closes them.
    async fn drop_descriptors(&mut self) -> Result<(), Error> {
        let limit = self.limit(self.shared.deadlines.join);
        let reactor = &self.shared.reactor;
        let gone = self.link_gone();
        let Some(ways) = &mut self.ways else { return Err(gone) };
        let Some(link) = ways.for_descriptors() else { return Ok(()) };
        let mut byte = [0];
        let read = async { read_exact(link, &mut byte).await.map_err(|_| gone) };
        let read = deadline(&**reactor, Stage::Join, limit, read).await;
        // Without its side the connection lacks descriptors; without its link it has ended.
        if read.is_err() && ways.lose_side() {
            self.cx.descriptors = false;
            return Ok(());
        }
        read
    }

    /// Pings over the lane while the peer may speak.
    async fn ping(
        &mut self,
        lane: &mut Try<'_>,
        mut trial: Trial,
        end: Instant,
    ) -> Result<Result<Trial, Unavailable>, Error> {
        let reactor = &*self.shared.reactor;
        let limit = self.until(end);
        let pinged = deadline(reactor, Stage::Join, limit, async {
            loop {
                if lane.theirs == Some(false) {
                    return Ok(Err(Unavailable::PeerFailed { reason: "it gave the lane up".into() }));
                }
                let message = {
                    let gone = self.link_gone();
                    let Some(ways) = &mut self.ways else { return Err(gone) };
                    poll_fn(|cx| match trial.poll_pinged(cx) {
                        Poll::Ready(done) => Poll::Ready(Err(done)),
                        // After its word, the peer's next message belongs to what follows.
                        Poll::Pending if lane.theirs.is_some() => match ways.io.poll_push_out(cx) {
                            Poll::Ready(Err(error)) => Poll::Ready(Ok(Err(error.into()))),
                            _ => Poll::Pending,
                        },
                        Poll::Pending => ways.io.poll_message(cx).map(Ok),
                    })
                    .await
                };
                match message {
                    Err(Ok(())) => return Ok(Ok(())),
                    Err(Err(error)) => return Ok(Err(lane_reason(error))),
                    Ok(message) => {
                        let message = message.map_err(|fault| fault.at(Stage::Join))?;
                        self.hear(lane, &message).await?;
                    }
                }
            }
        });
        match pinged.await {
            Ok(Ok(())) => Ok(Ok(trial)),
            Ok(Err(why)) => Ok(Err(why)),
            Err(Error::Timeout { stage }) => Ok(Err(Unavailable::Timeout { stage })),
            Err(error) => Err(error),
        }
    }

    /// Follows a message that came while a lane is tried.
    async fn hear(&mut self, lane: &mut Try<'_>, message: &ControlMessage) -> Result<(), Error> {
        let handled = self.machine.handle(message);
        self.wire(handled)?;
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
    fn lost(&mut self, lane: &Try<'_>, why: Unavailable) {
        if !(lane.theirs == Some(false) && matches!(why, Unavailable::PeerFailed { .. })) {
            self.report.set(lane.mine.transport.name(), Stage::Join, Outcome::Unavailable(why));
        }
    }

    fn peer_failed(&mut self, lane: &Try<'_>, reason: &str) {
        let name = lane.mine.transport.name();
        let known = self.report.candidates().iter().any(|candidate| {
            candidate.transport == name && matches!(candidate.outcome, Outcome::Unavailable(_))
        });
        if !known {
            let why = Unavailable::PeerFailed { reason: reason.to_owned() };
            self.report.set(name, Stage::Join, Outcome::Unavailable(why));
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
    async fn next_while(&mut self, trial: &mut Option<Trial>) -> Result<ControlMessage, Error> {
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

    /// Commits to a lane; false if it broke since, and both sides go to the next.
    async fn commit(&mut self, trial: &mut Option<Trial>, name: &str) -> Result<bool, Error> {
        self.reached(Stage::Commit);
        let limit = self.limit(self.shared.deadlines.join.saturating_mul(SETTLE_FACTOR));
        let reactor = &*self.shared.reactor;
        deadline(reactor, Stage::Commit, limit, async {
            match self.role {
                Role::Client => self.commit_as_client(trial, name).await,
                Role::Server => self.commit_as_server(trial, name).await,
            }
        })
        .await
    }

    async fn commit_as_client(&mut self, trial: &mut Option<Trial>, name: &str) -> Result<bool, Error> {
        let broken = poll_fn(|cx| Poll::Ready(trial.as_mut().and_then(|trial| trial.broken(cx)))).await;
        let sent = match &broken {
            None => self.machine.commit().map(drop),
            Some(error) => self.machine.lane_down(&error.to_string()),
        };
        self.wire(sent)?;
        let committed = broken.is_none();
        if let Some(error) = broken {
            self.report.set(name, Stage::Commit, Outcome::Unavailable(lane_reason(error)));
        }
        self.flush().await?;
        Ok(committed)
    }

    async fn commit_as_server(&mut self, trial: &mut Option<Trial>, name: &str) -> Result<bool, Error> {
        let message = self.next_while(trial).await?;
        let handled = self.machine.handle(&message);
        self.wire(handled)?;
        if let ControlMessage::LaneDown { reason, .. } = message {
            let why = Unavailable::PeerFailed { reason };
            self.report.set(name, Stage::Commit, Outcome::Unavailable(why));
            return Ok(false);
        }
        // The client sends on it already, so there is no way back.
        match poll_fn(|cx| Poll::Ready(trial.as_mut().and_then(|trial| trial.broken(cx)))).await {
            Some(error) => Err(ConnectionError::from(error).into()),
            None => Ok(true),
        }
    }

    /// The lane of the plan that both sides committed to; an in-band one takes the link now.
    async fn chosen(
        &mut self,
        transport: &dyn Transport,
        mine: &Offer,
        peer: Offer,
        trial: Option<Trial>,
    ) -> Result<Lane, Error> {
        let lane = match trial {
            Some(trial) => trial.into_lane(),
            None => self.join_in_band(transport, mine.clone(), peer).await?,
        };
        self.report.set(transport.name(), Stage::Commit, Outcome::Chosen);
        Ok(lane)
    }

    /// The last resort: the control link itself.
    async fn control_lane(&mut self) -> Result<Lane, Error> {
        let shared = self.shared;
        let name = self.stream_name();
        let Some(stream) = &shared.stream else { return Err(self.no_transport()) };
        let lane = self.join_in_band(&**stream, Offer::default(), Offer::default()).await?;
        self.report.set(name, Stage::Commit, Outcome::Chosen);
        Ok(lane)
    }

    async fn join_in_band(
        &mut self,
        transport: &dyn Transport,
        mine: Offer,
        peer: Offer,
    ) -> Result<Lane, Error> {
        let limit = self.limit(self.shared.deadlines.join);
        let mut slot = self.ways.take().map(|ways| ways.io.into_link());
        let joining = transport.join(self.role, mine, peer, &mut slot, self.cx.clone());
        let joined =
            deadline(&*self.shared.reactor, Stage::Commit, limit, async { Ok(joining.await) }).await?;
        joined.map_err(Error::from)
    }

    /// No lane is left. The server says so, and the client waits to hear why.
    async fn give_up(&mut self, reason: &str) -> Error {
        if self.role == Role::Server {
            let error = self.no_transport();
            return self.refuse(reason, error).await;
        }
        if self.machine.state() != HandshakeState::Exhausted {
            return self.no_transport();
        }
        let limit = self.limit(self.shared.deadlines.join.saturating_mul(SETTLE_FACTOR));
        let reactor = &*self.shared.reactor;
        match deadline(reactor, Stage::Join, limit, self.next()).await {
            Err(Error::Wire { source: WireError::Rejected { reason, .. }, .. }) => {
                self.report.close(Stage::Join, &Unavailable::PeerFailed { reason });
                self.no_transport()
            }
            Err(error) => error,
            Ok(message) => self.unexpected(&message),
        }
    }

    fn until(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.shared.reactor.now())
    }
}

/// When the peer gave up, the link ended under the transport: the peer's words say more.
fn why(error: WireupError, spoken: Option<&ControlMessage>) -> Unavailable {
    match spoken {
        Some(ControlMessage::LaneDown { reason, .. }) => Unavailable::PeerFailed { reason: reason.clone() },
        _ => join_reason(error),
    }
}
