//! What takes rights: the program on the interface, sockets, maps.
//!
//! A privileged process makes a [`Grant`] and passes its parts to one that has no rights; that makes a device of it.
//! Whoever has the link's descriptor holds the program on the interface: a process that passes it on keeps no copy.

use std::os::fd::{AsFd, OwnedFd};

use super::bind::fits_a_frame;
use super::refused::{BUSY_POLL, Refused};
use super::{DeviceOptions, Mode, OpenError, Refusal, UmemOptions};
use crate::limits::MAX_QUEUES;
use crate::netlink::{Features, Interface, MAX_NAME_BYTES};
use crate::program::Redirect;
use crate::sys::{BusyPoll, Link, Socket, prefer_busy_poll};

/// An interface that is ours, and sockets for all of its queues, which are not bound yet.
///
/// ```
/// use zc_transport_xdp::device::{Device, DeviceOptions, Grant, GrantParts, OpenError, Umem};
///
/// /// In a process with rights, which passes what comes out to one without (SCM_RIGHTS).
/// fn take(interface: &str, options: &DeviceOptions) -> Result<GrantParts, OpenError> {
///     Ok(Grant::open(interface, options)?.into_parts())
/// }
///
/// /// There.
/// fn begin(parts: GrantParts, umem: &Umem, options: &DeviceOptions) -> Result<Device, OpenError> {
///     // SAFETY: they come from our own supervisor, which keeps no socket.
///     let grant = unsafe { Grant::from_parts(parts) }?;
///     Device::start(grant, umem, options)
/// }
/// ```
pub struct Grant {
    pub(super) interface: Interface,
    pub(super) is_generic: bool,
    pub(super) redirect: Redirect,
    pub(super) link: Link,
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) tried: Vec<Refusal>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").field("interface", &self.interface).finish_non_exhaustive()
    }
}

/// A [`Grant`] on its way to another process: bytes, and descriptors in this order. Whoever has, or had, one of the sockets
/// can have the kernel write into the memory of the device that is made of them: see [`Grant::from_parts`].
///
/// ```
/// use zc_transport_xdp::device::{Grant, GrantParts, OpenError};
///
/// let nonsense = GrantParts { bytes: vec![1, 2, 3], descriptors: Vec::new() };
/// // SAFETY: there are no sockets.
/// let refused = unsafe { Grant::from_parts(nonsense) };
/// assert!(matches!(refused, Err(OpenError::NotAGrant(_))));
/// ```
#[derive(Debug)]
pub struct GrantParts {
    /// What the descriptors are.
    pub bytes: Vec<u8>,
    /// Link, maps, sockets.
    pub descriptors: Vec<OwnedFd>,
}

/// Sockets for so many queues.
pub(super) fn open_sockets(count: u32, busy_poll: Option<BusyPoll>) -> Result<Vec<OwnedFd>, Refused> {
    let open = |_| {
        let socket = Socket::open().map_err(Refused::of("socket(AF_XDP)"))?;
        if let Some(poll) = busy_poll {
            prefer_busy_poll(socket.as_fd(), poll).map_err(Refused::of(BUSY_POLL))?;
        }
        Ok(socket)
    };
    (0..count).map(open).collect()
}

impl Grant {
    /// Takes an interface: attaches the program, in the driver if that can be.
    pub fn open(name: &str, options: &DeviceOptions) -> Result<Self, OpenError> {
        options.check()?;
        let interface = Interface::find(name)?;
        if interface.rx_queues == 0 || interface.rx_queues > MAX_QUEUES {
            return Err(OpenError::Options("an interface has at most 256 queues"));
        }
        let mut tried = Vec::new();
        let best_copy = options.best.max(Mode::Copy);
        let refused = |refused: Refused, mode, tried: &mut Vec<Refusal>| {
            tried.push(Refusal { mode, why: refused.why(mode, 0) });
        };
        let mut sockets = None;
        for is_generic in [false, true] {
            let mode = if is_generic { Mode::Generic } else { best_copy };
            let wanted = if is_generic { options.allows(mode) } else { options.best < Mode::Generic };
            if !wanted {
                continue;
            }
            let takes_frags = !is_generic || wants_frags(&interface, options);
            let loaded = Redirect::load(&options.rules, interface.rx_queues, takes_frags)
                .map_err(|not| Refused { operation: not.operation, error: not.error });
            let opened = match sockets.take() {
                Some(sockets) => Ok(sockets),
                None => open_sockets(interface.rx_queues, options.busy_poll()),
            };
            let (redirect, opened) = match (loaded, opened) {
                (Ok(redirect), Ok(opened)) => (redirect, opened),
                (Err(why), _) | (_, Err(why)) => {
                    refused(why, mode, &mut tried);
                    return Err(OpenError::Refused { tried });
                }
            };
            match attach(&redirect, &interface, is_generic) {
                Ok(link) => {
                    return Ok(Self { interface, is_generic, redirect, link, sockets: opened, tried });
                }
                Err(why) if matches!(why.errno(), Some(libc::EBUSY | libc::EEXIST)) => {
                    // Who it is may be known by now.
                    let program = Interface::find(name).ok().and_then(|interface| interface.program);
                    return Err(OpenError::InUse { interface: name.to_owned(), program });
                }
                Err(why) => refused(why, mode, &mut tried),
            }
            sockets = Some(opened);
        }
        Err(OpenError::Refused { tried })
    }

    /// Whose queues the sockets are for.
    pub(crate) fn interface(&self) -> &Interface {
        &self.interface
    }

    /// To pass it to another process.
    pub fn into_parts(self) -> GrantParts {
        let Self { interface, is_generic, redirect, link, sockets, .. } = self;
        let maps = redirect.into_maps();
        let features = interface.features;
        let mut bytes = vec![VERSION, flag(is_generic), maps.len() as u8];
        let flags = [
            features.known,
            features.redirect,
            features.zero_copy,
            features.rx_segments,
            features.tx_checksum,
        ];
        bytes.extend(flags.map(flag));
        let numbers = [interface.index, interface.mtu, interface.rx_queues, features.zero_copy_segments];
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.push(flag(interface.address.is_some()));
        bytes.extend(interface.address.unwrap_or_default());
        bytes.extend(interface.name.as_bytes());
        let descriptors = link.into_fd().into_iter().chain(maps).chain(sockets).collect();
        GrantParts { bytes, descriptors }
    }

    /// What another process passed. What it says is checked, so a mistaken one is an error.
    ///
    /// # Safety
    /// Nobody who is not trusted with the memory of this process has one of the sockets, or has had one: it can have mapped
    /// the socket's rings, and put a frame there that the application is reading or writing at the moment. The kernel then
    /// writes into it, and nothing on this side can tell.
    pub unsafe fn from_parts(parts: GrantParts) -> Result<Self, OpenError> {
        let read = Read::of(&parts.bytes).ok_or(OpenError::NotAGrant("the bytes can't be read"))?;
        let wanted = 1 + read.maps + read.interface.rx_queues as usize;
        if parts.descriptors.len() != wanted || !(1..=MAX_QUEUES).contains(&read.interface.rx_queues) {
            return Err(OpenError::NotAGrant("the descriptors are not as many as the bytes say"));
        }
        let mut descriptors = parts.descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(OpenError::NotAGrant("a descriptor is missing"));
        let link = Link::from(next()?);
        let (sockets, ports) = (next()?, next()?);
        let faults = if read.maps > 2 { Some(next()?) } else { None };
        let redirect = Redirect::from_maps(sockets, ports, faults)
            .map_err(|_| OpenError::NotAGrant("a descriptor is no map of the program's"))?;
        let sockets = descriptors.collect();
        let (interface, is_generic) = (read.interface, read.is_generic);
        Ok(Self { interface, is_generic, redirect, link, sockets, tried: Vec::new() })
    }
}

/// Whether a generic program shall see packets that span buffers. If not, the kernel makes one piece of each before, in place
/// where it can; if so, it makes another packet of pages each time, which takes a sixth of a round trip of small ones. In a driver
/// it is the other way round: without, a veth has the other side cut up what it sends.
fn wants_frags(interface: &Interface, options: &DeviceOptions) -> bool {
    let shortest = UmemOptions::default().frame_bytes;
    options.multi_buffer.unwrap_or(!fits_a_frame(interface.mtu, shortest))
}

fn attach(redirect: &Redirect, interface: &Interface, is_generic: bool) -> Result<Link, Refused> {
    let operation = "bpf(BPF_LINK_CREATE)";
    let no_program = || Refused { operation, error: std::io::ErrorKind::InvalidInput.into() };
    let attached = redirect.attach(interface.index, is_generic).ok_or_else(no_program)?;
    attached.map_err(Refused::of(operation))
}

const VERSION: u8 = 1;

fn flag(is: bool) -> u8 {
    is.into()
}

/// The bytes of a grant, little-endian:
///
/// ```text
/// version 1 | generic 1 | maps 1 | features 5 | index 4 | MTU 4 | queues 4 | segments 4 | has address 1 | address 6 | name
/// ```
struct Read {
    interface: Interface,
    is_generic: bool,
    maps: usize,
}

impl Read {
    fn of(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        let [version, is_generic, maps, known, redirect, zero_copy, rx_segments, tx_checksum] = *head;
        if version != VERSION || !(2..=3).contains(&maps) {
            return None;
        }
        let (numbers, rest) = rest.split_first_chunk::<16>()?;
        let number = |at: usize| u32::from_le_bytes(numbers.as_chunks::<4>().0[at]);
        let (address, name) = rest.split_first_chunk::<7>()?;
        let [has_address, address @ ..] = *address;
        let features = Features {
            known: known != 0,
            redirect: redirect != 0,
            zero_copy: zero_copy != 0,
            rx_segments: rx_segments != 0,
            tx_checksum: tx_checksum != 0,
            zero_copy_segments: number(3),
        };
        let interface = Interface {
            name: std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME_BYTES)?.to_owned(),
            index: number(0),
            mtu: number(1),
            address: (has_address != 0).then_some(address),
            rx_queues: number(2),
            program: None,
            features,
        };
        Some(Self { interface, is_generic: is_generic != 0, maps: maps.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(read) = Read::of(&bytes) {
                prop_assert!(bytes[0] == VERSION && read.interface.name.len() <= MAX_NAME_BYTES);
            }
        }
    }
}
