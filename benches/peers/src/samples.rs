//! What was measured, round by round.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::Test;

/// A cache line that comes back within so much is "near": the two cores share a cache.
const NEAR_NS: f64 = 250.0;

/// One kind of point, at which the contenders take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) test: Test,
    pub(crate) size: usize,
    pub(crate) inflight: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Metric {
    RoundTripNs,
    OneWayPerS,
    CallsPerS,
    EchoesPerS,
    PipelinedPerS,
    CallNs,
    ServerCpuNs,
    CopiedBytes,
    /// How much of the time the load had something to do.
    LoadPercent,
}

/// What a value is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Unit {
    pub(crate) metric: Metric,
    pub(crate) size: usize,
    pub(crate) inflight: usize,
}

/// How far apart the cores were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Regime {
    Near,
    Far,
}

impl Regime {
    pub(crate) fn of(line_ns: f64) -> Self {
        if line_ns < NEAR_NS { Self::Near } else { Self::Far }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) regime: Regime,
    pub(crate) contender: String,
    #[serde(flatten)]
    pub(crate) unit: Unit,
    pub(crate) value: f64,
}

#[derive(Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    /// A contender's values by round, of one regime or of both.
    pub(crate) fn of(&self, contender: &str, unit: Unit, regime: Option<Regime>) -> BTreeMap<usize, f64> {
        self.0
            .iter()
            .filter(|sample| sample.contender == contender && sample.unit == unit)
            .filter(|sample| regime.is_none_or(|regime| regime == sample.regime))
            .map(|sample| (sample.round, sample.value))
            .collect()
    }

    /// The median of the ratios, each of two values of one round.
    pub(crate) fn ratio(&self, a: &str, b: &str, unit: Unit, regime: Option<Regime>) -> Option<f64> {
        let (a, b) = (self.of(a, unit, regime), self.of(b, unit, regime));
        median(a.iter().filter_map(|(round, a)| Some(a / b.get(round)?)))
    }

    pub(crate) fn median(&self, contender: &str, unit: Unit, regime: Option<Regime>) -> Option<f64> {
        median(self.of(contender, unit, regime).into_values())
    }

    /// Who has the highest median of these.
    pub(crate) fn best(
        &self,
        peers: &[&'static str],
        unit: Unit,
        regime: Option<Regime>,
    ) -> Option<&'static str> {
        let medians = peers.iter().filter_map(|peer| Some((*peer, self.median(peer, unit, regime)?)));
        medians.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(peer, _)| peer)
    }

    /// All that was measured of anybody, sorted.
    pub(crate) fn units(&self) -> Vec<Unit> {
        let mut units: Vec<_> = self.0.iter().map(|sample| sample.unit).collect();
        units.sort();
        units.dedup();
        units
    }
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}
