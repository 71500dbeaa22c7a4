//! Measures calls: so many at a time, for so long.

use std::future::Future;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use hdrhistogram::Histogram;
use serde::Serialize;
use zc::LedgerSnapshot;
use zc::memory::KernelCopied;

use crate::BoxError;

/// Part of the time that is not measured.
const WARM_UP: f64 = 0.2;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What carried the calls.
    pub uri: String,
    /// Bytes of each message.
    pub size_bytes: usize,
    /// Calls at a time.
    pub inflight: usize,
    /// Calls per second.
    pub calls_per_s: f64,
    /// From call to answer.
    pub latency_ns: Latency,
    /// The server's processor time for one call; in process: its thread's.
    pub server_cpu_ns_per_call: u64,
    /// What was copied, at the client.
    pub ledger: Ledger,
}

/// Quantiles.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: u64,
    /// One in a hundred is worse.
    pub p99: u64,
}

/// Bytes, at the client, while measuring; all 0 where nobody counts: in process, and over tonic's own transports.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Ledger {
    /// Changed hands without a copy.
    pub moved_bytes: u64,
    /// Copied by zc in user space: transport and zc-http.
    pub copied_bytes: u64,
    /// Travelled inside descriptors.
    pub inline_bytes: u64,
    /// Copied by the kernel; left out where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_copied_bytes: Option<u64>,
}

impl From<&LedgerSnapshot> for Ledger {
    fn from(ledger: &LedgerSnapshot) -> Self {
        Self {
            moved_bytes: ledger.moved_bytes,
            copied_bytes: ledger.copied_bytes(),
            inline_bytes: ledger.inline_bytes,
            kernel_copied_bytes: match ledger.kernel_copied {
                KernelCopied::Known(bytes) => Some(bytes),
                KernelCopied::Unknown => None,
            },
        }
    }
}

impl Ledger {
    /// Of a channel's connection: the transport's, and of zc-http what it copied itself.
    pub fn of(channel: &zc_http::Channel) -> Self {
        let Some((transport, http)) = channel.ledgers() else { return Self::default() };
        let transport = Self::from(&transport);
        Self {
            copied_bytes: transport.copied_bytes + http.copied_bytes(),
            inline_bytes: transport.inline_bytes + http.inline_bytes,
            ..transport
        }
    }

    /// What was added since then.
    pub fn since(self, earlier: Self) -> Self {
        let kernel = self.kernel_copied_bytes.zip(earlier.kernel_copied_bytes);
        Self {
            moved_bytes: self.moved_bytes.saturating_sub(earlier.moved_bytes),
            copied_bytes: self.copied_bytes.saturating_sub(earlier.copied_bytes),
            inline_bytes: self.inline_bytes.saturating_sub(earlier.inline_bytes),
            kernel_copied_bytes: kernel.map(|(now, then)| now.saturating_sub(then)),
        }
    }
}

/// Makes `call`s, `inflight` at a time, for about `duration`.
///
/// # Errors
/// The first call that failed.
pub async fn run<F: Future<Output = Result<(), BoxError>>>(
    uri: &str,
    size_bytes: usize,
    inflight: usize,
    duration: Duration,
    cpu_ns: impl Fn() -> u64,
    ledger: impl Fn() -> Ledger,
    call: impl Fn() -> F,
) -> Result<Report, BoxError> {
    let warm = Instant::now() + duration.mul_f64(WARM_UP);
    drive(inflight, warm, &call, |_| {}).await?;
    let mut histogram = Histogram::<u64>::new_with_max(60_000_000_000, 3)?;
    let (before, copied_before) = (cpu_ns(), ledger());
    let began = Instant::now();
    drive(inflight, began + duration, &call, |took| histogram.saturating_record(took)).await?;
    let took = began.elapsed();
    let calls = histogram.len();
    Ok(Report {
        uri: uri.to_owned(),
        size_bytes,
        inflight,
        calls_per_s: calls as f64 / took.as_secs_f64(),
        latency_ns: Latency { p50: histogram.value_at_quantile(0.5), p99: histogram.value_at_quantile(0.99) },
        server_cpu_ns_per_call: cpu_ns().saturating_sub(before) / calls.max(1),
        ledger: ledger().since(copied_before),
    })
}

async fn drive<F: Future<Output = Result<(), BoxError>>>(
    inflight: usize,
    end: Instant,
    call: &impl Fn() -> F,
    mut record: impl FnMut(u64),
) -> Result<(), BoxError> {
    let timed = || async {
        let began = Instant::now();
        call().await.map(|()| (began, Instant::now()))
    };
    let mut calls: FuturesUnordered<_> = (0..inflight).map(|_| timed()).collect();
    while let Some(done) = calls.next().await {
        let (began, ended) = done?;
        record((ended - began).as_nanos() as u64);
        if ended < end {
            calls.push(timed());
        }
    }
    Ok(())
}
