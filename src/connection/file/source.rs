//! A range of a file, chunk by chunk.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;
use zc_core::memory::{DirectFile, PinnedBuf, PinnedBufMut, ReadFileError};
use zc_core::transport::{Pipe, Piped};

use super::fault::FileFault;
use super::threads;

/// What the page cache has of that many bytes is copied at once; more is left to other threads.
const AT_ONCE_BYTES: usize = 512 << 10;

/// What shows that a file was written to.
#[derive(PartialEq, Eq)]
struct Seen {
    len: u64,
    modified: (i64, i64),
}

impl Seen {
    fn of(file: &File) -> io::Result<Self> {
        let now = file.metadata()?;
        Ok(Self { len: now.len(), modified: (now.mtime(), now.mtime_nsec()) })
    }
}

/// The file, opened and looked at.
pub(super) struct Source {
    file: Arc<File>,
    direct: Option<DirectFile>,
    /// As it was at first, if it has to stay so.
    seen: Option<Seen>,
    end: u64,
}

impl Source {
    /// Looks whether the range is there.
    pub(super) fn open(file: Arc<File>, range: &Range<u64>, unchanged: bool) -> Result<Self, FileFault> {
        let now = file.metadata().map_err(FileFault::Io)?;
        if !now.is_file() {
            return Err(FileFault::NotRegular);
        }
        let flags = rustix::fs::fcntl_getfl(&*file).map_err(|e| FileFault::Io(e.into()))?;
        if flags.contains(OFlags::PATH) || flags & OFlags::ACCMODE == OFlags::WRONLY {
            return Err(FileFault::NotReadable);
        }
        if range.start > range.end || i64::try_from(range.end).is_err() {
            return Err(FileFault::BadRange(range.clone()));
        }
        if let Some(missing @ 1..) = range.end.checked_sub(now.len()) {
            return Err(FileFault::Truncated { missing });
        }
        let seen = if unchanged { Some(Seen::of(&file).map_err(FileFault::Io)?) } else { None };
        Ok(Self { file, direct: None, seen, end: range.end })
    }

    /// The same, to be read past the page cache.
    pub(super) fn past_the_cache(mut self) -> Result<Self, FileFault> {
        self.direct = Some(DirectFile::open(&self.file).map_err(FileFault::NoDirect)?);
        Ok(self)
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Memory that a chunk of `len` bytes is read into.
    pub(super) fn room(&self, len: usize) -> usize {
        self.direct.as_ref().map_or(len, |direct| direct.room(len))
    }

    /// Looks once more, after all has been sent. What lies in pipes and sockets are the file's own pages, so it counts how the
    /// file is then, and not when they were got.
    pub(super) async fn is_unchanged(self: &Arc<Self>) -> Result<(), FileFault> {
        if self.seen.is_none() {
            return Ok(());
        }
        let source = self.clone();
        threads::run(move || source.checked(Ok(()), source.end, 0)).await.map_err(FileFault::Io)?
    }

    /// What an attempt to get the chunk of `len` bytes at `at` gave, if the file is still what it was.
    fn checked<T>(&self, got: Result<T, ReadFileError>, at: u64, len: usize) -> Result<T, FileFault> {
        let changed = match &self.seen {
            Some(seen) => *seen != Seen::of(&self.file).map_err(FileFault::Io)?,
            None => false,
        };
        match got {
            _ if changed => Err(FileFault::Changed),
            Ok(got) => Ok(got),
            Err(error) => Err(FileFault::of_read(error, len, self.end - at, self.is_direct())),
        }
    }

    /// Puts a chunk of at most `len` bytes into a pipe; none where the file system can't do that.
    pub(super) async fn splice(
        self: &Arc<Self>,
        pipe: Pipe,
        at: u64,
        len: usize,
    ) -> Result<Option<Piped>, FileFault> {
        let source = self.clone();
        let filled = threads::run(move || match pipe.fill(&source.file, at, len) {
            Err(ReadFileError::Io(error)) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            done => source.checked(done, at, len).map(Some),
        });
        filled.await.map_err(FileFault::Io)?
    }

    /// Reads a chunk of `len` bytes into memory with [room](Self::room) for it.
    pub(super) async fn read(
        self: &Arc<Self>,
        mut buf: PinnedBufMut,
        at: u64,
        len: usize,
    ) -> Result<PinnedBuf, FileFault> {
        let cached = if self.is_direct() || len > AT_ONCE_BYTES { 0 } else { self.cached(&mut buf, at, len) };
        if cached == len {
            return self.checked(Ok(buf.freeze()), at, len);
        }
        let source = self.clone();
        let read = threads::run(move || {
            let got = match &source.direct {
                Some(direct) => direct.read(buf, at, len),
                None => buf.read_file(&source.file, at + cached as u64, len - cached).map(|()| buf.freeze()),
            };
            source.checked(got, at, len)
        });
        read.await.map_err(FileFault::Io)?
    }

    /// Reads what can be had without waiting; how much that is.
    fn cached(&self, buf: &mut PinnedBufMut, at: u64, len: usize) -> usize {
        let mut space = [IoSliceMut::new(&mut buf.unfilled_mut()[..len])];
        // Refused by some file systems, and where nothing is cached.
        let n = rustix::io::preadv2(&*self.file, &mut space, at, ReadWriteFlags::NOWAIT).unwrap_or(0);
        buf.advance(n);
        n
    }
}
