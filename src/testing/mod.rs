//! For tests of code that uses zc: two connected ends in one process, and lanes that misbehave on purpose.
//!
//! * [`pair`]: two ends of one connection, no socket involved.
//! * [`FaultTransport`]: wraps any transport; its lanes are slow, stall, or break as a [`FaultPlan`] says.
//! * [`Tracer`]: wraps any transport and records every frame that crosses its lanes.
//!
//! All waiting goes through the [`Reactor`](crate::transport::Reactor), so under tokio's paused clock
//! hours pass in milliseconds. With [`Polling::Interrupt`](crate::Polling), one thread and
//! `zc+mem://`, a run is the same every time.

mod around;
mod fault;
mod random;
#[cfg(test)]
mod tests;
mod tracer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::fault::{After, FaultPlan, FaultSwitch, FaultTransport, MAX_HELD_FRAMES};
pub use self::tracer::{Crossing, MAX_TRACE_EVENTS, Trace, TraceEvent, Tracer};

use crate::connection::Connection;
use crate::error::Error;
use crate::fabric::{Fabric, FabricBuilder};
use crate::mem::{MemLinks, MemTransport};
use crate::transport::Transport;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Two ends of one connection of `fabric`, over a link in memory.
///
/// # Errors
/// The fabric lacks the in-process links, or its policy forbids the transport `mem`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (client, mut server) = zc::testing::pair(&zc::Fabric::auto()?).await?;
/// client.send(&b"hello"[..]).await?;
/// assert_eq!(server.recv().await?.unwrap(), b"hello"[..]);
/// # Ok(()) }
/// ```
pub async fn pair(fabric: &Fabric) -> Result<(Connection, Connection), Error> {
    let uri = format!("zc+mem://pair-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut listener = fabric.listen(&uri).await?;
    futures::future::try_join(fabric.connect(&uri), listener.accept()).await
}

/// The transport of `zc+mem://`, to be wrapped.
pub fn mem_transport() -> Arc<dyn Transport> {
    Arc::new(MemTransport::over(stream_transport()))
}

/// The transport of `zc+tcp://` and `zc+unix://`, to be wrapped.
pub fn stream_transport() -> Arc<dyn Transport> {
    Arc::new(zc_transport_tcp::TcpTransport)
}

/// A builder with one transport and every kind of control link.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{sync::Arc, time::Duration};
/// use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, pair};
///
/// let an_hour = Duration::from_secs(3600);
/// let slow = FaultPlan::new(1).delay(an_hour, an_hour);
/// let transport = FaultTransport::new(mem_transport(), slow);
/// let mut options = zc::ConnectionOptions::default();
/// options.keepalive_interval = Duration::ZERO; // a PONG would take two hours
/// let fabric = fabric_over(Arc::new(transport)).options(options).build()?;
///
/// let (client, mut server) = pair(&fabric).await?;
/// let sent = tokio::time::Instant::now();
/// client.send(&b"hello"[..]).await?;
/// assert_eq!(server.recv().await?.unwrap(), b"hello"[..]);
/// assert!(sent.elapsed() >= an_hour);
/// # Ok(()) }
/// ```
pub fn fabric_over(transport: Arc<dyn Transport>) -> FabricBuilder {
    Fabric::builder()
        .transport(transport)
        .links(Arc::new(MemLinks))
        .links(Arc::new(zc_transport_tcp::StreamLinks))
}
