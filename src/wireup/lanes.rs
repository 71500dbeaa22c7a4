//! Tries the lanes of a plan, in order, until one is up on both sides.

use zc_core::transport::{Lane, Offer, Role};
use zc_core::wire::{ClientHandshake, ControlMessage, OfferEntry, ServerHandshake, Stage};

use super::{Attempt, Mine};
use crate::error::Error;
use crate::report::Outcome;

impl Attempt<'_> {
    pub(super) async fn client_lanes(
        &mut self,
        hs: &mut ClientHandshake,
        mine: &[Mine],
        theirs: &[OfferEntry],
        plan: &[String],
    ) -> Result<Lane, Error> {
        for (at, name) in plan.iter().enumerate() {
            self.wire.stage(Stage::Join, self.shared.deadlines.join)?;
            let (us, offer) = self.pair(mine, theirs, name)?;
            let early = self.early(Role::Client, us, &offer).await;
            match &early {
                Ok(_) => self.wire.check(hs.lane_up())?,
                Err(why) => self.wire.check(hs.lane_down(&why.to_string()))?,
            }
            self.wire.send(hs.take_output()).await?;
            let answer = self.wire.control(hs).await?;
            match (early, answer) {
                (Ok(early), ControlMessage::LaneUp { .. }) => {
                    self.wire.stage(Stage::Commit, self.shared.deadlines.join)?;
                    let committed = hs.commit();
                    self.wire.check(committed.map(drop))?;
                    self.wire.send(hs.take_output()).await?;
                    return self.chosen(Role::Client, us, offer, early, &plan[at + 1..]).await;
                }
                (early, answer) => self.lost(name, early.err(), &answer),
            }
        }
        Err(self.none())
    }

    pub(super) async fn server_lanes(
        &mut self,
        hs: &mut ServerHandshake,
        mine: &[Mine],
        theirs: &[OfferEntry],
        plan: &[String],
    ) -> Result<Lane, Error> {
        for (at, name) in plan.iter().enumerate() {
            self.wire.stage(Stage::Join, self.shared.deadlines.join)?;
            let (us, offer) = self.pair(mine, theirs, name)?;
            let early = self.early(Role::Server, us, &offer).await;
            match &early {
                Ok(_) => self.wire.check(hs.lane_up())?,
                Err(why) => self.wire.check(hs.lane_down(&why.to_string()))?,
            }
            self.wire.send(hs.take_output()).await?;
            let answer = self.wire.control(hs).await?;
            match (early, answer) {
                (Ok(early), ControlMessage::LaneUp { .. }) => {
                    self.wire.stage(Stage::Commit, self.shared.deadlines.join)?;
                    self.wire.control(hs).await?; // COMMIT; anything else is an error of the handshake
                    return self.chosen(Role::Server, us, offer, early, &plan[at + 1..]).await;
                }
                (early, answer) => self.lost(name, early.err(), &answer),
            }
        }
        Err(self.none())
    }

    /// Our transport and the peer's offer of that name.
    fn pair<'m>(
        &self,
        mine: &'m [Mine],
        theirs: &[OfferEntry],
        name: &str,
    ) -> Result<(&'m Mine, Offer), Error> {
        let us = mine.iter().find(|mine| mine.transport.name() == name);
        let them = theirs.iter().find(|offer| offer.transport == name);
        match us.zip(them) {
            Some((us, them)) => Ok((us, Offer { version: them.version, bytes: them.bytes.clone() })),
            None => Err(self.wire.bad("a plan entry that was not offered")),
        }
    }

    /// Joins a lane that has a path of its own before it is committed to; an in-band one comes after.
    async fn early(&mut self, role: Role, us: &Mine, peer: &Offer) -> Result<Option<Lane>, Error> {
        if us.transport.in_band() {
            return Ok(None);
        }
        self.join(role, us, peer.clone()).await.map(Some)
    }

    async fn join(&mut self, role: Role, us: &Mine, peer: Offer) -> Result<Lane, Error> {
        let (link, mut timer) = self.wire.link_and_timer();
        let join = us.transport.join(role, us.offer.clone(), peer, link, self.cx.clone());
        timer.within(join).await?.map_err(Error::from)
    }

    async fn chosen(
        &mut self,
        role: Role,
        us: &Mine,
        peer: Offer,
        early: Option<Lane>,
        rest: &[String],
    ) -> Result<Lane, Error> {
        let lane = match early {
            Some(lane) => lane,
            None => self.join(role, us, peer).await?,
        };
        self.report.add(us.transport.name(), Stage::Commit, Outcome::Chosen);
        for name in rest {
            self.report.add(name, Stage::Offers, Outcome::NotNeeded);
        }
        Ok(lane)
    }

    fn lost(&mut self, name: &str, ours: Option<Error>, answer: &ControlMessage) {
        let why = match (ours, answer) {
            (Some(error), _) => error.as_unavailable(),
            (None, ControlMessage::LaneDown { reason, .. }) => {
                zc_core::transport::Unavailable::PeerFailed { reason: reason.clone() }
            }
            (None, _) => zc_core::transport::Unavailable::PeerLacks,
        };
        self.report.add(name, Stage::Join, Outcome::Unavailable(why));
    }

    fn none(&mut self) -> Error {
        Error::NoTransport(Box::new(std::mem::take(&mut self.report)))
    }
}
