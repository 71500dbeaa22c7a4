//! Processes that end in time, and with their parent.

use std::io::Read;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::job::Job;
use crate::{Result, sys};

/// How long a server may take to end by itself after its last message.
const FAREWELL: Duration = Duration::from_secs(2);

/// A child that is gone when this is.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = sys::die_with_parent(command).spawn();
        started.map(Self).map_err(|error| format!("{program}: {error}").into())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Lets it end by itself, so that it can clean up.
    pub(crate) fn farewell(mut self) {
        let began = Instant::now();
        while began.elapsed() < FAREWELL && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program again, as the server of `job`, with these ends of what connects the two.
pub(crate) fn serve(job: &Job, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Result<Running> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").args(job.arguments()).stdin(stdin).stdout(stdout);
    Running::start(&mut command)
}

/// The server of `job`, once it has said that it is ready.
pub(crate) fn serve_by_name(job: &Job) -> Result<Running> {
    let (mut ready, said) = std::io::pipe()?;
    let server = serve(job, Stdio::null(), said)?;
    ready.read_exact(&mut [0]).map_err(|_| "the server did not start")?;
    Ok(server)
}

/// What the command prints within the time limit, if it succeeds.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let mut child = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = child.0.stdout.take().ok_or("no output")?;
    let (sender, printed) = mpsc::channel();
    let reader = std::thread::spawn(move || drop(sender.send(read_all(stdout))));
    let text = printed.recv_timeout(limit).map_err(|_| format!("not done after {} s", limit.as_secs()))??;
    let _ = reader.join();
    let status = child.0.wait()?;
    if status.success() { Ok(text) } else { Err(format!("failed, {status}").into()) }
}

fn read_all(mut stdout: ChildStdout) -> std::io::Result<String> {
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    Ok(text)
}
