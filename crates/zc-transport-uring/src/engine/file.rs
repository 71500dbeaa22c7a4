//! Files, and pages that go from one descriptor to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use zc_core::memory::{PinnedBuf, PinnedBufMut, Region};

use super::op::Op;
use super::socket::SocketTx;
use super::{Engine, Handle};
use crate::sys::{Known, Request};

impl Engine {
    /// A file, or a pipe.
    pub fn file(&self, file: OwnedFd) -> File {
        let (takes_known, is_direct) = kind(&file);
        File { handle: self.handle.clone(), file: Arc::new(file), takes_known, is_direct }
    }
}

/// A file whose content goes into pinned memory and out of it. Cloning gives the same open file.
///
/// ```
/// # async fn example(engine: zc_transport_uring::Engine, pool: zc_core::memory::BufPool) -> std::io::Result<()> {
/// let file = engine.file(std::fs::File::open("/etc/hostname")?.into());
/// let buf = pool.alloc(4096).await.map_err(std::io::Error::other)?;
/// let buf = file.read_at(buf, 4096, 0).await?;
/// println!("{} bytes", buf.len());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct File {
    handle: Arc<Handle>,
    pub(super) file: Arc<OwnedFd>,
    /// It is a file or a block device, no pipe.
    takes_known: bool,
    /// It goes past the page cache.
    pub(super) is_direct: bool,
}

/// Whether operations on it may use memory that the ring knows ahead, and whether it was opened with `O_DIRECT`.
fn kind(file: &OwnedFd) -> (bool, bool) {
    let kind = rustix::fs::fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let flags = rustix::fs::fcntl_getfl(file).unwrap_or(OFlags::empty());
    (matches!(kind, Ok(FileType::RegularFile | FileType::BlockDevice)), flags.contains(OFlags::DIRECT))
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl File {
    /// Reads at most `len` bytes at `offset` into what is unfilled of `buf`; none are there at the end.
    pub fn read_at(&self, buf: PinnedBufMut, len: usize, offset: u64) -> Op<PinnedBufMut> {
        let known = self.known(buf.region());
        Op::filling(&self.handle, Request::read(&self.file, buf, len, offset, known))
    }

    /// Writes a part of the bytes at `offset`; how many.
    pub fn write_at(&self, bytes: PinnedBuf, offset: u64) -> Op<usize> {
        let known = self.known(bytes.region());
        Op::new(&self.handle, Request::write(&self.file, bytes, offset, known), |_, n| Ok(n))
    }

    /// Where the page cache is in between nothing is gained: then only what is known anyway is used so.
    fn known(&self, region: Option<&Region>) -> Known {
        if self.takes_known { self.handle.known(region, self.is_direct) } else { None }
    }

    /// Waits until what was written is on the device; with `data_only` without times and other facts about the file.
    pub fn sync(&self, data_only: bool) -> Op<()> {
        Op::new(&self.handle, Request::fsync(&self.file, data_only), |_, _| Ok(()))
    }

    /// Moves at most `len` bytes to another file without taking them through memory of ours; one of the two is a
    /// pipe, which has no offset. How many went.
    pub fn splice_to(&self, offset: Option<u64>, to: &File, to_offset: Option<u64>, len: usize) -> Op<usize> {
        let request = Request::splice((&self.file, offset), (&to.file, to_offset), len);
        Op::new(&self.handle, request, |_, n| Ok(n))
    }

    /// Moves at most `len` bytes out of this pipe to a socket.
    pub fn splice_to_socket(&self, to: &SocketTx, len: usize) -> Op<usize> {
        let request = Request::splice((&self.file, None), (to.file(), None), len);
        Op::new(&self.handle, request, |_, n| Ok(n))
    }
}
