//! Files past the page cache (`O_DIRECT`), straight between the device and memory of a pool.

use std::io;

use rustix::fs::{AtFlags, StatxFlags, statx};
use zc_core::memory::{AllocError, BufPool, PinnedBuf};

use super::file::File;
use crate::limits::MAX_TRANSFER_BYTES;

/// What direct operations on a file must be aligned to; powers of two.
///
/// ```
/// # fn example(file: &zc_transport_uring::File) -> std::io::Result<()> {
/// if let Some(alignment) = file.direct_alignment()? {
///     println!("offsets and lengths: multiples of {}", alignment.offset_bytes);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Where in memory the bytes begin.
    pub memory_bytes: usize,
    /// Where in the file they begin, and how many they are.
    pub offset_bytes: usize,
}

/// Why a direct operation was not possible.
///
/// ```
/// use zc_transport_uring::DirectError;
///
/// let error = DirectError::Misaligned { what: "offset", value: 100, needed: 512 };
/// assert_eq!(error.to_string(), "the offset of a direct operation is 100, which is no multiple of 512");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectError {
    /// The file was opened without `O_DIRECT`.
    #[error("the file was not opened with O_DIRECT")]
    NotDirect,
    /// The file system can't do that with this file.
    #[error("the file system has no direct operations on this file")]
    Unsupported,
    /// An offset, a length or an address that the device can't begin at or end at.
    #[error("the {what} of a direct operation is {value}, which is no multiple of {needed}")]
    Misaligned {
        /// Of what.
        what: &'static str,
        /// What it is.
        value: u64,
        /// What it must be a multiple of.
        needed: usize,
    },
    /// No memory to read into.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The system refused.
    #[error("a direct operation: {0}")]
    Io(#[from] io::Error),
}

impl DirectAlignment {
    fn check(&self, offset: u64, len: usize) -> Result<(), DirectError> {
        for (what, value) in [("offset", offset), ("length", len as u64)] {
            aligned(what, value, self.offset_bytes)?;
        }
        Ok(())
    }

    /// The most that one operation transfers: whole blocks.
    fn longest(&self) -> usize {
        MAX_TRANSFER_BYTES / self.offset_bytes * self.offset_bytes
    }
}

fn aligned(what: &'static str, value: u64, needed: usize) -> Result<(), DirectError> {
    if value.is_multiple_of(needed as u64) {
        return Ok(());
    }
    Err(DirectError::Misaligned { what, value, needed })
}

impl File {
    /// What direct operations on it must be aligned to; `None`: it has none. Where the file system does not tell (before Linux
    /// 6.1, or in general), a page is the answer, which suits all that are known.
    ///
    /// # Errors
    /// The system's.
    pub fn direct_alignment(&self) -> io::Result<Option<DirectAlignment>> {
        let found = statx(&self.file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let page = rustix::param::page_size();
        if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return Ok(Some(DirectAlignment { memory_bytes: page, offset_bytes: page }));
        }
        let [memory_bytes, offset_bytes] =
            [found.stx_dio_mem_align, found.stx_dio_offset_align].map(|n| n as usize);
        if memory_bytes == 0 || offset_bytes == 0 {
            return Ok(None);
        }
        Ok(Some(DirectAlignment { memory_bytes, offset_bytes }))
    }

    fn alignment(&self) -> Result<DirectAlignment, DirectError> {
        if !self.is_direct {
            return Err(DirectError::NotDirect);
        }
        self.direct_alignment()?.ok_or(DirectError::Unsupported)
    }

    /// Reads `len` bytes at `offset` past the page cache into memory of `pool`; fewer only at the end of the file. The
    /// pool's region is made known to the ring, so that from the second read on its pages are not looked up and pinned.
    ///
    /// ```
    /// # async fn example(engine: zc_transport_uring::Engine, pool: zc_core::memory::BufPool)
    /// # -> Result<(), zc_transport_uring::DirectError> {
    /// use std::os::unix::fs::OpenOptionsExt;
    ///
    /// let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open("film")?;
    /// let part = engine.file(direct.into()).read_direct(&pool, 1 << 20, 1 << 20).await?;
    /// println!("{} bytes", part.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What is not aligned, or not opened so, is told before anything is read.
    pub async fn read_direct(
        &self,
        pool: &BufPool,
        offset: u64,
        len: usize,
    ) -> Result<PinnedBuf, DirectError> {
        let alignment = self.alignment()?;
        alignment.check(offset, len)?;
        // Blocks begin where they begin: what is in front of the first aligned byte is left out.
        let mut buf = pool.alloc(len.saturating_add(alignment.memory_bytes - 1)).await?;
        let begin = buf.unfilled_mut().as_ptr().align_offset(alignment.memory_bytes);
        buf.set_len(begin);
        while buf.len() < begin + len {
            let before = buf.len();
            let (left, at) = (begin + len - before, offset.saturating_add((before - begin) as u64));
            buf = self.read_at(buf, left.min(alignment.longest()), at).await?;
            let n = buf.len() - before;
            // Only the end of the file is not aligned, and nothing is behind it.
            if n == 0 || !n.is_multiple_of(alignment.offset_bytes) {
                break;
            }
        }
        Ok(buf.freeze().slice(begin..))
    }

    /// Writes a part of the bytes at `offset` past the page cache; how many.
    ///
    /// # Errors
    /// What is not aligned, or not opened so, is told before anything is written. What [`read_direct`](Self::read_direct) gives
    /// is aligned.
    pub async fn write_direct(&self, bytes: PinnedBuf, offset: u64) -> Result<usize, DirectError> {
        let alignment = self.alignment()?;
        alignment.check(offset, bytes.len())?;
        aligned("address", bytes.as_ptr().addr() as u64, alignment.memory_bytes)?;
        let len = bytes.len().min(alignment.longest());
        Ok(self.write_at(bytes.slice(..len), offset).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_transfer_is_of_whole_blocks() {
        for offset_bytes in [512, 4096, 8192, 64 << 10, 1 << 20] {
            let longest = DirectAlignment { memory_bytes: 512, offset_bytes }.longest();
            assert!(longest.is_multiple_of(offset_bytes) && longest + offset_bytes > MAX_TRANSFER_BYTES);
            assert!(longest <= MAX_TRANSFER_BYTES);
        }
    }
}
