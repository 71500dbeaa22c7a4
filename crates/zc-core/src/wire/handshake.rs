//! The order of the wire-up, as two mirrored state machines without I/O, time or policy.
//!
//! The caller moves bytes and decides; a machine only enforces the order and writes the messages.

use std::fmt;

use super::close::CloseCode;
use super::control::{CONTROL_LANE, ControlMessage, OfferEntry, PlanEntry};
use super::error::WireError;
use super::hello::{Hello, HelloRole};

/// The most AUTH messages that one side may send.
pub const MAX_AUTH_ROUNDS: u8 = 8;
/// The most JOIN messages that one side may send per lane.
pub const MAX_JOIN_MESSAGES: u16 = 256;

/// How far a connection has come; each stage has its own deadline.
///
/// ```
/// use zc_core::wire::Stage;
///
/// assert!(Stage::Hello < Stage::Join); // in the order in which they come
/// println!("stopped in {}", Stage::Offers);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The control link is being connected.
    Connect,
    /// HELLOs are exchanged.
    Hello,
    /// The authentication method runs.
    Authenticate,
    /// OFFERS and PLAN are exchanged.
    Offers,
    /// A lane is being tried.
    Join,
    /// The choice of the lane is being confirmed, or is.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Hello => "hello",
            Self::Authenticate => "authenticate",
            Self::Offers => "offers",
            Self::Join => "join",
            Self::Commit => "commit",
        })
    }
}

/// Where a handshake stands.
///
/// ```
/// use zc_core::wire::{CONTROL_LANE, HandshakeState, Stage};
///
/// let state = HandshakeState::Committed { index: CONTROL_LANE }; // the link itself carries the data
/// assert_eq!(state.stage(), Stage::Commit);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeState {
    /// The peer's HELLO is awaited.
    Hello,
    /// Authentication; `our_turn` says who speaks next.
    Authenticate {
        /// Whether this side is to send.
        our_turn: bool,
    },
    /// OFFERS and PLAN are under way.
    Offers,
    /// This plan entry is being tried.
    Join {
        /// The plan entry.
        index: u8,
    },
    /// The client is to commit to this plan entry, or to [`CONTROL_LANE`].
    Commit {
        /// The plan entry.
        index: u8,
    },
    /// No lane came up, and one side does not let the control link carry the data: the server is to
    /// reject.
    Exhausted,
    /// Done: this plan entry, or [`CONTROL_LANE`], carries the data.
    Committed {
        /// The plan entry.
        index: u8,
    },
    /// Ended without a connection, in this stage.
    Failed {
        /// The stage.
        stage: Stage,
    },
}

impl HandshakeState {
    /// The stage it belongs to.
    pub fn stage(self) -> Stage {
        match self {
            Self::Hello => Stage::Hello,
            Self::Authenticate { .. } => Stage::Authenticate,
            Self::Offers => Stage::Offers,
            Self::Join { .. } | Self::Exhausted => Stage::Join,
            Self::Commit { .. } | Self::Committed { .. } => Stage::Commit,
            Self::Failed { stage } => stage,
        }
    }
}

/// What is true of both sides.
#[derive(Debug)]
struct Machine {
    ours: Hello,
    peer: Option<(Hello, u8)>,
    state: HandshakeState,
    out: Vec<u8>,
    auth_received: u8,
    my_offers: Option<Vec<String>>,
    peer_offers: Option<Vec<String>>,
    plan: Vec<PlanEntry>,
    mine: Option<bool>,
    theirs: Option<bool>,
    joins_received: u16,
}

impl Machine {
    fn new(mut ours: Hello, role: HelloRole) -> Result<Self, WireError> {
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
            joins_received: 0,
        })
    }

    fn is_client(&self) -> bool {
        self.ours.role == HelloRole::Client
    }

    fn put_hello(&mut self) -> Result<(), WireError> {
        self.ours.encode(&mut self.out)
    }

    fn put(&mut self, message: &ControlMessage) -> Result<(), WireError> {
        message.encode(&mut self.out)
    }

    fn fail<T>(&mut self, result: Result<T, WireError>) -> Result<T, WireError> {
        if result.is_err() {
            self.state = HandshakeState::Failed { stage: self.state.stage() };
        }
        result
    }

    fn handle_hello(&mut self, input: &[u8]) -> Result<Option<usize>, WireError> {
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

    fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError> {
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
        self.joins_received += 1;
        if self.joins_received > MAX_JOIN_MESSAGES {
            let (len, max) = (self.joins_received.into(), MAX_JOIN_MESSAGES.into());
            return Err(WireError::TooLong { field: "join messages", len, max });
        }
        Ok(())
    }

    fn start_plan(&mut self, plan: &[PlanEntry]) -> Result<(), WireError> {
        self.check_plan(plan)?;
        self.plan.clear();
        self.plan.extend(plan.iter().cloned());
        self.enter(0);
        Ok(())
    }

    fn check_plan(&self, plan: &[PlanEntry]) -> Result<(), WireError> {
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
        (self.mine, self.theirs, self.joins_received) = (None, None, 0);
        self.state = if usize::from(index) < self.plan.len() {
            HandshakeState::Join { index }
        } else if self.control_lane() {
            HandshakeState::Commit { index: CONTROL_LANE }
        } else {
            HandshakeState::Exhausted
        };
    }

    /// Both sides let the control link carry the data.
    fn control_lane(&self) -> bool {
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

    fn send_auth(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        self.expect(self.state == HandshakeState::Authenticate { our_turn: true }, "send AUTH")?;
        self.put(&ControlMessage::Auth { bytes })?;
        self.state = HandshakeState::Authenticate { our_turn: false };
        Ok(())
    }

    fn send_join(&mut self, bytes: Vec<u8>) -> Result<(), WireError> {
        let index = self.joining("send JOIN")?;
        self.put(&ControlMessage::Join { index, bytes })
    }

    fn lane_up(&mut self) -> Result<(), WireError> {
        let index = self.joining("send LANE_UP")?;
        self.put(&ControlMessage::LaneUp { index })?;
        self.mine = Some(true);
        self.settle(index);
        Ok(())
    }

    fn lane_down(&mut self, reason: &str) -> Result<(), WireError> {
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

    fn expect(&self, allowed: bool, action: &'static str) -> Result<(), WireError> {
        if allowed { Ok(()) } else { Err(self.out_of_order(action)) }
    }

    fn out_of_order(&self, action: &'static str) -> WireError {
        WireError::OutOfOrder { action, stage: self.state.stage() }
    }

    fn unexpected(&self, message: &ControlMessage) -> WireError {
        WireError::UnexpectedMessage { message: message.name(), stage: self.state.stage() }
    }
}

/// The names in an OFFERS; each may stand there once.
fn names(offers: &[OfferEntry]) -> Result<Vec<String>, WireError> {
    let mut names: Vec<String> = Vec::with_capacity(offers.len());
    for offer in offers {
        if names.contains(&offer.transport) {
            return Err(WireError::BadValue { field: "offers" });
        }
        names.push(offer.transport.clone());
    }
    Ok(names)
}

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
