//! From addresses of links to addresses of sockets.
//!
//! Names are looked up by the system's resolver, which blocks: on threads of its own, a bounded number,
//! that end when there is nothing to do. A name whose future was dropped is not looked up any more.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use futures::channel::oneshot;
use parking_lot::Mutex;
use socket2::SockAddr;
use zc_core::transport::{LinkAddr, LinkError};

use crate::limits::{MAX_NAMES, MAX_RESOLVER_THREADS};

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

type Found = io::Result<Vec<SocketAddr>>;

/// Names to look up: at most [`MAX_NAMES`], and none whose future was dropped once another one comes.
struct Names {
    waiting: VecDeque<(String, oneshot::Sender<Found>)>,
    threads: usize,
}

impl Names {
    fn queue(&mut self, name: &str, done: oneshot::Sender<Found>) -> io::Result<()> {
        self.waiting.retain(|(_, done)| !done.is_canceled());
        if self.waiting.len() >= MAX_NAMES {
            return Err(io::Error::other("too many names wait to be looked up"));
        }
        self.waiting.push_back((name.to_owned(), done));
        Ok(())
    }
}

static NAMES: Mutex<Names> = Mutex::new(Names { waiting: VecDeque::new(), threads: 0 });

/// The addresses of `host:port`.
pub(crate) async fn resolve(at: &str) -> Result<Vec<SocketAddr>, LinkError> {
    if let Ok(numeric) = at.parse::<SocketAddr>() {
        return Ok(vec![numeric]);
    }
    let answer = look_up(at).map_err(|source| LinkError::Io { operation: "look up a name", source })?;
    let found = answer.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
    let found = found.map_err(|e| LinkError::Address(format!("{at}: {e}")))?;
    if found.is_empty() { Err(LinkError::Address(format!("{at}: no address"))) } else { Ok(found) }
}

fn look_up(name: &str) -> io::Result<oneshot::Receiver<Found>> {
    let (done, answer) = oneshot::channel();
    let mut names = NAMES.lock();
    names.queue(name, done)?;
    if names.threads < MAX_RESOLVER_THREADS {
        match std::thread::Builder::new().name("zc-resolve".into()).spawn(work) {
            Ok(_) => names.threads += 1,
            Err(e) if names.threads == 0 => {
                names.waiting.pop_back();
                return Err(e);
            }
            // Those that run get to it.
            Err(_) => {}
        }
    }
    Ok(answer)
}

fn work() {
    loop {
        let mut names = NAMES.lock();
        let Some((name, done)) = names.waiting.pop_front() else {
            names.threads -= 1;
            return;
        };
        drop(names);
        if !done.is_canceled() {
            let _ = done.send(name.to_socket_addrs().map(|all| all.take(MAX_ADDRESSES).collect()));
        }
    }
}

/// The socket address of a Unix link.
pub(crate) fn unix(addr: &LinkAddr) -> Result<SockAddr, LinkError> {
    let made = match addr {
        LinkAddr::UnixPath(path) => SockAddr::unix(path),
        LinkAddr::UnixAbstract(name) => SockAddr::unix(format!("\0{name}")),
        other => return Err(LinkError::Address(format!("{other} is no Unix socket"))),
    };
    made.map_err(|e| LinkError::Address(format!("{addr}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_waits_for_make_room_and_the_rest_are_bounded() {
        let mut names = Names { waiting: VecDeque::new(), threads: 0 };
        for _ in 0..3 * MAX_NAMES {
            let (done, dropped) = oneshot::channel();
            drop(dropped);
            names.queue("gone.example:1", done).unwrap();
        }
        assert_eq!(names.waiting.len(), 1);
        let mut awaited = Vec::new();
        for _ in 0..MAX_NAMES {
            let (done, answer) = oneshot::channel();
            awaited.push(answer);
            names.queue("slow.example:1", done).unwrap();
        }
        assert!(names.queue("late.example:1", oneshot::channel().0).is_err());
        awaited.pop();
        let (done, _answer) = oneshot::channel();
        names.queue("next.example:1", done).unwrap();
    }
}
