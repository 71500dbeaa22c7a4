//! A proxy: whatever a client sends goes on to a server, and back, message by message.
//!
//! ```text
//! cargo run --release --example proxy                                                shows itself at work
//! cargo run --release --example proxy -- zc://127.0.0.1:7001 zc://127.0.0.1:7000    listens on the first
//! ```
//!
//! Received buffers are sent on as they are. A side that does not read holds up only who sends to it,
//! through the windows of both connections; a side that has finished sending still receives; and the
//! code and reason with which one side closes reach the other.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::fmt;
use std::future::{Future, pending};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use zc::{CloseCode, Connection, ConnectionError, Fabric, LedgerSnapshot, Listener, Receiver, Sender};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Clients served at a time; further ones wait in the listener.
const MAX_CLIENTS: usize = 1024;
/// Pause after a client could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of an error's text that the other side gets to read.
const MAX_WORDS: usize = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => demo().await,
        [from, to] => {
            let fabric = Fabric::auto()?;
            let listener = fabric.listen(from).await?;
            println!("{} -> {to}", listener.local_uri());
            let stop = async { drop(tokio::signal::ctrl_c().await) };
            println!("{}", serve(listener, &fabric, to, stop).await?);
            Ok(())
        }
        _ => Err("usage: proxy [URI URI]".into()),
    }
}

/// An echo server, the proxy and a client, in one process.
async fn demo() -> Result<()> {
    let fabric = Fabric::auto()?;
    let mut echo = fabric.listen("zc://127.0.0.1:0").await?;
    let to = echo.local_uri().to_string();
    let server = tokio::spawn(async move {
        let mut conn = echo.accept().await?;
        while let Some(message) = conn.recv().await? {
            conn.send(message).await?;
        }
        conn.drain(Duration::ZERO).await?; // the client has finished; what was echoed still arrives
        conn.closed().await; // by the client, through the proxy
        Result::Ok(())
    });
    let listener = fabric.listen("zc://127.0.0.1:0").await?;
    let at = listener.local_uri().to_string();
    println!("{at} -> {to}");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let proxy =
        tokio::spawn(async move { serve(listener, &fabric, &to, async { drop(stopped.await) }).await });

    let mut client = Fabric::auto()?.connect(&at).await?;
    let (tx, mut rx) = client.split();
    for size in [64, 4096, 1 << 20] {
        let mut buf = tx.alloc(size).await?;
        buf.resize(size, 7);
        tx.send(buf.freeze()).await?;
    }
    tx.finish().await?; // half-closed: the echoes come all the same
    while let Some(message) = rx.recv().await? {
        println!("client: {} bytes came back", message.len());
    }
    client.close(CloseCode::NORMAL, "").await;
    server.await??;
    let _ = stop.send(());
    println!("{}", proxy.await??);
    Ok(())
}

/// What a proxy has done.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Clients served to their end.
    pub(crate) clients: u64,
    /// Messages relayed, both directions.
    pub(crate) messages: u64,
    /// Payload bytes that this process copied on the way.
    pub(crate) copied_bytes: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} clients, {} messages, {} bytes copied", self.clients, self.messages, self.copied_bytes)
    }
}

/// Relays every client of `listener` to `to` until `stop`, then says goodbye to all.
///
/// # Errors
/// A relay panicked.
pub(crate) async fn serve(
    mut listener: Listener,
    fabric: &Fabric,
    to: &str,
    stop: impl Future<Output = ()>,
) -> Result<Totals> {
    let (stopping, stopped) = watch::channel(false);
    let mut relays = JoinSet::new();
    let mut totals = Totals::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            client = listener.accept(), if relays.len() < MAX_CLIENTS => {
                match client {
                    Ok(client) => drop(relays.spawn(one(client, fabric.clone(), to.to_owned(), stopped.clone()))),
                    // Too many open files, for instance: those there go on, and new ones wait.
                    Err(error) => {
                        eprintln!("{error}");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
            Some(relayed) = relays.join_next() => totals.add(relayed?),
        }
    }
    let _ = stopping.send(true);
    while let Some(relayed) = relays.join_next().await {
        totals.add(relayed?);
    }
    Ok(totals)
}

async fn one(
    client: Connection,
    fabric: Fabric,
    to: String,
    mut stop: watch::Receiver<bool>,
) -> Option<Relayed> {
    let name = client.peer().addr.to_string();
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    match fabric.connect(&to).await {
        Ok(server) => {
            let relayed = relay(client, server, stopped).await;
            println!("{name}: {relayed}");
            Some(relayed)
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            client.close(CloseCode::GOING_AWAY, &words(&error)).await;
            None
        }
    }
}

/// What was relayed between two connections.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Messages from the client to the server.
    pub(crate) to_server: u64,
    /// Messages from the server to the client.
    pub(crate) to_client: u64,
    /// The copies on the client's connection.
    pub(crate) client: LedgerSnapshot,
    /// The copies on the server's connection.
    pub(crate) server: LedgerSnapshot,
    /// The code that ended it.
    pub(crate) code: CloseCode,
}

/// Relays until one side ends; its code and reason go to the other.
pub(crate) async fn relay(
    mut client: Connection,
    mut server: Connection,
    stop: impl Future<Output = ()>,
) -> Relayed {
    let ((to_client, from_client), (to_server, from_server)) = (client.split(), server.split());
    let (mut up, mut down) = (0, 0);
    let (code, reason) = tokio::select! {
        end = one_way(from_client, &to_client, &to_server, &mut up) => end,
        end = one_way(from_server, &to_server, &to_client, &mut down) => end,
        () = stop => (CloseCode::GOING_AWAY, "the proxy stops".to_owned()),
    };
    let (of_client, of_server) = (client.ledger(), server.ledger());
    // On the side that ended this does nothing; what the other was sent goes out first.
    client.close(code, &reason).await;
    server.close(code, &reason).await;
    Relayed { to_server: up, to_client: down, client: of_client, server: of_server, code }
}

/// Relays one direction until its source has ended, which is more than having finished sending.
async fn one_way(mut from: Receiver, back: &Sender, to: &Sender, messages: &mut u64) -> (CloseCode, String) {
    loop {
        match from.recv().await {
            // Waits for room: meanwhile nothing is received, and the source's window closes.
            Ok(Some(message)) => match to.send(message).await {
                Ok(()) => *messages += 1,
                // It failed as a whole: its own direction tells why, after its last message.
                Err(_) if to.flush().await.is_err() => return pending().await,
                Err(refused) => return (CloseCode::GOING_AWAY, words(&refused.error)),
            },
            Ok(None) => {
                let _ = to.finish().await;
                return handed_on(back.closed().await);
            }
            Err(error) => return handed_on(error),
        }
    }
}

/// How one side's end is told to the other.
fn handed_on(error: ConnectionError) -> (CloseCode, String) {
    match error {
        ConnectionError::ClosedByPeer { code, reason } => (code, reason),
        other => (CloseCode::INTERNAL, words(&other)),
    }
}

fn words(error: &dyn Error) -> String {
    error.to_string().chars().take(MAX_WORDS).collect()
}

impl Totals {
    fn add(&mut self, relayed: Option<Relayed>) {
        if let Some(relayed) = relayed {
            self.clients += 1;
            self.messages += relayed.to_server + relayed.to_client;
            self.copied_bytes += relayed.client.copied_bytes() + relayed.server.copied_bytes();
        }
    }
}

impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages to the server, {} back, {}", self.to_server, self.to_client, self.code)?;
        for (side, ledger) in [("client", &self.client), ("server", &self.server)] {
            let LedgerSnapshot { moved_bytes, inline_bytes, .. } = ledger;
            let copied = ledger.copied_bytes();
            write!(
                f,
                "\n    {side}: {moved_bytes} bytes moved, {copied} copied by us, {inline_bytes} inline"
            )?;
        }
        Ok(())
    }
}
