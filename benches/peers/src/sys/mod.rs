//! The unsafe system interface, and nothing else.

pub(crate) mod ring;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel kills the command's process when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec, one system call is made; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) }
}

/// A page that two processes share; its first cache line is used.
pub(crate) struct SharedPage(NonNull<AtomicU64>);

impl SharedPage {
    pub(crate) const BYTES: usize = 4096;

    pub(crate) fn map(memory: impl AsFd) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let page = unsafe { mmap(ptr::null_mut(), Self::BYTES, access, MapFlags::SHARED, memory, 0)? };
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at null"))
    }

    pub(crate) fn word(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped, aligned and zeroed until drop, and both processes touch it as an atomic only.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no reference outlives `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), Self::BYTES) };
    }
}

/// What owns descriptors by itself, and takes one only by its number.
pub(crate) fn adopt<T: FromRawFd>(fd: OwnedFd) -> T {
    // SAFETY: the number is that of an open descriptor, which nobody else owns from here on.
    unsafe { T::from_raw_fd(fd.into_raw_fd()) }
}

/// A descriptor whose readiness to read tokio watches.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` refers to the same open file for as long as it lives, and `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? })
}

/// Moves this thread, and what it starts from now on, into a network of its own with a loopback device.
pub(crate) fn own_network() -> io::Result<()> {
    // SAFETY: leaving the network namespace invalidates no descriptor or memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
    let socket: OwnedFd = std::net::UdpSocket::bind("0.0.0.0:0")?.into();
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the call reads an `ifreq` that lives for its length.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// If this thread has a real-time priority, as under `chrt`, moves it by so much: threads that it starts inherit it.
#[cfg(feature = "aeron")]
pub(crate) fn raise_priority(by: i32) {
    // SAFETY: the calls read and write the scheduling of this thread, through a structure that is filled in.
    unsafe {
        let mut own: libc::sched_param = std::mem::zeroed();
        let policy = libc::sched_getscheduler(0);
        if policy > libc::SCHED_OTHER && libc::sched_getparam(0, &mut own) == 0 {
            own.sched_priority += by;
            libc::sched_setscheduler(0, policy, &own);
        }
    }
}
