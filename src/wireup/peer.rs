//! Who the peer is, and whether it is on this host.

use zc_core::transport::{ControlLink, LinkAddr, PeerCred, Role, Unavailable};
use zc_core::wire::Stage;

use super::io::deadline;
use super::join_link::Side;
use super::{Attempt, same_host};

impl Attempt<'_> {
    /// As the server: lets the client begin its proof, which it may once it is authenticated.
    pub(super) fn expect_proof(&mut self) {
        if let (Ok(prover), Some(ours)) = (&self.prover, &self.same_host) {
            self.claim = Some(prover.expect(ours.nonce));
        }
    }

    /// Finds out who the peer is, and whether it is on this host. A proof that fails costs only the
    /// transports that need it.
    pub(super) async fn find_peer(&mut self) {
        let shared = self.shared;
        let link = self.ways.as_ref().map(|ways| &ways.io.link);
        let passes = link.is_some_and(|link| link.passes_descriptors());
        let cred = link.and_then(|link| link.peer_cred());
        let found = match &self.identity.addr {
            LinkAddr::Memory(_) => {
                self.cx.trust = shared.policy.trust_in_process();
                self.cx.same_host = Ok(());
                self.cx.descriptors = passes;
                return;
            }
            LinkAddr::Tcp(_) => self.proof().await,
            _ => same_host::accepted(shared, cred).map(|cred| (cred, None)),
        };
        match found {
            Ok((cred, side)) => {
                self.cx.descriptors = passes || side.is_some();
                self.cx.same_host = Ok(());
                self.cx.peer = Some(cred);
                self.cx.trust = shared.policy.trust(Some(cred));
                self.identity.cred = Some(cred);
                if let Some(ways) = &mut self.ways {
                    ways.side = side.map_or(Side::Link, Side::Socket);
                }
            }
            Err(why) => self.cx.same_host = Err(why),
        }
    }

    async fn proof(&mut self) -> Result<(PeerCred, Option<Box<dyn ControlLink>>), Unavailable> {
        let shared = self.shared;
        let said = self.machine.peer().and_then(|peer| peer.same_host);
        let peer = same_host::judge(said.as_ref())?;
        if !shared.wants_proof(&self.identity.addr, self.request) {
            return Err(Unavailable::HostNotProved);
        }
        // The server waits for our offers meanwhile.
        let limit = self.limit(shared.deadlines.offers) / 2;
        let (claim, no_prover) = (self.claim.take(), self.prover.as_ref().err().cloned());
        let proving = async {
            Ok(match (self.role, claim) {
                (Role::Client, _) => same_host::prove(shared, peer).await,
                (Role::Server, Some(claim)) => claim.close().await,
                (Role::Server, None) => Err(no_prover.unwrap_or(Unavailable::HostNotProved)),
            })
        };
        let proved = deadline(&*shared.reactor, Stage::Offers, limit, proving).await;
        let proved = proved.unwrap_or(Err(Unavailable::Timeout { stage: Stage::Offers }))?;
        Ok((proved.cred, Some(proved.link)))
    }
}
