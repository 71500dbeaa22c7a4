//! What can be set per fabric.

use std::time::Duration;

use crate::cpus::looking_pays;

/// How a receiver waits for the next message.
///
/// ```
/// use std::time::Duration;
/// use zc::{ConnectionOptions, Polling};
///
/// let mut options = ConnectionOptions::default();
/// options.polling = Polling::Adaptive { spin: Duration::from_micros(50) };
/// let fabric = zc::Fabric::auto_builder().options(options).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// Never sleeps: lowest latency, one core in use.
    Busy,
    /// Looks for a while, yielding to other tasks in between, then sleeps. The while is what recent waits have taken: it
    /// begins with [`FIRST_SPIN`], grows when messages come later than that, and shrinks when they come much later or when
    /// looking has not helped.
    Adaptive {
        /// The longest that one wait may look.
        spin: Duration,
    },
    /// Sleeps at once.
    Interrupt,
}

impl Polling {
    /// Whether it looks more than once before it sleeps.
    pub(crate) fn spins(self) -> bool {
        match self {
            Self::Busy => true,
            Self::Adaptive { spin } => !spin.is_zero(),
            Self::Interrupt => false,
        }
    }
}

/// [`Polling::Adaptive`]'s default bound: a few times what waking a sleeping thread costs, as for halt polling in KVM.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(200);
/// What [`Polling::Adaptive`] begins with: about what waking a sleeping thread costs on an idle machine.
pub const FIRST_SPIN: Duration = Duration::from_micros(20);
/// Silence after which a peer is pinged.
pub const DEFAULT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Time a ping may go unanswered.
pub const DEFAULT_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for what was accepted to go out when a connection is dropped.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(5);
/// Default of every stage of [`Deadlines`].
pub const DEFAULT_STAGE: Duration = Duration::from_secs(5);

/// Default of [`Deadlines::total`].
pub const DEFAULT_TOTAL: Duration = Duration::from_secs(30);

/// Options of a connection.
///
/// ```
/// use std::time::Duration;
///
/// let mut options = zc::ConnectionOptions::default();
/// options.keepalive_interval = Duration::from_secs(1);
/// options.keepalive_timeout = Duration::from_secs(2); // a dead peer is known after 3 s
/// options.idle = Some(Duration::from_secs(600));
/// let fabric = zc::Fabric::auto_builder().options(options).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// How the receiver waits. Default: `Adaptive` with [`DEFAULT_SPIN`], no spin on a machine
    /// with one processor or under a processor quota.
    pub polling: Polling,
    /// Silence after which the peer is pinged; zero turns keepalive off.
    pub keepalive_interval: Duration,
    /// Time a ping may go unanswered before the connection ends.
    pub keepalive_timeout: Duration,
    /// Time for what was accepted to go out when the last handle is dropped.
    pub drain: Duration,
    /// Time without a message in either direction after which the connection is closed with
    /// [`CloseCode::IDLE`](crate::CloseCode::IDLE), at most a quarter of it late. One-sided operations count
    /// as messages; where they are native the owner of the memory can't see them, so for it the connection is not idle while a
    /// key is valid. Default: `None`, never.
    pub idle: Option<Duration>,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        let spin = if looking_pays() { DEFAULT_SPIN } else { Duration::ZERO };
        Self {
            polling: Polling::Adaptive { spin },
            keepalive_interval: DEFAULT_KEEPALIVE_INTERVAL,
            keepalive_timeout: DEFAULT_KEEPALIVE_TIMEOUT,
            drain: DEFAULT_DRAIN,
            idle: None,
        }
    }
}

/// The longest that each stage of wire-up may take, and all of it.
///
/// ```
/// use std::time::Duration;
///
/// let mut deadlines = zc::Deadlines::default();
/// deadlines.total = Duration::from_secs(3);
/// let fabric = zc::Fabric::auto_builder().deadlines(deadlines).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Deadlines {
    /// Opening the control link.
    pub connect: Duration,
    /// HELLO.
    pub hello: Duration,
    /// The authentication method.
    pub authenticate: Duration,
    /// Offers and plan, after a proof that both ends are on one host, for which half of it may be used.
    pub offers: Duration,
    /// Each lane at this end. The peer's word on it is awaited twice as long.
    pub join: Duration,
    /// Everything from an open link to a connection.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: DEFAULT_STAGE,
            hello: DEFAULT_STAGE,
            authenticate: DEFAULT_STAGE,
            offers: DEFAULT_STAGE,
            join: DEFAULT_STAGE,
            total: DEFAULT_TOTAL,
        }
    }
}
