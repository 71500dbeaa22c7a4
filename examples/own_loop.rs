//! zc without tokio: a loop of one's own around epoll(7) drives both ends of a connection, in one thread.
//!
//! ```text
//! cargo run --release --no-default-features --features tcp --example own_loop
//! ```
//!
//! All that zc asks of a loop is [`Reactor`]: watch a descriptor, set a timer, run a task, tell the time.

#![allow(clippy::print_stdout, reason = "a program")]

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use zc::Fabric;
use zc::transport::{BoxFuture, Interest, Reactor, Readiness, TaskHandle, Timer};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: u32 = 200;
/// The number that no descriptor of a connection has.
const WAKE_UP: u64 = 0;
/// epoll(7) counts milliseconds in 31 bits.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

fn main() -> Result<()> {
    let at = Instant::now();
    let bytes = run("zc+tcp://127.0.0.1:0", ROUNDS)?;
    println!(
        "{bytes} bytes echoed and verified in {:.1} ms, one thread, no runtime",
        at.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

/// An echo server and its client on one loop; the bytes that came back.
pub(crate) fn run(uri: &str, rounds: u32) -> Result<u64> {
    let own = Arc::new(Loop::new()?);
    let fabric = Fabric::auto_builder().reactor(Arc::new(Handle(own.clone()))).build()?;
    own.block_on(async {
        let mut listener = fabric.listen(uri).await?;
        let uri = listener.local_uri().to_string();
        let echo = async move {
            let Ok(mut conn) = listener.accept().await else { return };
            while let Ok(Some(message)) = conn.recv().await {
                if conn.send(message).await.is_err() {
                    break;
                }
            }
        };
        Handle(own.clone()).spawn(Box::pin(echo))?.detach();

        let mut conn = fabric.connect(&uri).await?;
        println!("{}", conn.report());
        let mut bytes = 0;
        for round in 0..rounds {
            let len = 1_usize << (round % 21); // 1 B to 1 MiB
            let mut buf = conn.alloc(len).await?;
            buf.resize(len, round as u8);
            conn.send(buf.freeze()).await?;
            let back = conn.recv().await?.ok_or("the server finished early")?;
            let intact = back.segments().iter().all(|part| part.iter().all(|&byte| byte == round as u8));
            if back.len() != len || !intact {
                return Err(format!("round {round} came back damaged").into());
            }
            bytes += len as u64;
        }
        conn.drain(Duration::ZERO).await?;
        Ok(bytes)
    })
}

/// The loop: what to run, when, and who waits for which descriptor.
struct Loop {
    epoll: OwnedFd,
    /// Written when something is to be polled, so that a waiting loop notices.
    wake_up: OwnedFd,
    woken: AtomicBool,
    next: AtomicU64,
    spawned: Mutex<Vec<Abortable<BoxFuture<'static, ()>>>>,
    timers: Mutex<BTreeMap<(Instant, u64), Waker>>,
    /// Who waits to read, who to write.
    watched: Mutex<HashMap<u64, [Option<Waker>; 2]>>,
}

/// No waker is called and no future dropped under a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for Loop {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.wake_up, &1_u64.to_ne_bytes());
        }
    }
}

impl Loop {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake_up = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake_up, epoll::EventData::new_u64(WAKE_UP), epoll::EventFlags::IN)?;
        let (woken, next) = (AtomicBool::new(false), AtomicU64::new(WAKE_UP + 1));
        let (spawned, timers, watched) = Default::default();
        Ok(Self { epoll, wake_up, woken, next, spawned, timers, watched })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `main` to its end, then the tasks that were spawned meanwhile to theirs.
    fn block_on<T>(self: &Arc<Self>, main: impl Future<Output = Result<T>>) -> Result<T> {
        let waker = Waker::from(self.clone());
        let mut cx = Context::from_waker(&waker);
        let (mut main, mut result) = (pin!(main), None);
        let mut tasks = FuturesUnordered::new(); // polls only those that were woken
        loop {
            if result.is_none()
                && let Poll::Ready(done) = main.as_mut().poll(&mut cx)
            {
                result = Some(done);
            }
            tasks.extend(std::mem::take(&mut *lock(&self.spawned)));
            while let Poll::Ready(Some(_)) = tasks.poll_next_unpin(&mut cx) {}
            if tasks.is_empty()
                && lock(&self.spawned).is_empty()
                && let Some(result) = result.take()
            {
                return result;
            }
            self.wait()?;
        }
    }

    /// Waits for a descriptor, a timer or a wake-up, and wakes who waited for it.
    fn wait(&self) -> io::Result<()> {
        let first = lock(&self.timers).first_key_value().map(|((at, _), _)| *at);
        let left = |at: Instant| at.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
        let timeout = first.and_then(|at| Timespec::try_from(left(at)).ok());
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut wakers = Vec::new();
        for event in events {
            let (flags, id) = (event.flags, event.data.u64());
            if id == WAKE_UP {
                // In this order: who wakes in between is polled after this wait.
                let _ = rustix::io::read(&self.wake_up, &mut [0; 8]);
                self.woken.store(false, Ordering::Release);
            } else if let Some([read, write]) = lock(&self.watched).get_mut(&id) {
                let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | broken) {
                    wakers.extend(read.take());
                }
                if flags.intersects(epoll::EventFlags::OUT | broken) {
                    wakers.extend(write.take());
                }
            }
        }
        let mut timers = lock(&self.timers);
        let later = timers.split_off(&(Instant::now(), u64::MAX));
        wakers.extend(std::mem::replace(&mut *timers, later).into_values());
        drop(timers);
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

/// The loop as zc sees it.
struct Handle(Arc<Loop>);

impl Reactor for Handle {
    fn register(&self, fd: OwnedFd) -> io::Result<Box<dyn Readiness>> {
        let id = self.0.number();
        // Edge-triggered, so that it is registered once: who would wait has seen `WouldBlock` before.
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        lock(&self.0.watched).insert(id, [None, None]);
        let watched = Watched { own: self.0.clone(), id, fd };
        epoll::add(&self.0.epoll, &watched.fd, epoll::EventData::new_u64(id), flags)?;
        Ok(Box::new(watched))
    }

    fn timer(&self) -> io::Result<Box<dyn Timer>> {
        Ok(Box::new(Alarm { own: self.0.clone(), id: self.0.number(), at: None }))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> io::Result<Box<dyn TaskHandle>> {
        let (handle, registration) = AbortHandle::new_pair();
        lock(&self.0.spawned).push(Abortable::new(task, registration));
        self.0.clone().wake();
        Ok(Box::new(Task(Some(handle))))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

struct Watched {
    own: Arc<Loop>,
    id: u64,
    fd: OwnedFd,
}

impl Readiness for Watched {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        io: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        // The waker first: an event between the attempt and the wait must find it.
        if let Some(wakers) = lock(&self.own.watched).get_mut(&self.id) {
            wakers[usize::from(interest == Interest::Write)] = Some(cx.waker().clone());
        }
        match io(self.fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            done => Poll::Ready(done),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = lock(&self.own.watched).remove(&self.id);
        let _ = epoll::delete(&self.own.epoll, &self.fd);
    }
}

struct Alarm {
    own: Arc<Loop>,
    id: u64,
    at: Option<Instant>,
}

impl Timer for Alarm {
    fn reset(&mut self, deadline: Instant) {
        let waker = self.at.and_then(|at| lock(&self.own.timers).remove(&(at, self.id)));
        self.at = Some(deadline);
        if let Some(waker) = waker {
            lock(&self.own.timers).insert((deadline, self.id), waker);
        }
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.at {
            Some(at) if at <= Instant::now() => Poll::Ready(()),
            Some(at) => {
                lock(&self.own.timers).insert((at, self.id), cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let _ = self.at.and_then(|at| lock(&self.own.timers).remove(&(at, self.id)));
    }
}

/// Cancels its task when it is dropped, unless it was detached.
struct Task(Option<AbortHandle>);

impl TaskHandle for Task {
    fn detach(mut self: Box<Self>) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}
