//! A process of another user: this program again, with a variable that says what to do.

#![allow(dead_code, reason = "no test program uses all of it")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use tokio::task::spawn_blocking;

use super::skipped::skipped;

/// Whether processes of these users can be started here; says so if not. In a user namespace that knows one user, root
/// can't.
pub(crate) fn can_be_started(what: &str, users: &[u32]) -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped(what, "only root can start a process of another user");
        return false;
    }
    users.iter().all(|uid| {
        let tried = Command::new("true").uid(*uid).gid(*uid).stdin(Stdio::null()).status();
        if let Err(error) = &tried {
            skipped(what, format!("no process of user {uid}: {error}"));
        }
        tried.is_ok()
    })
}

/// Ended at the latest when it is dropped; when this program is gone, the end of its standard input tells it.
pub(crate) struct AnotherUser {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl AnotherUser {
    /// Only the test `role` runs in it, and is told its task by `variable`.
    pub(crate) fn start(uid: u32, role: &str, variable: &str, task: &str) -> Self {
        // Not by its path, which another user may not be able to follow.
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", role, "--nocapture"]).env(variable, task);
        command.uid(uid).gid(uid).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().map(BufReader::new);
        Self { child, output }
    }

    /// The rest of its next line with this prefix.
    pub(crate) async fn says(&mut self, prefix: &'static str) -> String {
        let mut output = self.output.take().unwrap();
        let read = move || {
            let mut seen = String::new();
            loop {
                let mut line = String::new();
                assert!(output.read_line(&mut line).unwrap() > 0, "it did not say {prefix}: {seen}");
                if let Some((_, rest)) = line.split_once(prefix) {
                    return (rest.trim_end().to_owned(), output);
                }
                seen += &line;
            }
        };
        let (said, output) = spawn_blocking(read).await.unwrap();
        self.output = Some(output);
        said
    }

    /// The end of its standard input: it is to end.
    pub(crate) fn let_go(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for its end, which is good, and returns what else it said.
    pub(crate) async fn rest(mut self) -> String {
        let mut output = self.output.take().unwrap();
        // Without the process, which is killed if nobody waits any more.
        let read = move || {
            let mut said = String::new();
            output.read_to_string(&mut said).map(|_| said)
        };
        let said = spawn_blocking(read).await.unwrap().unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for AnotherUser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
