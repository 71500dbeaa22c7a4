//! Rounds: at each point the contenders take turns, between two looks at how far apart the cores are.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::child::output_within;
use crate::contender::Contender;
use crate::ipc::line::Line;
use crate::job::{Job, Test};
use crate::samples::{Key, Metric, Regime, Sample, Samples, Unit};

/// A round counts when the line bounced alike before and after it, within this factor.
const PROBES_AGREE: f64 = 1.5;
const PROBE_SECONDS: f64 = 0.02;
/// How often a round is tried until it counts.
const TRIES: usize = 3;
/// How often a contender may fail at a point before it is left out there.
const FAILURES: usize = 2;
/// How long a process may take beyond what it measures.
const SLACK: Duration = Duration::from_secs(15);
/// Told to the allocator (mallopt(3)) of every contender's processes: keep what is freed. By default glibc gives a large buffer
/// back to the kernel or keeps it, depending on what else lies where, and then a fault for each page decides the figure.
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_TRIM_THRESHOLD_", "268435456"), ("MALLOC_MMAP_THRESHOLD_", "67108864")];

pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) keys: Vec<Key>,
    /// Everything but the point and the contender.
    pub(crate) job: Job,
}

#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) samples: Samples,
    pub(crate) counted: usize,
    pub(crate) discarded: usize,
    pub(crate) near: usize,
    /// What went wrong, by contender and point, with the last error.
    pub(crate) failures: BTreeMap<(String, String), (usize, String)>,
}

impl Plan {
    pub(crate) fn run(&self, contenders: &[Box<dyn Contender>]) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let shown = std::io::stderr().is_terminal();
        for round in 0..self.rounds {
            for key in &self.keys {
                for _ in 0..TRIES {
                    if shown {
                        eprint!("\r\x1b[Kround {} of {}, {}", round + 1, self.rounds, point_name(*key));
                    }
                    if self.round(round, *key, contenders, &mut outcome)? {
                        break;
                    }
                }
            }
        }
        if shown {
            eprint!("\r\x1b[K");
        }
        Ok(outcome)
    }

    /// One turn of each contender; whether it counts.
    fn round(
        &self,
        round: usize,
        key: Key,
        contenders: &[Box<dyn Contender>],
        outcome: &mut Outcome,
    ) -> Result<bool> {
        let before = self.probe()?;
        let mut samples = Vec::new();
        // Nobody always comes first.
        let order = contenders.iter().cycle().skip(round % contenders.len().max(1)).take(contenders.len());
        for contender in order.filter(|contender| contender.takes(key.test, key.size)) {
            let at = (contender.name().to_owned(), point_name(key));
            if outcome.failures.get(&at).is_some_and(|(times, _)| *times >= FAILURES) {
                continue;
            }
            match self.point(contender.name(), key) {
                Ok(values) => {
                    samples.extend(values.into_iter().map(|(unit, value)| (at.0.clone(), unit, value)))
                }
                Err(error) => {
                    let failed = outcome.failures.entry(at).or_default();
                    *failed = (failed.0 + 1, error.to_string());
                }
            }
        }
        let after = self.probe()?;
        let counts = before.max(after) <= PROBES_AGREE * before.min(after);
        if !counts {
            outcome.discarded += 1;
            return Ok(false);
        }
        let regime = Regime::of((before + after) / 2.0);
        outcome.counted += 1;
        outcome.near += usize::from(regime == Regime::Near);
        let sample = |(contender, unit, value)| Sample { round, regime, contender, unit, value };
        outcome.samples.0.extend(samples.into_iter().map(sample));
        Ok(true)
    }

    /// How long a cache line takes to come back, nanoseconds.
    fn probe(&self) -> Result<f64> {
        let key = Key { test: Test::RoundTrip, size: 64, inflight: 1 };
        let values = self.measure(Line.name(), key, PROBE_SECONDS)?;
        values.first().map(|(_, value)| *value).ok_or_else(|| "the line did not bounce".into())
    }

    fn point(&self, contender: &str, key: Key) -> Result<Vec<(Unit, f64)>> {
        self.measure(contender, key, self.job.seconds)
    }

    /// In a process of its own, which cannot outlive its time.
    fn measure(&self, contender: &str, key: Key, seconds: f64) -> Result<Vec<(Unit, f64)>> {
        let Key { test, size, inflight } = key;
        let contender = contender.to_owned();
        let job = Job { contender, test, size, inflight, seconds, ..self.job.clone() };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("point").args(job.arguments()).envs(ALLOCATOR);
        let printed = output_within(&mut command, job.duration()?.mul_f64(3.0) + SLACK)?;
        let values: std::result::Result<Vec<(Metric, f64)>, String> = serde_json::from_str(&printed)?;
        let unit = |metric| Unit { metric, size, inflight };
        Ok(values?.into_iter().map(|(metric, value)| (unit(metric), value)).collect())
    }
}

fn point_name(Key { test, size, inflight }: Key) -> String {
    format!("{test:?} {size} B x {inflight}")
}
