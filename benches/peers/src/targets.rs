//! What the issues ask of zc, as bounds on ratios that one run measures.

use serde::Serialize;
use serde_json::{Value, json};

use crate::samples::{Regime, Samples, Unit};

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("<= {bound:.4}"),
            Self::AtLeast(bound) => format!(">= {bound:.2}"),
        }
    }
}

type Measure = Box<dyn Fn(&Samples, Option<Regime>) -> Option<f64>>;

pub(crate) struct Target {
    pub(crate) text: String,
    pub(crate) bound: Bound,
    /// Near and far must each hold, where they were measured.
    in_both_regimes: bool,
    measure: Measure,
}

impl Target {
    pub(crate) fn new(
        text: String,
        bound: Bound,
        measure: impl Fn(&Samples, Option<Regime>) -> Option<f64> + 'static,
    ) -> Self {
        Self { text, bound, in_both_regimes: false, measure: Box::new(measure) }
    }

    /// The bound holds in each of the two regimes by itself, not over all rounds only.
    pub(crate) fn in_both_regimes(self) -> Self {
        Self { in_both_regimes: true, text: format!("{}, near and far", self.text), ..self }
    }

    /// `a`'s value over `b`'s.
    pub(crate) fn ratio(a: &'static str, b: &'static str, unit: Unit, bound: Bound) -> Self {
        let text = format!("{}: {a} / {b}", crate::table::title(unit));
        Self::new(text, bound, move |samples, regime| samples.ratio(a, b, unit, regime))
    }

    /// How much more `a` has at one point than at the other.
    pub(crate) fn difference(a: &'static str, more: Unit, less: Unit, bound: Bound) -> Self {
        let text = format!("{a}: {} - {}, ns", crate::table::title(more), crate::table::title(less));
        Self::new(text, bound, move |samples, regime| {
            Some(samples.median(a, more, regime)? - samples.median(a, less, regime)?)
        })
    }

    pub(crate) fn value(&self, samples: &Samples, regime: Option<Regime>) -> Option<f64> {
        (self.measure)(samples, regime)
    }

    pub(crate) fn verdict(&self, samples: &Samples) -> &'static str {
        let regimes: &[_] = match self.in_both_regimes {
            true => &[Some(Regime::Near), Some(Regime::Far)],
            false => &[None],
        };
        let values = regimes.iter().map(|regime| self.value(samples, *regime));
        let (measured, missing): (Vec<_>, Vec<_>) = values.partition(Option::is_some);
        match measured.iter().flatten().all(|value| self.bound.holds(*value)) {
            false => "MISSED",
            true if measured.is_empty() => "not measured",
            true if missing.is_empty() => "met",
            true => "met in one regime, the other not measured",
        }
    }

    pub(crate) fn json(&self, samples: &Samples) -> Value {
        json!({
            "target": self.text,
            "bound": self.bound,
            "value": self.value(samples, None),
            "near": self.value(samples, Some(Regime::Near)),
            "far": self.value(samples, Some(Regime::Far)),
            "verdict": self.verdict(samples),
        })
    }
}
