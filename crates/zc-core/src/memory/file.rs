//! Files into pinned memory.

use super::{AllocError, BufPool, PinnedBuf, PinnedBufMut};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{AtFlags, OFlags, StatxFlags};

/// Why a file could not be read into pinned memory.
///
/// ```
/// use zc_core::memory::{BufPool, ReadFileError};
///
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let end = file.metadata()?.len();
/// let read = BufPool::builder().build().read_file(&file, end - 4..end + 3);
/// assert!(matches!(read, Err(ReadFileError::Truncated { missing: 3 })));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFileError {
    /// The file ends before the range does: it is shorter than thought, or was cut meanwhile.
    #[error("the file ends {missing} bytes before the end of the range")]
    Truncated {
        /// How many bytes are missing.
        missing: usize,
    },
    /// The range runs backwards, or is longer than an address can count.
    #[error("not a range of bytes: {0:?}")]
    BadRange(Range<u64>),
    /// No memory to read into.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The system refused.
    #[error("reading a file: {0}")]
    Io(#[from] io::Error),
}

impl PinnedBufMut {
    /// Appends `len` bytes of the file from `offset` on: exactly that many, or nothing. Blocks.
    ///
    /// The one copy is the kernel's, out of its page cache. A file that others change is safe to
    /// read: what arrives is what it held at some moment, and the end of the file is an error.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn read_file(&mut self, file: &File, offset: u64, len: usize) -> Result<(), ReadFileError> {
        let room = &mut self.unfilled_mut()[..len];
        let mut done = 0;
        while done < len {
            match file.read_at(&mut room[done..], offset.saturating_add(done as u64)) {
                Ok(0) => return Err(ReadFileError::Truncated { missing: len - done }),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.advance(len);
        Ok(())
    }
}

impl BufPool {
    /// Reads a range of a file into one buffer. Blocks, so it belongs on a thread that may.
    ///
    /// ```
    /// use zc_core::memory::BufPool;
    ///
    /// let file = std::fs::File::open(std::env::current_exe()?)?;
    /// let pool = BufPool::builder().build();
    /// let magic = pool.read_file(&file, 1..4).map_err(std::io::Error::other)?;
    /// assert_eq!(&magic[..], b"ELF");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read_file(&self, file: &File, range: Range<u64>) -> Result<PinnedBuf, ReadFileError> {
        let len = range.end.checked_sub(range.start).and_then(|n| usize::try_from(n).ok());
        let Some(len) = len else {
            return Err(ReadFileError::BadRange(range));
        };
        let mut buf = self.try_alloc(len)?;
        buf.read_file(file, range.start, len)?;
        Ok(buf.freeze())
    }
}

/// The alignment for `O_DIRECT` where the file system does not tell: enough for all that are known.
const DIRECT_ALIGNMENT: usize = 4096;

/// A file that is read past the page cache (`O_DIRECT`), straight from its device into pinned memory.
///
/// ```
/// use zc_core::memory::{BufPool, DirectFile};
///
/// let file = std::fs::File::open(std::env::current_exe()?)?;
/// let Ok(direct) = DirectFile::open(&file) else { return Ok(()) }; // the file system refuses
/// let buf = BufPool::builder().build().try_alloc(direct.room(3)).map_err(std::io::Error::other)?;
/// match direct.read(buf, 1, 3) {
///     Ok(magic) => assert_eq!(&magic[..], b"ELF"),
///     Err(error) => println!("{error}"), // some refuse only now
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    /// Of offsets and lengths.
    of_offsets: usize,
    of_memory: usize,
}

impl DirectFile {
    /// Opens the file once more; others who use it notice nothing. Needs `/proc`.
    ///
    /// # Errors
    /// The file system does not do it (`InvalidInput`), or the system refused.
    pub fn open(file: &File) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
        let told = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && told.stx_dio_offset_align > 0);
        let alignment = |bytes: u32| (bytes as usize).clamp(1, 1 << 20).next_power_of_two();
        let (of_offsets, of_memory) = told.map_or((DIRECT_ALIGNMENT, DIRECT_ALIGNMENT), |told| {
            (alignment(told.stx_dio_offset_align), alignment(told.stx_dio_mem_align))
        });
        Ok(Self { file, of_offsets, of_memory })
    }

    /// Memory that reading `len` bytes takes: more than that, for what surrounds them.
    pub fn room(&self, len: usize) -> usize {
        len.saturating_add(2 * self.of_offsets + self.of_memory)
    }

    /// Reads `len` bytes from `offset` on into an empty buffer with [room](Self::room): exactly that many, or nothing. Blocks.
    ///
    /// # Errors
    /// As [`PinnedBufMut::read_file`]; `InvalidInput` where the file system refuses only now.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn read(&self, mut buf: PinnedBufMut, offset: u64, len: usize) -> Result<PinnedBuf, ReadFileError> {
        buf.clear();
        let unit = self.of_offsets;
        let before = (offset % unit as u64) as usize;
        let asked = (before + len).next_multiple_of(unit);
        let space = buf.unfilled_mut();
        let pad = space.as_ptr().addr().next_multiple_of(self.of_memory) - space.as_ptr().addr();
        let space = &mut space[pad..pad + asked];
        let (start, mut done) = (offset - before as u64, 0);
        while done < before + len {
            match self.file.read_at(&mut space[done..], start.saturating_add(done as u64)) {
                Ok(n) if n > 0 && (n % unit == 0 || done + n >= before + len) => done += n,
                // What is no whole number of units is the end.
                Ok(n) => return Err(ReadFileError::Truncated { missing: before + len - done - n }),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        buf.set_len(pad + before + len);
        Ok(buf.freeze().slice(pad + before..pad + before + len))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn reads_exactly_or_says_why_not() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let part = pool.read_file(&file, 1000..91_000).unwrap();
        assert_eq!(part, content[1000..91_000]);
        assert!(part.region().is_some());
        assert!(pool.read_file(&file, 5..5).unwrap().is_empty());
        let error = pool.read_file(&file, 99_990..100_007).unwrap_err();
        assert!(matches!(error, ReadFileError::Truncated { missing: 7 }));
        let backwards = Range { start: 7, end: 5 };
        assert!(matches!(pool.read_file(&file, backwards), Err(ReadFileError::BadRange(_))));
        assert!(matches!(pool.read_file(&file, 0..u64::MAX), Err(ReadFileError::Alloc(_))));
        let beyond = u64::MAX - 8..u64::MAX;
        assert!(pool.read_file(&file, beyond).is_err());
    }

    #[test]
    fn reads_past_the_page_cache_at_any_offset_or_says_why_not() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        file.as_file().sync_all().unwrap();
        let Ok(direct) = DirectFile::open(file.as_file()) else { return }; // not on this file system
        let pool = BufPool::builder().max_bytes(4 << 20).build();
        let read = |offset: u64, len| direct.read(pool.try_alloc(direct.room(len)).unwrap(), offset, len);
        if matches!(read(0, 1), Err(ReadFileError::Io(_))) {
            return;
        }
        for (offset, len) in
            [(0, 100_000), (1, 3), (4095, 2), (4096, 4096), (50_001, 49_999), (99_999, 1), (7, 0)]
        {
            assert!(read(offset, len).unwrap()[..] == content[offset as usize..][..len], "{len} at {offset}");
        }
        for (offset, len, missing) in [(99_990, 17, 7), (0, 100_001, 1), (100_000, 5, 5)] {
            let error = read(offset, len).unwrap_err();
            assert!(matches!(error, ReadFileError::Truncated { missing: m } if m == missing), "{error}");
        }
        // A descriptor of the same file that others have stays as it was.
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.contains(OFlags::DIRECT));
    }

    #[test]
    fn appends_or_leaves_the_buffer_as_it_was() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pool = BufPool::builder().max_bytes(1 << 20).build();
        let mut buf = pool.try_alloc(100).unwrap();
        buf.put_slice(b"head ");
        buf.read_file(&file, 3, 4).unwrap();
        assert!(buf.read_file(&file, 8, 4).is_err());
        assert_eq!(&buf[..], b"head 3456");
    }
}
