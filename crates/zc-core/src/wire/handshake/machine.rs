//! What is true of both sides.

use super::{HandshakeState, MAX_AUTH_ROUNDS, MAX_JOIN_MESSAGES};
use crate::wire::control::{CONTROL_LANE, ControlMessage, OfferEntry, PlanEntry};
use crate::wire::error::WireError;
use crate::wire::hello::{Hello, HelloRole};

/// One side's end.
#[derive(Debug)]
pub(super) struct Machine {
    ours: Hello,
    pub(super) peer: Option<(Hello, u8)>,
    pub(super) state: HandshakeState,
    pub(super) out: Vec<u8>,
    auth_received: u8,
    pub(super) my_offers: Option<Vec<String>>,
    pub(super) peer_offers: Option<Vec<String>>,
    pub(super) plan: Vec<PlanEntry>,
    mine: Option<bool>,
    theirs: Option<bool>,
    joins_sent: u16,
    joins_received: u16,
}

impl Machine {
    pub(super) fn new(mut ours: Hello, role: HelloRole) -> Result<Self, WireError> {
        ours.role = role;
        ours.encode(&mut Vec::new())?;
        Ok(Self {
            ours,
            peer: None,
            state: HandshakeState::Hello,
            out: Vec::new(),
            auth_received: 0,
            my_offers: None,
            peer_offers: None,
            plan: Vec::new(),
            mine: None,
            theirs: None,
            joins_sent: 0,
            joins_received: 0,
        })
    }

    fn is_client(&self) -> bool {
        self.ours.role == HelloRole::Client
    }

    pub(super) fn put_hello(&mut self) -> Result<(), WireError> {
        self.ours.encode(&mut self.out)
    }

    pub(super) fn put(&mut self, message: &ControlMessage) -> Result<(), WireError> {
        message.encode(&mut self.out)
    }

    fn fail<T>(&mut self, result: Result<T, WireError>) -> Result<T, WireError> {
        if result.is_err() {
            self.state = HandshakeState::Failed { stage: self.state.stage() };
        }
        result
    }

    pub(super) fn handle_hello(&mut self, input: &[u8]) -> Result<Option<usize>, WireError> {
        self.expect(self.state == HandshakeState::Hello, "take a HELLO")?;
        let decoded = Hello::decode(input, self.ours.versions);
        if !self.is_client() && matches!(decoded, Err(WireError::VersionMismatch { .. })) {
            // The client reads our range from it, and can say what is wrong.
            self.put_hello()?;
        }
        let Some((hello, used)) = self.fail(decoded)? else { return Ok(None) };
        if !self.is_client() {
            self.put_hello()?;
        }
        let accepted = self.accept_hello(hello);
        self.fail(accepted)?;
        Ok(Some(used))
    }

    fn accept_hello(&mut self, hello: Hello) -> Result<(), WireError> {
        if hello.role == self.ours.role {
            return Err(WireError::BadValue { field: "role" });
        }
        if hello.auth_method != self.ours.auth_method {
            let (ours, theirs) = (self.ours.auth_method.clone(), hello.auth_method);
            return Err(WireError::AuthMethod { ours, theirs });
        }
        let version = self.ours.versions.negotiate(hello.versions)?;
        self.peer = Some((hello, version));
        self.state = if self.ours.auth_method.is_empty() {
            HandshakeState::Offers
        } else {
            HandshakeState::Authenticate { our_turn: self.is_client() }
        };
        Ok(())
    }

    pub(super) fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError> {
        let result = self.step(message);
        self.fail(result)
    }

    fn step(&mut self, message: &ControlMessage) -> Result<(), WireError> {
        let client = self.is_client();
        match (self.state, message) {
            (HandshakeState::Hello | HandshakeState::Failed { .. } | HandshakeState::Committed { .. }, _) => {
                Err(self.unexpected(message))
            }
            (_, ControlMessage::Reject { code, reason }) if client => {
                Err(WireError::Rejected { code: *code, reason: reason.clone() })
            }
            (HandshakeState::Authenticate { our_turn: false }, ControlMessage::Auth { .. }) => self.on_auth(),
            (HandshakeState::Authenticate { our_turn: false }, ControlMessage::AuthOk) if client => {
                self.state = HandshakeState::Offers;
                Ok(())
            }
            (HandshakeState::Offers, ControlMessage::Offers(offers)) => self.on_offers(message, offers),
            (HandshakeState::Offers, ControlMessage::Plan(plan)) if client && self.peer_offers.is_some() => {
                self.start_plan(plan)
            }
            (HandshakeState::Join { index: now }, ControlMessage::Join { index, .. })
                if now == *index && self.theirs.is_none() =>
            {
                self.on_join()
            }
            (HandshakeState::Join { index: now }, ControlMessage::LaneUp { index })
                if now == *index && self.theirs.is_none() =>
            {
                self.theirs = Some(true);
                self.settle(now);
                Ok(())
            }
            (HandshakeState::Join { index: now }, ControlMessage::LaneDown { index, .. })
                if now == *index && self.theirs.is_none() =>
            {
                self.theirs = Some(false);
                self.settle(now);
                Ok(())
            }
            // In place of COMMIT: the lane broke after both sides had said that it was up.
            (HandshakeState::Commit { index: now }, ControlMessage::LaneDown { index, .. })
                if !client && now == *index && now != CONTROL_LANE =>
            {
                self.enter(now + 1);
                Ok(())
            }
            (HandshakeState::Commit { index: now }, ControlMessage::Commit { index })
                if !client && now == *index =>
            {
                self.state = HandshakeState::Committed { index: now };
                Ok(())
            }
            _ => Err(self.unexpected(message)),
        }
    }

    fn on_auth(&mut self) -> Result<(), WireError> {
        self.auth_received += 1;
        if self.auth_received > MAX_AUTH_ROUNDS {
            let (len, max) = (self.auth_received.into(), MAX_AUTH_ROUNDS.into());
            return Err(WireError::TooLong { field: "authentication rounds", len, max });
        }
        self.state = HandshakeState::Authenticate { our_turn: true };
        Ok(())
    }

    fn on_offers(&mut self, message: &ControlMessage, offers: &[OfferEntry]) -> Result<(), WireError> {
        // The client speaks first, so that the server's offers never leave before it was heard.
        if self.peer_offers.is_some() || (self.is_client() && self.my_offers.is_none()) {
            return Err(self.unexpected(message));
        }
        self.peer_offers = Some(names(offers)?);
        Ok(())
    }

    fn on_join(&mut self) -> Result<(), WireError> {
        self.joins_received = one_more_join(self.joins_received)?;
        Ok(())
    }

    pub(super) fn start_plan(&mut self, plan: &[PlanEntry]) -> Result<(), WireError> {
        self.check_plan(plan)?;
        self.plan.clear();
        self.plan.extend(plan.iter().cloned());
        self.enter(0);
        Ok(())
    }

    pub(super) fn check_plan(&self, plan: &[PlanEntry]) -> Result<(), WireError> {
        let offered = |list: &Option<Vec<String>>, name: &String| {
            list.as_ref().is_some_and(|names| names.contains(name))
        };
        for (at, entry) in plan.iter().enumerate() {
            let name = &entry.transport;
            let twice = plan[..at].contains(entry);
            if twice || !offered(&self.my_offers, name) || !offered(&self.peer_offers, name) {
                return Err(WireError::BadValue { field: "plan" });
            }
        }
        Ok(())
    }

    /// Goes to plan entry `index`, or past the end of the plan.
    fn enter(&mut self, index: u8) {
        (self.mine, self.theirs) = (None, None);
        (self.joins_sent, self.joins_received) = (0, 0);
        self.state = if usize::from(index) < self.plan.len() {
            HandshakeState::Join { index }
        } else if self.control_lane() {
            HandshakeState::Commit { index: CONTROL_LANE }
        } else {
            HandshakeState::Exhausted
        };
    }

    /// Both sides let the control link carry the data.
    pub(super) fn control_lane(&self) -> bool {
        self.ours.control_lane && self.peer.as_ref().is_some_and(|(peer, _)| peer.control_lane)
    }

    /// Once both sides have spoken about a lane: take it, or go to the next.
    fn settle(&mut self, index: u8) {
        match (self.mine, self.theirs) {
            (Some(true), Some(true)) => self.state = HandshakeState::Commit { index },
            (Some(_), Some(_)) => self.enter(index + 1),
            _ => {}
        }
    }

    pub(super) fn send_auth(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        self.expect(self.state == HandshakeState::Authenticate { our_turn: true }, "send AUTH")?;
        self.put(&ControlMessage::Auth { bytes })?;
        self.state = HandshakeState::Authenticate { our_turn: false };
        Ok(())
    }

    pub(super) fn send_join(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        let index = self.joining("send JOIN")?;
        let sent = one_more_join(self.joins_sent)?;
        self.put(&ControlMessage::Join { index, bytes })?;
        self.joins_sent = sent;
        Ok(())
    }

    pub(super) fn lane_up(&mut self) -> Result<(), WireError> {
        let index = self.joining("send LANE_UP")?;
        self.put(&ControlMessage::LaneUp { index })?;
        self.mine = Some(true);
        self.settle(index);
        Ok(())
    }

    pub(super) fn lane_down(&mut self, reason: &str) -> Result<(), WireError> {
        if let HandshakeState::Commit { index } = self.state
            && self.is_client()
            && index != CONTROL_LANE
        {
            self.put(&ControlMessage::LaneDown { index, reason: reason.to_owned() })?;
            self.enter(index + 1);
            return Ok(());
        }
        let index = self.joining("send LANE_DOWN")?;
        self.put(&ControlMessage::LaneDown { index, reason: reason.to_owned() })?;
        self.mine = Some(false);
        self.settle(index);
        Ok(())
    }

    /// The lane being tried, if this side has not spoken about it yet.
    fn joining(&self, action: &'static str) -> Result<u8, WireError> {
        match self.state {
            HandshakeState::Join { index } if self.mine.is_none() => Ok(index),
            _ => Err(self.out_of_order(action)),
        }
    }

    pub(super) fn expect(&self, allowed: bool, action: &'static str) -> Result<(), WireError> {
        if allowed { Ok(()) } else { Err(self.out_of_order(action)) }
    }

    pub(super) fn out_of_order(&self, action: &'static str) -> WireError {
        WireError::OutOfOrder { action, stage: self.state.stage() }
    }

    fn unexpected(&self, message: &ControlMessage) -> WireError {
        WireError::UnexpectedMessage { message: message.name(), stage: self.state.stage() }
    }
}

/// Counts a JOIN of one side about one lane.
fn one_more_join(so_far: u16) -> Result<u16, WireError> {
    let (len, max) = (u64::from(so_far) + 1, MAX_JOIN_MESSAGES.into());
    if len > max {
        return Err(WireError::TooLong { field: "join messages", len, max });
    }
    Ok(so_far + 1)
}

/// The names in an OFFERS; each may stand there once.
pub(super) fn names(offers: &[OfferEntry]) -> Result<Vec<String>, WireError> {
    let mut names: Vec<String> = Vec::with_capacity(offers.len());
    for offer in offers {
        if names.contains(&offer.transport) {
            return Err(WireError::BadValue { field: "offers" });
        }
        names.push(offer.transport.clone());
    }
    Ok(names)
}
