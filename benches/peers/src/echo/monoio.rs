//! monoio, on io_uring.

use std::net::TcpStream;

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::{IoUringDriver, RuntimeBuilder};

use super::BUFFER_BYTES;
use crate::Result;

pub(super) fn serve(sockets: Vec<TcpStream>) -> Result<()> {
    RuntimeBuilder::<IoUringDriver>::new().build()?.block_on(async {
        let tasks: Vec<_> = sockets.into_iter().map(|socket| monoio::spawn(echo(socket))).collect();
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

async fn echo(socket: TcpStream) -> Result<()> {
    let mut socket = monoio::net::TcpStream::from_std(socket)?;
    let mut buf = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = socket.read(buf).await;
        let n = read?;
        if n == 0 {
            return Ok(());
        }
        let (written, sent) = socket.write_all(filled.slice(..n)).await;
        written?;
        buf = sent.into_inner();
    }
}
