//! A key-value store in the manner of FaRM: the server lends its table, and clients look keys up in it by one-sided reads.
//!
//! ```text
//! cargo run --release --example kv                                     both sides: checked, then measured
//! cargo run --release --example kv -- server zc://127.0.0.1:7000 [--slots N] [--room BYTES]
//! cargo run --release --example kv -- put zc://127.0.0.1:7000 KEY VALUE    also: get, delete
//! cargo run --release --example kv -- bench zc://127.0.0.1:7000 [--seconds S] [--clients N] [--get-ratio 0..1] [--keys N]
//!                                                                   [--value-bytes N] [--by-messages]
//! ```
//!
//! ```text
//! lookup    one read of all slots that the key may be in                                 server's processor: no part
//! change    compare-and-swap takes the slot's lock, then write, publish, unlock          no part
//! placing   of a key that is not there, and deleting: a message                          does it
//! ```
//!
//! That is so where the lane does one-sided operations natively (shared memory, RDMA), but for the first one with a key, which
//! asks for the memory; elsewhere the server's session layer does them, and the same program runs. `layout` says how a reader knows what it may believe, `leases` what becomes of the locks
//! of clients that die, and what memory a client can cost the server.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

pub(crate) mod bench;
pub(crate) mod client;
pub(crate) mod error;
pub(crate) mod layout;
pub(crate) mod leases;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod wire;

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use zc::Fabric;

use self::bench::Options;
use self::client::Client;
use self::server::Server;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: kv [--quick]\n       \
    kv server URI [--slots N] [--room BYTES]\n       \
    kv get URI KEY | kv put URI KEY VALUE | kv delete URI KEY\n       \
    kv bench URI [--seconds S] [--clients N] [--get-ratio 0..1] [--keys N] [--value-bytes N] [--by-messages]";

const SLOTS: u64 = 16 << 10;
/// Two copies of a pair of this size and their heads are four cache lines.
const ROOM: u32 = 96;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => both(false).await,
        ["--quick"] => both(true).await,
        ["server", uri, ref rest @ ..] => serve(uri, rest).await,
        ["bench", uri, ref rest @ ..] => bench::run(uri, &Options::parse(rest)?).await.map(drop),
        ["get", uri, key] => {
            let value = connected(uri).await?.get(key.as_bytes()).await?.ok_or("there is no such key")?;
            println!("{}", String::from_utf8_lossy(&value));
            Ok(())
        }
        ["put", uri, key, value] => Ok(connected(uri).await?.put(key.as_bytes(), value.as_bytes()).await?),
        ["delete", uri, key] => match connected(uri).await?.delete(key.as_bytes()).await? {
            true => Ok(()),
            false => Err("there is no such key".into()),
        },
        _ => Err(USAGE.into()),
    }
}

async fn connected(uri: &str) -> Result<Client> {
    Ok(Client::connect(&Fabric::auto()?, uri).await?)
}

/// Serves until Ctrl-C, or as a child until its parent goes away.
async fn serve(uri: &str, options: &[&str]) -> Result<()> {
    let (mut slots, mut room, mut child) = (SLOTS, ROOM, false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--slots" => slots = options.next().ok_or(USAGE)?.parse()?,
            "--room" => room = options.next().ok_or(USAGE)?.parse()?,
            "--child" => child = true,
            _ => return Err(USAGE.into()),
        }
    }
    let fabric = Fabric::auto()?;
    let server = Arc::new(Server::new(&fabric, slots, room)?);
    let listener = fabric.listen(uri).await?;
    println!("{}", listener.local_uri());
    let (served, messages) = server.serve(listener, stopped(child)).await?;
    eprintln!("server: {served} clients, {messages} messages handled");
    Ok(())
}

async fn stopped(child: bool) {
    if child {
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            let _ = ended.send(());
        });
        let _ = end.await;
    } else {
        let _ = tokio::signal::ctrl_c().await;
    }
}

// ---------------------------------------------------------------------------------------------- both sides

/// A server in a process of its own for each URI, the same checks and measurements over both.
async fn both(quick: bool) -> Result<()> {
    for uri in ["zc://127.0.0.1:0", "zc+tcp://127.0.0.1:0"] {
        let (mut server, uri) = spawn_server(uri)?;
        check(&uri).await?;
        for by_messages in [false, true] {
            let mut options = Options { by_messages, ..Options::default() };
            if quick {
                (options.seconds, options.keys) = (0.2, 256);
            }
            let done = bench::run(&uri, &options).await?;
            if done.is_native && !by_messages && done.operations_of_server > 0 {
                return Err("the server had to do one-sided operations that the lane can do".into());
            }
            println!();
        }
        drop(server.stdin.take()); // its end is the server's signal to stop
        if !server.wait()?.success() {
            return Err("the server has failed".into());
        }
    }
    Ok(())
}

fn spawn_server(uri: &str) -> Result<(Child, String)> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["server", uri, "--child"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut uri = String::new();
    BufReader::new(server.stdout.take().ok_or("the server has no output")?).read_line(&mut uri)?;
    Ok((server, uri.trim().to_owned()))
}

/// Puts, gets, deletes, and counts with several clients.
async fn check(uri: &str) -> Result<()> {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 250;
    let mut one = connected(uri).await?;
    one.put(b"fruit", b"apple").await?;
    one.put(b"fruit", b"pear").await?;
    let found = one.get(b"fruit").await?;
    let was_there = one.delete(b"fruit").await?;
    if (found.as_deref(), was_there, one.get(b"fruit").await?) != (Some(&b"pear"[..]), true, None) {
        return Err("what was put and deleted is not found so".into());
    }
    one.put(b"count", &0_u64.to_le_bytes()).await?;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = connected(uri).await?;
        clients.spawn(async move {
            for _ in 0..EACH {
                let add = |old: &[u8]| Some(Vec::from((number(old) + 1).to_le_bytes()));
                client.update(b"count", add).await?.ok_or("the counter is gone")?;
            }
            Ok::<(), Box<dyn Error + Send + Sync>>(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let count = one.get(b"count").await?.map(|count| number(&count));
    if count != Some(CLIENTS * EACH) {
        return Err(format!("{CLIENTS} clients counted to {count:?}").into());
    }
    println!("checked: {CLIENTS} clients counted to {} together", CLIENTS * EACH);
    Ok(())
}

fn number(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
