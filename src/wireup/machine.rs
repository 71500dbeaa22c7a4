//! The state machine of either side.

use zc_core::transport::Role;
use zc_core::wire::{
    ClientHandshake, CloseCode, ControlMessage, HandshakeState, Hello, HelloRole, OfferEntry, PlanEntry,
    ServerHandshake, Stage, WireError,
};

pub(super) enum Machine {
    Client(Box<ClientHandshake>),
    Server(Box<ServerHandshake>),
}

macro_rules! both {
    ($self:expr, $machine:ident => $body:expr) => {
        match $self {
            Machine::Client($machine) => $body,
            Machine::Server($machine) => $body,
        }
    };
}

impl Machine {
    pub(super) fn new(role: Role, hello: impl FnOnce(HelloRole) -> Hello) -> Result<Self, WireError> {
        Ok(match role {
            Role::Client => Self::Client(Box::new(ClientHandshake::new(hello(HelloRole::Client))?)),
            Role::Server => Self::Server(Box::new(ServerHandshake::new(hello(HelloRole::Server))?)),
        })
    }
    pub(super) fn handle_hello(&mut self, input: &[u8]) -> Result<Option<usize>, WireError> {
        both!(self, m => m.handle_hello(input))
    }
    pub(super) fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError> {
        both!(self, m => m.handle(message))
    }
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        both!(self, m => m.take_output())
    }
    pub(super) fn state(&self) -> HandshakeState {
        both!(self, m => m.state())
    }
    pub(super) fn stage(&self) -> Stage {
        both!(self, m => m.stage())
    }
    pub(super) fn peer(&self) -> Option<&Hello> {
        both!(self, m => m.peer())
    }
    pub(super) fn plan(&self) -> &[PlanEntry] {
        both!(self, m => m.plan())
    }
    pub(super) fn send_auth(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        both!(self, m => m.send_auth(bytes))
    }
    pub(super) fn lane_up(&mut self) -> Result<(), WireError> {
        both!(self, m => m.lane_up())
    }
    pub(super) fn lane_down(&mut self, reason: &str) -> Result<(), WireError> {
        both!(self, m => m.lane_down(reason))
    }

    fn wrong_side<T>(&self, action: &'static str) -> Result<T, WireError> {
        Err(WireError::OutOfOrder { action, stage: self.stage() })
    }
    pub(super) fn send_offers(&mut self, offers: Vec<OfferEntry>) -> Result<(), WireError> {
        match self {
            Self::Client(m) => m.send_offers(offers),
            Self::Server(_) => self.wrong_side("send OFFERS"),
        }
    }
    pub(super) fn commit(&mut self) -> Result<u8, WireError> {
        match self {
            Self::Client(m) => m.commit(),
            Self::Server(_) => self.wrong_side("send COMMIT"),
        }
    }
    pub(super) fn accept_auth(&mut self) -> Result<(), WireError> {
        match self {
            Self::Server(m) => m.accept_auth(),
            Self::Client(_) => self.wrong_side("send AUTH_OK"),
        }
    }
    pub(super) fn send_plan(
        &mut self,
        offers: Vec<OfferEntry>,
        plan: Vec<PlanEntry>,
    ) -> Result<(), WireError> {
        match self {
            Self::Server(m) => m.send_plan(offers, plan),
            Self::Client(_) => self.wrong_side("send PLAN"),
        }
    }
    pub(super) fn reject(&mut self, reason: &str) -> Result<(), WireError> {
        match self {
            Self::Server(m) => m.reject(CloseCode::REJECTED, reason),
            Self::Client(_) => self.wrong_side("send REJECT"),
        }
    }
}
