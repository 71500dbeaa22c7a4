//! Starting commands under the guard, with a deadline.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::guard;
use crate::said::Said;

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long the guard gets to end everything once it was told to.
const GUARD_GRACE: Duration = Duration::from_secs(10);

/// A command and the variables it runs with. Displays as a line that a shell would take.
#[derive(Clone)]
pub(crate) struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
}

impl Cmd {
    pub(crate) fn new(program: impl Into<OsString>, args: &str) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new() }.args(args)
    }

    /// The cargo that runs this program.
    pub(crate) fn cargo(args: &str) -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), args)
    }

    /// Adds arguments, separated by spaces.
    pub(crate) fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(OsString::from));
        self
    }

    /// Adds one argument as it is.
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={} ", quoted(&value.to_string_lossy()))?;
        }
        // The path of a cargo says nothing to a reader; its name does.
        let program = Path::new(&self.program);
        match program.file_name() {
            Some(name) if name == "cargo" => write!(f, "cargo")?,
            _ => write!(f, "{}", program.display())?,
        }
        self.args.iter().try_for_each(|arg| write!(f, " {}", quoted(&arg.to_string_lossy())))
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// Runs commands in the workspace's directory until a deadline.
pub(crate) struct Runner {
    root: PathBuf,
    deadline: Instant,
    limit: Duration,
    said: Arc<Mutex<Said>>,
}

impl Runner {
    pub(crate) fn new(root: &Path, limit: Duration) -> Self {
        let said = Arc::default();
        Self { root: root.to_owned(), deadline: Instant::now() + limit, limit, said }
    }

    /// The same deadline or, if that comes first, `limit` from now.
    pub(crate) fn at_most(&self, limit: Duration) -> Self {
        let (root, said) = (self.root.clone(), self.said.clone());
        let deadline = Instant::now() + limit;
        if deadline >= self.deadline {
            return Self { root, said, ..*self };
        }
        Self { root, deadline, limit, said }
    }

    /// What is worth reading again of what was run or captured; nothing at a terminal, where it can be scrolled back to.
    pub(crate) fn said(&self) -> Vec<String> {
        if io::stdout().is_terminal() {
            return Vec::new();
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.lines().map(str::to_owned).collect()
    }

    /// Runs `cmd`, its output going where ours goes; without a terminal all of it to our standard output. The error says how
    /// it ended.
    pub(crate) fn run(&self, cmd: &Cmd) -> Result<(), String> {
        println!("$ {cmd}");
        if io::stdout().is_terminal() {
            let mut child = self.spawn(cmd, Stdio::inherit(), Stdio::inherit())?;
            return self.finish(&mut child);
        }
        let piped = io::pipe().and_then(|(reader, writer)| Ok((reader, writer.try_clone()?, writer)));
        let (reader, stdout, stderr) = piped.map_err(|error| format!("no pipe: {error}"))?;
        let mut child = self.spawn(cmd, stdout.into(), stderr.into())?;
        let said = self.said.clone();
        let reader = thread::spawn(move || pass_on(reader, &said));
        let ended = self.finish(&mut child);
        // Who sticks in the kernel keeps its end of the pipe even when killed.
        let deadline = Instant::now() + GUARD_GRACE;
        while !reader.is_finished() && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
        ended
    }

    /// Runs `cmd` and hands back its standard output; its standard error goes where ours goes, and so does all of it if the command
    /// fails.
    pub(crate) fn capture(&self, cmd: &Cmd) -> Result<String, String> {
        println!("$ {cmd}");
        let (said, ended) = self.read(cmd, Stdio::inherit())?;
        let mut kept = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.lines().for_each(|line| kept.line(line));
        ended.inspect_err(|_| print!("{said}")).map(|()| said)
    }

    /// Like [`Self::capture`], and leaves our standard output alone.
    pub(crate) fn output(&self, cmd: &Cmd) -> Result<String, String> {
        let (said, ended) = self.read(cmd, Stdio::inherit())?;
        ended.map(|()| said)
    }

    /// Like [`Self::capture`], without a word on the terminal.
    pub(crate) fn ask(&self, cmd: &Cmd) -> Result<String, String> {
        let (said, ended) = self.read(cmd, Stdio::null())?;
        ended.map(|()| said)
    }

    /// What it has said, and how it ended.
    fn read(&self, cmd: &Cmd, stderr: Stdio) -> Result<(String, Result<(), String>), String> {
        let mut child = self.spawn(cmd, Stdio::piped(), stderr)?;
        let pipe = child.stdout.take();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        });
        let ended = self.finish(&mut child);
        match reader.join() {
            Ok(Ok(bytes)) => Ok((String::from_utf8_lossy(&bytes).into_owned(), ended)),
            _ => Err("its output could not be read".to_owned()),
        }
    }

    fn spawn(&self, cmd: &Cmd, stdout: Stdio, stderr: Stdio) -> Result<Child, String> {
        Command::new(guard::SELF)
            .args([guard::GUARD, "--"])
            .arg(&cmd.program)
            .args(&cmd.args)
            .envs(cmd.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("could not start: {error}"))
    }

    fn finish(&self, child: &mut Child) -> Result<(), String> {
        // Held open for as long as the stage may run: its end is the guard's order to end everything.
        let order = child.stdin.take();
        if let Some(status) = wait_until(child, self.deadline) {
            return if status.success() { Ok(()) } else { Err(how_it_ended(status)) };
        }
        drop(order);
        if wait_until(child, Instant::now() + GUARD_GRACE).is_none() {
            // A guard that does not answer goes with its whole group.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            let _ = child.wait();
        }
        Err(format!("ended by the hang guard after {} s", self.limit.as_secs()))
    }
}

/// Copies what a command says to our standard output, line by line.
fn pass_on(reader: PipeReader, said: &Mutex<Said>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        // Whoever reads us may have gone; the command goes on.
        let _ = io::stdout().write_all(&line);
        let text = String::from_utf8_lossy(&line);
        said.lock().unwrap_or_else(PoisonError::into_inner).line(text.trim_end());
        line.clear();
    }
}

pub(crate) fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn how_it_ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => format!("ended by {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_a_shell_line() {
        let cmd = Cmd::new("/some/where/cargo", "doc --no-deps").env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(cmd.to_string(), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
        assert_eq!(Cmd::new("cargo", "test --test *").to_string(), "cargo test --test '*'");
    }
}
