//! What is worth reading again, at the end of a run, of what the commands of a failed stage said.

use std::collections::VecDeque;

use crate::within::{HANGS, THAT_HANGS};

/// Lines that are kept of each list of failures and each report of what hangs, of all of them, and of what came last.
const BLOCK_MAX: usize = 40;
const BLOCKS_MAX: usize = 200;
const LAST_MAX: usize = 12;
/// Characters of a line.
const LINE_MAX: usize = 240;

/// The lines of libtest's lists of failures and of reports of what hangs, and the last others.
#[derive(Default)]
pub(crate) struct Said {
    blocks: Vec<String>,
    last: VecDeque<String>,
    within: Option<Until>,
    /// Lines of the block that goes on.
    length: usize,
}

/// How a block ends.
#[derive(Clone, Copy)]
enum Until {
    Result,
    Hang,
}

impl Said {
    pub(crate) fn line(&mut self, line: &str) {
        // The list of names that follows what the tests have said is a block of its own.
        let begins = match line {
            "failures:" => Some(Until::Result),
            _ if line.starts_with(HANGS) => Some(Until::Hang),
            _ => None,
        };
        if begins.is_some() {
            (self.within, self.length) = (begins, 0);
        }
        let kept: String = line.chars().take(LINE_MAX).collect();
        let Some(until) = self.within else {
            if self.last.len() == LAST_MAX {
                self.last.pop_front();
            }
            self.last.push_back(kept);
            return;
        };
        let ends = match until {
            Until::Result => line.starts_with("test result:"),
            Until::Hang => line == THAT_HANGS,
        };
        if ends {
            self.within = None;
        }
        if is_of_a_backtrace(line) || self.blocks.len() >= BLOCKS_MAX {
            return;
        }
        self.length += 1;
        match self.length.checked_sub(BLOCK_MAX) {
            Some(1) => self.blocks.push("[…]".to_owned()),
            Some(1..) if !ends => {}
            _ => self.blocks.push(kept),
        }
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().chain(&self.last).map(String::as_str)
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

    fn said(text: &str) -> Vec<String> {
        let mut said = Said::default();
        text.lines().for_each(|line| said.line(line));
        said.lines().map(str::to_owned).collect()
    }

    #[test]
    fn failures_and_what_hangs_come_first() {
        let hang = format!("{HANGS}a/b after 600 s\n  thread 7\n{THAT_HANGS}");
        let failed =
            "failures:\n\n---- a stdout ----\nno\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed";
        let text = format!("test b ... ok\n{failed}\ntest c ... ok\n{hang}\ntest d ... ok\n");
        let backtrace = "no\n   0: core::panic\n             at /rustc/a.rs:1:2\n";
        let others = "test b ... ok\ntest c ... ok\ntest d ... ok";
        assert_eq!(said(&text.replace("no\n", backtrace)).join("\n"), format!("{failed}\n{hang}\n{others}"));
    }

    #[test]
    fn of_what_names_no_failure_the_last_lines_are_kept() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = said(&text);
        assert_eq!((lines.len(), &*lines[LAST_MAX - 1]), (LAST_MAX, "line 99"));
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_long_block_hides_no_other() {
        let long = format!("{}\n", "é".repeat(2 * LINE_MAX));
        let text = format!("failures:\n{}failures:\n    a\ntest result: FAILED\n", long.repeat(1000));
        let lines = said(&text);
        assert_eq!(lines.len(), BLOCK_MAX + 4);
        assert_eq!(lines[BLOCK_MAX..], ["[…]", "failures:", "    a", "test result: FAILED"]);
        assert!(lines.iter().all(|line| line.chars().count() <= LINE_MAX));
        assert_eq!(said(&text.repeat(1000)).len(), BLOCKS_MAX);
    }
}
