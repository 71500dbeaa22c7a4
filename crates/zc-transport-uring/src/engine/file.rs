//! Files, and pages that go from one descriptor to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use zc_core::memory::{PinnedBuf, PinnedBufMut};

use super::op::Op;
use super::socket::SocketTx;
use super::{Engine, Handle};
use crate::sys::Request;

impl Engine {
    /// A file, or a pipe.
    pub fn file(&self, file: OwnedFd) -> File {
        File { handle: self.handle.clone(), file: Arc::new(file) }
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
    file: Arc<OwnedFd>,
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl File {
    /// Reads at most `len` bytes at `offset` into what is unfilled of `buf`; none are there at the end.
    pub fn read_at(&self, buf: PinnedBufMut, len: usize, offset: u64) -> Op<PinnedBufMut> {
        Op::filling(&self.handle, Request::read(&self.file, buf, len, offset))
    }

    /// Writes a part of the bytes at `offset`; how many.
    pub fn write_at(&self, bytes: PinnedBuf, offset: u64) -> Op<usize> {
        Op::new(&self.handle, Request::write(&self.file, bytes, offset), |_, n| Ok(n))
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
