//! Round trips between two processes that sleep, by what wakes them: the primitives themselves, without a lane and
//! without a runtime. `asleep` shows the one that was kept, in the lane and on tokio.
//!
//! ```text
//! cargo bench -p zc-transport-shm --bench wake            nothing else should run; `chrt -r 10` keeps most of it away
//! ```
//!
//! The contenders take turns, a few hundred round trips each, many times over; figures are medians of the turns,
//! ratios are to the eventfd on epoll of the same turn. "Ring" is how long the call that wakes takes the caller.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark"
)]

mod measure;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use io_uring::{IoUring, opcode};
use measure::{CHILD, median, pin};
use rustix::event::{EventfdFlags, epoll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::futex;
use zc_core::memory::{Backing, PeerMapping, Region, Sealing};

const ROUNDS: usize = 31;
/// Round trips of one turn.
const TRIPS: usize = 300;
const BYTES: usize = 4096;
/// `FUTEX2_SIZE_U32`, and not private: two processes.
const FUTEX2_U32: u32 = 2;

/// One process's end of what wakes.
trait Wake {
    /// Wakes the other side.
    fn ring(&mut self);
    /// Sleeps until it is woken.
    fn wait(&mut self);
}

fn main() {
    match std::env::var(CHILD) {
        Ok(fds) => child(&fds),
        Err(_) => {
            pin(0);
            [1, 0].into_iter().for_each(parent);
        }
    }
}

/// All that both sides need: for each contender one of its own, in pairs of which the parent has the first.
struct Shared {
    events: [[OwnedFd; 2]; 2],
    sockets: [[OwnedFd; 2]; 2],
    memory: Region,
    side: usize,
}

impl Shared {
    /// A word per futex and side, each on lines of its own.
    fn word(&self, futex: usize, side: usize) -> &AtomicU32 {
        // SAFETY: aligned, inside of the region, and accessed atomically only.
        unsafe { &*self.memory.base().add(1024 * futex + 256 * side).cast() }
    }

    fn contenders(&self) -> Vec<(&'static str, Box<dyn Wake + '_>)> {
        let [mine, theirs] = [self.side, 1 - self.side];
        let event = |at: usize| Event { mine: &self.events[at][mine], theirs: &self.events[at][theirs] };
        let socket = |at: usize| &self.sockets[at][mine];
        let futex = |at| Futex { mine: self.word(at, mine), theirs: self.word(at, theirs), seen: 0 };
        let mut all: Vec<(_, Box<dyn Wake + '_>)> = vec![
            ("eventfd on epoll", Box::new(OnEpoll::new(event(0), &self.events[0][mine]))),
            ("eventfd, blocking read", Box::new(event(1))),
            ("Unix socket on epoll", Box::new(OnEpoll::new(Socket(socket(0)), socket(0)))),
            ("Unix socket, blocking read", Box::new(Socket(socket(1)))),
            ("futex", Box::new(futex(0))),
        ];
        match (ring(false), ring(true)) {
            (Ok(plain), Ok(polled)) => {
                all.push(("futex by io_uring", Box::new(OnUring::new(futex(1), plain, false))));
                all.push(("futex by io_uring on epoll", Box::new(OnUring::new(futex(2), polled, true))));
            }
            (Err(error), _) | (_, Err(error)) => println!("without io_uring's futex: {error}"),
        }
        all
    }
}

struct Event<'a> {
    mine: &'a OwnedFd,
    theirs: &'a OwnedFd,
}

impl Wake for Event<'_> {
    fn ring(&mut self) {
        rustix::io::write(self.theirs, &1u64.to_ne_bytes()).unwrap();
    }
    fn wait(&mut self) {
        rustix::io::read(self.mine, &mut [0; 8]).unwrap();
    }
}

struct Socket<'a>(&'a OwnedFd);

impl Wake for Socket<'_> {
    fn ring(&mut self) {
        rustix::net::send(self.0, &[1], SendFlags::NOSIGNAL).unwrap();
    }
    fn wait(&mut self) {
        let (got, _) = rustix::net::recv(self.0, &mut [0; 8], RecvFlags::empty()).unwrap();
        assert_eq!(got, 1, "the other side is gone");
    }
}

/// Sleeps on epoll, as a reactor does, and only then takes what is there.
struct OnEpoll<W> {
    what: W,
    epoll: OwnedFd,
}

impl<W: Wake> OnEpoll<W> {
    fn new(what: W, fd: &OwnedFd) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, fd, epoll::EventData::new_u64(0), flags).unwrap();
        Self { what, epoll }
    }
}

fn sleep_on(epoll: &OwnedFd) {
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
    let slept = rustix::io::retry_on_intr(|| epoll::wait(epoll, &mut events, None));
    assert_eq!(slept.unwrap(), 1);
}

impl<W: Wake> Wake for OnEpoll<W> {
    fn ring(&mut self) {
        self.what.ring();
    }
    fn wait(&mut self) {
        sleep_on(&self.epoll);
        self.what.wait();
    }
}

struct Futex<'a> {
    mine: &'a AtomicU32,
    theirs: &'a AtomicU32,
    /// What our word said when we were woken last.
    seen: u32,
}

impl Futex<'_> {
    fn is_rung(&mut self) -> bool {
        let now = self.mine.load(Ordering::Acquire);
        std::mem::replace(&mut self.seen, now) != now
    }
}

impl Wake for Futex<'_> {
    fn ring(&mut self) {
        self.theirs.fetch_add(1, Ordering::Release);
        futex::wake(self.theirs, futex::Flags::empty(), 1).unwrap();
    }
    fn wait(&mut self) {
        while !self.is_rung() {
            match futex::wait(self.mine, futex::Flags::empty(), self.seen, None) {
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A ring, if it can wait for a futex: the answer to one whose word says something else comes at once.
fn ring(polled: bool) -> std::io::Result<IoUring> {
    let mut builder = IoUring::builder();
    // The cheaper one of the two wakes nobody who polls the ring.
    match polled {
        true => builder.setup_coop_taskrun(),
        false => builder.setup_single_issuer().setup_defer_taskrun(),
    };
    let mut ring: IoUring = builder.build(8)?;
    let word = AtomicU32::new(1);
    let wait = opcode::FutexWait::new(word.as_ptr(), 0, u64::from(u32::MAX), FUTEX2_U32).build();
    // SAFETY: the word lives until the answer has come, below.
    unsafe { ring.submission().push(&wait).unwrap() };
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().map_or(-libc::EIO, |answer| answer.result());
    if answer == -libc::EAGAIN { Ok(ring) } else { Err(std::io::Error::from_raw_os_error(-answer)) }
}

/// Waits for a futex by io_uring; on epoll it is the ring that is waited for, as on a reactor.
struct OnUring<'a> {
    futex: Futex<'a>,
    ring: IoUring,
    epoll: Option<OwnedFd>,
}

impl<'a> OnUring<'a> {
    fn new(futex: Futex<'a>, ring: IoUring, polled: bool) -> Self {
        let epoll = polled.then(|| {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            // SAFETY: the ring keeps its descriptor open meanwhile.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(ring.as_raw_fd()) };
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, fd, epoll::EventData::new_u64(0), flags).unwrap();
            epoll
        });
        Self { futex, ring, epoll }
    }
}

impl Wake for OnUring<'_> {
    fn ring(&mut self) {
        self.futex.ring();
    }
    fn wait(&mut self) {
        while !self.futex.is_rung() {
            let word = self.futex.mine.as_ptr();
            let wait =
                opcode::FutexWait::new(word, self.futex.seen.into(), u32::MAX.into(), FUTEX2_U32).build();
            // SAFETY: the word lies in a region that outlives the ring.
            unsafe { self.ring.submission().push(&wait).unwrap() };
            if let Some(epoll) = &self.epoll {
                self.ring.submit().unwrap();
                sleep_on(epoll);
            }
            self.ring.submit_and_wait(1).unwrap();
            let result = self.ring.completion().next().unwrap().result();
            assert!(result == 0 || result == -libc::EAGAIN, "{result}");
        }
    }
}

fn inherited(fd: &OwnedFd) -> RawFd {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    fd.as_raw_fd()
}

fn child(fds: &str) {
    // Nobody would ever wake it again.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let mut fds = fds.split(' ').map(|fd| {
        // SAFETY: made by the parent for this process, and named once.
        unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) }
    });
    let mut next = || fds.next().unwrap();
    let mut pairs = || [[next(), next()], [next(), next()]];
    let (events, sockets) = (pairs(), pairs());
    let both =
        PeerMapping { max_bytes: BYTES, sealing: Sealing::AnyoneWrites, writable: true, prefault: true };
    let shared = Shared { events, sockets, memory: both.map(next()).unwrap(), side: 1 };
    let mut contenders = shared.contenders();
    for _ in 0..=ROUNDS {
        for (_, wake) in &mut contenders {
            for _ in 0..TRIPS {
                wake.wait();
                wake.ring();
            }
        }
    }
}

/// Nanoseconds of a round trip, and of the call that wakes.
fn turn(wake: &mut dyn Wake) -> [f64; 2] {
    let (start, mut ringing) = (Instant::now(), 0);
    for _ in 0..TRIPS {
        let before = Instant::now();
        wake.ring();
        ringing += before.elapsed().as_nanos();
        wake.wait();
    }
    [start.elapsed().as_nanos() as f64, ringing as f64].map(|all| all / TRIPS as f64)
}

fn parent(core: usize) {
    let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let sockets = [0, 1].map(|_| {
        let flags = SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        [pair.0, pair.1]
    });
    let memory = Region::builder(BYTES).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
    let memory = memory.prefault(true).build().unwrap();
    let shared = Shared { events: [[event(), event()], [event(), event()]], sockets, memory, side: 0 };
    let memory = shared.memory.fd().unwrap().try_clone_to_owned().unwrap();
    let fds = shared.events.iter().chain(&shared.sockets).flatten().chain([&memory]);
    let fds: Vec<String> = fds.map(|fd| inherited(fd).to_string()).collect();
    pin(core);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CHILD, fds.join(" ")).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    pin(0);
    let mut contenders = shared.contenders();
    let mut turns: Vec<Vec<[f64; 2]>> = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for (at, (_, wake)) in contenders.iter_mut().enumerate() {
            let figures = turn(&mut **wake);
            // The first round warms up.
            if round > 0 {
                turns[at].push(figures);
            }
        }
    }
    println!("{}", if core == 0 { "same core" } else { "two cores" });
    println!("{:>28} {:>12} {:>7} {:>9}", "", "round trip", "ratio", "ring");
    for ((name, _), of) in contenders.iter().zip(&turns) {
        let column =
            |figure: &dyn Fn(usize) -> f64| median(&mut (0..of.len()).map(figure).collect::<Vec<_>>());
        let (trip, ring) = (column(&|n| of[n][0]), column(&|n| of[n][1]));
        let ratio = column(&|n| of[n][0] / turns[0][n][0]);
        println!("{name:>28} {trip:>9.0} ns {ratio:>7.2} {ring:>6.0} ns");
    }
    assert!(child.wait().unwrap().success());
}
