//! The bound of a pipeline: two loops that write and read as many bytes as the messages would take, in batches.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::BUFFER_BYTES;
use super::warm::{Start, warm_up};
use crate::Result;
use crate::child::serve;
use crate::contender::Contender;
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;

/// What a message of zc has in front of it on a stream, `docs/wire.md`.
const HEADER_BYTES: usize = 16;
/// Loops of the client between two looks at the clock.
const UNTIMED: usize = 64;

pub(super) struct Plain {
    pub(super) name: &'static str,
    /// Neither side ever sleeps.
    pub(super) spins: bool,
}

impl Contender for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::Pipeline
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        let (theirs, socket) = crate::sockets::tcp_pair()?;
        let server = serve(job, OwnedFd::from(theirs), Stdio::null())?;
        socket.set_nonblocking(true)?;
        let mut pipeline = Pipeline::new(socket, self.spins, job);
        pipeline.drive(warm_up(job)?, true)?;
        let start = Start::now(&server, pipeline.messages());
        pipeline.drive(job.duration()?, false)?;
        start.until_now(&server, pipeline.messages(), Metric::PipelinedPerS)
    }

    fn serve(&self, job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        let mut socket = TcpStream::from(crate::sockets::inherited()?.0);
        socket.set_nonblocking(self.spins)?;
        let mut buf = vec![0; buffer_bytes(job)];
        loop {
            let Some(n) = unless_busy(socket.read(&mut buf))? else { continue };
            if n == 0 {
                return Ok(());
            }
            let mut sent = 0;
            while sent < n {
                sent += unless_busy(socket.write(&buf[sent..n]))?.unwrap_or(0);
            }
        }
    }
}

/// Room for all that is on its way, so that no loop is held up by its buffer.
fn buffer_bytes(job: &Job) -> usize {
    BUFFER_BYTES.max(job.inflight * (HEADER_BYTES + job.size))
}

/// `None`: not now.
fn unless_busy(done: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

/// The client.
struct Pipeline {
    socket: TcpStream,
    spins: bool,
    frame_bytes: usize,
    /// All that is on its way at a time, again and again.
    bytes: Vec<u8>,
    incoming: Vec<u8>,
    /// Of all time.
    sent: u64,
    got: u64,
}

impl Pipeline {
    fn new(socket: TcpStream, spins: bool, job: &Job) -> Self {
        let frame_bytes = HEADER_BYTES + job.size;
        let bytes = (0..frame_bytes * job.inflight).map(|n| (n / 7) as u8).collect();
        Self { socket, spins, frame_bytes, bytes, incoming: vec![0; buffer_bytes(job)], sent: 0, got: 0 }
    }

    fn messages(&self) -> u64 {
        self.got / self.frame_bytes as u64
    }

    fn drive(&mut self, duration: Duration, compares: bool) -> Result<()> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            for _ in 0..UNTIMED {
                let moved = self.write()? | self.read(compares)?;
                if !moved && !self.spins {
                    self.sleep()?;
                }
            }
        }
        Ok(())
    }

    /// Where in `bytes` a position of the stream lies.
    fn place(&self, position: u64) -> usize {
        (position % self.bytes.len() as u64) as usize
    }

    /// Whole messages have come back for all that may be sent.
    fn may_send(&self) -> usize {
        let back = self.messages() * self.frame_bytes as u64;
        (back + self.bytes.len() as u64 - self.sent) as usize
    }

    fn write(&mut self) -> Result<bool> {
        let place = self.place(self.sent);
        let n = self.may_send().min(self.bytes.len() - place);
        if n == 0 {
            return Ok(false);
        }
        let sent = unless_busy(self.socket.write(&self.bytes[place..place + n]))?;
        self.sent += sent.unwrap_or(0) as u64;
        Ok(sent.is_some())
    }

    fn read(&mut self, compares: bool) -> Result<bool> {
        let Some(n) = unless_busy(self.socket.read(&mut self.incoming))? else { return Ok(false) };
        if n == 0 {
            return Err("the server is gone".into());
        }
        let mut expected = self.bytes.iter().cycle().skip(self.place(self.got));
        if compares && !self.incoming[..n].iter().all(|byte| expected.next() == Some(byte)) {
            return Err("other bytes came back".into());
        }
        self.got += n as u64;
        Ok(true)
    }

    fn sleep(&self) -> Result<()> {
        let out = if self.may_send() > 0 { PollFlags::OUT } else { PollFlags::empty() };
        poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN | out)], None)?;
        Ok(())
    }
}
