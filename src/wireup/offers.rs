//! What this side can bring, and what both can.

use std::sync::Arc;

use zc_core::transport::{LinkAddr, Offer, Role, Transport, Unavailable};
use zc_core::wire::{ControlMessage, MAX_OFFER, MAX_OFFERS, OfferEntry, PlanEntry, Stage, WireError};

use super::Attempt;
use crate::error::Error;
use crate::policy::Fallback;
use crate::report::Outcome;

/// A transport of ours that can serve this connection, with our half of a lane.
pub(super) struct Mine {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) offer: Offer,
}

fn entries(mine: &[Mine]) -> Vec<OfferEntry> {
    let entry = |m: &Mine| OfferEntry {
        transport: m.transport.name().into(),
        version: m.offer.version,
        bytes: m.offer.bytes.clone(),
    };
    mine.iter().map(entry).collect()
}

impl Attempt<'_> {
    /// Exchanges offers; returns ours and the peer's once the plan is there.
    pub(super) async fn offers(&mut self) -> Result<(Vec<Mine>, Vec<OfferEntry>), Error> {
        match self.role {
            Role::Client => self.offers_as_client().await,
            Role::Server => self.offers_as_server().await,
        }
    }

    async fn offers_as_client(&mut self) -> Result<(Vec<Mine>, Vec<OfferEntry>), Error> {
        self.find_peer().await;
        let mine = self.mine();
        if self.foreign.is_some() {
            return Err(self.no_transport());
        }
        let sent = self.machine.send_offers(entries(&mine));
        self.wire(sent)?;
        self.flush().await?;
        let message = self.next().await;
        if let Err(Error::Wire { source: WireError::Rejected { reason, .. }, .. }) = &message {
            self.report.close(Stage::Offers, &Unavailable::PeerFailed { reason: reason.clone() });
            return Err(self.no_transport());
        }
        let message = message?;
        let ControlMessage::Offers(theirs) = message else { return Err(self.unexpected(&message)) };
        self.mutual(&mine, &theirs);
        self.next().await?; // PLAN: after OFFERS the machine lets nothing else pass
        Ok((mine, theirs))
    }

    async fn offers_as_server(&mut self) -> Result<(Vec<Mine>, Vec<OfferEntry>), Error> {
        let message = self.next().await?;
        let ControlMessage::Offers(theirs) = message else { return Err(self.unexpected(&message)) };
        self.find_peer().await;
        let mine = self.mine();
        if let Some(why) = self.foreign.clone() {
            let error = self.no_transport();
            return Err(self.refuse(&why.to_string(), error).await);
        }
        let names = self.plan(&mine, &theirs);
        let plan = names.into_iter().map(|transport| PlanEntry { transport }).collect();
        let sent = self.machine.send_plan(entries(&mine), plan);
        self.wire(sent)?;
        self.flush().await?;
        Ok((mine, theirs))
    }

    /// Asks every transport, best first; what can't serve is written into the report.
    fn mine(&mut self) -> Vec<Mine> {
        let shared = self.shared;
        let in_process = matches!(self.identity.addr, LinkAddr::Memory(_));
        let mut transports: Vec<_> = shared.transports.iter().collect();
        transports.sort_by_key(|transport| shared.policy.rank(transport.name()));
        let mut mine: Vec<Mine> = Vec::new();
        for transport in transports {
            let name = transport.name();
            // "mem" is what the in-band transport is called on links inside the process.
            if transport.in_band() && (name == "mem") != in_process {
                continue;
            }
            match self.offer_of(&**transport, mine.len()) {
                Ok(offer) => {
                    self.report.set(name, Stage::Offers, Outcome::NotNeeded);
                    mine.push(Mine { transport: transport.clone(), offer });
                }
                Err(why) => self.report.set(name, Stage::Offers, Outcome::Unavailable(why)),
            }
        }
        if let Some(named) = &self.request.named
            && !shared.transports.iter().any(|transport| transport.name() == named)
        {
            let remedy = format!("register or compile in the transport `{named}`");
            let why = Unavailable::Other { code: "not_registered", remedy };
            self.report.set(named, Stage::Offers, Outcome::Unavailable(why));
        }
        mine
    }

    fn offer_of(&self, transport: &dyn Transport, so_far: usize) -> Result<Offer, Unavailable> {
        if let Some(why) = &self.foreign {
            return Err(why.clone());
        }
        let name = transport.name();
        if !self.request.allows(name) {
            return Err(Unavailable::ForbiddenByPolicy);
        }
        if let Some(why) = self.shared.policy.refuses(name) {
            return Err(why);
        }
        transport.probe()?;
        if transport.wants_descriptors() {
            self.cx.same_host.clone()?;
            if !self.cx.descriptors {
                return Err(Unavailable::NotApplicable { needs: "a socket, over which descriptors travel" });
            }
        }
        let offer = transport.offer(&self.cx)?;
        if offer.bytes.len() > MAX_OFFER || so_far == MAX_OFFERS {
            let remedy = format!("at most {MAX_OFFERS} transports, {MAX_OFFER} bytes each");
            return Err(Unavailable::Other { code: "offer_too_large", remedy });
        }
        Ok(offer)
    }

    /// Marks what only we have, and returns the names that both have, best first.
    fn mutual(&mut self, mine: &[Mine], theirs: &[OfferEntry]) -> Vec<String> {
        let mut names = Vec::new();
        for name in mine.iter().map(|m| m.transport.name()) {
            if theirs.iter().any(|offer| offer.transport == name) {
                names.push(name.to_owned());
            } else {
                self.report.set(name, Stage::Offers, Outcome::Unavailable(Unavailable::PeerLacks));
            }
        }
        names
    }

    /// What to try. An in-band lane takes the link, so one at most stands in the list, at its end; and
    /// where fallback is denied only the best of all stands there.
    fn plan(&mut self, mine: &[Mine], theirs: &[OfferEntry]) -> Vec<String> {
        let mut names = self.mutual(mine, theirs);
        let in_band =
            |name: &String| mine.iter().any(|m| m.transport.name() == name && m.transport.in_band());
        if let Some(first) = names.iter().position(in_band) {
            names.truncate(first + 1);
        }
        if self.shared.policy.fallback_rule() == Fallback::Deny {
            names.truncate(1);
            names.retain(|name| !self.report.lost_above(name, &self.shared.policy));
        }
        names
    }
}
