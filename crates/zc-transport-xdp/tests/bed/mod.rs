//! Two network namespaces, joined by a pair of veth interfaces; on the test machine (`ZC_XDP_MACHINE`) by its two network
//! cards, whose driver does without copies. They end with the process, whatever happens to it.

#![allow(dead_code, reason = "no test program uses all of it")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

pub(crate) mod frame;

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use zc_transport_xdp::device::Mode;
use zc_transport_xdp::netlink::Interface;

/// Nothing takes that long unless it hangs.
pub(crate) const GUARD: Duration = Duration::from_secs(60);

/// Says that a test passes by, past the harness, which would show it for failed tests only.
pub(crate) fn skipped(what: &str, why: impl Display) {
    let _ = io::stderr().write_all(format!("skipped: {what}: {why}\n").as_bytes());
}

/// A network namespace that lives as long as this, or a socket in it.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    pub(crate) fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            #[allow(deprecated, reason = "safe for namespaces; what the new one warns of are file tables")]
            rustix::thread::unshare(UnshareFlags::NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        Ok(Self(made.join().unwrap()?.into()))
    }

    /// Runs something in there, in a thread of its own.
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                what()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What `ip` knows it by, as long as this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `ip` in there.
    pub(crate) fn ip(&self, arguments: &str) -> io::Result<()> {
        let output = self.run(|| Command::new("ip").args(arguments.split_whitespace()).output())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ip {arguments}: {said}")))
    }
}

/// One end: a namespace with the interface `end`.
pub(crate) struct End {
    pub(crate) namespace: Namespace,
    pub(crate) mac: [u8; 6],
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl End {
    fn new(number: u8) -> io::Result<Self> {
        Ok(Self {
            namespace: Namespace::new()?,
            mac: [2, 0, 0, 0, 0, number],
            v4: [10, 77, 0, number].into(),
            v6: [0xfd77, 0, 0, 0, 0, 0, 0, number.into()].into(),
        })
    }

    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(what)
    }

    fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The interface at either end.
pub(crate) const NAME: &str = "zcxdp0";

/// Whether this is the test machine, whose cards have the addresses of the ends.
pub(crate) fn has_cards() -> bool {
    std::env::var_os("ZC_XDP_MACHINE").is_some()
}

const CARDS_MTU: u32 = 1500;
/// Whether somebody has the cards, which are there once.
static TAKEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Who has it has the cards; it may end in another thread.
struct Turn;

impl Turn {
    fn wait() -> Self {
        let (taken, free) = &TAKEN;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        *free.wait_while(taken, |taken| *taken).unwrap_or_else(PoisonError::into_inner) = true;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        TAKEN.1.notify_one();
    }
}

/// Both ends.
pub(crate) struct Bed {
    pub(crate) near: End,
    pub(crate) far: End,
    /// Of each end: as many as were asked for, or as the cards have.
    pub(crate) queues: u32,
    /// What the interfaces can do, best first.
    pub(crate) modes: &'static [Mode],
    _turn: Option<Turn>,
}

impl Bed {
    /// The cards, if there are any and their packets are that long; else a veth pair with so many queues. `None`, and said,
    /// where it may not be made.
    pub(crate) fn new(queues: u32, mtu: u32) -> Option<Self> {
        let cards = has_cards() && mtu <= CARDS_MTU;
        if cards { Some(Self::cards().unwrap()) } else { Self::veth(queues, mtu) }
    }

    /// A veth pair in any case.
    pub(crate) fn veth(queues: u32, mtu: u32) -> Option<Self> {
        match Self::make_veth(queues, mtu) {
            Ok(bed) => Some(bed),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                skipped("network namespaces", error);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                skipped("network namespaces", "the program `ip` is missing");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn make_veth(queues: u32, mtu: u32) -> io::Result<Self> {
        let (near, far) = (End::new(1)?, End::new(2)?);
        let there = far.namespace.path();
        let counts = format!("numrxqueues {queues} numtxqueues {queues}");
        near.namespace.ip(&format!(
            "link add {NAME} mtu {mtu} address {} {counts} type veth peer name {NAME} mtu {mtu} address {} {counts} \
             netns {there}",
            near.mac(),
            far.mac()
        ))?;
        Self::set_up(near, far, queues, &[Mode::Copy, Mode::Generic], None)
    }

    fn cards() -> io::Result<Self> {
        let turn = Turn::wait();
        let (near, far) = (End::new(1)?, End::new(2)?);
        for end in [&near, &far] {
            // They come back a moment after the namespaces that they were in have ended.
            let card = until("the card", || card(&end.mac()));
            let arguments = ["link", "set", &card, "netns", &end.namespace.path(), "name", NAME];
            let output = Command::new("ip").args(arguments).output()?;
            assert!(output.status.success(), "{output:?}");
        }
        let queues = near.run(|| Interface::find(NAME)).unwrap().rx_queues;
        Self::set_up(near, far, queues, &[Mode::ZeroCopy, Mode::Copy, Mode::Generic], Some(turn))
    }

    fn set_up(
        near: End,
        far: End,
        queues: u32,
        modes: &'static [Mode],
        turn: Option<Turn>,
    ) -> io::Result<Self> {
        for (end, other) in [(&near, &far), (&far, &near)] {
            let ip = |arguments: String| end.namespace.ip(&arguments);
            ip(format!("addr add {}/24 dev {NAME}", end.v4))?;
            ip(format!("addr add {}/64 dev {NAME} nodad", end.v6))?;
            ip("link set lo up".into())?;
            ip(format!("link set {NAME} up"))?;
            for address in [other.v4, other.v6] {
                ip(format!("neigh replace {address} lladdr {} dev {NAME} nud permanent", other.mac()))?;
            }
        }
        Ok(Self { near, far, queues, modes, _turn: turn })
    }
}

/// The name of the interface with this Ethernet address, in the namespace that the process began in.
fn card(mac: &str) -> Option<String> {
    let mut all = fs::read_dir("/sys/class/net").unwrap().flatten();
    let found = all.find(|one| {
        fs::read_to_string(one.path().join("address")).is_ok_and(|address| address.trim() == mac)
    })?;
    found.file_name().into_string().ok()
}

/// Calls until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < GUARD, "it hangs: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
