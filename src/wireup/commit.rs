//! The end of a wire-up: the lane that both sides commit to, or none.

use std::future::poll_fn;
use std::task::Poll;

use zc_core::transport::{ControlLink, Lane, Offer, Role, Transport, Unavailable, WireupError};
use zc_core::wire::{ControlMessage, HandshakeState, Stage, WireError};

use super::Attempt;
use super::io::deadline;
use super::lanes::SETTLE_FACTOR;
use super::offers::Mine;
use super::trial::Trial;
use crate::connection::ConnectionError;
use crate::error::{Error, join_reason, lane_reason};
use crate::report::Outcome;

impl Attempt<'_> {
    /// Commits to a lane; false if it broke since, and both sides go to the next.
    pub(super) async fn commit(&mut self, trial: &mut Option<Trial>, name: &str) -> Result<bool, Error> {
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
    pub(super) async fn chosen(
        &mut self,
        mine: &Mine,
        peer: Offer,
        trial: Option<Trial>,
    ) -> Result<Lane, Error> {
        let Some(trial) = trial else { return self.chosen_in_band(mine, &peer).await };
        let lane = trial.into_lane();
        self.report.choose(mine.transport.name(), lane.caps.variant);
        Ok(lane)
    }

    /// One that could not begin leaves the link, and another one of ours may speak the same to the peer.
    async fn chosen_in_band(&mut self, mine: &Mine, peer: &Offer) -> Result<Lane, Error> {
        let mut link = self.ways.take().map(|ways| ways.io.into_link());
        let mut spares = mine.spares.iter();
        let mut mine = mine;
        loop {
            let name = mine.transport.name();
            let joined = self.join_in_band(&*mine.transport, &mine.offer, peer, &mut link).await?;
            let (error, spare) = match (joined, spares.next()) {
                (Ok(lane), _) => {
                    self.report.choose(name, lane.caps.variant);
                    return Ok(lane);
                }
                (Err(error), Some(spare)) if link.is_some() => (error, spare),
                (Err(error), _) => return Err(error.into()),
            };
            self.report.set(name, Stage::Commit, Outcome::Unavailable(join_reason(error)));
            if self.denied(spare.transport.name()) {
                return Err(self.no_transport());
            }
            mine = spare;
        }
    }

    /// The last resort: the control link itself.
    pub(super) async fn control_lane(&mut self) -> Result<Lane, Error> {
        let shared = self.shared;
        let name = self.stream_name();
        let Some(stream) = &shared.stream else { return Err(self.no_transport()) };
        self.report.outranked(name);
        let mut link = self.ways.take().map(|ways| ways.io.into_link());
        let offer = Offer::default();
        let lane = self.join_in_band(&**stream, &offer, &offer, &mut link).await??;
        self.report.choose(name, lane.caps.variant);
        Ok(lane)
    }

    async fn join_in_band(
        &mut self,
        transport: &dyn Transport,
        mine: &Offer,
        peer: &Offer,
        link: &mut Option<Box<dyn ControlLink>>,
    ) -> Result<Result<Lane, WireupError>, Error> {
        let limit = self.limit(self.shared.deadlines.join);
        let joining = transport.join(self.role, mine.clone(), peer.clone(), link, self.cx.clone());
        deadline(&*self.shared.reactor, Stage::Commit, limit, async { Ok(joining.await) }).await
    }

    /// No lane is left. The server says so, and the client waits to hear why.
    pub(super) async fn give_up(&mut self, reason: &str) -> Error {
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
}
