//! Memory that others write while its owner reads it.
//!
//! All access in this process is by whole 64-bit words, each one atomic load, store or
//! compare-and-swap. So an owner and a remote operation that meet do not race in the sense of the
//! language, and no reference to the bytes ever exists (M5).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use super::{CopyLedger, CopyPlace, Region, RegionBuilder, RegionError, RegionKind};

/// The bytes of a word: what is read or written whole.
pub const EXPORT_WORD_BYTES: usize = 8;

/// An access that was not made.
///
/// ```
/// use zc_core::memory::{ExportError, ExportMemory, Region};
///
/// let memory = ExportMemory::new(Region::builder(4096), 4096)?;
/// assert_eq!(memory.load_u64(3), Err(ExportError::Misaligned { offset: 3 }));
/// assert!(matches!(memory.load_u64(4096), Err(ExportError::OutOfBounds { size: 4096, .. })));
/// # Ok::<(), zc_core::memory::RegionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// It would have left the memory.
    #[error("{len} bytes at {offset} lie outside the {size} bytes of the export")]
    OutOfBounds {
        /// Where it would have begun.
        offset: u64,
        /// How far it would have reached.
        len: u64,
        /// Bytes of the export.
        size: u64,
    },
    /// An atomic access at an offset that is no multiple of [`EXPORT_WORD_BYTES`].
    #[error("an atomic access at {offset}, which is no multiple of {EXPORT_WORD_BYTES}")]
    Misaligned {
        /// The offset.
        offset: u64,
    },
    /// A change to a peer's memory that is mapped for reading.
    #[error("the memory is there to be read only")]
    ReadOnly,
    /// The device that peers' atomics go through (see [`WordAtomics`]) did not do one of ours. Whether the word was changed is
    /// not known.
    #[error("the device did not change the word: {operation}")]
    Device {
        /// What of it failed.
        operation: &'static str,
    },
}

/// Changes words of one [`ExportMemory`] as its peers do, where the processor's own atomics are not atomic together with theirs: an
/// RDMA device of which `atomic_cap` is `IBV_ATOMIC_HCA` reads a word, and writes it later, and knows nothing of what a processor did
/// in between. Offsets were checked: whole words inside of the memory. Calls block for a round trip through the device.
///
/// ```
/// use zc_core::memory::{ExportError, WordAtomics};
///
/// #[derive(Debug)]
/// struct Unplugged;
/// impl WordAtomics for Unplugged {
///     fn device(&self) -> &str {
///         "rxe0"
///     }
///     fn compare_swap(&self, _: u64, _: u64, _: u64) -> Result<u64, ExportError> {
///         Err(ExportError::Device { operation: "unplugged" })
///     }
///     fn fetch_add(&self, _: u64, _: u64) -> Result<u64, ExportError> {
///         Err(ExportError::Device { operation: "unplugged" })
///     }
/// }
/// assert!(Unplugged.fetch_add(0, 1).is_err());
/// ```
pub trait WordAtomics: Send + Sync + fmt::Debug {
    /// Which device: operations of one are atomic together, those of two are not.
    fn device(&self) -> &str;
    /// Sets the word at `offset` to `new` if it is `expected`. Returns what it was.
    ///
    /// # Errors
    /// [`ExportError::Device`].
    fn compare_swap(&self, offset: u64, expected: u64, new: u64) -> Result<u64, ExportError>;
    /// Adds to the word at `offset`, wrapping around. Returns what it was.
    ///
    /// # Errors
    /// [`ExportError::Device`].
    fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, ExportError>;
}

/// A region of its own that a peer is given access to. A clone is the same memory.
///
/// Words (8 bytes at a multiple of 8) are never torn: a [`read`](Self::read) sees each as somebody left
/// it. A longer read may see one word from before a concurrent write and the next from after it.
/// Bytes beside those that a [`write`](Self::write) names are never touched.
///
/// [`store_u64`](Self::store_u64) releases and [`load_u64`](Self::load_u64) acquires: who reads what was
/// stored sees everything that was written before.
///
/// ```
/// use zc_core::memory::{CopyLedger, ExportMemory, Region};
///
/// let memory = ExportMemory::new(Region::builder(100), 100)?;
/// let ledger = CopyLedger::new();
/// memory.write(3, b"hello", &ledger)?;
/// let mut seen = [0; 7];
/// memory.read(2, &mut seen, &ledger)?;
/// assert_eq!(&seen, b"\0hello\0");
/// assert_eq!(memory.fetch_add(64, 5)?, 0);
/// assert_eq!(memory.load_u64(64)?, 5);
/// assert!(memory.load_u64(65).is_err() && memory.read(99, &mut seen, &ledger).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExportMemory {
    region: Region,
    len: u64,
    /// Words are changed by this device; by the processor if there is none.
    atomics: Option<Arc<dyn WordAtomics>>,
}

impl ExportMemory {
    /// Zeroed memory of `len` bytes, in a region that `builder` makes.
    ///
    /// # Errors
    /// The region can't be had, or is shorter.
    pub fn new(builder: RegionBuilder, len: usize) -> Result<Self, RegionError> {
        let region = builder.build()?;
        if len == 0 || region.len() < len || region.info().kind != RegionKind::Own {
            return Err(RegionError::BadLength(len));
        }
        Ok(Self { region, len: len as u64, atomics: None })
    }

    /// What a peer exported, mapped here: all of `region`, which [`PeerMapping`](super::PeerMapping) made. Where it is
    /// read-only, whatever would change it is refused with [`ExportError::ReadOnly`].
    ///
    /// # Errors
    /// The region is no peer's, or its length is no multiple of [`EXPORT_WORD_BYTES`].
    ///
    /// ```
    /// use zc_core::memory::{Backing, CopyLedger, ExportError, ExportMemory, PeerMapping, Region, Sealing};
    ///
    /// let memfd = Region::builder(4096).backing(Backing::Memfd).sealing(Sealing::AnyoneWrites);
    /// let theirs = ExportMemory::new(memfd, 4096)?;
    /// let sent = theirs.region().fd().ok_or("no memfd")?.try_clone_to_owned()?;
    /// let mapping = PeerMapping { sealing: Sealing::AnyoneWrites, prefault: false, ..PeerMapping::new(4096) };
    /// let ours = ExportMemory::of_peer(mapping.map(sent)?)?;
    /// theirs.store_u64(8, 7)?;
    /// assert_eq!(ours.load_u64(8)?, 7);
    /// assert_eq!(ours.fetch_add(8, 1), Err(ExportError::ReadOnly));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_peer(region: Region) -> Result<Self, RegionError> {
        let len = region.len();
        if region.info().kind != RegionKind::Peer || !len.is_multiple_of(EXPORT_WORD_BYTES) {
            return Err(RegionError::BadLength(len));
        }
        Ok(Self { region, len: len as u64, atomics: None })
    }

    /// The same memory, of which words are changed through that device, or by the processor. That is so for this value and its clones:
    /// whoever makes it sees to it that nobody goes on with another one.
    #[must_use]
    pub fn through(&self, atomics: Option<Arc<dyn WordAtomics>>) -> Self {
        Self { region: self.region.clone(), len: self.len, atomics }
    }

    /// The device that words are changed through, if it is not the processor.
    pub fn device(&self) -> Option<&Arc<dyn WordAtomics>> {
        self.atomics.as_ref()
    }

    /// The region, for transports: to register it or to hand its descriptor over.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an export has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies bytes out, and counts them as [`CopyPlace::Remote`].
    ///
    /// # Errors
    /// [`ExportError::OutOfBounds`].
    pub fn read(&self, offset: u64, out: &mut [u8], ledger: &CopyLedger) -> Result<(), ExportError> {
        let at = self.check(offset, out.len())?;
        let (head, words) = split(at, out.len());
        let (head_bytes, rest) = out.split_at_mut(head);
        let (word_bytes, tail_bytes) = rest.split_at_mut(words * EXPORT_WORD_BYTES);
        self.read_part(at, head_bytes);
        let from = self.words((at + head) / EXPORT_WORD_BYTES, words);
        let (whole, _) = word_bytes.as_chunks_mut::<EXPORT_WORD_BYTES>();
        // Relaxed, which works on read-only mappings.
        whole.iter_mut().zip(from).for_each(|(bytes, word)| *bytes = word.load(Relaxed).to_ne_bytes());
        self.read_part(at + out_len(head, words), tail_bytes);
        ledger.copied(CopyPlace::Remote, out.len());
        Ok(())
    }

    /// Copies bytes in, and counts them as [`CopyPlace::Remote`].
    ///
    /// # Errors
    /// Out of bounds or read-only; then nothing is written.
    pub fn write(&self, offset: u64, bytes: &[u8], ledger: &CopyLedger) -> Result<(), ExportError> {
        let at = self.check(offset, bytes.len())?;
        self.check_writable()?;
        let (head, words) = split(at, bytes.len());
        let (head_bytes, rest) = bytes.split_at(head);
        let (word_bytes, tail_bytes) = rest.split_at(words * EXPORT_WORD_BYTES);
        self.write_part(at, head_bytes);
        let to = self.words((at + head) / EXPORT_WORD_BYTES, words);
        let (whole, _) = word_bytes.as_chunks::<EXPORT_WORD_BYTES>();
        whole.iter().zip(to).for_each(|(bytes, word)| word.store(u64::from_ne_bytes(*bytes), Relaxed));
        self.write_part(at + out_len(head, words), tail_bytes);
        ledger.copied(CopyPlace::Remote, bytes.len());
        Ok(())
    }

    /// The word at `offset`, in this machine's byte order.
    ///
    /// # Errors
    /// Out of bounds or misaligned.
    pub fn load_u64(&self, offset: u64) -> Result<u64, ExportError> {
        let word = self.atomic(offset)?.load(Relaxed);
        // An acquiring load is none that read-only memory must bear.
        fence(Acquire);
        Ok(word)
    }

    /// Sets the word at `offset`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, read-only, or the device.
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), ExportError> {
        let word = self.atomic_mut(offset)?;
        let Some(device) = &self.atomics else {
            word.store(value, Release);
            return Ok(());
        };
        // The device could write back what it has read in front of a plain store.
        fence(Release);
        let mut seen = word.load(Relaxed);
        loop {
            match device.compare_swap(offset, seen, value)? {
                found if found == seen => return Ok(()),
                found => seen = found,
            }
        }
    }

    /// Sets the word at `offset` to `new` if it is `expected`. Returns what it was.
    ///
    /// # Errors
    /// Out of bounds, misaligned, read-only, or the device.
    pub fn compare_swap(&self, offset: u64, expected: u64, new: u64) -> Result<u64, ExportError> {
        let word = self.atomic_mut(offset)?;
        match &self.atomics {
            Some(device) => fenced(|| device.compare_swap(offset, expected, new)),
            None => Ok(word.compare_exchange(expected, new, AcqRel, Acquire).unwrap_or_else(|seen| seen)),
        }
    }

    /// Adds to the word at `offset`, wrapping around. Returns what it was.
    ///
    /// # Errors
    /// Out of bounds, misaligned, read-only, or the device.
    pub fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, ExportError> {
        let word = self.atomic_mut(offset)?;
        match &self.atomics {
            Some(device) => fenced(|| device.fetch_add(offset, add)),
            None => Ok(word.fetch_add(add, AcqRel)),
        }
    }

    fn check(&self, offset: u64, len: usize) -> Result<usize, ExportError> {
        let len = len as u64;
        match offset.checked_add(len) {
            // It lies inside of a mapping, so it fits an address.
            Some(end) if end <= self.len => Ok(offset as usize),
            _ => Err(ExportError::OutOfBounds { offset, len, size: self.len }),
        }
    }

    fn atomic(&self, offset: u64) -> Result<&AtomicU64, ExportError> {
        let at = self.check(offset, EXPORT_WORD_BYTES)?;
        if !at.is_multiple_of(EXPORT_WORD_BYTES) {
            return Err(ExportError::Misaligned { offset });
        }
        Ok(self.word(at / EXPORT_WORD_BYTES))
    }

    fn atomic_mut(&self, offset: u64) -> Result<&AtomicU64, ExportError> {
        let word = self.atomic(offset)?;
        self.check_writable().map(|()| word)
    }

    fn check_writable(&self) -> Result<(), ExportError> {
        if self.region.is_read_only() { Err(ExportError::ReadOnly) } else { Ok(()) }
    }

    /// The word with this number. Words reach beyond `len` only into the region's last page: a region of our own has whole
    /// pages, and a peer's is of whole words.
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.words(index, 1)[0]
    }

    /// So many words from this one on. Of a read-only region they are only loaded, relaxed.
    fn words(&self, first: usize, count: usize) -> &[AtomicU64] {
        let all = self.region.len() / EXPORT_WORD_BYTES;
        assert!(first <= all && count <= all - first, "words outside the region");
        // SAFETY: inside the mapping (checked above), which is page
        // aligned and lives as long as `self`. It is no pool's, so this process reaches it only here, atomically
        // and by whole words, and with stores only if it is writable (`check_writable`, or made by a builder);
        // whoever else writes it does so from outside of the process, or by another mapping of it here, in the
        // same way. An `AtomicU64` is no claim that the bytes stay as they are (M5).
        unsafe {
            std::slice::from_raw_parts(self.region.base_mut().cast::<AtomicU64>().add(first).as_ptr(), count)
        }
    }

    /// Bytes that lie within one word.
    fn read_part(&self, at: usize, out: &mut [u8]) {
        if out.is_empty() {
            return;
        }
        let bytes = self.word(at / EXPORT_WORD_BYTES).load(Relaxed).to_ne_bytes();
        let begin = at % EXPORT_WORD_BYTES;
        out.iter_mut().zip(&bytes[begin..]).for_each(|(to, from)| *to = *from);
    }

    /// Bytes that lie within one word; the others of the word stay what they are.
    fn write_part(&self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let begin = at % EXPORT_WORD_BYTES;
        let change = |old: u64| {
            let mut new = old.to_ne_bytes();
            new[begin..].iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            Some(u64::from_ne_bytes(new))
        };
        // It always has a new value, so it ends with success.
        let _ = self.word(at / EXPORT_WORD_BYTES).fetch_update(Relaxed, Relaxed, change);
    }
}

/// A device's access, with the order that one of the processor's has.
fn fenced(access: impl FnOnce() -> Result<u64, ExportError>) -> Result<u64, ExportError> {
    fence(Release);
    let seen = access()?;
    fence(Acquire);
    Ok(seen)
}

/// How many bytes lie in front of the first whole word, and how many whole words follow.
fn split(at: usize, len: usize) -> (usize, usize) {
    let head = (at.next_multiple_of(EXPORT_WORD_BYTES) - at).min(len);
    (head, (len - head) / EXPORT_WORD_BYTES)
}

fn out_len(head: usize, words: usize) -> usize {
    head + words * EXPORT_WORD_BYTES
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use proptest::prelude::*;

    use super::*;

    fn memory(len: usize) -> ExportMemory {
        ExportMemory::new(Region::builder(len), len).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reads_and_writes_as_an_array_does(
            steps in prop::collection::vec((0..120u64, prop::collection::vec(any::<u8>(), 0..60)), 1..20),
        ) {
            let (memory, ledger) = (memory(100), CopyLedger::new());
            let mut oracle = [0u8; 100];
            let mut copied = 0;
            for (offset, bytes) in steps {
                let range = offset as usize..offset as usize + bytes.len();
                let written = memory.write(offset, &bytes, &ledger);
                let mut back = vec![0; bytes.len()];
                prop_assert_eq!(memory.read(offset, &mut back, &ledger).is_ok(), written.is_ok());
                match oracle.get_mut(range) {
                    None => assert!(matches!(written, Err(ExportError::OutOfBounds { .. }))),
                    Some(slot) => {
                        slot.copy_from_slice(&bytes);
                        copied += 2 * bytes.len();
                        prop_assert_eq!(&back, &bytes);
                    }
                }
            }
            prop_assert_eq!(ledger.snapshot().copied_at(CopyPlace::Remote), copied as u64);
            let mut all = [0; 100];
            memory.read(0, &mut all, &ledger).unwrap();
            prop_assert_eq!(all, oracle);
        }
    }

    #[test]
    fn atomics_are_checked() {
        let memory = memory(20);
        for offset in [13, 16, 20, 24, u64::MAX - 7, u64::MAX] {
            assert!(matches!(memory.load_u64(offset), Err(ExportError::OutOfBounds { .. })), "{offset}");
        }
        assert_eq!(memory.store_u64(4, 1), Err(ExportError::Misaligned { offset: 4 }));
        memory.store_u64(8, u64::MAX).unwrap();
        assert_eq!(memory.fetch_add(8, 2), Ok(u64::MAX));
        assert_eq!(memory.compare_swap(8, 7, 9), Ok(1), "another value: unchanged");
        assert_eq!(memory.compare_swap(8, 1, 9), Ok(1));
        assert_eq!(memory.load_u64(8), Ok(9));
        assert!(ExportMemory::new(Region::builder(8), 0).is_err());
        assert!(ExportMemory::new(Region::builder(8), 1 << 20).is_err());
    }

    /// Counts, and does it by halves as devices do: read, and write later.
    #[derive(Debug, Default)]
    struct Slow {
        memory: std::sync::OnceLock<ExportMemory>,
        alone: std::sync::Mutex<u32>,
    }

    impl Slow {
        fn change(&self, offset: u64, change: impl FnOnce(u64) -> u64) -> Result<u64, ExportError> {
            let memory = self.memory.get().unwrap();
            let mut count = self.alone.lock().unwrap();
            *count += 1;
            let seen = memory.load_u64(offset)?;
            std::thread::yield_now();
            memory.store_u64(offset, change(seen)).map(|()| seen)
        }
    }

    impl WordAtomics for Slow {
        fn device(&self) -> &str {
            "slow"
        }
        fn compare_swap(&self, offset: u64, expected: u64, new: u64) -> Result<u64, ExportError> {
            self.change(offset, |seen| if seen == expected { new } else { seen })
        }
        fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, ExportError> {
            self.change(offset, |seen| seen.wrapping_add(add))
        }
    }

    #[test]
    fn words_are_changed_through_the_device_that_peers_use() {
        let (plain, device) = (memory(64), Arc::new(Slow::default()));
        device.memory.set(plain.clone()).unwrap();
        let through = plain.through(Some(device.clone()));
        through.store_u64(8, 5).unwrap();
        assert_eq!((through.fetch_add(8, 2), through.compare_swap(8, 7, 9)), (Ok(5), Ok(7)));
        assert_eq!((plain.load_u64(8), *device.alone.lock().unwrap()), (Ok(9), 3));
        assert!(through.clone().device().is_some() && plain.device().is_none());
        assert!(matches!(through.fetch_add(4, 1), Err(ExportError::Misaligned { .. })), "checked before");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..500).for_each(|_| assert!(through.fetch_add(16, 1).is_ok())));
            }
        });
        assert_eq!(through.through(None).fetch_add(16, 1), Ok(1500));
        assert_eq!(*device.alone.lock().unwrap(), 1503, "the last one was the processor's");
    }

    #[test]
    fn neighbours_of_a_word_and_whole_words_survive_each_other() {
        let memory = &memory(16);
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Two writers in one word, one byte each, and one that writes the next word whole.
            for byte in [0, 5] {
                scope.spawn(move || {
                    let ledger = CopyLedger::new();
                    for n in 0..20_000u32 {
                        memory.write(byte, &[n as u8], &ledger).unwrap();
                        let mut back = [0];
                        memory.read(byte, &mut back, &ledger).unwrap();
                        assert_eq!(back, [n as u8], "nobody else wrote this byte");
                    }
                    stop.store(true, SeqCst);
                });
            }
            scope.spawn(move || {
                let ledger = CopyLedger::new();
                for n in (0..=u8::MAX).cycle() {
                    memory.write(8, &[n; 8], &ledger).unwrap();
                    if stop.load(SeqCst) {
                        break;
                    }
                }
            });
            let ledger = CopyLedger::new();
            while !stop.load(SeqCst) {
                let mut word = [0; 8];
                memory.read(8, &mut word, &ledger).unwrap();
                assert!(word.iter().all(|byte| *byte == word[0]), "a word is never torn: {word:?}");
            }
        });
    }
}
