//! Asks a NIC to put what it receives straight into memory of ours (`IORING_REGISTER_ZCRX_IFQ`).

use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{
    io_uring_region_desc, io_uring_zcrx_area_reg, io_uring_zcrx_ifq_reg, io_uring_zcrx_rqe,
};
use io_uring::{IoUring, cqueue, squeue};
use zc_core::memory::{MemlockBudget, Region};

use super::ring::Refused;
use crate::limits::{ZCRX_AREA_BYTES, ZCRX_REFILL_ENTRIES};

// What lies in front of the entries, at most.
const REFILL_HEAD_BYTES: usize = 4096;

/// The memory that the kernel pins for it, and counts as locked.
pub(crate) fn locked_bytes() -> usize {
    ZCRX_AREA_BYTES + refill_bytes()
}

/// A head and a tail, and the entries.
fn refill_bytes() -> usize {
    let bytes = ZCRX_REFILL_ENTRIES as usize * size_of::<io_uring_zcrx_rqe>() + REFILL_HEAD_BYTES;
    bytes.next_multiple_of(rustix::param::page_size())
}

/// Registers a queue of an interface with a ring that is made for it, and closes that: the kernel then gives the queue back,
/// and what it has counted as locked, in the background.
pub(crate) fn try_queue(interface: u32, queue: u32) -> Result<(), Refused> {
    // Completions of twice the size say where in the area the bytes lie; the kernel wants the rest, too.
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry32>::builder();
    builder.dontfork().setup_single_issuer().setup_defer_taskrun();
    let ring = builder.build(4).map_err(Refused::of("io_uring_setup"))?;
    // For others who lock, as long as this process can know of it; whether there is room the kernel says, behind other reasons.
    let _locked = MemlockBudget::process().reserve(locked_bytes()).ok();
    let area = Region::builder(ZCRX_AREA_BYTES).name("zc receive area").build();
    let area = area.map_err(|error| Refused::of("mmap")(io::Error::other(error)))?;
    let done = register(&ring, interface, queue, &area);
    // The kernel holds the pages of the area, not our mapping of them, as long as it has the queue, which it lets go of some
    // time after the ring was closed (M4).
    drop(ring);
    drop(area);
    done.map_err(Refused::of("io_uring_register"))
}

fn register<C: cqueue::EntryMarker>(
    ring: &IoUring<squeue::Entry, C>,
    interface: u32,
    queue: u32,
    area: &Region,
) -> io::Result<()> {
    const REGISTER_ZCRX_IFQ: u32 = 32; // IORING_REGISTER_ZCRX_IFQ
    let mut memory = io_uring_zcrx_area_reg {
        addr: area.base_mut().as_ptr().expose_provenance() as u64,
        len: area.len() as u64,
        ..Default::default()
    };
    // The kernel makes this memory.
    let mut refill = io_uring_region_desc { size: refill_bytes() as u64, ..Default::default() };
    let mut wanted = io_uring_zcrx_ifq_reg {
        if_idx: interface,
        if_rxq: queue,
        rq_entries: ZCRX_REFILL_ENTRIES,
        area_ptr: (&raw mut memory).expose_provenance() as u64,
        region_ptr: (&raw mut refill).expose_provenance() as u64,
        ..Default::default()
    };
    let wanted: *mut io_uring_zcrx_ifq_reg = &raw mut wanted;
    // SAFETY: io_uring_register(2) reads and writes the three descriptions, which are alive. The area is mapped, and the
    // kernel holds its pages from here on, which nobody else uses (M1).
    let done = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_ZCRX_IFQ, wanted, 1u32)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
