//! One out-of-band lane: its transport joins over the control link, and then it must pass a ping.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use zc_core::transport::{Lane, Unavailable, WireupError};
use zc_core::wire::{ControlMessage, Stage};

use super::Attempt;
use super::io::{deadline, read_exact, write_all};
use super::join_link::{Joined, Joining, Side};
use super::lanes::Try;
use super::trial::Trial;
use crate::error::{Error, join_reason, lane_reason};

impl Attempt<'_> {
    /// Runs the transport's own part. `Err` inside is the lane's failure, `Err` outside the link's.
    pub(super) async fn join(
        &mut self,
        lane: &mut Try<'_>,
        end: Instant,
    ) -> Result<Result<Trial, Unavailable>, Error> {
        let ways = self.ways.take().ok_or_else(|| self.link_gone())?;
        let joining = Joining::new(ways, self.machine.clone(), self.cx.descriptors);
        let result = self.join_while_wanted(lane, &joining, self.until(end)).await;
        let joined = joining.finish().ok_or_else(|| self.link_gone())?;
        let spoken = self.take_back(joined).await?;
        if let Some(message) = &spoken {
            self.heard(lane, message).await?;
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
    pub(super) async fn drop_descriptors(&mut self) -> Result<(), Error> {
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
    pub(super) async fn ping(
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
