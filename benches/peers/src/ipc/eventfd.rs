//! A bare pair of eventfds on tokio's `AsyncFd`: what waking a sleeper costs. Nothing is carried but the mark.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Result;
use crate::child::{Running, serve};
use crate::contender::{End, Link};
use crate::job::{Job, Test};
use crate::machine::Cores;
use crate::sys;

/// Each side on a core of its own.
pub(super) struct TwoCores;
/// Both sides on one core.
pub(super) struct SameCore;

pub(super) struct Bell {
    input: AsyncFd<OwnedFd>,
    output: OwnedFd,
}

impl Bell {
    fn new(input: OwnedFd, output: OwnedFd) -> Result<Self> {
        Ok(Self { input: sys::readable(input)?, output })
    }

    fn client(job: &Job) -> Result<(Running, Self)> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let (there, back) = (eventfd(0, flags)?, eventfd(0, flags)?);
        let server = serve(job, there.try_clone()?, back.try_clone()?)?;
        Ok((server, Self::new(back, there)?))
    }

    fn server() -> Result<Self> {
        let (input, output) = crate::sockets::inherited()?;
        Self::new(input, output)
    }
}

impl End for Bell {
    async fn send(&mut self, mark: u8, _size: usize) -> Result<()> {
        // An eventfd adds, and wakes nobody for 0.
        rustix::io::write(&self.output, &(u64::from(mark) + 1).to_ne_bytes())?;
        Ok(())
    }

    async fn recv(&mut self, _size: usize) -> Result<u8> {
        let mut value = [0; 8];
        self.input.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut value)?)).await?;
        Ok(u8::try_from(u64::from_ne_bytes(value) - 1)?)
    }
}

fn takes(test: Test, size: usize) -> bool {
    test == Test::RoundTrip && size <= 64
}

impl Link for TwoCores {
    const NAME: &'static str = "eventfd, asleep";
    type End = Bell;

    fn takes(test: Test, size: usize) -> bool {
        takes(test, size)
    }

    fn client(job: &Job) -> Result<(Running, Bell)> {
        Bell::client(job)
    }

    fn server(_job: &Job) -> Result<Bell> {
        Bell::server()
    }
}

impl Link for SameCore {
    const NAME: &'static str = "eventfd, asleep, same core";
    const CORES: Cores = Cores::SAME;
    type End = Bell;

    fn takes(test: Test, size: usize) -> bool {
        takes(test, size)
    }

    fn client(job: &Job) -> Result<(Running, Bell)> {
        Bell::client(job)
    }

    fn server(_job: &Job) -> Result<Bell> {
        Bell::server()
    }
}
