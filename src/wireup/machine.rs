//! The state machine of either side.

use std::sync::Arc;

use parking_lot::Mutex;
use zc_core::transport::Role;
use zc_core::wire::{
    ClientHandshake, CloseCode, ControlMessage, HandshakeState, Hello, HelloRole, OfferEntry, PlanEntry,
    ServerHandshake, Stage, WireError,
};

/// A handle: while a transport joins, its link speaks and listens for the wire-up.
#[derive(Debug, Clone)]
pub(super) struct Machine(Arc<Mutex<Side>>);

#[derive(Debug)]
enum Side {
    Client(ClientHandshake),
    Server(ServerHandshake),
}

macro_rules! both {
    ($self:expr, $machine:ident => $body:expr) => {
        match &mut *$self.0.lock() {
            Side::Client($machine) => $body,
            Side::Server($machine) => $body,
        }
    };
}

impl Machine {
    pub(super) fn new(role: Role, hello: impl FnOnce(HelloRole) -> Hello) -> Result<Self, WireError> {
        let side = match role {
            Role::Client => Side::Client(ClientHandshake::new(hello(HelloRole::Client))?),
            Role::Server => Side::Server(ServerHandshake::new(hello(HelloRole::Server))?),
        };
        Ok(Self(Arc::new(Mutex::new(side))))
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
    pub(super) fn peer(&self) -> Option<Hello> {
        both!(self, m => m.peer().cloned())
    }
    /// The name of a plan entry.
    pub(super) fn planned(&self, index: u8) -> Option<String> {
        both!(self, m => m.plan().get(usize::from(index)).map(|entry| entry.transport.clone()))
    }
    pub(super) fn send_auth(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        both!(self, m => m.send_auth(bytes))
    }
    pub(super) fn send_join(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        both!(self, m => m.send_join(bytes))
    }
    pub(super) fn lane_up(&mut self) -> Result<(), WireError> {
        both!(self, m => m.lane_up())
    }
    pub(super) fn lane_down(&mut self, reason: &str) -> Result<(), WireError> {
        both!(self, m => m.lane_down(reason))
    }

    pub(super) fn send_offers(&mut self, offers: Vec<OfferEntry>) -> Result<(), WireError> {
        match &mut *self.0.lock() {
            Side::Client(m) => m.send_offers(offers),
            Side::Server(m) => wrong_side(m.stage(), "send OFFERS"),
        }
    }
    pub(super) fn commit(&mut self) -> Result<u8, WireError> {
        match &mut *self.0.lock() {
            Side::Client(m) => m.commit(),
            Side::Server(m) => wrong_side(m.stage(), "send COMMIT"),
        }
    }
    pub(super) fn accept_auth(&mut self) -> Result<(), WireError> {
        match &mut *self.0.lock() {
            Side::Server(m) => m.accept_auth(),
            Side::Client(m) => wrong_side(m.stage(), "send AUTH_OK"),
        }
    }
    pub(super) fn send_plan(
        &mut self,
        offers: Vec<OfferEntry>,
        plan: Vec<PlanEntry>,
    ) -> Result<(), WireError> {
        match &mut *self.0.lock() {
            Side::Server(m) => m.send_plan(offers, plan),
            Side::Client(m) => wrong_side(m.stage(), "send PLAN"),
        }
    }
    pub(super) fn reject(&mut self, reason: &str) -> Result<(), WireError> {
        match &mut *self.0.lock() {
            Side::Server(m) => m.reject(CloseCode::REJECTED, reason),
            Side::Client(m) => wrong_side(m.stage(), "send REJECT"),
        }
    }
}

fn wrong_side<T>(stage: Stage, action: &'static str) -> Result<T, WireError> {
    Err(WireError::OutOfOrder { action, stage })
}
