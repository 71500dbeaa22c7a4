//! Whether a process is in our user namespace.

use std::os::unix::fs::MetadataExt;

/// Whether the process is known to be in our user namespace. Its number is that of `SO_PEERCRED`; 0, and one that we may not look
/// at, is not.
///
/// The process may have ended since, and its number be another's, or its socket be with another. All of them are of the
/// kernel uid that was compared before: so a wrong answer is only ever given about our own user's processes, to
/// one that could choose who connects for it.
pub(crate) fn is_ours(pid: i32) -> bool {
    let of = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/ns/user")).ok()?;
        Some((file.dev(), file.ino()))
    };
    of("self").is_some_and(|ours| of(&pid.to_string()) == Some(ours))
}

#[cfg(test)]
#[allow(clippy::print_stdout, reason = "tests")]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that lives until it is dropped.
    pub(crate) struct Other(Child);

    impl Other {
        pub(crate) fn pid(&self) -> i32 {
            self.0.id() as i32
        }

        /// Started by `program`; `None` if that can't be done here.
        pub(crate) fn start(program: &[&str]) -> Option<Self> {
            let script = ["sh", "-c", "echo up; exec sleep 600"];
            let words: Vec<&str> = program.iter().copied().chain(script).collect();
            let mut command = Command::new(words[0]);
            let mut child =
                command.args(&words[1..]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
            let other = Self(child);
            (line == "up\n").then_some(other)
        }

        /// In a user namespace of its own.
        pub(crate) fn elsewhere() -> Option<Self> {
            let other = Self::start(&["unshare", "--user"]);
            if other.is_none() {
                println!("not tested: no user namespace can be made here");
            }
            other
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn only_who_is_seen_to_be_in_it_is() {
        let here = Other::start(&["env"]).unwrap();
        assert!(is_ours(std::process::id() as i32) && is_ours(here.pid()));
        assert!(!is_ours(0) && !is_ours(-1) && !is_ours(i32::MAX));
        if let Some(other) = Other::elsewhere() {
            assert!(!is_ours(other.pid()));
        }
    }
}
