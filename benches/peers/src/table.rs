//! The tables: medians, spreads, ratios, and the targets beside what was measured.

use crate::samples::{Metric, Regime, Samples, Unit};
use crate::targets::Target;

/// Medians that stand beside the rate of calls instead of in a table of their own.
const OF_CALLS: [Metric; 4] = [Metric::CallNs, Metric::ServerCpuNs, Metric::CopiedBytes, Metric::LoadPercent];

/// Whom the ratios refer to.
#[derive(Clone, Copy)]
pub(crate) enum Reference {
    One(&'static str),
    /// At each point the one of these with the best median.
    Best(&'static [&'static str]),
}

impl Reference {
    fn of(self, samples: &Samples, unit: Unit) -> Option<&'static str> {
        match self {
            Self::One(name) => Some(name),
            Self::Best(peers) => samples.best(peers, unit, None),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::One(_) => "/ zc",
            Self::Best(_) => "/ best",
        }
    }
}

/// One table for each point, contenders in their order.
pub(crate) fn print(samples: &Samples, contenders: &[&str], reference: Reference) {
    let over = reference.title();
    for unit in samples.units().into_iter().filter(|unit| !OF_CALLS.contains(&unit.metric)) {
        let columns = match unit.metric {
            Metric::CallsPerS => "  p50 us, server CPU us, bytes copied",
            Metric::EchoesPerS | Metric::PipelinedPerS => "  server CPU us, load %",
            _ => "",
        };
        let reference = reference.of(samples, unit);
        println!("\n{:<30} {:>12} {:>25} {:>9} {:>3}{columns}", title(unit), "median", "spread", over, "n");
        for contender in contenders {
            let values = samples.of(contender, unit, None);
            let Some(median) = samples.median(contender, unit, None) else { continue };
            let low = values.values().copied().fold(f64::INFINITY, f64::min);
            let high = values.values().copied().fold(0.0, f64::max);
            let ratio = reference.and_then(|reference| samples.ratio(contender, reference, unit, None));
            println!(
                "  {contender:<28} {:>12} {:>25} {:>9} {:>3}{}",
                show(unit, median),
                format!("{} .. {}", show(unit, low), show(unit, high)),
                ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")),
                values.len(),
                more(samples, contender, unit, median),
            );
        }
    }
}

pub(crate) fn print_targets(samples: &Samples, targets: &[Target]) {
    println!("\n{:<78} {:>10} {:>9} {:>9} {:>9}", "Target", "bound", "all", "near", "far");
    for target in targets {
        let [all, near, far] = [None, Some(Regime::Near), Some(Regime::Far)].map(|regime| {
            target.value(samples, regime).map_or("-".to_owned(), |value| format!("{value:.3}"))
        });
        let verdict = target.verdict(samples);
        println!("{:<78} {:>10} {all:>9} {near:>9} {far:>9}  {verdict}", target.text, target.bound.text());
    }
}

/// What a unit is called.
pub(crate) fn title(unit: Unit) -> String {
    let size = match unit.size {
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size if size >= 1 << 10 => format!("{} KiB", size >> 10),
        size => format!("{size} B"),
    };
    let calls = format!("{size} x {}", unit.inflight);
    match unit.metric {
        Metric::RoundTripNs => format!("round trip {size}, us"),
        Metric::OneWayPerS => format!("one way {size}, M/s"),
        Metric::CallsPerS => format!("calls {calls}, k/s"),
        Metric::EchoesPerS => format!("echo {calls}, k/s"),
        Metric::PipelinedPerS => format!("pipeline {calls}, k/s"),
        Metric::LoadPercent => format!("load {calls}, %"),
        Metric::CallNs => format!("call {calls}, p50 us"),
        Metric::ServerCpuNs => format!("server CPU {calls}, us"),
        Metric::CopiedBytes => format!("copied per message {calls}, bytes"),
    }
}

fn show(unit: Unit, value: f64) -> String {
    match unit.metric {
        Metric::RoundTripNs | Metric::CallNs | Metric::ServerCpuNs => format!("{:.3}", value / 1e3),
        Metric::OneWayPerS => format!("{:.4}", value / 1e6),
        Metric::CallsPerS | Metric::EchoesPerS | Metric::PipelinedPerS => format!("{:.2}", value / 1e3),
        Metric::LoadPercent | Metric::CopiedBytes => format!("{value:.0}"),
    }
}

/// What belongs to a row beside its value.
fn more(samples: &Samples, contender: &str, unit: Unit, median: f64) -> String {
    let of_call = |metric| {
        let unit = Unit { metric, ..unit };
        samples.median(contender, unit, None).map_or("-".to_owned(), |value| show(unit, value))
    };
    let columns = |metrics: &[Metric]| -> String {
        metrics.iter().map(|metric| format!(" {:>12}", of_call(*metric))).collect()
    };
    match unit.metric {
        Metric::OneWayPerS => format!("  {:.2} GB/s", median * unit.size as f64 / 1e9),
        Metric::CallsPerS => columns(&[Metric::CallNs, Metric::ServerCpuNs, Metric::CopiedBytes]),
        Metric::EchoesPerS | Metric::PipelinedPerS => columns(&[Metric::ServerCpuNs, Metric::LoadPercent]),
        _ => String::new(),
    }
}
