//! bpf(2): maps, programs, and links that hold a program on an interface.
//!
//! Each object is a descriptor; the kernel lets go of what it is when the last copy is closed.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::program::Insn;

/// Commands of bpf(2).
#[repr(i32)]
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    #[cfg(test)]
    MapDelete = 3,
    ProgramLoad = 5,
    #[cfg(test)]
    ProgramRun = 10,
    ObjectInfo = 15,
    LinkCreate = 28,
    LinkDetach = 34,
}

const MAP_ARRAY: u32 = 2;
const MAP_XSK: u32 = 17;
const PROGRAM_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const HAS_FRAGS: u32 = 1 << 5;
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_DRIVER: u32 = 1 << 2;
// A name that `ip link` and the like show.
const NAME: [u8; 16] = *b"zc_xdp\0\0\0\0\0\0\0\0\0\0";
// Our own; the GPL half lets the program call every helper.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";
/// How often signals may stop the verifier.
const LOAD_ATTEMPTS: u32 = 5;
/// How much the verifier may say.
const LOG_BYTES: usize = 32 << 10;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjectInfo {
    object: u32,
    info_bytes: u32,
    info: u64,
}

/// The beginning of what the kernel says of a map.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
}

/// # Safety
/// `T` is the argument of the command, and everything that it points to is alive, as long as it says, and writable
/// where the command writes.
unsafe fn bpf<T>(command: Command, argument: &mut T) -> io::Result<libc::c_long> {
    let at: *mut T = argument;
    // SAFETY: the kernel reads (and writes) `size_of::<T>()` bytes of the argument; the caller vouches for the rest.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command as i32, at, size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// # Safety
/// As for [`bpf`], of a command that returns a new descriptor.
unsafe fn bpf_new<T>(command: Command, argument: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller vouches.
    let fd = unsafe { bpf(command, argument) }?;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Plain numbers: what keys and values are made of.
pub(crate) trait Plain: Copy + Default {}
impl Plain for u32 {}
impl Plain for [u32; 4] {}

/// What kind of map, and what is in it.
pub(crate) trait Kind {
    type Key: Plain;
    type Value: Plain;
    const CODE: u32;
}

/// Queue number to socket.
pub(crate) enum Sockets {}
/// Port to whether it is ours. An array of all ports, which the kernel compiles into the program; to call it for a hash map
/// took 35 ns a packet.
pub(crate) enum Ports {}
/// Words that a program reads in place.
pub(crate) enum Words {}

impl Kind for Sockets {
    type Key = u32;
    type Value = u32;
    const CODE: u32 = MAP_XSK;
}
impl Kind for Ports {
    type Key = u32;
    type Value = u32;
    const CODE: u32 = MAP_ARRAY;
}
impl Kind for Words {
    type Key = u32;
    type Value = [u32; 4];
    const CODE: u32 = MAP_ARRAY;
}

pub(crate) type XskMap = Map<Sockets>;
pub(crate) type PortMap = Map<Ports>;
pub(crate) type Array = Map<Words>;

/// A map of a known kind.
pub(crate) struct Map<K: Kind>(OwnedFd, PhantomData<K>);

impl<K: Kind> AsFd for Map<K> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<K: Kind> Map<K> {
    pub(crate) fn new(max_entries: u32) -> io::Result<Self> {
        let mut argument = MapCreate {
            kind: K::CODE,
            key_bytes: size_of::<K::Key>() as u32,
            value_bytes: size_of::<K::Value>() as u32,
            max_entries,
            name: NAME,
            ..MapCreate::default()
        };
        // SAFETY: the argument points to nothing.
        Ok(Self(unsafe { bpf_new(Command::MapCreate, &mut argument) }?, PhantomData))
    }

    /// A map that was passed to us, if it is of this kind: lengths of keys and values decide what the kernel reads.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let mut info = MapInfo::default();
        let mut argument = ObjectInfo {
            object: raw(fd.as_fd()),
            info_bytes: size_of::<MapInfo>() as u32,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: the kernel writes at most `info_bytes` into `info`, whatever object it is.
        unsafe { bpf(Command::ObjectInfo, &mut argument) }?;
        let fits =
            info.key_bytes == size_of::<K::Key>() as u32 && info.value_bytes == size_of::<K::Value>() as u32;
        if info.kind != K::CODE || !fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self(fd, PhantomData))
    }

    pub(crate) fn set(&self, key: K::Key, value: K::Value) -> io::Result<()> {
        let mut argument = MapElement {
            map: raw(self.0.as_fd()),
            key: (&raw const key).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            ..MapElement::default()
        };
        // SAFETY: key and value are alive, and as long as the map was made for.
        unsafe { bpf(Command::MapUpdate, &mut argument) }.map(drop)
    }

    /// Removes an entry.
    #[cfg(test)]
    pub(crate) fn remove(&self, key: K::Key) -> io::Result<()> {
        let at = (&raw const key).expose_provenance() as u64;
        let mut argument = MapElement { map: raw(self.0.as_fd()), key: at, ..MapElement::default() };
        // SAFETY: the key is alive, and as long as the map was made for.
        unsafe { bpf(Command::MapDelete, &mut argument) }.map(drop)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl XskMap {
    /// Packets of a queue go to this socket from here on.
    pub(crate) fn attach(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.set(queue, raw(socket))
    }
}

/// A program that the verifier has accepted.
pub(crate) struct Program(OwnedFd);

/// What came of loading, and what the verifier said if it refused.
pub(crate) type Loaded = Result<Program, (io::Error, String)>;

/// Loads an XDP program. Descriptors of maps that it names must be open.
pub(crate) fn load(instructions: &[Insn], frags: bool) -> Loaded {
    let attempt = |log: &mut [u8]| {
        let mut argument = ProgramLoad {
            kind: PROGRAM_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr().expose_provenance() as u64,
            license: LICENSE.as_ptr().expose_provenance() as u64,
            log_level: u32::from(!log.is_empty()),
            log_bytes: log.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
            flags: if frags { HAS_FRAGS } else { 0 },
            name: NAME,
            attach_kind: ATTACH_XDP,
            ..ProgramLoad::default()
        };
        let mut attempts = 1;
        loop {
            // SAFETY: instructions, license and log are alive and as long as said; the log is writable.
            match unsafe { bpf_new(Command::ProgramLoad, &mut argument) } {
                // The verifier stops when a signal is pending.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempts < LOAD_ATTEMPTS => {
                    attempts += 1
                }
                done => return done,
            }
        }
    };
    let refused = match attempt(&mut []) {
        Ok(fd) => return Ok(Program(fd)),
        Err(error) => error,
    };
    // Once more, to hear why; with the log nothing else changes.
    let mut log = vec![0; LOG_BYTES];
    match attempt(&mut log) {
        Ok(fd) => Ok(Program(fd)),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((refused, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

impl Program {
    /// Attaches it: in the driver, or in the kernel's generic path. It is detached when the link is closed.
    pub(crate) fn attach(&self, interface: u32, generic: bool) -> io::Result<Link> {
        let flags = if generic { FLAG_GENERIC } else { FLAG_DRIVER };
        let program = raw(self.0.as_fd());
        let mut argument = LinkCreate { program, interface, attach_kind: ATTACH_XDP, flags };
        // SAFETY: the argument points to nothing.
        unsafe { bpf_new(Command::LinkCreate, &mut argument) }.map(Link::from)
    }
}

/// Holds a program on an interface: until it is dropped, whoever else has a copy of the descriptor (a child between fork
/// and exec, for one), and at the latest until the last copy is closed.
pub(crate) struct Link {
    fd: Option<OwnedFd>,
    /// The process that it was made in, or passed to.
    process: u32,
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), process: std::process::id() }
    }
}

impl Link {
    /// To be passed on: it is not detached.
    pub(crate) fn into_fd(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(fd) = &self.fd else { return };
        if self.process != std::process::id() {
            return; // A forked child has a copy of the descriptor, and nothing to say about the interface (M8).
        }
        let mut argument = raw(fd.as_fd());
        // SAFETY: the argument is one number and points to nothing.
        if let Err(error) = unsafe { bpf(Command::LinkDetach, &mut argument) } {
            // Kernels before 5.9 can't; the interface may be gone. Then it ends with the descriptor.
            tracing::debug!(%error, "an XDP program was not detached by name");
        }
    }
}

/// What a program says of a packet.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
    Unknown(u32),
}

#[cfg(test)]
#[repr(C)]
#[derive(Default)]
struct ProgramRun {
    program: u32,
    verdict: u32,
    input_bytes: u32,
    output_bytes: u32,
    input: u64,
    output: u64,
    repeat: u32,
    nanos: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
}

#[cfg(test)]
impl Program {
    /// Runs it on a packet that comes from nowhere; what it makes of it, and the packet afterwards.
    pub(crate) fn run(&self, packet: &[u8]) -> io::Result<(Verdict, Vec<u8>)> {
        let mut output = vec![0; packet.len() + 256];
        let mut argument = ProgramRun {
            program: raw(self.0.as_fd()),
            input_bytes: packet.len() as u32,
            output_bytes: output.len() as u32,
            input: packet.as_ptr().expose_provenance() as u64,
            output: output.as_mut_ptr().expose_provenance() as u64,
            repeat: 1,
            ..ProgramRun::default()
        };
        // SAFETY: input and output are alive and as long as said; the output is writable.
        unsafe { bpf(Command::ProgramRun, &mut argument) }?;
        output.truncate(argument.output_bytes as usize);
        let verdict = match argument.verdict {
            0 => Verdict::Aborted,
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Tx,
            4 => Verdict::Redirect,
            other => Verdict::Unknown(other),
        };
        Ok((verdict, output))
    }
}
