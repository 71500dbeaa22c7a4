//! The two sides: what each may do, and when.

use super::machine::{Machine, names};
use super::{HandshakeState, Stage};
use crate::wire::close::CloseCode;
use crate::wire::control::{ControlMessage, OfferEntry, PlanEntry};
use crate::wire::error::WireError;
use crate::wire::hello::{Hello, HelloRole};

macro_rules! both_sides {
    () => {
        /// Takes the peer's HELLO off the front of `input`: how many bytes it was, or `None` if more are needed.
        ///
        /// Even after an error, send what [`take_output`](Self::take_output) holds before closing.
        pub fn handle_hello(&mut self, input: &[u8]) -> Result<Option<usize>, WireError> {
            self.0.handle_hello(input)
        }

        /// Checks that the peer may send `message` now, and follows it. The content is the caller's to act on.
        ///
        /// A JOIN that comes after this side's own LANE_DOWN is in order and to be dropped.
        pub fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError> {
            self.0.handle(message)
        }

        /// The bytes to send, which are then the caller's.
        pub fn take_output(&mut self) -> Vec<u8> {
            std::mem::take(&mut self.0.out)
        }

        /// Where the handshake stands.
        pub fn state(&self) -> HandshakeState {
            self.0.state
        }

        /// The stage, for deadlines and reports.
        pub fn stage(&self) -> Stage {
            self.0.state.stage()
        }

        /// The peer's HELLO, once it came.
        pub fn peer(&self) -> Option<&Hello> {
            self.0.peer.as_ref().map(|(hello, _)| hello)
        }

        /// The wire version agreed on, once the peer's HELLO came.
        pub fn version(&self) -> Option<u8> {
            self.0.peer.as_ref().map(|(_, version)| *version)
        }

        /// Both sides let the control link carry the data when no lane comes up.
        pub fn control_lane(&self) -> bool {
            self.0.control_lane()
        }

        /// The plan, once it is known.
        pub fn plan(&self) -> &[PlanEntry] {
            &self.0.plan
        }

        /// Sends one step of the authentication method.
        pub fn send_auth(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
            self.0.send_auth(bytes)
        }

        /// Sends a message of the transport being tried to its other end.
        pub fn send_join(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
            self.0.send_join(bytes)
        }

        /// Says that our end of the lane works.
        pub fn lane_up(&mut self) -> Result<(), WireError> {
            self.0.lane_up()
        }

        /// Says that our end of the lane does not work. The client can say so in place of COMMIT, too.
        pub fn lane_down(&mut self, reason: &str) -> Result<(), WireError> {
            self.0.lane_down(reason)
        }
    };
}

/// The connecting side.
///
/// ```
/// use zc_core::wire::{ClientHandshake, HandshakeState, Hello, HelloRole, ServerHandshake, VersionRange};
///
/// let hello = Hello {
///     versions: VersionRange::SUPPORTED,
///     role: HelloRole::Client,
///     agent: "doc/1".into(),
///     // …
/// #     instance: [0; 16],
/// #     max_message: 1 << 20,
/// #     window: 1 << 20,
/// #     auth_method: String::new(),
/// #     keepalive_ms: 15_000,
/// #     same_host: None,
/// #     control_lane: true,
/// #     remote: false,
/// };
/// let mut client = ClientHandshake::new(hello.clone())?;
/// let mut server = ServerHandshake::new(hello)?;
/// server.handle_hello(&client.take_output())?; // these bytes go over the control link
/// client.handle_hello(&server.take_output())?;
/// client.send_offers(Vec::new())?;
/// assert_eq!((client.version(), client.state()), (Some(1), HandshakeState::Offers));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug)]
pub struct ClientHandshake(Machine);

impl ClientHandshake {
    /// Starts with our HELLO in the output; its role is set here.
    pub fn new(hello: Hello) -> Result<Self, WireError> {
        let mut machine = Machine::new(hello, HelloRole::Client)?;
        machine.put_hello()?;
        Ok(Self(machine))
    }

    both_sides!();

    /// Sends our offers, once.
    pub fn send_offers(&mut self, offers: Vec<OfferEntry>) -> Result<(), WireError> {
        let m = &mut self.0;
        m.expect(m.state == HandshakeState::Offers && m.my_offers.is_none(), "send OFFERS")?;
        let names = names(&offers)?;
        m.put(&ControlMessage::Offers(offers))?;
        m.my_offers = Some(names);
        Ok(())
    }

    /// Confirms the lane that the state names; from here on it carries the data.
    pub fn commit(&mut self) -> Result<u8, WireError> {
        let m = &mut self.0;
        let HandshakeState::Commit { index } = m.state else {
            return Err(m.out_of_order("send COMMIT"));
        };
        m.put(&ControlMessage::Commit { index })?;
        m.state = HandshakeState::Committed { index };
        Ok(index)
    }
}

/// The accepting side.
///
/// ```
/// use zc_core::wire::{ClientHandshake, HandshakeState, Hello, HelloRole, ServerHandshake, VersionRange};
///
/// let hello = Hello {
///     versions: VersionRange::SUPPORTED,
///     role: HelloRole::Client,
///     agent: "doc/1".into(),
///     // …
/// #     instance: [0; 16],
/// #     max_message: 1 << 20,
/// #     window: 1 << 20,
/// #     auth_method: String::new(),
/// #     keepalive_ms: 15_000,
/// #     same_host: None,
/// #     control_lane: true,
/// #     remote: false,
/// };
/// let mut client = ClientHandshake::new(hello.clone())?;
/// let mut server = ServerHandshake::new(hello)?;
/// server.handle_hello(&client.take_output())?;
/// assert_eq!(server.peer().map(|hello| &*hello.agent), Some("doc/1"));
/// server.reject(zc_core::wire::CloseCode::REJECTED, "no more than one")?;
/// assert!(matches!(server.state(), HandshakeState::Failed { .. }));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug)]
pub struct ServerHandshake(Machine);

impl ServerHandshake {
    /// Awaits the client's HELLO; ours goes out after it. Its role is set here.
    pub fn new(hello: Hello) -> Result<Self, WireError> {
        Ok(Self(Machine::new(hello, HelloRole::Server)?))
    }

    both_sides!();

    /// Ends authentication: the client is who it says.
    pub fn accept_auth(&mut self) -> Result<(), WireError> {
        let m = &mut self.0;
        m.expect(m.state == HandshakeState::Authenticate { our_turn: true }, "send AUTH_OK")?;
        m.put(&ControlMessage::AuthOk)?;
        m.state = HandshakeState::Offers;
        Ok(())
    }

    /// Answers the client's offers with ours and with what to try, best first.
    pub fn send_plan(&mut self, offers: Vec<OfferEntry>, plan: Vec<PlanEntry>) -> Result<(), WireError> {
        let m = &mut self.0;
        m.expect(m.state == HandshakeState::Offers && m.peer_offers.is_some(), "send PLAN")?;
        m.my_offers = Some(names(&offers)?);
        m.check_plan(&plan)?;
        let mut bytes = Vec::new();
        ControlMessage::Offers(offers).encode(&mut bytes)?;
        ControlMessage::Plan(plan.clone()).encode(&mut bytes)?;
        m.out.append(&mut bytes);
        m.start_plan(&plan)
    }

    /// Refuses the connection, at any point after HELLO until both sides have said that a lane is up: then
    /// a COMMIT may be under way, and what came after it would be taken for data.
    pub fn reject(&mut self, code: CloseCode, reason: &str) -> Result<(), WireError> {
        let m = &mut self.0;
        use HandshakeState::{Commit, Committed, Hello};
        let over = matches!(m.state, Hello | Commit { .. } | Committed { .. });
        m.expect(!over, "send REJECT")?;
        m.put(&ControlMessage::Reject { code, reason: reason.to_owned() })?;
        m.state = HandshakeState::Failed { stage: m.state.stage() };
        Ok(())
    }
}
