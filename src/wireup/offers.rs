//! What this side can bring, and what both can.

use std::iter;
use std::sync::Arc;

use zc_core::transport::{LinkAddr, Offer, OfferContext, Role, Transport, Unavailable};
use zc_core::wire::{ControlMessage, MAX_OFFER, MAX_OFFERS, OfferEntry, PlanEntry, Stage, WireError};

use super::Attempt;
use super::shared::{is_in_band, missing};
use crate::error::Error;
use crate::policy::Fallback;
use crate::report::Outcome;

/// A transport of ours that can serve this connection, with our half of a lane.
pub(super) struct Mine {
    pub(super) transport: Arc<dyn Transport>,
    /// What the peer knows it by.
    pub(super) wire: &'static str,
    pub(super) offer: Offer,
    /// Others of ours that speak the same to the peer, best first.
    pub(super) spares: Vec<Mine>,
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.transport.withdraw(&self.offer);
    }
}

fn entries(mine: &[Mine]) -> Vec<OfferEntry> {
    let entry = |m: &Mine| OfferEntry {
        transport: m.wire.into(),
        version: m.offer.version,
        bytes: m.offer.bytes.clone(),
    };
    mine.iter().map(entry).collect()
}

/// Our halves of lanes over this transport, one for each of its names that nobody better has; one with a second name
/// stands in for nobody. What the peer does not offer, if that is known, is not asked for: it may cost much.
async fn add_offers_of(
    cx: &OfferContext,
    transport: &Arc<dyn Transport>,
    theirs: Option<&[OfferEntry]>,
    mine: &mut Vec<Mine>,
) -> Result<(), Unavailable> {
    let (first, second) = (transport.wire_name(), transport.second_name());
    let mut added = None;
    for wire in [Some(first), second].into_iter().flatten() {
        let better = mine.iter().position(|better| better.wire == wire);
        if better.is_some() && second.is_some() {
            continue;
        }
        match (offer_of(cx, transport, wire, theirs, mine).await, better) {
            (Ok(offer), Some(better)) => mine[better].spares.push(offer),
            (Ok(offer), None) => mine.push(offer),
            // One of its names is enough; and a reason of ours says more than that the peer lacks the other one.
            (Err(why), _) => {
                if matches!(added, None | Some(Err(Unavailable::PeerLacks))) {
                    added = Some(Err(why));
                }
                continue;
            }
        }
        added = Some(Ok(()));
    }
    // Others are better under all of its names.
    added.unwrap_or(Ok(()))
}

/// Our half of a lane over this transport, which `so_far` has none better than.
async fn offer_of(
    cx: &OfferContext,
    transport: &Arc<dyn Transport>,
    wire: &'static str,
    theirs: Option<&[OfferEntry]>,
    so_far: &[Mine],
) -> Result<Mine, Unavailable> {
    transport.suits(cx)?;
    transport.probe()?;
    if transport.wants_descriptors() {
        cx.same_host.clone()?;
        if !cx.descriptors {
            return Err(Unavailable::NotApplicable { needs: "a socket, over which descriptors travel" });
        }
    }
    if theirs.is_some_and(|theirs| theirs.iter().all(|offer| offer.transport != wire)) {
        return Err(Unavailable::PeerLacks);
    }
    let offer = transport.offer_soon(cx).await?;
    let mine = Mine { transport: transport.clone(), wire, offer, spares: Vec::new() };
    // One that stands in for another takes no place among the offers.
    let is_spare = so_far.iter().any(|better| better.wire == wire);
    if mine.offer.bytes.len() > MAX_OFFER || (so_far.len() == MAX_OFFERS && !is_spare) {
        let remedy = format!("at most {MAX_OFFERS} transports, {MAX_OFFER} bytes each");
        return Err(Unavailable::Other { code: "offer_too_large", remedy });
    }
    Ok(mine)
}

/// Whether the lane of `second` would be that of `first` under another name.
fn is_again(first: &Mine, second: &Mine, theirs: &[OfferEntry]) -> bool {
    let transport = &second.transport;
    let of_peer = |mine: &Mine| {
        let offer = theirs.iter().find(|offer| offer.transport == mine.wire)?;
        Some(Offer { version: offer.version, bytes: offer.bytes.clone() })
    };
    Arc::ptr_eq(&first.transport, transport)
        && transport.is_same_way(&first.offer, &second.offer)
        && of_peer(first).zip(of_peer(second)).is_some_and(|(one, other)| transport.is_same_way(&one, &other))
}

impl<'a> Attempt<'a> {
    /// Exchanges offers; returns ours and the peer's once the plan is there.
    pub(super) async fn offers(&mut self) -> Result<(Vec<Mine>, Vec<OfferEntry>), Error> {
        match self.role {
            Role::Client => self.offers_as_client().await,
            Role::Server => self.offers_as_server().await,
        }
    }

    async fn offers_as_client(&mut self) -> Result<(Vec<Mine>, Vec<OfferEntry>), Error> {
        self.find_peer().await;
        let mine = self.mine(None).await;
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
        let mine = self.mine(Some(&theirs)).await;
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

    /// The transports that are made for such a link, and those that were asked for by name and are not there;
    /// best first.
    fn candidates(&self) -> Vec<(&'a str, Option<&'a Arc<dyn Transport>>)> {
        let (shared, request) = (self.shared, self.request);
        let in_process = matches!(self.identity.addr, LinkAddr::Memory(_));
        // "mem" is what the in-band transport is called on links inside the process.
        let fits = |name: &str, in_band: bool| !in_band || (name == "mem") == in_process;
        let registered = shared.transports.iter().filter(|t| fits(t.name(), t.in_band()));
        let mut found: Vec<_> = registered.map(|transport| (transport.name(), Some(transport))).collect();
        for name in request.named.iter().chain(shared.policy.named()) {
            let known = found.iter().any(|(known, _)| known == name);
            if !known && shared.missing(name).is_some() && fits(name, is_in_band(name)) {
                found.push((name, None));
            }
        }
        found.sort_by_key(|(name, _)| shared.policy.rank(name));
        found
    }

    /// Asks every transport, best first, that the peer may have as well; what can't serve is written into the report.
    async fn mine(&mut self, theirs: Option<&[OfferEntry]>) -> Vec<Mine> {
        let mut mine: Vec<Mine> = Vec::new();
        for (name, transport) in self.candidates() {
            let offered = match (self.refusal(name), transport) {
                (Some(why), _) => Err(why),
                (None, Some(transport)) => add_offers_of(&self.cx, transport, theirs, &mut mine).await,
                (None, None) => Err(missing(name)),
            };
            let outcome = match offered {
                Ok(()) => Outcome::NotNeeded,
                Err(why) => Outcome::Unavailable(why),
            };
            let wire = transport.map_or(name, |transport| transport.wire_name());
            self.report.add(name, wire, Stage::Offers, outcome);
        }
        mine
    }

    /// No candidate is even asked, for the same reason.
    pub(super) fn nothing_for(&mut self, why: &Unavailable) -> Error {
        for (name, _) in self.candidates() {
            self.report.set(name, Stage::Connect, Outcome::Unavailable(why.clone()));
        }
        self.no_transport()
    }

    /// Why a transport of this name is not asked, if so.
    fn refusal(&self, name: &str) -> Option<Unavailable> {
        if self.foreign.is_some() {
            return self.foreign.clone();
        }
        if !self.request.allows(name) {
            return Some(Unavailable::ForbiddenByPolicy);
        }
        self.shared.policy.refuses(name)
    }

    /// Marks what only we have, and returns those that both have, best first.
    fn mutual<'m>(&mut self, mine: &'m [Mine], theirs: &[OfferEntry]) -> Vec<&'m Mine> {
        let (both, alone): (Vec<_>, Vec<_>) =
            mine.iter().partition(|mine| theirs.iter().any(|offer| offer.transport == mine.wire));
        for lone in alone.into_iter().flat_map(|mine| iter::once(mine).chain(&mine.spares)) {
            // Under its other name the peer may have it.
            if both.iter().any(|mine| mine.transport.name() == lone.transport.name()) {
                continue;
            }
            let lacks = Outcome::Unavailable(Unavailable::PeerLacks);
            self.report.set(lone.transport.name(), Stage::Offers, lacks);
        }
        both
    }

    /// What to try. An in-band lane takes the link, so one at most stands in the list, at its end; and
    /// where fallback is denied only the best of all stands there.
    fn plan(&mut self, mine: &[Mine], theirs: &[OfferEntry]) -> Vec<String> {
        let mut both = self.mutual(mine, theirs);
        for at in (1..both.len()).rev() {
            if both[..at].iter().any(|first| is_again(first, both[at], theirs)) {
                both.remove(at);
            }
        }
        if let Some(first) = both.iter().position(|mine| mine.transport.in_band()) {
            both.truncate(first + 1);
        }
        if self.shared.policy.fallback_rule() == Fallback::Deny {
            both.truncate(1);
            both.retain(|mine| !self.report.lost_above(mine.transport.name(), &self.shared.policy));
        }
        both.into_iter().map(|mine| mine.wire.to_owned()).collect()
    }
}
