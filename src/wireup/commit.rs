//! The end of a wire-up: the lane that both sides commit to, or none.

use std::future::poll_fn;
use std::task::Poll;

use zc_core::transport::{Lane, Offer, Role, Transport, Unavailable};
use zc_core::wire::{ControlMessage, HandshakeState, Stage, WireError};

use super::Attempt;
use super::io::deadline;
use super::lanes::SETTLE_FACTOR;
use super::trial::Trial;
use crate::connection::ConnectionError;
use crate::error::{Error, lane_reason};
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
    pub(super) async fn control_lane(&mut self) -> Result<Lane, Error> {
        let shared = self.shared;
        let name = self.stream_name();
        let Some(stream) = &shared.stream else { return Err(self.no_transport()) };
        self.report.outranked(name);
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
