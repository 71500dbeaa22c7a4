//! A link whose bytes and their portions are given, and whose writes take one portion at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Debug, Default)]
pub struct Written {
    pub bytes: Vec<u8>,
    pub shut: bool,
}

#[derive(Debug)]
pub struct Script {
    input: VecDeque<u8>,
    /// The portions of the reads; then all there is.
    reads: VecDeque<usize>,
    /// A single portion goes on.
    repeat: bool,
    write: usize,
    /// Every other call is pending, to see that nothing is lost then.
    pub stutter: bool,
    odd: bool,
    /// After the input: the end, or nothing any more.
    pub ends: bool,
    pub written: Arc<Mutex<Written>>,
    /// What may be written until the peer takes more; then writes are pending.
    pub space: Option<Arc<AtomicUsize>>,
}

impl Script {
    pub fn new(input: &[u8], reads: &[usize], write: usize) -> Self {
        Self {
            input: input.iter().copied().collect(),
            reads: reads.iter().copied().collect(),
            repeat: reads.len() == 1,
            write,
            stutter: false,
            odd: false,
            ends: true,
            written: Arc::default(),
            space: None,
        }
    }

    fn stutters(&mut self, cx: &mut Context<'_>) -> bool {
        self.odd = !self.odd;
        if self.stutter && self.odd {
            cx.waker().wake_by_ref();
        }
        self.stutter && self.odd
    }
}

impl ControlLink for Script {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.stutters(cx) || (self.input.is_empty() && !self.ends) {
            return Poll::Pending;
        }
        let portion = match self.reads.len() {
            0 => usize::MAX,
            1 if self.repeat => self.reads[0],
            _ => self.reads.pop_front().unwrap(),
        };
        let n = buf.len().min(portion.max(1)).min(self.input.len());
        io::Read::read_exact(&mut self.input, &mut buf[..n]).unwrap();
        Poll::Ready(Ok(n))
    }
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.stutters(cx) {
            return Poll::Pending;
        }
        let mut n = buf.len().min(self.write);
        if let Some(space) = &self.space {
            n = n.min(space.load(Ordering::Relaxed));
            space.fetch_sub(n, Ordering::Relaxed);
            if n == 0 {
                return Poll::Pending;
            }
        }
        self.written.lock().unwrap().bytes.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }
    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.written.lock().unwrap().shut = true;
        Poll::Ready(Ok(()))
    }
    fn peer(&self) -> LinkAddr {
        LinkAddr::Memory("script".into())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}
