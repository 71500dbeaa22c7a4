//! Counts what was moved without a copy and what was copied, where.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Where this crate or a transport copied payload.
///
/// ```
/// use zc_core::memory::{CopyLedger, CopyPlace};
///
/// let ledger = CopyLedger::new();
/// ledger.copied(CopyPlace::Gather, 100);
/// assert_eq!(ledger.snapshot().copied_at(CopyPlace::Gather), 100);
/// assert_eq!(ledger.snapshot().copied_at(CopyPlace::Foreign), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyPlace {
    /// Small messages joined into one write.
    Coalesce,
    /// Out of memory that an untrusted peer could still write.
    CopyOut,
    /// A rope made contiguous.
    Gather,
    /// A message that straddled receive buffers.
    Split,
    /// Memory that the transport cannot send as it is.
    Foreign,
    /// Asked for by the application.
    App,
    /// Into or out of exported memory: one-sided operations without hardware, and the owner's own accesses.
    Remote,
}

/// How many places there are.
const PLACES: usize = 7;

/// What the kernel or the device copied.
///
/// ```
/// use zc_core::memory::{CopyLedger, KernelCopied};
///
/// match CopyLedger::new().snapshot().kernel_copied {
///     KernelCopied::Known(bytes) => assert_eq!(bytes, 0),
///     KernelCopied::Unknown => println!("at least once the kernel did not say"),
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelCopied {
    /// This many bytes.
    Known(u64),
    /// The kernel does not say.
    Unknown,
}

/// The counters of one connection or transport.
///
/// ```
/// use zc_core::memory::{CopyLedger, CopyPlace, copy_payload};
///
/// let ledger = CopyLedger::new();
/// ledger.moved(4096);
/// copy_payload(&mut [0; 3], b"abc", &ledger, CopyPlace::Foreign);
/// let now = ledger.snapshot();
/// assert_eq!((now.moved_bytes, now.copied_bytes()), (4096, 3));
/// ```
#[derive(Debug, Default)]
pub struct CopyLedger {
    moved: AtomicU64,
    copied: [AtomicU64; PLACES],
    inline: AtomicU64,
    kernel: AtomicU64,
    kernel_unknown: AtomicBool,
}

impl CopyLedger {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// `bytes` of payload changed hands without a copy.
    #[inline]
    pub fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Relaxed);
    }

    /// `bytes` of payload were copied at `place`; for copies that [`copy_payload`] cannot do.
    #[inline]
    pub fn copied(&self, place: CopyPlace, bytes: usize) {
        self.copied[place as usize].fetch_add(bytes as u64, Relaxed);
    }

    /// `bytes` of payload travelled inside a descriptor.
    #[inline]
    pub fn inline(&self, bytes: usize) {
        self.inline.fetch_add(bytes as u64, Relaxed);
    }

    /// What the kernel copied; once unknown, it stays unknown.
    pub fn kernel_copied(&self, what: KernelCopied) {
        match what {
            KernelCopied::Known(n) => {
                self.kernel.fetch_add(n, Relaxed);
            }
            KernelCopied::Unknown => self.kernel_unknown.store(true, Relaxed),
        }
    }

    /// The counters now.
    pub fn snapshot(&self) -> LedgerSnapshot {
        LedgerSnapshot {
            moved_bytes: self.moved.load(Relaxed),
            copied: std::array::from_fn(|i| self.copied[i].load(Relaxed)),
            inline_bytes: self.inline.load(Relaxed),
            kernel_copied: match self.kernel_unknown.load(Relaxed) {
                true => KernelCopied::Unknown,
                false => KernelCopied::Known(self.kernel.load(Relaxed)),
            },
        }
    }
}

/// The counters at one moment.
///
/// ```
/// use zc_core::memory::{CopyLedger, KernelCopied};
///
/// let ledger = CopyLedger::new();
/// let before = ledger.snapshot();
/// ledger.kernel_copied(KernelCopied::Known(100));
/// assert_eq!(ledger.snapshot().since(&before).kernel_copied, KernelCopied::Known(100));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerSnapshot {
    /// Payload that changed hands without a copy.
    pub moved_bytes: u64,
    copied: [u64; PLACES],
    /// Payload that travelled inside descriptors.
    pub inline_bytes: u64,
    /// What the kernel copied.
    pub kernel_copied: KernelCopied,
}

impl LedgerSnapshot {
    /// Payload copied in user space, in total.
    pub fn copied_bytes(&self) -> u64 {
        self.copied.iter().sum()
    }

    /// Payload copied at one place.
    pub fn copied_at(&self, place: CopyPlace) -> u64 {
        self.copied[place as usize]
    }

    /// What happened since an earlier snapshot of the same ledger.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            moved_bytes: self.moved_bytes.saturating_sub(earlier.moved_bytes),
            copied: std::array::from_fn(|i| self.copied[i].saturating_sub(earlier.copied[i])),
            inline_bytes: self.inline_bytes.saturating_sub(earlier.inline_bytes),
            kernel_copied: match (self.kernel_copied, earlier.kernel_copied) {
                (KernelCopied::Known(a), KernelCopied::Known(b)) => KernelCopied::Known(a.saturating_sub(b)),
                _ => KernelCopied::Unknown,
            },
        }
    }
}

/// Copies payload and counts it. Other copies of payload are counted by who makes them, with
/// [`CopyLedger::copied`]: exported memory is read and written by atomic words
/// ([`ExportMemory`](super::ExportMemory)). What an application does with the bytes of a message is its own
/// affair and not counted, also where it does so through [`bytes::Buf`] (see [`Message`](super::Message)).
///
/// # Panics
/// If the lengths differ.
#[allow(clippy::disallowed_methods, reason = "this is the function the others must use")]
pub fn copy_payload(dst: &mut [u8], src: &[u8], ledger: &CopyLedger, place: CopyPlace) {
    dst.copy_from_slice(src);
    ledger.copied(place, src.len());
}

/// Copies payload into or out of a descriptor and counts it as inline.
///
/// # Panics
/// If the lengths differ.
#[allow(clippy::disallowed_methods, reason = "this is the function the others must use")]
pub fn copy_inline(dst: &mut [u8], src: &[u8], ledger: &CopyLedger) {
    dst.copy_from_slice(src);
    ledger.inline(src.len());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_by_place() {
        let l = CopyLedger::new();
        copy_payload(&mut [0; 3], b"abc", &l, CopyPlace::Gather);
        let first = l.snapshot();
        copy_payload(&mut [0; 2], b"ab", &l, CopyPlace::App);
        copy_inline(&mut [0; 1], b"a", &l);
        l.moved(10);
        let d = l.snapshot().since(&first);
        assert_eq!((d.copied_bytes(), d.copied_at(CopyPlace::App)), (2, 2));
        assert_eq!((d.moved_bytes, d.inline_bytes), (10, 1));
        assert_eq!(d.kernel_copied, KernelCopied::Known(0));
        l.kernel_copied(KernelCopied::Unknown);
        assert_eq!(l.snapshot().kernel_copied, KernelCopied::Unknown);
    }
}
