//! Setting a ring up, from the best way to the weakest, and why not.
//!
//! ```text
//! one thread:    SINGLE_ISSUER + DEFER_TASKRUN -> COOP_TASKRUN -> no flag
//! many threads:                                   COOP_TASKRUN -> no flag
//! ```
//!
//! Completions are made by the thread that submitted. With COOP_TASKRUN one that computes for long (`block_in_place`) is
//! not interrupted for them, and makes them at the next tick of the clock; one that sleeps is woken.
//!
//! Each rung is tried with one operation before it counts: some set-ups succeed and then fail at first use.

use std::io;

use zc_core::transport::Unavailable;

use crate::limits::{CQ_ENTRIES, SQ_ENTRIES};
use crate::sys::{Flights, Opcode, Refused, Request, Ring, Setup};

/// Who enters the ring.
///
/// ```
/// use zc_transport_uring::Flavour;
///
/// // What a program would choose that knows its runtime.
/// let of = |threads: usize| if threads == 1 { Flavour::OneThread } else { Flavour::ManyThreads };
/// assert_eq!(of(1), Flavour::OneThread);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// One thread alone, that of a runtime of one thread: the cheapest. Others may begin operations, which
    /// that thread then submits. A runtime that goes on to be driven by another thread ends such an engine.
    ///
    /// A runtime should be dropped in its own thread, too: from another one the ring cannot be taken down. Sockets with
    /// operations in flight are then shut down, so that their peers see the end; the memory of these operations
    /// comes back with the end of the thread, or is leaked after [`GRAVE_MS`](crate::GRAVE_MS).
    OneThread,
    /// Whichever thread runs the engine's task: for runtimes whose tasks move.
    ManyThreads,
}

/// One way to set a ring up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rung {
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    /// The first kernel that has it.
    needs: &'static str,
}

const DEFER: Rung = Rung {
    name: "single_issuer+defer_taskrun",
    setup: Setup { single_issuer: true, defer_taskrun: true, coop_taskrun: false, wide: false },
    needs: "6.1",
};
const COOP: Rung = Rung {
    name: "coop_taskrun",
    setup: Setup { single_issuer: false, defer_taskrun: false, coop_taskrun: true, wide: false },
    needs: "5.19",
};
const PLAIN: Rung = Rung {
    name: "plain",
    setup: Setup { single_issuer: false, defer_taskrun: false, coop_taskrun: false, wide: false },
    needs: OLDEST,
};

/// As zero-copy receive wants it.
const WIDE: Rung = Rung {
    name: "single_issuer+defer_taskrun+cqe32",
    setup: Setup { single_issuer: true, defer_taskrun: true, coop_taskrun: false, wide: true },
    needs: "6.1",
};

/// The first kernel with multishot receive and all else that no engine can do without.
pub(crate) const OLDEST: &str = "6.0";

/// Entries of the ring that is only tried out.
const TRIAL_ENTRIES: u32 = 4;

fn rungs(flavour: Flavour) -> &'static [Rung] {
    match flavour {
        Flavour::OneThread => &[DEFER, COOP, PLAIN],
        Flavour::ManyThreads => &[COOP, PLAIN],
    }
}

/// The best ring that works.
///
/// # Errors
/// Why the weakest one does not.
pub(crate) fn open(flavour: Flavour) -> Result<(Ring, &'static Rung), Unavailable> {
    climb(rungs(flavour), |rung| {
        try_out(rung)?;
        Ring::new(rung.setup, SQ_ENTRIES, CQ_ENTRIES)
    })
}

/// A ring that can have an area to receive into.
///
/// # Errors
/// Why there is none.
pub(crate) fn open_wide() -> Result<(Ring, &'static Rung), Unavailable> {
    climb(&[WIDE], |rung| Ring::new(rung.setup, SQ_ENTRIES, CQ_ENTRIES))
}

fn climb<R>(
    rungs: &'static [Rung],
    mut make: impl FnMut(&Rung) -> Result<R, Refused>,
) -> Result<(R, &'static Rung), Unavailable> {
    let mut why = Unavailable::KernelTooOld { needed: OLDEST };
    for rung in rungs {
        match make(rung) {
            Ok(ring) => return Ok((ring, rung)),
            Err(refused) => {
                why = Machine::look().why(&refused, rung.needs);
                tracing::debug!(rung = rung.name, %why, "a ring was refused");
            }
        }
    }
    Err(why)
}

/// One operation on a ring of the same kind.
fn try_out(rung: &Rung) -> Result<(), Refused> {
    let mut ring = Ring::new(rung.setup, TRIAL_ENTRIES, 2 * TRIAL_ENTRIES)?;
    let has = ring.opcodes().map_err(Refused::of("io_uring_register"))?;
    if !has(Opcode::SendZc) {
        return Err(Refused::of("io_uring_setup")(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    // From here on the thread has a number for the ring, which only closing gives back.
    ring.enable().map_err(Refused::of("io_uring_register"))?;
    let mut flights = Flights::new(ring, None, 1);
    let _ = flights.start(false, Request::nop(), ());
    flights.submit().map_err(Refused::of("io_uring_enter"))?;
    let mut result = None;
    flights.reap(|event| result = Some(event.result));
    match result {
        Some(0) => Ok(()),
        Some(errno) => Err(Refused::of("io_uring_enter")(io::Error::from_raw_os_error(-errno))),
        None => Err(Refused::of("io_uring_enter")(io::Error::from_raw_os_error(libc::ETIME))),
    }
}

/// What explains a refusal.
pub(crate) struct Machine {
    kernel: (u32, u32),
    /// `kernel.io_uring_disabled`, where there is one.
    disabled: Option<u32>,
    /// `RLIMIT_MEMLOCK`.
    memlock: (u64, u64),
}

/// The version of the running kernel, major and minor.
pub(crate) fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

impl Machine {
    pub(crate) fn look() -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        Self {
            kernel: kernel_version(),
            disabled: disabled.and_then(|text| text.trim().parse().ok()),
            memlock: (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)),
        }
    }

    pub(crate) fn why(&self, refused: &Refused, needed: &'static str) -> Unavailable {
        let call = refused.call;
        let is_ours = call.starts_with("io_uring");
        match refused.error.raw_os_error() {
            Some(libc::EPERM)
                if is_ours && self.disabled.is_some_and(|n| n > 0) && call == "io_uring_setup" =>
            {
                Unavailable::SysctlDisabled { sysctl: "kernel.io_uring_disabled" }
            }
            Some(libc::EPERM) if is_ours => Unavailable::Seccomp { syscall: call },
            // A kernel that knows the sysctl has io_uring.
            Some(libc::ENOSYS) if is_ours && self.disabled.is_some() => {
                Unavailable::Seccomp { syscall: call }
            }
            Some(libc::ENOSYS) if is_ours && self.kernel < (6, 0) => Unavailable::KernelTooOld { needed },
            Some(libc::EINVAL) if is_ours => Unavailable::KernelTooOld { needed },
            Some(libc::ENOMEM) if is_ours && self.memlock.0 < NEED_BYTES => {
                let (soft, hard) = self.memlock;
                Unavailable::Memlock { need: NEED_BYTES, soft, hard }
            }
            _ => Unavailable::os(call, &refused.error),
        }
    }
}

/// What the queues of one ring take, roughly; old kernels count it as locked memory.
const NEED_BYTES: u64 = SQ_ENTRIES as u64 * 64 + CQ_ENTRIES as u64 * 16 + (16 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(disabled: Option<u32>) -> Machine {
        Machine { kernel: (6, 18), disabled, memlock: (8 << 20, 8 << 20) }
    }

    fn refused(call: &'static str, errno: i32) -> Refused {
        Refused::of(call)(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn every_refusal_has_its_reason() {
        let why = |machine: &Machine, call, errno| machine.why(&refused(call, errno), "6.1").code();
        let open = machine(Some(0));
        assert_eq!(why(&open, "io_uring_setup", libc::EPERM), "seccomp");
        assert_eq!(why(&open, "io_uring_enter", libc::EPERM), "seccomp");
        assert_eq!(why(&open, "io_uring_setup", libc::ENOSYS), "seccomp");
        assert_eq!(why(&open, "io_uring_setup", libc::EINVAL), "kernel_too_old");
        assert_eq!(why(&open, "io_uring_setup", libc::EMFILE), "os");
        assert_eq!(why(&open, "io_uring_setup", libc::ENOMEM), "os");
        for disabled in [1, 2] {
            assert_eq!(why(&machine(Some(disabled)), "io_uring_setup", libc::EPERM), "sysctl_disabled");
            assert_eq!(why(&machine(Some(disabled)), "io_uring_enter", libc::EPERM), "seccomp");
        }
        assert_eq!(why(&machine(None), "io_uring_setup", libc::ENOSYS), "os", "built without it");
        let old = Machine { kernel: (4, 19), disabled: None, memlock: (64 << 10, 64 << 10) };
        assert_eq!(why(&old, "io_uring_setup", libc::ENOSYS), "kernel_too_old");
        assert_eq!(why(&old, "io_uring_setup", libc::ENOMEM), "memlock");
    }

    #[test]
    fn a_rung_that_fails_leads_to_the_next() {
        let (ring, rung) = climb(rungs(Flavour::OneThread), |rung| {
            if rung.setup.defer_taskrun { Err(refused("io_uring_setup", libc::EINVAL)) } else { Ok(7) }
        })
        .unwrap();
        assert_eq!((ring, rung.name), (7, "coop_taskrun"));
        let none = climb::<()>(rungs(Flavour::OneThread), |_| Err(refused("io_uring_enter", libc::EPERM)));
        assert_eq!(none.unwrap_err(), Unavailable::Seccomp { syscall: "io_uring_enter" });
    }

    /// All of them, where the kernel has them.
    #[test]
    fn every_rung_of_this_machine_works() {
        if let Err(why) = open(Flavour::ManyThreads) {
            eprintln!("no io_uring here: {why}");
            return;
        }
        for rung in [DEFER, COOP, PLAIN, WIDE] {
            match try_out(&rung) {
                Ok(()) => {}
                Err(refused) => {
                    let why = Machine::look().why(&refused, rung.needs);
                    assert_eq!(why.code(), "kernel_too_old", "{}: {refused:?}", rung.name);
                }
            }
        }
        if kernel_version() >= (6, 1) {
            assert_eq!(open(Flavour::OneThread).unwrap().1.name, DEFER.name);
        }
    }
}
