//! Pipe, Unix and TCP sockets, by non-blocking system calls in a loop: the spinning form of each.

use std::hint::spin_loop;
use std::os::unix::net::UnixStream;

use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionbio, read as read_some, write as write_some};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Result;
use crate::child::{Running, serve};
use crate::contender::{End, Link, read};
use crate::job::Job;

/// What one packet of a seqpacket socket carries at most; larger messages are sent in parts.
const PACKET_BYTES: usize = 128 << 10;

pub(crate) struct Descriptors {
    input: OwnedFd,
    output: OwnedFd,
    part_bytes: usize,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Descriptors {
    fn new(input: OwnedFd, output: OwnedFd, part_bytes: usize, size: usize) -> Result<Self> {
        ioctl_fionbio(&input, true)?;
        ioctl_fionbio(&output, true)?;
        Ok(Self { input, output, part_bytes, outgoing: vec![0; size], incoming: vec![0; size] })
    }

    /// What the parent gave as standard input and output.
    fn inherited(part_bytes: usize, size: usize) -> Result<Self> {
        let (input, output) = crate::sockets::inherited()?;
        Self::new(input, output, part_bytes, size)
    }
}

impl End for Descriptors {
    async fn send(&mut self, mark: u8, size: usize) -> Result<()> {
        let message = &mut self.outgoing[..size];
        message.fill(mark);
        let mut sent = 0;
        while sent < size {
            let end = size.min(sent.saturating_add(self.part_bytes));
            match write_some(&self.output, &message[sent..end]) {
                Ok(bytes) => sent += bytes,
                Err(Errno::AGAIN | Errno::INTR) => spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn recv(&mut self, size: usize) -> Result<u8> {
        let message = &mut self.incoming[..size];
        let mut got = 0;
        while got < size {
            match read_some(&self.input, &mut message[got..]) {
                Ok(0) => return Err("the peer is gone".into()),
                Ok(bytes) => got += bytes,
                Err(Errno::AGAIN | Errno::INTR) => spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        read(message, size)
    }
}

pub(super) struct Pipe;

impl Link for Pipe {
    const NAME: &'static str = "pipe";
    type End = Descriptors;

    fn client(job: &Job) -> Result<(Running, Descriptors)> {
        let (server_input, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (input, server_output) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((serve(job, server_input, server_output)?, Descriptors::new(input, output, usize::MAX, job.size)?))
    }

    fn server(job: &Job) -> Result<Descriptors> {
        Descriptors::inherited(usize::MAX, job.size)
    }
}

pub(super) struct UnixSocket;

impl Link for UnixSocket {
    const NAME: &'static str = "unix stream";
    type End = Descriptors;

    fn client(job: &Job) -> Result<(Running, Descriptors)> {
        let (theirs, ours) = UnixStream::pair()?;
        connected(job, theirs, ours, usize::MAX)
    }

    fn server(job: &Job) -> Result<Descriptors> {
        Descriptors::inherited(usize::MAX, job.size)
    }
}

pub(super) struct SeqPacket;

impl Link for SeqPacket {
    const NAME: &'static str = "unix seqpacket";
    type End = Descriptors;

    fn client(job: &Job) -> Result<(Running, Descriptors)> {
        let (theirs, ours) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connected(job, theirs, ours, PACKET_BYTES)
    }

    fn server(job: &Job) -> Result<Descriptors> {
        Descriptors::inherited(PACKET_BYTES, job.size)
    }
}

pub(crate) struct Tcp;

impl Link for Tcp {
    const NAME: &'static str = "tcp";
    type End = Descriptors;

    fn client(job: &Job) -> Result<(Running, Descriptors)> {
        let (theirs, ours) = crate::sockets::tcp_pair()?;
        connected(job, theirs, ours, usize::MAX)
    }

    fn server(job: &Job) -> Result<Descriptors> {
        Descriptors::inherited(usize::MAX, job.size)
    }
}

fn connected(
    job: &Job,
    theirs: impl Into<OwnedFd>,
    ours: impl Into<OwnedFd>,
    part_bytes: usize,
) -> Result<(Running, Descriptors)> {
    let (theirs, ours) = (theirs.into(), ours.into());
    let server = serve(job, theirs.try_clone()?, theirs)?;
    Ok((server, Descriptors::new(ours.try_clone()?, ours, part_bytes, job.size)?))
}
