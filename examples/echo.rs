//! Echo between two processes, over whatever transport `zc://` finds.
//!
//! ```text
//! cargo run --release --example echo                                  both sides, one table
//! cargo run --release --example echo -- server zc://127.0.0.1:7000    the sides alone
//! cargo run --release --example echo -- client zc://127.0.0.1:7000
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use zc::{Connection, Fabric};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SIZES: [usize; 6] = [64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 10 << 20];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => both(Duration::from_millis(700)).await,
        ["--quick"] => both(Duration::from_millis(50)).await,
        ["server", uri] => server(uri, false).await,
        ["server", uri, "--child"] => server(uri, true).await,
        ["client", uri] => client(uri, Duration::from_millis(700)).await,
        _ => Err("usage: echo [--quick] | echo server URI | echo client URI".into()),
    }
}

/// Starts the server as a second process, runs the client, and ends the server.
async fn both(each: Duration) -> Result<()> {
    let (mut server, uri) = spawn_server()?;
    let result = client(&uri, each).await;
    drop(server.stdin.take()); // its end is the server's signal to stop
    server.wait()?;
    result
}

fn spawn_server() -> Result<(Child, String)> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["server", "zc://127.0.0.1:0", "--child"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut uri = String::new();
    BufReader::new(server.stdout.take().ok_or("the server has no output")?).read_line(&mut uri)?;
    Ok((server, uri.trim().to_owned()))
}

/// Serves until Ctrl-C, or as a child until its parent goes away.
async fn server(uri: &str, child: bool) -> Result<()> {
    let fabric = Fabric::auto()?;
    let mut listener = fabric.listen(uri).await?;
    println!("{}", listener.local_uri());
    let (ended, end) = tokio::sync::oneshot::channel();
    if child {
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            let _ = ended.send(());
        });
    } else {
        tokio::spawn(async move {
            let _ = tokio::signal::ctrl_c().await;
            let _ = ended.send(());
        });
    }
    let mut clients = tokio::task::JoinSet::new();
    let (mut served, mut messages, mut end) = (0_u64, 0_u64, end);
    loop {
        tokio::select! {
            _ = &mut end => break,
            conn = listener.accept() => {
                served += 1;
                clients.spawn(echo(conn?)); // fails only once the listener is closed, never for a peer
            }
            Some(done) = clients.join_next() => messages += done?,
        }
    }
    while let Ok(Some(done)) = tokio::time::timeout(Duration::from_secs(1), clients.join_next()).await {
        messages += done?;
    }
    eprintln!("server: {served} clients, {messages} messages echoed");
    Ok(())
}

/// Sends every message back as it came: the received buffer itself, no copy.
async fn echo(mut conn: Connection) -> u64 {
    let (tx, mut rx) = conn.split();
    let mut messages = 0;
    while let Ok(Some(message)) = rx.recv().await {
        if tx.send(message).await.is_err() {
            break;
        }
        messages += 1;
    }
    messages
}

async fn client(uri: &str, each: Duration) -> Result<()> {
    let fabric = Fabric::auto()?;
    let mut conn = fabric.connect(uri).await?;
    println!("{}", conn.report());
    println!(
        "{:>9} {:>10} {:>10} {:>12} {:>8} {:>12}",
        "bytes", "p50 µs", "p99 µs", "messages/s", "GB/s", "copied/msg"
    );
    for size in SIZES {
        measure(&mut conn, size, each).await?;
    }
    conn.drain(Duration::from_secs(5)).await?;
    Ok(())
}

/// Round trips of one size, every byte verified.
async fn measure(conn: &mut Connection, size: usize, each: Duration) -> Result<()> {
    let mut rtt = Histogram::<u64>::new(3)?;
    let (started, mut round, mut spent) = (Instant::now(), 0_u64, Duration::ZERO);
    let mut ledger = conn.ledger();
    while started.elapsed() < each || round < 20 {
        let mut buf = conn.alloc(size).await?;
        buf.resize(size, (round % 251) as u8);
        let at = Instant::now();
        conn.send(buf.freeze()).await?;
        let back = conn.recv().await?.ok_or("the server finished early")?;
        let took = at.elapsed();
        if round == 4 {
            ledger = conn.ledger(); // the transport has seen the size: count from here
        }
        let intact = back.segments().iter().all(|part| part.iter().all(|&byte| byte == (round % 251) as u8));
        if back.len() != size || !intact {
            return Err(format!("echo {round} of {size} bytes came back damaged").into());
        }
        rtt.record(took.as_nanos() as u64)?;
        spent += took;
        round += 1;
    }
    let per_s = round as f64 / spent.as_secs_f64();
    let copied = conn.ledger().since(&ledger).copied_bytes() / (round - 5);
    let us = |q| rtt.value_at_quantile(q) as f64 / 1e3;
    let gb_per_s = per_s * 2.0 * size as f64 / 1e9;
    println!("{size:>9} {:>10.1} {:>10.1} {per_s:>12.0} {gb_per_s:>8.2} {copied:>12}", us(0.5), us(0.99));
    Ok(())
}
