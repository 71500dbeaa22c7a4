//! glommio.

use std::net::TcpStream;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use glommio::{LocalExecutorBuilder, Placement};

use super::BUFFER_BYTES;
use crate::{Result, sys};

pub(super) fn serve(sockets: Vec<TcpStream>) -> Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(|error| error.to_string())?;
    executor.run(async {
        let tasks: Vec<_> = sockets.into_iter().map(|socket| glommio::spawn_local(echo(socket))).collect();
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

async fn echo(socket: TcpStream) -> Result<()> {
    let mut socket: glommio::net::TcpStream = sys::adopt(socket.into());
    let mut buf = vec![0; BUFFER_BYTES];
    loop {
        match socket.read(&mut buf).await? {
            0 => return Ok(()),
            n => socket.write_all(&buf[..n]).await?,
        }
    }
}
