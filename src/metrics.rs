//! Events as metrics.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use zc_core::memory::{KernelCopied, LedgerSnapshot};
use zc_core::transport::Role;

use crate::event::{AcceptFailed, Closed, Connected, FellBack, HandshakeFailed, Observer};

const OPENED: &str = "zc_connections_opened_total";
const CLOSED: &str = "zc_connections_closed_total";
const OPEN: &str = "zc_connections_open";
const FAILED: &str = "zc_handshake_failures_total";
const ACCEPT_FAILED: &str = "zc_accept_failures_total";
const FELL_BACK: &str = "zc_fallbacks_total";
const HANDSHAKE: &str = "zc_handshake_duration_seconds";
const LIFETIME: &str = "zc_connection_lifetime_seconds";
const MOVED: &str = "zc_payload_moved_bytes_total";
const COPIED: &str = "zc_payload_copied_bytes_total";
const INLINE: &str = "zc_payload_inline_bytes_total";
const KERNEL_COPIED: &str = "zc_payload_kernel_copied_bytes_total";

/// Hands events to the crate [`metrics`](https://docs.rs/metrics), for whichever recorder the program has installed.
///
/// The names are stable:
///
/// | name | kind | unit | labels |
/// |---|---|---|---|
/// | `zc_connections_opened_total` | counter | | `role`, `transport` |
/// | `zc_connections_closed_total` | counter | | `role`, `transport`, `outcome`: `orderly`, `failed` |
/// | `zc_connections_open` | gauge | | `role`, `transport` |
/// | `zc_handshake_failures_total` | counter | | `role`, `stage` |
/// | `zc_accept_failures_total` | counter | | |
/// | `zc_fallbacks_total` | counter | | `transport`, the one that was taken |
/// | `zc_handshake_duration_seconds` | histogram | seconds | `role`, `transport` |
/// | `zc_connection_lifetime_seconds` | histogram | seconds | `transport` |
/// | `zc_payload_moved_bytes_total` | counter | bytes | `transport` |
/// | `zc_payload_copied_bytes_total` | counter | bytes | `transport` |
/// | `zc_payload_inline_bytes_total` | counter | bytes | `transport` |
/// | `zc_payload_kernel_copied_bytes_total` | counter | bytes | `transport`; grows only where the kernel says |
///
/// Bytes are counted when a connection ends, from its copy ledger; a live one tells them through
/// [`Connection::stats`](crate::Connection::stats) and [`Connection::ledger`](crate::Connection::ledger).
/// No label holds an address.
///
/// ```
/// let observer = std::sync::Arc::new(zc::MetricsObserver::new());
/// let fabric = zc::Fabric::auto_builder().observer(observer).build()?;
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MetricsObserver {}

impl MetricsObserver {
    /// Describes the metrics to the recorder that is installed now.
    pub fn new() -> Self {
        describe_counter!(OPENED, Unit::Count, "connections that came up");
        describe_counter!(CLOSED, Unit::Count, "connections that ended");
        describe_gauge!(OPEN, Unit::Count, "connections that are up");
        describe_counter!(FAILED, Unit::Count, "connections that did not come up");
        describe_counter!(ACCEPT_FAILED, Unit::Count, "links that a listener could not take");
        describe_counter!(
            FELL_BACK,
            Unit::Count,
            "connections over a transport that was not the first choice"
        );
        describe_histogram!(HANDSHAKE, Unit::Seconds, "time to come up, from the open control link");
        describe_histogram!(LIFETIME, Unit::Seconds, "time from coming up to the end");
        describe_counter!(MOVED, Unit::Bytes, "payload that changed hands");
        describe_counter!(COPIED, Unit::Bytes, "payload copied in user space");
        describe_counter!(INLINE, Unit::Bytes, "payload that travelled inside descriptors or headers");
        describe_counter!(KERNEL_COPIED, Unit::Bytes, "payload that the kernel is known to have copied");
        Self {}
    }
}

impl Default for MetricsObserver {
    fn default() -> Self {
        Self::new()
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
    }
}

fn count_bytes(transport: &str, ledger: &LedgerSnapshot) {
    let kernel = match ledger.kernel_copied {
        KernelCopied::Known(bytes) => bytes,
        KernelCopied::Unknown => 0,
    };
    let bytes = [
        (MOVED, ledger.moved_bytes),
        (COPIED, ledger.copied_bytes()),
        (INLINE, ledger.inline_bytes),
        (KERNEL_COPIED, kernel),
    ];
    for (name, bytes) in bytes {
        counter!(name, "transport" => transport.to_owned()).increment(bytes);
    }
}

impl Observer for MetricsObserver {
    fn connected(&self, event: &Connected) {
        let (role, transport) = (role(event.role), event.report.chosen().to_owned());
        counter!(OPENED, "role" => role, "transport" => transport.clone()).increment(1);
        gauge!(OPEN, "role" => role, "transport" => transport.clone()).increment(1.0);
        histogram!(HANDSHAKE, "role" => role, "transport" => transport).record(event.elapsed);
    }

    fn handshake_failed(&self, event: &HandshakeFailed) {
        counter!(FAILED, "role" => role(event.role), "stage" => event.stage.to_string()).increment(1);
    }

    fn fell_back(&self, event: &FellBack) {
        counter!(FELL_BACK, "transport" => event.report.chosen().to_owned()).increment(1);
    }

    fn accept_failed(&self, _event: &AcceptFailed) {
        counter!(ACCEPT_FAILED).increment(1);
    }

    fn closed(&self, event: &Closed) {
        let (role, transport) = (role(event.role), event.transport.clone());
        let outcome = if event.reason.is_some() { "failed" } else { "orderly" };
        counter!(CLOSED, "role" => role, "transport" => transport.clone(), "outcome" => outcome).increment(1);
        gauge!(OPEN, "role" => role, "transport" => transport.clone()).decrement(1.0);
        histogram!(LIFETIME, "transport" => transport).record(event.lifetime);
        count_bytes(&event.transport, &event.ledger);
    }
}
