//! What happens in a fabric, as plain structs for an [`Observer`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use zc_core::memory::LedgerSnapshot;
use zc_core::transport::{LinkAddr, Role};
use zc_core::wire::Stage;

use crate::identity::PeerIdentity;
use crate::report::SelectionReport;

/// A connection came up.
///
/// ```
/// struct Log;
/// impl zc::Observer for Log {
///     fn connected(&self, event: &zc::Connected) {
///         println!("{} by {} within {:?}", event.peer.addr, event.report.chosen(), event.elapsed);
///     }
/// }
///
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(Log)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Connected {
    /// Which end this is.
    pub role: Role,
    /// Who is at the other.
    pub peer: PeerIdentity,
    /// What was chosen, and why.
    pub report: Arc<SelectionReport>,
    /// How long it took since the control link was open.
    pub elapsed: Duration,
}

/// A connection did not come up.
///
/// ```
/// struct Log;
/// impl zc::Observer for Log {
///     fn handshake_failed(&self, event: &zc::HandshakeFailed) {
///         println!("{} in {}: {} (number {})", event.peer, event.stage, event.reason, event.failures);
///     }
/// }
///
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(Log)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandshakeFailed {
    /// Which end this is.
    pub role: Role,
    /// The peer's address.
    pub peer: LinkAddr,
    /// The stage in which it failed.
    pub stage: Stage,
    /// Why, in words.
    pub reason: String,
    /// Failed handshakes of this listener so far, this one included; 1 for a client.
    pub failures: u64,
}

/// A connection runs over a transport that policy ranks below another.
///
/// ```
/// struct Log;
/// impl zc::Observer for Log {
///     fn fell_back(&self, event: &zc::FellBack) {
///         println!("{} runs over {}:\n{}", event.peer, event.report.chosen(), event.report);
///     }
/// }
///
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(Log)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FellBack {
    /// The peer's address.
    pub peer: LinkAddr,
    /// What carries the connection.
    pub report: Arc<SelectionReport>,
}

/// A listener could not take a link, for instance because there was no descriptor left.
///
/// ```
/// struct Log;
/// impl zc::Observer for Log {
///     fn accept_failed(&self, event: &zc::AcceptFailed) {
///         println!("{} could not accept: {}", event.local, event.reason);
///     }
/// }
///
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(Log)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AcceptFailed {
    /// Where it listens.
    pub local: LinkAddr,
    /// Why, in words.
    pub reason: String,
}

/// A connection ended.
///
/// ```
/// struct Log;
/// impl zc::Observer for Log {
///     fn closed(&self, event: &zc::Closed) {
///         let why = event.reason.as_deref().unwrap_or("orderly");
///         println!("{:?} of {}: {} bytes copied", why, event.transport, event.ledger.copied_bytes());
///     }
/// }
///
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(Log)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Closed {
    /// Which end this was.
    pub role: Role,
    /// Who was at the other.
    pub peer: PeerIdentity,
    /// The transport that carried it.
    pub transport: String,
    /// Why it failed, in words; `None` after an orderly end.
    pub reason: Option<String>,
    /// Bytes moved and copied over its life.
    pub ledger: LedgerSnapshot,
    /// How long it lived.
    pub lifetime: Duration,
}

/// Receives events; every method does nothing by default. Called from the connection's own task: be quick.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Default)]
/// struct Count(AtomicU64);
///
/// impl zc::Observer for Count {
///     fn connected(&self, _: &zc::Connected) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let count = Arc::new(Count::default());
/// let fabric = zc::Fabric::auto_builder().observer(count.clone()).build()?;
/// # let mut listener = fabric.listen("zc+mem://observer").await?;
/// # let _ends = tokio::try_join!(fabric.connect("zc+mem://observer"), listener.accept())?;
/// assert_eq!(count.0.load(Ordering::Relaxed), 2); // both ends are of this fabric
/// # Ok(()) }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// See [`Connected`].
    fn connected(&self, _event: &Connected) {}
    /// See [`HandshakeFailed`].
    fn handshake_failed(&self, _event: &HandshakeFailed) {}
    /// See [`FellBack`].
    fn fell_back(&self, _event: &FellBack) {}
    /// See [`AcceptFailed`].
    fn accept_failed(&self, _event: &AcceptFailed) {}
    /// See [`Closed`].
    fn closed(&self, _event: &Closed) {}
}

/// Tells an observer of a failure; its panic must not become another. The panic's own hook has told of it.
pub(crate) fn quietly(tell: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(tell)).is_err() {
        tracing::error!(target: "zc", "an observer panicked");
    }
}

/// Hands events to `tracing`, under the target `zc`.
///
/// ```
/// // What a fabric has without being told.
/// let fabric = zc::Fabric::auto_builder().observer(std::sync::Arc::new(zc::TracingObserver)).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingObserver;

impl Observer for TracingObserver {
    fn connected(&self, event: &Connected) {
        tracing::debug!(
            target: "zc",
            role = ?event.role,
            peer = %event.peer.addr,
            transport = event.report.chosen(),
            elapsed_us = event.elapsed.as_micros() as u64,
            "connected"
        );
    }

    fn handshake_failed(&self, event: &HandshakeFailed) {
        tracing::debug!(
            target: "zc",
            role = ?event.role,
            peer = %event.peer,
            stage = %event.stage,
            reason = %event.reason,
            failures = event.failures,
            "handshake failed"
        );
    }

    fn fell_back(&self, event: &FellBack) {
        tracing::warn!(
            target: "zc",
            peer = %event.peer,
            transport = event.report.chosen(),
            report = %event.report,
            "a preferred transport could not be used"
        );
    }

    fn accept_failed(&self, event: &AcceptFailed) {
        tracing::warn!(target: "zc", local = %event.local, reason = %event.reason, "accept failed");
    }

    fn closed(&self, event: &Closed) {
        tracing::debug!(
            target: "zc",
            role = ?event.role,
            peer = %event.peer.addr,
            transport = %event.transport,
            reason = event.reason.as_deref(),
            moved_bytes = event.ledger.moved_bytes,
            copied_bytes = event.ledger.copied_bytes(),
            lifetime_us = event.lifetime.as_micros() as u64,
            "closed"
        );
    }
}
