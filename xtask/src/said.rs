//! What is worth reading again, at the end of a run, of what the commands of a failed stage said.

use std::collections::VecDeque;

use crate::within::{HANGS, THAT_HANGS};

/// Lines that are kept of what names a failure, and of what came last.
const NAMED_MAX: usize = 120;
const LAST_MAX: usize = 20;
/// Characters of a line.
const LINE_MAX: usize = 240;

/// The lines of libtest's lists of failures, of reports of what hangs, and the last ones.
#[derive(Default)]
pub(crate) struct Said {
    named: Vec<String>,
    last: VecDeque<String>,
    within: Option<Until>,
}

/// How the lines that are being kept end.
#[derive(Clone, Copy)]
enum Until {
    Result,
    Hang,
}

impl Said {
    pub(crate) fn line(&mut self, line: &str) {
        self.within = self.within.or(match line {
            "failures:" => Some(Until::Result),
            _ if line.starts_with(HANGS) => Some(Until::Hang),
            _ => None,
        });
        if self.within.is_some() && is_of_a_backtrace(line) {
            return;
        }
        let line: String = line.chars().take(LINE_MAX).collect();
        let ended = match self.within {
            Some(Until::Result) => line.starts_with("test result:"),
            Some(Until::Hang) => line == THAT_HANGS,
            None => false,
        };
        match self.within {
            None => {
                if self.last.len() == LAST_MAX {
                    self.last.pop_front();
                }
                self.last.push_back(line);
            }
            Some(_) if self.named.len() < NAMED_MAX => self.named.push(line),
            Some(_) => {}
        }
        self.within = self.within.filter(|_| !ended);
    }

    /// The lines to show: the last ones say little where others name what failed.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let chosen: Vec<_> = self.named.iter().map(String::as_str).collect();
        if chosen.is_empty() { self.last.iter().map(String::as_str).collect() } else { chosen }
    }
}

/// ` 12: a::function` and the line below it, `at file:line:column`: forty of them say less than the message in front.
fn is_of_a_backtrace(line: &str) -> bool {
    let frame = line.trim_start();
    let number = frame.split_once(": ").map_or("", |(number, _)| number);
    frame.len() < line.len() && (frame.starts_with("at ") || number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        let mut said = Said::default();
        text.lines().for_each(|line| said.line(line));
        said
    }

    #[test]
    fn failures_and_what_hangs_are_kept() {
        let hang = format!("{HANGS}a/b after 600 s\n  thread 7\n{THAT_HANGS}");
        let failed =
            "failures:\n\n---- a stdout ----\nno\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed";
        let backtrace = "   0: core::panic\n             at /rustc/a.rs:1:2\n";
        let text = format!("test b ... ok\n{failed}\ntest c ... ok\n{hang}\ntest d ... ok\n");
        let text = text.replace("no\n", &format!("no\n{backtrace}"));
        assert_eq!(said(&text).lines().join("\n"), format!("{failed}\n{hang}"));
    }

    #[test]
    fn without_a_name_the_last_lines_are() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let said = said(&text);
        assert_eq!(said.lines().len(), LAST_MAX);
        assert_eq!(said.lines().last(), Some(&"line 99"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = "é".repeat(LINE_MAX);
        let text = format!("failures:\n{}", format!("{long}\n").repeat(2 * NAMED_MAX));
        let said = said(&text);
        assert_eq!(said.lines().len(), NAMED_MAX);
        assert!(said.lines().iter().all(|line| line.chars().count() == LINE_MAX || *line == "failures:"));
    }
}
