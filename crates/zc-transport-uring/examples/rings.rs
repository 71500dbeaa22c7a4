//! What several rings are worth, on this machine: echoes per second in one runtime, by the number of rings.
//!
//! `cargo run --release -p zc-transport-uring --example rings`
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use zc_core::memory::BufPool;
use zc_transport_uring::{EngineOptions, Engines, Flavour};

const RUN: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;

fn main() -> io::Result<()> {
    let workers = std::thread::available_parallelism()?.get();
    println!("{workers} workers; thousand echoes per second, medians of {ROUNDS} runs");
    let contenders =
        [("one thread", 0, 1), ("1 ring", workers, 1), ("2 rings", workers, 2), ("4 rings", workers, 4)];
    for (connections, bytes) in [(1, 64), (16, 64), (64, 64), (16, 16 << 10)] {
        let mut rates = vec![Vec::new(); contenders.len()];
        // Interleaved, since the machine changes.
        for _ in 0..ROUNDS {
            for ((_, workers, rings), rates) in contenders.iter().zip(&mut rates) {
                rates.push(echo(*workers, *rings, connections, bytes)?);
            }
        }
        for ((name, ..), mut rates) in contenders.iter().zip(rates) {
            rates.sort_by(f64::total_cmp);
            println!("{connections:>3} x {bytes:>5} B  {name:<10} {:8.1}", rates[ROUNDS / 2] / 1e3);
        }
    }
    Ok(())
}

/// Echoes per second of a server with these rings; without workers its runtime is one of one thread.
fn echo(workers: usize, rings: usize, connections: usize, bytes: usize) -> io::Result<f64> {
    let (mut builder, flavour) = match workers {
        0 => (tokio::runtime::Builder::new_current_thread(), Flavour::OneThread),
        _ => (tokio::runtime::Builder::new_multi_thread(), Flavour::ManyThreads),
    };
    let runtime = builder.worker_threads(workers.max(1)).enable_all().build()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let client = TcpStream::connect(listener.local_addr()?)?;
            client.set_nodelay(true)?;
            let (stop, count) = (stop.clone(), count.clone());
            let thread = std::thread::spawn(move || ask(client, bytes, &stop, &count));
            let (server, _) = listener.accept()?;
            server.set_nodelay(true)?;
            Ok((server, thread))
        })
        .collect::<io::Result<_>>()?;
    runtime.block_on(async {
        let pool = BufPool::builder().build();
        let reactor = Arc::new(zc::TokioReactor::new());
        let engines =
            Engines::start(reactor, &pool, EngineOptions::new(flavour), rings).map_err(io::Error::other)?;
        let mut threads = Vec::new();
        for (server, thread) in clients {
            let (tx, mut rx) = engines.pick().socket(server.into())?;
            threads.push(thread);
            tokio::spawn(async move {
                while let Ok(piece) = rx.recv().await
                    && !piece.is_empty()
                    && tx.send(piece, true).await.is_ok()
                {}
            });
        }
        tokio::time::sleep(RUN / 4).await;
        let (start, before) = (Instant::now(), count.load(Relaxed));
        tokio::time::sleep(RUN).await;
        let rate = (count.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        for thread in threads {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        engines.shutdown().await;
        Ok(rate)
    })
}

fn ask(mut client: TcpStream, bytes: usize, stop: &AtomicBool, count: &AtomicU64) {
    let mut buf = vec![0; bytes];
    while !stop.load(Relaxed) && client.write_all(&buf).is_ok() && client.read_exact(&mut buf).is_ok() {
        count.fetch_add(1, Relaxed);
    }
}
