//! How stages ended, and the summary of a run.

use std::fmt::Write;
use std::time::Duration;

/// Why a stage did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// What was missing.
    pub(crate) reason: String,
    /// The one command that would change that.
    pub(crate) remedy: Option<&'static str>,
    /// Whether this machine cannot run the stage at all, as opposed to "has not been made to".
    pub(crate) beyond_this_machine: bool,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(Skip),
}

/// A stage that has ended.
pub(crate) struct Line {
    pub(crate) stage: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    /// What is worth reading again if it failed.
    pub(crate) said: Vec<String>,
}

/// The stages of a run, in the order they ran.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) lines: Vec<Line>,
}

impl Report {
    /// Whether the run counts as good. Under CI a stage skipped although the machine could run it is a failure.
    pub(crate) fn good(&self, ci: bool) -> bool {
        self.lines.iter().all(|line| match &line.outcome {
            Outcome::Passed => true,
            Outcome::Failed(_) => false,
            Outcome::Skipped(skip) => !ci || skip.beyond_this_machine,
        })
    }

    /// The table, what to do about each stage that did not pass, and the closing line.
    pub(crate) fn summary(&self, ci: bool) -> String {
        let mut text = String::new();
        let total: Duration = self.lines.iter().map(|line| line.took).sum();
        let _ = writeln!(text, "{:<12} {:<8} {:>9}", "stage", "result", "time");
        for line in &self.lines {
            let row = format!("{:<12} {:<8} {:>9}", line.stage, line.outcome.word(), seconds(line.took));
            let _ = writeln!(text, "{row}  {}", line.outcome.detail());
        }
        let _ = writeln!(text, "{:<12} {:<8} {:>9}\n", "total", "", seconds(total));
        for line in &self.lines {
            match &line.outcome {
                Outcome::Passed => {}
                Outcome::Failed(how) => {
                    for said in &line.said {
                        let _ = writeln!(text, "| {said}");
                    }
                    let _ =
                        writeln!(text, "{} failed ({how}). Again, alone: {}", line.stage, again(line.stage));
                }
                Outcome::Skipped(skip) => {
                    if let Some(remedy) = skip.remedy {
                        let _ = writeln!(text, "{} was skipped. To run it: {remedy}", line.stage);
                    }
                    if ci && !skip.beyond_this_machine {
                        let _ =
                            writeln!(text, "{} was skipped, which --ci counts against the run.", line.stage);
                    }
                }
            }
        }
        let count = |word: &str| self.lines.iter().filter(|line| line.outcome.word() == word).count();
        let (passed, failed, skipped) = (count("passed"), count("failed"), count("skipped"));
        let _ = write!(text, "{passed} passed, {failed} failed, {skipped} skipped");
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}

impl Outcome {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }

    pub(crate) fn detail(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(how) => how,
            Self::Skipped(skip) => &skip.reason,
        }
    }
}

/// The command that runs one stage alone.
pub(crate) fn again(stage: &str) -> String {
    format!("cargo xtask test --only {stage}")
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: Vec<Outcome>) -> Report {
        let line = |outcome| Line {
            stage: "unit",
            outcome,
            took: Duration::from_millis(1500),
            said: vec!["no".to_owned()],
        };
        Report { lines: outcomes.into_iter().map(line).collect() }
    }

    fn skip(beyond_this_machine: bool) -> Outcome {
        Outcome::Skipped(Skip { reason: "none".to_owned(), remedy: None, beyond_this_machine })
    }

    #[test]
    fn the_closing_line_counts_stages() {
        let report = report(vec![Outcome::Passed, Outcome::Failed("exit code 1".to_owned()), skip(true)]);
        let summary = report.summary(false);
        assert_eq!(summary.lines().last(), Some("1 passed, 1 failed, 1 skipped"));
        assert!(
            summary.contains("\n| no\nunit failed (exit code 1). Again, alone: cargo xtask test --only unit")
        );
    }

    #[test]
    fn ci_takes_a_skip_only_when_the_machine_cannot_run_the_stage() {
        assert!(report(vec![Outcome::Passed, skip(false)]).good(false));
        assert!(!report(vec![Outcome::Passed, skip(false)]).good(true));
        assert!(report(vec![Outcome::Passed, skip(true)]).good(true));
        assert!(!report(vec![Outcome::Failed(String::new())]).good(false));
    }
}
