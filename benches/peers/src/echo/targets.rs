//! What the project aims at.

use super::*;
use crate::samples::{Metric, Regime, Samples, Unit};
use crate::targets::{Bound, Target};

/// Those whose best counts: complete runtimes. The bare ring is a bound, and no peer.
pub(crate) const PEERS: &[&str] = &[TOKIO, TOKIO_MANY, MONOIO, COMPIO, TOKIO_URING, GLOMMIO];

const SMALL: [usize; 3] = [64, 1 << 10, 16 << 10];
const LARGE: Unit = Unit { metric: Metric::EchoesPerS, size: 1 << 20, inflight: 16 };

pub(crate) fn targets() -> Vec<Target> {
    let small = || echoes(&SMALL);
    let all = || [small(), echoes(&[LARGE.size]), pipelines()].concat();
    let mut targets = vec![
        over(format!("{ENGINE} / best peer"), small(), MEAN, Bound::AtLeast(0.97), to_best),
        over(format!("{ENGINE} / best peer"), small(), LEAST, Bound::AtLeast(0.90), to_best),
        over(
            format!("server CPU {ENGINE} / {TOKIO}"),
            small(),
            GREATEST,
            Bound::AtMost(1.05),
            |all, unit, regime| all.ratio(ENGINE, TOKIO, cpu(unit), regime),
        ),
        Target::ratio(ENGINE, TOKIO, LARGE, Bound::AtLeast(1.15)),
        Target::ratio(ENGINE, MONOIO, LARGE, Bound::AtLeast(1.4)),
    ];
    let to_loop = |unit| PLAIN.map(|plain| Target::ratio(PIPED_URING, plain, unit, Bound::AtLeast(0.9)));
    targets.extend(pipelines().into_iter().flat_map(to_loop));
    let trip = Unit { metric: Metric::RoundTripNs, size: ROUND_TRIP_SIZE, inflight: 1 };
    targets.extend([
        Target::ratio(SPINNING_URING, SPINNING_PAIR, trip, Bound::AtMost(1.1)),
        over(format!("{ON_URING} / {ON_TCP}"), all(), MEAN, Bound::AtLeast(1.0), |all, unit, regime| {
            lanes(all, unit, unit, regime)
        }),
        over(format!("{ON_URING} / {ON_TCP}"), all(), LEAST, Bound::AtLeast(0.92), |all, unit, regime| {
            lanes(all, unit, unit, regime)
        }),
        Target::ratio(ON_URING, ON_TCP, LARGE, Bound::AtLeast(1.15)),
        over(
            format!("server CPU {ON_URING} / {ON_TCP}"),
            all(),
            MEAN,
            Bound::AtMost(1.0),
            |all, unit, regime| lanes(all, unit, cpu(unit), regime),
        ),
    ]);
    targets
}

fn echoes(sizes: &[usize]) -> Vec<Unit> {
    let of =
        |size: &usize| CONNECTIONS.map(|inflight| Unit { metric: Metric::EchoesPerS, size: *size, inflight });
    sizes.iter().flat_map(of).collect()
}

fn pipelines() -> Vec<Unit> {
    let of = |size| Unit { metric: Metric::PipelinedPerS, size, inflight: PIPELINED };
    PIPELINED_SIZES.map(of).to_vec()
}

fn cpu(unit: Unit) -> Unit {
    Unit { metric: Metric::ServerCpuNs, ..unit }
}

fn to_best(samples: &Samples, unit: Unit, regime: Option<Regime>) -> Option<f64> {
    samples.ratio(ENGINE, samples.best(PEERS, unit, regime)?, unit, regime)
}

/// Both lanes have contenders of their own for the pipeline.
fn lanes(samples: &Samples, unit: Unit, of: Unit, regime: Option<Regime>) -> Option<f64> {
    match unit.metric {
        Metric::PipelinedPerS => samples.ratio(PIPED_URING, PIPED_TCP, of, regime),
        _ => samples.ratio(ON_URING, ON_TCP, of, regime),
    }
}

/// What is made of the ratios at several points.
type Fold = (&'static str, fn(&[f64]) -> f64);

const MEAN: Fold = ("geometric mean", |ratios| {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
});
const LEAST: Fold = ("least", |ratios| ratios.iter().copied().fold(f64::INFINITY, f64::min));
const GREATEST: Fold = ("greatest", |ratios| ratios.iter().copied().fold(0.0, f64::max));

/// A bound on that; not measured while one of the points is missing.
fn over(
    what: String,
    units: Vec<Unit>,
    (name, fold): Fold,
    bound: Bound,
    ratio: impl Fn(&Samples, Unit, Option<Regime>) -> Option<f64> + 'static,
) -> Target {
    let text = format!("{name} of {} points: {what}", units.len());
    Target::new(text, bound, move |samples, regime| {
        let ratios: Option<Vec<_>> = units.iter().map(|unit| ratio(samples, *unit, regime)).collect();
        ratios.map(|ratios| fold(&ratios))
    })
}
