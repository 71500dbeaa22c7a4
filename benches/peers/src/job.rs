//! One measurement: what is to be measured, and where its helpers are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::Result;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Test {
    /// A strict ping-pong; the median, nanoseconds.
    RoundTrip,
    /// Messages in one direction; how many a second the receiver has read.
    OneWay,
    /// Calls, so many at a time.
    Calls,
    /// Echoes over TCP, one message at a time on each of so many connections.
    Echo,
    /// Echoes over one TCP connection, so many messages at a time.
    Pipeline,
}

/// One point of one contender.
#[derive(Args, Clone, Debug)]
pub(crate) struct Job {
    #[arg(long)]
    pub(crate) contender: String,
    #[arg(long, value_enum)]
    pub(crate) test: Test,
    /// Bytes of a message.
    #[arg(long)]
    pub(crate) size: usize,
    /// Calls or messages under way at a time, or connections with one message each.
    #[arg(long, default_value_t = 1)]
    pub(crate) inflight: usize,
    #[arg(long, default_value_t = 0.5)]
    pub(crate) seconds: f64,
    /// A name that no other run has: for files, services and sockets.
    #[arg(long)]
    pub(crate) tag: String,
    /// The `zc` program.
    #[arg(long)]
    pub(crate) zc: PathBuf,
}

impl Job {
    pub(crate) fn duration(&self) -> Result<Duration> {
        match Duration::try_from_secs_f64(self.seconds) {
            Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(600) => Ok(duration),
            _ => Err("more than 0 and at most 600 seconds".into()),
        }
    }

    /// For a process of its own.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let test = self.test.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let (size, inflight) = (self.size.to_string(), self.inflight.to_string());
        let seconds = self.seconds.to_string();
        [
            ["--contender", &self.contender],
            ["--test", &test],
            ["--size", &size],
            ["--inflight", &inflight],
            ["--seconds", &seconds],
            ["--tag", &self.tag],
        ]
        .as_flattened()
        .iter()
        .map(OsString::from)
        .chain(["--zc".into(), self.zc.clone().into()])
        .collect()
    }

    /// A directory for this run's files.
    pub(crate) fn directory(&self) -> PathBuf {
        std::env::temp_dir().join(&self.tag)
    }

    /// A program that was built beside `zc`.
    pub(crate) fn beside_zc(&self, name: &str) -> PathBuf {
        self.zc.parent().unwrap_or(Path::new(".")).join(name)
    }

    /// Messages under way at a time where the contender takes such a bound: deep for small ones, and
    /// for large ones no more than the cache holds.
    pub(crate) fn depth(&self) -> usize {
        const CACHED_BYTES: usize = 4 << 20;
        (CACHED_BYTES / self.size.max(1)).clamp(4, 256)
    }
}
