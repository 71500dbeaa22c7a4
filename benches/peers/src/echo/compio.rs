//! compio, on io_uring.

use std::net::TcpStream;

use compio::buf::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::runtime::Runtime;

use super::BUFFER_BYTES;
use crate::Result;

pub(super) fn serve(sockets: Vec<TcpStream>) -> Result<()> {
    Runtime::new()?.block_on(async {
        let tasks: Vec<_> = sockets.into_iter().map(|socket| compio::runtime::spawn(echo(socket))).collect();
        for task in tasks {
            task.await.map_err(|_| "a task panicked")??;
        }
        Ok(())
    })
}

async fn echo(socket: TcpStream) -> Result<()> {
    let mut socket = compio::net::TcpStream::from_std(socket)?;
    let mut buf = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let BufResult(read, filled) = socket.read(buf).await;
        if read? == 0 {
            return Ok(());
        }
        let BufResult(written, sent) = socket.write_all(filled).await;
        written?;
        buf = sent;
        buf.clear();
    }
}
