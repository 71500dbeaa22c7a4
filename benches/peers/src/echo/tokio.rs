//! tokio, on one thread and on as many as it has cores.

use std::net::TcpStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;

use super::BUFFER_BYTES;
use crate::Result;

pub(super) fn one_thread(sockets: Vec<TcpStream>) -> Result<()> {
    serve(Builder::new_current_thread(), sockets)
}

pub(super) fn many_threads(sockets: Vec<TcpStream>) -> Result<()> {
    serve(Builder::new_multi_thread(), sockets)
}

fn serve(mut runtime: Builder, sockets: Vec<TcpStream>) -> Result<()> {
    runtime.enable_all().build()?.block_on(async {
        let tasks: Vec<_> = sockets.into_iter().map(|socket| tokio::spawn(echo(socket))).collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

async fn echo(socket: TcpStream) -> Result<()> {
    socket.set_nonblocking(true)?;
    let mut socket = tokio::net::TcpStream::from_std(socket)?;
    let mut buf = vec![0; BUFFER_BYTES];
    loop {
        match socket.read(&mut buf).await? {
            0 => return Ok(()),
            n => socket.write_all(&buf[..n]).await?,
        }
    }
}
