//! A Unix stream as a program on tokio uses it: it sleeps while it waits.

use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Result;
use crate::child::{Running, serve};
use crate::contender::{End, Link, read};
use crate::job::Job;

pub(super) struct TokioUnix;

pub(super) struct Stream {
    stream: UnixStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Stream {
    fn new(stream: StdStream, size: usize) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, outgoing: vec![0; size], incoming: vec![0; size] })
    }
}

impl Link for TokioUnix {
    const NAME: &'static str = "tokio unix stream";
    type End = Stream;

    fn client(job: &Job) -> Result<(Running, Stream)> {
        let (theirs, ours) = StdStream::pair()?;
        Ok((
            serve(job, std::os::fd::OwnedFd::from(theirs), std::process::Stdio::null())?,
            Stream::new(ours, job.size)?,
        ))
    }

    fn server(job: &Job) -> Result<Stream> {
        Stream::new(crate::sockets::inherited()?.0.into(), job.size)
    }
}

impl End for Stream {
    async fn send(&mut self, mark: u8, size: usize) -> Result<()> {
        let message = &mut self.outgoing[..size];
        message.fill(mark);
        Ok(self.stream.write_all(message).await?)
    }

    async fn recv(&mut self, size: usize) -> Result<u8> {
        let message = &mut self.incoming[..size];
        self.stream.read_exact(message).await?;
        read(message, size)
    }
}
