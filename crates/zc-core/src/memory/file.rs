//! Files into pinned memory.

use super::{AllocError, BufPool, PinnedBuf, PinnedBufMut};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

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
    Io(#[from] std::io::Error),
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
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
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
