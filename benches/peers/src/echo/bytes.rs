//! Servers that send back what comes, whatever it is: each gets sockets that are connected, and the same load.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;

use rustix::fd::OwnedFd;

use super::load;
use crate::Result;
use crate::child::serve;
use crate::contender::Contender;
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;

pub(super) struct Bytes {
    pub(super) name: &'static str,
    /// Echoes until all of the sockets have ended.
    pub(super) serve: fn(Vec<TcpStream>) -> Result<()>,
}

impl Contender for Bytes {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, test: Test, _size: usize) -> bool {
        test == Test::Echo
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(Cores::TWO.client)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let sockets: Vec<OwnedFd>;
        // Goes before the sockets do, so that it has no end of a connection to complain about.
        let server = serve(job, OwnedFd::from(listener), Stdio::null())?;
        sockets = (0..job.inflight)
            .map(|_| {
                let socket = TcpStream::connect(address)?;
                socket.set_nodelay(true)?;
                Ok(socket.into())
            })
            .collect::<std::io::Result<_>>()?;
        load::run(job, &server, &sockets)
    }

    fn serve(&self, job: &Job) -> Result<()> {
        pin(Cores::TWO.server)?;
        let listener = TcpListener::from(crate::sockets::inherited()?.0);
        let accept = |_| {
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let sockets = (0..job.inflight).map(accept).collect::<std::io::Result<_>>()?;
        (self.serve)(sockets)
    }
}
