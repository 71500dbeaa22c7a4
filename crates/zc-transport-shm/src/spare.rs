//! A descriptor in reserve, for when the process has no more.
//!
//! A peer's memory needs one only until it is mapped. So the reserve is given up to receive it, its descriptor is closed when
//! it is mapped, and then there is room for the reserve again: a process at its limit goes on, one arena at a time.

use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::event::EventfdFlags;

/// One for all lanes of the process.
static SPARE: Mutex<Spare> = Mutex::new(Spare { lanes: 0, held: None });

struct Spare {
    /// Without lanes there is none.
    lanes: usize,
    held: Option<OwnedFd>,
}

impl Spare {
    fn restock(&mut self) {
        if self.lanes > 0 && self.held.is_none() {
            self.held = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
    }
}

/// Whether the reserve is there. If it is not, descriptors are scarce: none is kept that can be done without.
pub(crate) fn is_there() -> bool {
    SPARE.lock().held.is_some()
}

/// Makes room for one descriptor; false if there is no reserve.
pub(crate) fn give_up() -> bool {
    SPARE.lock().held.take().is_some()
}

/// Has one in reserve again, if that is possible.
pub(crate) fn restock() {
    SPARE.lock().restock();
}

/// Held by each lane.
pub(crate) struct Reserve(());

impl Reserve {
    pub(crate) fn new() -> Self {
        let mut spare = SPARE.lock();
        spare.lanes += 1;
        spare.restock();
        Self(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        spare.lanes -= 1;
        if spare.lanes == 0 {
            spare.held = None;
        }
    }
}
