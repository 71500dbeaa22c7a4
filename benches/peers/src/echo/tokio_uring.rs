//! tokio-uring.

use std::net::TcpStream;

use tokio_uring::buf::BoundedBuf;

use super::BUFFER_BYTES;
use crate::Result;

pub(super) fn serve(sockets: Vec<TcpStream>) -> Result<()> {
    tokio_uring::start(async {
        let tasks: Vec<_> = sockets.into_iter().map(|socket| tokio_uring::spawn(echo(socket))).collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

async fn echo(socket: TcpStream) -> Result<()> {
    let socket = tokio_uring::net::TcpStream::from_std(socket);
    let mut buf = vec![0; BUFFER_BYTES];
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
