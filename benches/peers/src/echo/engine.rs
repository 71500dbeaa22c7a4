//! zc's io_uring engine inside of tokio, without messages: what is received is sent back as it lies.

use std::net::TcpStream;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::Builder;
use zc_core::memory::{BufPool, MAX_SEGMENTS, Message};
use zc_transport_uring::{Engine, EngineOptions, Flavour, SocketRx, SocketTx};

use crate::Result;

pub(super) fn one_thread(sockets: Vec<TcpStream>) -> Result<()> {
    serve(Builder::new_current_thread(), Flavour::OneThread, sockets)
}

pub(super) fn many_threads(sockets: Vec<TcpStream>) -> Result<()> {
    serve(Builder::new_multi_thread(), Flavour::ManyThreads, sockets)
}

fn serve(mut runtime: Builder, flavour: Flavour, sockets: Vec<TcpStream>) -> Result<()> {
    runtime.enable_all().build()?.block_on(async {
        let pool = BufPool::builder().build();
        let reactor = Arc::new(zc::TokioReactor::new());
        let engine =
            Engine::start(reactor, &pool, EngineOptions::new(flavour)).map_err(|why| why.to_string())?;
        let start = |socket: TcpStream| {
            let (tx, rx) = engine.socket(socket.into())?;
            Ok(tokio::spawn(echo(tx, rx)))
        };
        let tasks: Vec<_> = sockets.into_iter().map(start).collect::<std::io::Result<_>>()?;
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

async fn echo(tx: SocketTx, mut rx: SocketRx) -> Result<()> {
    loop {
        let piece = rx.recv().await?;
        if piece.is_empty() {
            return Ok(());
        }
        let mut message = Message::from(piece);
        // Whatever else is there goes with it.
        for _ in 1..MAX_SEGMENTS {
            let Poll::Ready(piece) = rx.try_recv() else { break };
            message.push(piece?)?;
        }
        let len = message.len();
        if tx.send_message(message, true).await? < len {
            return Err("a part was sent".into());
        }
    }
}
