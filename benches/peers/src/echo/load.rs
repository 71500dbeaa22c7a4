//! The load: one thread that never sleeps, one message on its way on each connection, by epoll with edges.
//!
//! Before and after what is counted, every byte that comes back is compared. While it counts, the kernel drops them
//! instead of copying them here (`MSG_TRUNC`, tcp(7)), so that the load costs less than what it drives.

use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::warm::{Start, warm_up};
use crate::Result;
use crate::child::Running;
use crate::job::Job;
use crate::samples::Metric;

const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Every eight bytes of all messages differ from all others, and a connection's begin so far behind its neighbour's.
const WORD_BYTES: usize = 8;
const EVENTS: usize = 128;

/// Drives the server for the job's time.
pub(super) fn run(job: &Job, server: &Running, sockets: &[OwnedFd]) -> Result<Vec<(Metric, f64)>> {
    let warm_up = warm_up(job)?;
    let mut load = Load::new(job.size, sockets)?;
    load.begin()?;
    load.drive(warm_up, true)?;
    let (start, idle) = (Start::now(server, load.messages), load.idle);
    load.drive(job.duration()?, false)?;
    let mut values = start.until_now(server, load.messages, Metric::EchoesPerS)?;
    let idle_s = (load.idle - idle).as_secs_f64();
    values.push((Metric::LoadPercent, 100.0 * (1.0 - idle_s / job.seconds).max(0.0)));
    load.drive(Duration::ZERO, true)?;
    Ok(values)
}

struct Load<'a> {
    epoll: OwnedFd,
    connections: Vec<Connection<'a>>,
    size: usize,
    /// What is sent: see [`WORD_BYTES`].
    words: Vec<u8>,
    incoming: Vec<u8>,
    /// All that came back.
    messages: u64,
    /// When there was nothing to do.
    idle: Duration,
}

struct Connection<'a> {
    socket: BorrowedFd<'a>,
    /// Of the message that is on its way.
    sent: usize,
    got: usize,
    messages: u64,
}

impl<'a> Load<'a> {
    fn new(size: usize, sockets: &'a [OwnedFd]) -> Result<Self> {
        use std::os::fd::AsFd;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (n, socket) in sockets.iter().enumerate() {
            ioctl_fionbio(socket, true)?;
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&epoll, socket, epoll::EventData::new_u64(n as u64), flags)?;
        }
        let new = |socket: &'a OwnedFd| Connection { socket: socket.as_fd(), sent: 0, got: 0, messages: 0 };
        let words = 0..(size / WORD_BYTES + 1 + sockets.len()) as u64;
        Ok(Self {
            epoll,
            connections: sockets.iter().map(new).collect(),
            size,
            words: words.flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect(),
            incoming: vec![0; size],
            messages: 0,
            idle: Duration::ZERO,
        })
    }

    /// The first message of each connection.
    fn begin(&mut self) -> Result<()> {
        (0..self.connections.len()).try_for_each(|n| self.send(n))
    }

    /// For so long, and until each connection has had a message back.
    fn drive(&mut self, duration: Duration, compares: bool) -> Result<()> {
        let counts: Vec<_> = self.connections.iter().map(|connection| connection.messages).collect();
        let until = Instant::now() + duration;
        let mut events = Vec::with_capacity(EVENTS);
        let mut idle_since: Option<Instant> = None;
        loop {
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&NOT_AT_ALL))?;
            let now = Instant::now();
            match (events.is_empty(), idle_since) {
                (true, None) => idle_since = Some(now),
                (false, Some(since)) => {
                    self.idle += now - since;
                    idle_since = None;
                }
                _ => {}
            }
            for event in &events {
                self.go_on(event.data.u64() as usize, event.flags, compares)?;
            }
            if now >= until && self.connections.iter().zip(&counts).all(|(now, count)| now.messages > *count)
            {
                self.idle += idle_since.map_or(Duration::ZERO, |since| now - since);
                return Ok(());
            }
        }
    }

    fn go_on(&mut self, n: usize, flags: epoll::EventFlags, compares: bool) -> Result<()> {
        if flags.contains(epoll::EventFlags::OUT) && self.connections[n].sent < self.size {
            self.send(n)?;
        }
        if !flags.contains(epoll::EventFlags::IN) {
            return Ok(());
        }
        let connection = &mut self.connections[n];
        let asked = &mut self.incoming[..self.size - connection.got];
        let how = if compares { RecvFlags::empty() } else { RecvFlags::TRUNC };
        let came = match recv(connection.socket, &mut *asked, how) {
            Ok((_, 0)) => return Err("the server is gone".into()),
            Ok((_, came)) => came,
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if compares && asked[..came] != self.words[n * WORD_BYTES + connection.got..][..came] {
            return Err("other bytes came back".into());
        }
        connection.got += came;
        if connection.got > connection.sent {
            return Err("more came back than was sent".into());
        }
        // Less than was asked for: what comes next has an edge of its own, epoll(7). And after a whole message
        // nothing comes before the next one was sent.
        if connection.got < self.size {
            return Ok(());
        }
        connection.messages += 1;
        self.messages += 1;
        (connection.sent, connection.got) = (0, 0);
        self.send(n)
    }

    /// As much of a connection's message as the socket takes.
    fn send(&mut self, n: usize) -> Result<()> {
        let connection = &mut self.connections[n];
        let message = &self.words[n * WORD_BYTES..][..self.size];
        while connection.sent < self.size {
            match send(connection.socket, &message[connection.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => connection.sent += sent,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
