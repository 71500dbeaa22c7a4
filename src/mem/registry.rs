//! Names of listeners inside this process.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use zc_core::transport::{BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor};

use super::pipe::{PipeLink, duplex};

/// Links that wait at a listener to be accepted; more are refused.
pub const MEM_BACKLOG: usize = 128;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<PipeLink>,
    waker: Option<Waker>,
}

static LISTENERS: LazyLock<Mutex<HashMap<String, Arc<Mutex<Queue>>>>> = LazyLock::new(Mutex::default);

/// Opens `zc+mem://` addresses. Names belong to the process, not to a fabric.
///
/// ```
/// use std::sync::Arc;
/// use zc::{Fabric, MemLinks, MemTransport};
///
/// // Nothing of this fabric ever leaves the process.
/// let stream = Arc::new(zc_transport_tcp::TcpTransport);
/// let fabric = Fabric::builder()
///     .links(Arc::new(MemLinks))
///     .transport(Arc::new(MemTransport::over(stream)))
///     .build()?;
/// assert_eq!(fabric.probe().len(), 1);
/// # Ok::<(), zc::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct MemLinks;

fn name_of(addr: &LinkAddr) -> Result<&str, LinkError> {
    match addr {
        LinkAddr::Memory(name) => Ok(name),
        other => Err(LinkError::Address(other.to_string())),
    }
}

fn refused(operation: &'static str, kind: io::ErrorKind) -> LinkError {
    LinkError::Io { operation, source: kind.into() }
}

impl MemLinks {
    fn open(addr: &LinkAddr) -> Result<Box<dyn ControlLink>, LinkError> {
        let name = name_of(addr)?;
        let queue = LISTENERS.lock().get(name).cloned();
        let queue = queue.ok_or_else(|| refused("connect", io::ErrorKind::ConnectionRefused))?;
        let (client, server) = duplex(name);
        let waker = {
            let mut queue = queue.lock();
            if queue.waiting.len() >= MEM_BACKLOG {
                return Err(refused("connect", io::ErrorKind::ConnectionRefused));
            }
            queue.waiting.push_back(server);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(Box::new(client))
    }

    fn listen(addr: &LinkAddr) -> Result<Box<dyn LinkListener>, LinkError> {
        let name = name_of(addr)?;
        let mut listeners = LISTENERS.lock();
        if listeners.contains_key(name) {
            return Err(refused("listen", io::ErrorKind::AddrInUse));
        }
        let queue = Arc::<Mutex<Queue>>::default();
        listeners.insert(name.into(), queue.clone());
        Ok(Box::new(MemListener { name: name.into(), queue }))
    }
}

impl LinkProvider for MemLinks {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        matches!(addr, LinkAddr::Memory(_))
    }

    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        _reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        Box::pin(async move { Self::open(addr) })
    }

    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        _reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        Box::pin(async move { Self::listen(addr) })
    }
}

struct MemListener {
    name: String,
    queue: Arc<Mutex<Queue>>,
}

impl LinkListener for MemListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<dyn ControlLink>, LinkError>> {
        let mut queue = self.queue.lock();
        match queue.waiting.pop_front() {
            Some(link) => Poll::Ready(Ok(Box::new(link))),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn local(&self) -> LinkAddr {
        LinkAddr::Memory(self.name.clone())
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        LISTENERS.lock().remove(&self.name);
    }
}
