//! Registers an area with a ring (`IORING_REGISTER_ZCRX_IFQ`).

use std::io;

use io_uring::types::{
    IORING_MEM_REGION_TYPE_USER, io_uring_region_desc, io_uring_zcrx_area_reg, io_uring_zcrx_ifq_reg,
    io_uring_zcrx_rqe,
};
use zc_core::memory::{MemlockBudget, Region};

use super::super::fixed::Locked;
use super::super::ring::{Refused, Ring};
use super::Area;
use super::refill::{Places, Refill};
use crate::limits::{MAX_ZCRX_AREA_BYTES, MAX_ZCRX_REFILL_ENTRIES};

/// What lies in front of the entries, at most.
const REFILL_HEAD_BYTES: usize = 4096;
// Without a NIC: the kernel copies.
const NO_DEVICE: u32 = 2; // ZCRX_REG_NODEV

/// Who fills an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A receive queue of an interface.
    Queue { interface: u32, queue: u32 },
    /// The kernel itself, which copies.
    NoDevice,
}

/// How long an area of about so many bytes is.
fn area_len(bytes: usize) -> usize {
    let page = rustix::param::page_size();
    bytes.clamp(page, MAX_ZCRX_AREA_BYTES).next_multiple_of(page)
}

/// Entries of its refill ring: one for each page, if the kernel takes as many.
fn refill_entries(area_bytes: usize) -> u32 {
    let pages = area_bytes / rustix::param::page_size();
    pages.next_power_of_two().clamp(1, MAX_ZCRX_REFILL_ENTRIES as usize) as u32
}

fn refill_len(entries: u32) -> usize {
    let bytes = entries as usize * size_of::<io_uring_zcrx_rqe>() + REFILL_HEAD_BYTES;
    bytes.next_multiple_of(rustix::param::page_size())
}

/// The memory that the kernel pins for an area of about so many bytes, and counts as locked.
pub(crate) fn locked_bytes(area_bytes: usize) -> usize {
    let len = area_len(area_bytes);
    len + refill_len(refill_entries(len))
}

impl Area {
    /// Memory of about so many bytes, registered with a ring that has completions of twice the size. The kernel gives a
    /// queue back, and what it has counted as locked, some time after the ring is closed.
    ///
    /// # Errors
    /// What was refused.
    pub(crate) fn register(ring: &Ring, source: Source, bytes: usize) -> Result<Self, Refused> {
        let len = area_len(bytes);
        let count = refill_entries(len);
        let memory = |len: usize, name| {
            let region = Region::builder(len).name(name).build();
            region.map_err(|error| Refused::of("mmap")(io::Error::other(error)))
        };
        let area = memory(len, "zc receive area")?;
        // Memory of ours: a mapping of the kernel's would keep the ring open for as long as a piece is lent.
        let refill = memory(refill_len(count), "zc refill ring")?;
        // For others who lock, as long as this process can know of it; whether there is room the kernel says, behind other reasons.
        let locked = MemlockBudget::process().reserve(len + refill.len()).ok();
        let registered = register(ring, source, &area, &refill, count);
        let registered = registered.map_err(Refused::of("io_uring_register"))?;
        let Registered { id, token, places, entries } = registered;
        let ring_of_ours = Refill::new(refill, places, entries).map_err(Refused::of("io_uring_register"))?;
        // What comes back must not have to wait for a NIC that needs something.
        ring.flush_refill(id).map_err(Refused::of("flushing the refill ring"))?;
        let windows = (len / rustix::param::page_size()) as u32;
        let mut area = Self::on(area, ring_of_ours, (id, token, source == Source::NoDevice), windows);
        area.locked = locked.map(|grant| Locked::new(len as u64, grant));
        Ok(area)
    }
}

/// What the kernel says.
struct Registered {
    id: u32,
    token: u64,
    places: Places,
    entries: u32,
}

fn register(
    ring: &Ring,
    source: Source,
    area: &Region,
    refill: &Region,
    entries: u32,
) -> io::Result<Registered> {
    let address = |region: &Region| region.base_mut().as_ptr().expose_provenance() as u64;
    let mut memory =
        io_uring_zcrx_area_reg { addr: address(area), len: area.len() as u64, ..Default::default() };
    let mut returns = io_uring_region_desc {
        user_addr: address(refill),
        size: refill.len() as u64,
        flags: IORING_MEM_REGION_TYPE_USER,
        ..Default::default()
    };
    let (if_idx, if_rxq, flags) = match source {
        Source::Queue { interface, queue } => (interface, queue, 0),
        Source::NoDevice => (0, 0, NO_DEVICE),
    };
    let mut wanted = io_uring_zcrx_ifq_reg {
        if_idx,
        if_rxq,
        flags,
        rq_entries: entries,
        area_ptr: (&raw mut memory).expose_provenance() as u64,
        region_ptr: (&raw mut returns).expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: the three descriptions are alive. Both regions are mapped, page aligned and ours alone; from here on the kernel holds
    // their pages. It writes the area where nothing is lent, and the ring is read and written as it says (M1, M2).
    unsafe { ring.register_receive_queue(&raw mut wanted) }?;
    let places =
        Places { head: wanted.offsets.head, tail: wanted.offsets.tail, entries: wanted.offsets.rqes };
    Ok(Registered { id: wanted.zcrx_id, token: memory.rq_area_token, places, entries: wanted.rq_entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// As `struct io_uring_zcrx_ifq_reg` and the others are in Linux 6.15 to 7.3.
    #[test]
    fn descriptions_are_laid_out_as_the_kernel_has_them() {
        assert_eq!(size_of::<io_uring_zcrx_ifq_reg>(), 96);
        assert_eq!(offset_of!(io_uring_zcrx_ifq_reg, flags), 12);
        assert_eq!(offset_of!(io_uring_zcrx_ifq_reg, area_ptr), 16);
        assert_eq!(offset_of!(io_uring_zcrx_ifq_reg, region_ptr), 24);
        assert_eq!(offset_of!(io_uring_zcrx_ifq_reg, offsets), 32);
        assert_eq!(offset_of!(io_uring_zcrx_ifq_reg, zcrx_id), 64);
        assert_eq!((size_of::<io_uring_zcrx_area_reg>(), size_of::<io_uring_region_desc>()), (48, 64));
        assert_eq!(offset_of!(io_uring_zcrx_area_reg, rq_area_token), 16);
        assert_eq!(IORING_MEM_REGION_TYPE_USER, 1);
    }

    #[test]
    fn a_refill_ring_has_room_for_each_page_as_far_as_the_kernel_goes() {
        let page = rustix::param::page_size();
        assert_eq!((area_len(0), area_len(page + 1)), (page, 2 * page));
        assert_eq!(area_len(usize::MAX), MAX_ZCRX_AREA_BYTES);
        assert_eq!((refill_entries(page), refill_entries(3 * page)), (1, 4));
        assert_eq!(refill_entries(MAX_ZCRX_AREA_BYTES), MAX_ZCRX_REFILL_ENTRIES);
        assert!(locked_bytes(1 << 20) > 1 << 20);
    }
}
