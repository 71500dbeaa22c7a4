//! A device, and what there is to know about it.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use zc_core::transport::Unavailable;

use super::error::VerbsError;
use crate::gid::{Gid, GidEntry, GidKind};
use crate::limits::MAX_GIDS;
use crate::sys::{self, Verbs};
use crate::wire::PathMtu;

/// A device of this machine.
///
/// ```
/// use zc_transport_rdma::Device;
///
/// match Device::all() {
///     Ok(devices) => devices.iter().for_each(|device| println!("{}", device.name())),
///     Err(why) => println!("no RDMA: {why}"),
/// }
/// ```
pub struct Device {
    list: Arc<List>,
    raw: NonNull<sys::ibv_device>,
    name: String,
}

/// The library's list, which its entries need.
struct List {
    verbs: &'static Verbs,
    raw: NonNull<*mut sys::ibv_device>,
}

// SAFETY: the list is constant until it is freed, by its last owner (M4).
unsafe impl Send for List {}
// SAFETY: as for Send (M4).
unsafe impl Sync for List {}
// SAFETY: a device is an entry of the list that it holds, and constant (M4).
unsafe impl Send for Device {}
// SAFETY: as for Send (M4).
unsafe impl Sync for Device {}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: made by `get_device_list`, freed once; no entry is used any more, for each holds the list (M4).
        unsafe { (self.verbs.free_device_list)(self.raw.as_ptr()) }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Device {
    /// All devices that speak InfiniBand's protocol, over whatever link.
    ///
    /// # Errors
    /// `LibraryMissing`, `NoKernelSupport` or `NoDevice`.
    pub fn all() -> Result<Vec<Self>, Unavailable> {
        let verbs = sys::verbs()?;
        let mut count = 0;
        // SAFETY: the library writes the count and gives a list of ours (M4).
        let raw = unsafe { (verbs.get_device_list)(&mut count) };
        let raw = VerbsError::non_null("ibv_get_device_list", raw).map_err(|error| match error.errno {
            libc::ENOSYS | libc::ENOENT => no_kernel_support(),
            _ => error.into(),
        })?;
        let list = Arc::new(List { verbs, raw });
        let entries = (0..usize::try_from(count).unwrap_or(0)).filter_map(|index| {
            // SAFETY: the list has `count` entries, and is held (M4).
            NonNull::new(unsafe { *raw.as_ptr().add(index) })
        });
        let devices: Vec<_> = entries.filter_map(|raw| Self::of(&list, raw)).collect();
        if devices.is_empty() { Err(Unavailable::NoDevice) } else { Ok(devices) }
    }

    fn of(list: &Arc<List>, raw: NonNull<sys::ibv_device>) -> Option<Self> {
        // SAFETY: an entry of the list that is held; its head is laid out so in all versions (M4).
        let is_infiniband = unsafe { (*raw.as_ptr()).transport_type } == sys::IBV_TRANSPORT_IB;
        // SAFETY: as above; the name ends with 0 and lies in the entry (M4).
        let name = unsafe { CStr::from_ptr((list.verbs.get_device_name)(raw.as_ptr())) };
        let name = name.to_string_lossy().into_owned();
        is_infiniband.then(|| Self { list: list.clone(), raw, name })
    }

    /// What the kernel calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens it.
    ///
    /// # Errors
    /// Why the device, or its file below /dev/infiniband, can't be opened.
    pub fn open(&self) -> Result<Arc<Context>, Unavailable> {
        let verbs = self.list.verbs;
        // SAFETY: an entry of the list that is held; the context keeps the device by itself (M4).
        let raw = unsafe { (verbs.open_device)(self.raw.as_ptr()) };
        let raw = VerbsError::non_null("ibv_open_device", raw).map_err(|error| match error.errno {
            libc::ENOENT => no_kernel_support(),
            _ => error.into(),
        })?;
        let context = Context { verbs, raw, name: self.name.clone(), process: std::process::id() };
        set_nonblocking(context.async_fd()).map_err(|error| Unavailable::os("fcntl", &error))?;
        Ok(Arc::new(context))
    }
}

fn no_kernel_support() -> Unavailable {
    Unavailable::NoKernelSupport { needs: "ib_uverbs, and its files in /dev/infiniband" }
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// An open device.
///
/// ```
/// # fn main() -> Result<(), zc_core::transport::Unavailable> {
/// # let Ok(devices) = zc_transport_rdma::Device::all() else { return Ok(()) };
/// let context = devices[0].open()?;
/// println!("{}: at most {} queue pairs", context.name(), context.limits()?.queue_pairs);
/// # Ok(())
/// # }
/// ```
pub struct Context {
    verbs: &'static Verbs,
    raw: NonNull<sys::ibv_context>,
    name: String,
    /// Who opened it.
    process: u32,
}

// SAFETY: the library's objects may be used from any thread, several at a time (its manual).
unsafe impl Send for Context {}
// SAFETY: as for Send.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        // SAFETY: closed once; all that was made of it is gone, for each of those holds the context (M4).
        let closed = unsafe { (self.verbs.close_device)(self.raw.as_ptr()) };
        if let Err(error) = VerbsError::check("ibv_close_device", closed) {
            tracing::warn!(device = self.name, %error, "a device stays open");
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("device", &self.name).finish_non_exhaustive()
    }
}

/// How atomics of the device go together with other accesses to the same word.
///
/// ```
/// use zc_transport_rdma::AtomicScope;
///
/// // The owner of a word uses its CPU's atomics, or goes through the device like everybody else.
/// let owner_may_use_the_cpu = |scope| scope == AtomicScope::Everything;
/// assert!(!owner_may_use_the_cpu(AtomicScope::Device));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicScope {
    /// The device has none.
    None,
    /// Atomic among operations of this device.
    Device,
    /// Atomic with all other accesses, the CPU's too.
    Everything,
}

/// What a device can do.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = zc_transport_rdma::Device::all() else { return Ok(()) };
/// let limits = devices[0].open()?.limits()?;
/// assert!(limits.ports >= 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DeviceCaps {
    /// Queue pairs.
    pub queue_pairs: u32,
    /// Work requests of one queue.
    pub work_requests: u32,
    /// Work requests of a shared receive queue.
    pub shared_work_requests: u32,
    /// Pieces that one request gathers.
    pub segments: u32,
    /// Entries of a completion queue.
    pub completions: u32,
    /// Reads and atomics that one queue pair serves at a time.
    pub reads_served: u8,
    /// Reads and atomics that one queue pair has under way at a time.
    pub reads_begun: u8,
    /// Bytes of one registration.
    pub region_bytes: u64,
    /// Atomics.
    pub atomics: AtomicScope,
    /// Memory windows that belong to one queue pair (type 2B).
    pub windows: bool,
    /// Ports, numbered from 1.
    pub ports: u8,
}

/// A port of a device.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let Ok(devices) = zc_transport_rdma::Device::all() else { return Ok(()) };
/// let port = devices[0].open()?.port(1)?;
/// println!("up: {}, packets of {} bytes", port.is_active, port.mtu.bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// Up, with a link.
    pub is_active: bool,
    /// Ethernet, which means RoCE. There are no others here yet.
    pub is_ethernet: bool,
    /// The longest packets now.
    pub mtu: PathMtu,
    /// The longest message, bytes.
    pub message_bytes: u32,
}

/// Something happened to a device, a port or a queue pair.
///
/// ```
/// use zc_transport_rdma::AsyncEvent;
///
/// let ends_everything = |event| matches!(event, AsyncEvent::DeviceGone);
/// assert!(ends_everything(AsyncEvent::DeviceGone));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// The device was removed or has failed: nothing of it works any more.
    DeviceGone,
    /// A completion or shared receive queue has failed, and with it all that uses it.
    QueueFailed,
    /// The port has no link any more.
    PortDown(u8),
    /// The port has a link.
    PortUp(u8),
    /// The queue pair of this number has failed.
    QueuePairFailed(u32),
    /// The queue pair of this number, which has failed, takes no more receive buffers.
    LastReceive(u32),
    /// Addresses of the port have changed.
    Addresses(u8),
    /// Another one, by its code.
    Other(i32),
}

impl Context {
    pub(super) fn verbs(&self) -> &'static Verbs {
        self.verbs
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_context {
        self.raw.as_ptr()
    }

    /// False in a child of the process that opened it: there, nothing may be destroyed (M8).
    pub(super) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// The table of operations for what is done often.
    pub(super) fn operations(&self) -> &sys::ibv_context_ops {
        // SAFETY: the context is open as long as `self` lives, and the library does not change the table after opening
        // it; the part that is known here is laid out so in all versions (M4).
        unsafe { &(*self.raw.as_ptr()).ops }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device can do.
    ///
    /// # Errors
    /// What the library says.
    pub fn limits(&self) -> Result<DeviceCaps, VerbsError> {
        let mut attr = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: the library fills the structure, whose size is that of the header (see `sys::layout`).
        let returned = unsafe { (self.verbs.query_device)(self.raw.as_ptr(), attr.as_mut_ptr()) };
        VerbsError::check("ibv_query_device", returned)?;
        // SAFETY: plain numbers, all of them set: zero at first.
        let attr = unsafe { attr.assume_init() };
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        let few = |n: i32| u8::try_from(n.max(0)).unwrap_or(u8::MAX);
        Ok(DeviceCaps {
            queue_pairs: count(attr.max_qp),
            work_requests: count(attr.max_qp_wr),
            shared_work_requests: count(attr.max_srq_wr),
            segments: count(attr.max_sge),
            completions: count(attr.max_cqe),
            reads_served: few(attr.max_qp_rd_atom),
            reads_begun: few(attr.max_qp_init_rd_atom),
            region_bytes: attr.max_mr_size,
            atomics: match attr.atomic_cap {
                sys::IBV_ATOMIC_GLOB => AtomicScope::Everything,
                sys::IBV_ATOMIC_HCA => AtomicScope::Device,
                _ => AtomicScope::None,
            },
            windows: attr.device_cap_flags & sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B != 0,
            ports: attr.phys_port_cnt,
        })
    }

    /// How a port is.
    ///
    /// # Errors
    /// What the library says, also if there is no such port.
    pub fn port(&self, number: u8) -> Result<Port, VerbsError> {
        let mut attr = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        // SAFETY: the library fills the structure up to the fields of its first version (the header's inline function
        // zeroes it before, for the same reason).
        let returned = unsafe { (self.verbs.query_port)(self.raw.as_ptr(), number, attr.as_mut_ptr()) };
        VerbsError::check("ibv_query_port", returned)?;
        // SAFETY: plain numbers, all of them set: zero at first.
        let attr = unsafe { attr.assume_init() };
        let mtu = u8::try_from(attr.active_mtu).ok().and_then(PathMtu::from_code);
        Ok(Port {
            number,
            is_active: attr.state == sys::IBV_PORT_ACTIVE,
            is_ethernet: attr.link_layer == sys::IBV_LINK_LAYER_ETHERNET,
            mtu: mtu.unwrap_or(PathMtu::SMALLEST),
            message_bytes: attr.max_msg_sz,
        })
    }

    /// The addresses of all ports.
    ///
    /// # Errors
    /// What the library says.
    pub fn gids(&self) -> Result<Vec<GidEntry>, VerbsError> {
        let empty = sys::ibv_gid_entry {
            gid: sys::ibv_gid { raw: [0; 16] },
            gid_index: 0,
            port_num: 0,
            gid_type: 0,
            ndev_ifindex: 0,
        };
        let mut entries = vec![empty; MAX_GIDS];
        // SAFETY: room for as many entries as is said, of the size that is said.
        let count = unsafe {
            (self.verbs.query_gid_table)(
                self.raw.as_ptr(),
                entries.as_mut_ptr(),
                entries.len(),
                0,
                size_of::<sys::ibv_gid_entry>(),
            )
        };
        // Minus the error number.
        let count = usize::try_from(count).map_err(|_| VerbsError {
            operation: "ibv_query_gid_table",
            errno: i32::try_from(count.saturating_neg()).unwrap_or(0),
        })?;
        Ok(entries.iter().take(count).filter_map(gid_entry).collect())
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps the descriptor open as long as the context (M4).
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).async_fd) }
    }

    /// A descriptor that can be read when there is an event.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn event_fd(&self) -> io::Result<OwnedFd> {
        self.async_fd().try_clone_to_owned()
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// What the library says; `EIO` when the device is gone.
    pub fn next_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: the library fills the structure if it returns 0; the descriptor does not block.
        let returned = unsafe { (self.verbs.get_async_event)(self.raw.as_ptr(), event.as_mut_ptr()) };
        if returned != 0 {
            let error = VerbsError::last("ibv_get_async_event");
            return if error.errno == libc::EAGAIN { Ok(None) } else { Err(error) };
        }
        // SAFETY: filled, or zero. An object that it is about exists until the event is acknowledged, for destroying it
        // waits for that (M4).
        unsafe {
            let seen = read_event(&*event.as_ptr());
            (self.verbs.ack_async_event)(event.as_mut_ptr());
            Ok(Some(seen))
        }
    }
}

/// # Safety
/// The event has not been acknowledged.
unsafe fn read_event(event: &sys::ibv_async_event) -> AsyncEvent {
    // SAFETY: the kind of event says which field of the union is set; all are plain words.
    let port = || u8::try_from(unsafe { event.element.port_num }).unwrap_or(0);
    // SAFETY: as above, and the queue pair exists until the event is acknowledged (M4, the caller).
    let queue_pair = || unsafe { (*event.element.qp).qp_num };
    match event.event_type {
        sys::IBV_EVENT_DEVICE_FATAL => AsyncEvent::DeviceGone,
        sys::IBV_EVENT_CQ_ERR | sys::IBV_EVENT_SRQ_ERR => AsyncEvent::QueueFailed,
        sys::IBV_EVENT_PORT_ERR => AsyncEvent::PortDown(port()),
        sys::IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortUp(port()),
        sys::IBV_EVENT_GID_CHANGE => AsyncEvent::Addresses(port()),
        sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
            AsyncEvent::QueuePairFailed(queue_pair())
        }
        sys::IBV_EVENT_QP_LAST_WQE_REACHED => AsyncEvent::LastReceive(queue_pair()),
        other => AsyncEvent::Other(other),
    }
}

fn gid_entry(entry: &sys::ibv_gid_entry) -> Option<GidEntry> {
    let kind = match entry.gid_type {
        sys::IBV_GID_TYPE_IB => GidKind::InfiniBand,
        sys::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
        sys::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
        _ => return None,
    };
    // What a path can name.
    let (index, port) = (u8::try_from(entry.gid_index).ok()?, u8::try_from(entry.port_num).ok()?);
    Some(GidEntry { gid: Gid(entry.gid.raw), index, port, kind })
}
