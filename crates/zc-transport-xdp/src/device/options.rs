//! What is asked for.

use std::fmt;

use zc_core::memory::Backing;

use super::OpenError;
use crate::limits::{MAX_RING_ENTRIES, MIN_RING_ENTRIES};
use crate::program::Rules;
use crate::sys::BusyPoll;

/// Who moves the bytes between wire and frame. The best is the least.
///
/// ```
/// use zc_transport_xdp::device::Mode;
///
/// assert!(Mode::ZeroCopy < Mode::Copy && Mode::Copy < Mode::Generic);
/// assert_eq!(Mode::Copy.to_string(), "copy (driver)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The device.
    ZeroCopy,
    /// The kernel copies, before it makes anything of a packet.
    Copy,
    /// The kernel copies, after it has made its own packet. Any interface can do that.
    Generic,
}

impl Mode {
    /// What reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero copy",
            Self::Copy => "copy (driver)",
            Self::Generic => "copy (generic)",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Polling of the device while the application asks for packets, instead of interrupts.
///
/// ```
/// use zc_transport_xdp::device::{BusyPolling, DeviceOptions};
///
/// let polling = BusyPolling { micros: 20, packets: 64 };
/// let options = DeviceOptions { busy_polling: Some(polling), ..DeviceOptions::default() };
/// assert!(options.check().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPolling {
    /// How long one system call polls at most.
    pub micros: u32,
    /// How many packets one system call takes at most.
    pub packets: u32,
}

/// Memory for packets.
///
/// ```
/// use zc_core::memory::Backing;
/// use zc_transport_xdp::device::UmemOptions;
///
/// let jumbo = UmemOptions { frame_bytes: 4096, backing: Backing::MemfdHuge2M, ..UmemOptions::default() };
/// assert!(jumbo.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UmemOptions {
    /// Frames of all queues of all devices together.
    pub frames: u32,
    /// Bytes of a frame, of which the kernel keeps 256 in front of what it receives: 2048 or 4096.
    pub frame_bytes: u32,
    /// What the memory is made of.
    pub backing: Backing,
    /// Bytes of packets that are copied out because the application keeps all frames that it may keep; beyond, packets
    /// are dropped, and counted.
    pub max_copied_out_bytes: usize,
}

impl Default for UmemOptions {
    fn default() -> Self {
        Self { frames: 8192, frame_bytes: 2048, backing: Backing::Anonymous, max_copied_out_bytes: 16 << 20 }
    }
}

impl UmemOptions {
    /// Whether memory can be like that.
    pub fn check(&self) -> Result<(), OpenError> {
        match self.frame_bytes {
            _ if self.frames < 2 * MIN_RING_ENTRIES => {
                Err(OpenError::Options("a UMEM has at least 32 frames"))
            }
            2048 | 4096 => Ok(()),
            _ => Err(OpenError::Options("a frame has 2048 or 4096 bytes")),
        }
    }
}

/// An interface, and how it is used.
///
/// ```
/// use zc_transport_xdp::device::{DeviceOptions, Mode};
///
/// let strict = DeviceOptions { worst: Mode::ZeroCopy, ..DeviceOptions::default() };
/// assert!(strict.check().is_ok());
/// assert!(DeviceOptions { best: Mode::Generic, ..strict }.check().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Which packets are taken.
    pub rules: Rules,
    /// The first way that is tried.
    pub best: Mode,
    /// The last way that is tried.
    pub worst: Mode,
    /// Entries of each queue's ring of what came in; a power of two.
    pub rx_entries: u32,
    /// Entries of each queue's ring of what goes out; a power of two.
    pub tx_entries: u32,
    /// Frames that the kernel has for receiving, for each queue: they are reserved. A power of two, always so many; `None`: up
    /// to 2048, so that all queues together take at most half of the memory that is left. Of these the kernel has 512 until
    /// bursts need more, if it copies: frames that come round soon are still in the caches.
    pub fill_frames: Option<u32>,
    /// Whether the device computes checksums on demand ([`Outgoing::with_checksum`]) where it can; else `send` does.
    ///
    /// [`Outgoing::with_checksum`]: super::Outgoing::with_checksum
    pub checksums: bool,
    /// Packets that span frames; `None` if the interface's MTU needs it.
    pub multi_buffer: Option<bool>,
    /// Off by default.
    pub busy_polling: Option<BusyPolling>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            best: Mode::ZeroCopy,
            worst: Mode::Generic,
            rx_entries: 2048,
            tx_entries: 2048,
            fill_frames: None,
            checksums: false,
            multi_buffer: None,
            busy_polling: None,
        }
    }
}

impl DeviceOptions {
    /// Whether a device can be like that.
    pub fn check(&self) -> Result<(), OpenError> {
        self.rules.check()?;
        let sizes = [self.rx_entries, self.tx_entries, self.fill_frames.unwrap_or(MIN_RING_ENTRIES)];
        let fits = |n: &u32| n.is_power_of_two() && (MIN_RING_ENTRIES..=MAX_RING_ENTRIES).contains(n);
        if !sizes.iter().all(fits) {
            return Err(OpenError::Options("a ring has 16 to 32768 entries, a power of two"));
        }
        if self.best > self.worst {
            return Err(OpenError::Options("the best mode is worse than the worst"));
        }
        Ok(())
    }

    pub(super) fn allows(&self, mode: Mode) -> bool {
        (self.best..=self.worst).contains(&mode)
    }

    pub(super) fn busy_poll(&self) -> Option<BusyPoll> {
        self.busy_polling.map(|BusyPolling { micros, packets }| BusyPoll { micros, packets })
    }
}
