//! Half-open connections in turn: each fails alone, in time, and the server is afterwards what it was before.
//!
//! 100,000 of them, a million with `ZC_SOAK` (`cargo xtask test --soak`).

#![cfg(all(target_os = "linux", feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "test helpers")]

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use zc::{Connection, Deadlines, Fabric};

const SERVER: &str = "ZC_TEST_FLOOD_SERVER";
const ADDRESS: &str = "flood server at ";
/// A generous hang guard, for each hundred thousand: they take ten seconds.
const GUARD: Duration = Duration::from_secs(600);
/// For what needs no more than a moment.
const SETTLE: Duration = Duration::from_secs(60);
/// Half-open connections at a time.
const AT_A_TIME: usize = 200;
/// How long the server waits for a HELLO: long enough for the good ones on a machine that is busy.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// One in so many says nothing at all until the server's deadline.
const SILENT_EVERY: u64 = 200;
/// What the server may keep of the flood: its allocator's and its pool's reserve.
const RSS_GROWTH_MAX_KIB: u64 = 8 << 10;

fn flood_size() -> u64 {
    if std::env::var_os("ZC_SOAK").is_some() { 1_000_000 } else { 100_000 }
}

/// The server process; without the variable there is nothing to do. Ends with its standard input.
#[tokio::test]
async fn server_process() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let mut deadlines = Deadlines::default();
    (deadlines.hello, deadlines.offers, deadlines.join) = (HELLO_DEADLINE, SETTLE, SETTLE);
    let fabric = Fabric::auto_builder().deadlines(deadlines).build().unwrap();
    let mut listener = fabric.listen("zc+tcp://127.0.0.1:0").await.unwrap();
    println!("{ADDRESS}{}", listener.local_uri());
    let (ended, mut end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = ended.send(());
    });
    let failed = Arc::new(AtomicU64::new(0));
    loop {
        tokio::select! {
            conn = listener.accept() => drop(tokio::spawn(echo(conn.unwrap(), failed.clone()))),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            _ = &mut end => return,
        }
        failed.store(listener.failed_handshakes(), Ordering::Relaxed);
    }
}

/// Echoes; `failed?` is answered with the number of failed handshakes.
async fn echo(mut conn: Connection, failed: Arc<AtomicU64>) {
    while let Ok(Some(message)) = conn.recv().await {
        let sent = match message == b"failed?"[..] {
            true => conn.send(failed.load(Ordering::Relaxed).to_string().into_bytes()).await,
            false => conn.send(message).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Killed however the test ends.
struct Server {
    child: Child,
    uri: String,
    address: SocketAddr,
}

impl Server {
    fn spawn() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .env(SERVER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Left open: the test harness over there writes more when it takes long, and dies of a closed pipe.
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
        let uri = lines.filter_map(|line| line.split_once(ADDRESS).map(|(_, uri)| uri.to_owned())).next();
        let uri = uri.expect("the server did not start");
        let address = uri.strip_prefix("zc+tcp://").unwrap().parse().unwrap();
        Self { child, uri, address }
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a good client says first.
async fn good_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("zc+tcp://{}", listener.local_addr().unwrap());
    let client = tokio::spawn(async move { Fabric::auto().unwrap().connect(&uri).await.map(drop) });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut hello = vec![0; 12];
    stream.read_exact(&mut hello).await.unwrap();
    let (_, len) = hello.split_last_chunk::<4>().unwrap();
    let mut body = vec![0; u32::from_le_bytes(*len) as usize];
    stream.read_exact(&mut body).await.unwrap();
    hello.append(&mut body);
    drop(stream);
    client.await.unwrap().expect_err("nobody answered");
    hello
}

/// A peer that never becomes one. The `n`th: in which way, and from which address of 127/8.
async fn half_open(n: u64, to: SocketAddr, hello: &[u8]) {
    let socket = TcpSocket::new_v4().unwrap();
    // Closing resets: no TIME_WAIT, and the server finds a broken connection, not an ended one.
    socket.set_zero_linger().unwrap();
    let from = Ipv4Addr::new(127, 1 + (n % 50) as u8, (n / 50 % 200) as u8, 1);
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let (front, _) = hello.split_at(hello.len() / 2);
    let (fixed, _) = hello.split_at(8);
    let too_long: Vec<u8> = fixed.iter().copied().chain(u32::MAX.to_le_bytes()).collect();
    match n {
        n if n % SILENT_EVERY == 0 => until_end(&mut stream).await,
        n => match n % 8 {
            0 => {}
            1 => say(&mut stream, front).await,
            2 => {
                say(&mut stream, front).await;
                let _ = stream.shutdown().await;
                until_end(&mut stream).await;
            }
            3 => {
                say(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
                until_end(&mut stream).await;
            }
            4 => {
                say(&mut stream, &too_long).await;
                until_end(&mut stream).await;
            }
            5 => say(&mut stream, hello).await,
            6 => {
                say(&mut stream, hello).await;
                say(&mut stream, &[0xff; 64]).await;
                until_end(&mut stream).await;
            }
            _ => say(&mut stream, &n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).await,
        },
    }
}

/// The server may hang up before it has read everything.
async fn say(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes).await;
}

/// The server's answer, if any, and then its end.
async fn until_end(stream: &mut TcpStream) {
    let mut sink = [0; 4096];
    let ended = async { while let Ok(1..) = stream.read(&mut sink).await {} };
    tokio::time::timeout(SETTLE, ended).await.expect("the server neither answers nor hangs up");
}

async fn round_trip(conn: &mut Connection, n: u64) {
    conn.send(Vec::from(n.to_le_bytes())).await.unwrap();
    assert_eq!(conn.recv().await.unwrap().unwrap(), n.to_le_bytes()[..]);
}

/// The server's count of failed handshakes, once it is as expected or after a long time.
async fn counted(conn: &mut Connection, expected: u64) -> u64 {
    let started = Instant::now();
    loop {
        conn.send(&b"failed?"[..]).await.unwrap();
        let answer = conn.recv().await.unwrap().unwrap();
        let text: String =
            answer.segments().iter().flat_map(|part| part.iter()).map(|&b| b as char).collect();
        let failed = text.parse().unwrap();
        if failed >= expected || started.elapsed() > SETTLE {
            return failed;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until `done`, which must come by itself.
async fn settled(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SETTLE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Uses one connection all the time and opens new ones; how many round trips and connections that made.
async fn work(uri: String, stop: Arc<AtomicBool>) -> (u64, u64) {
    let fabric = Fabric::auto().unwrap();
    let mut old = fabric.connect(&uri).await.unwrap();
    let (mut round_trips, mut connections) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            round_trip(&mut old, round_trips).await;
            round_trips += 1;
        }
        let mut new = fabric.connect(&uri).await.unwrap();
        round_trip(&mut new, connections).await;
        connections += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (round_trips, connections)
}

async fn flood() {
    let total = flood_size();
    let mut server = Server::spawn();
    let hello: Arc<[u8]> = good_hello().await.into();
    let mut asks = Fabric::auto().unwrap().connect(&server.uri).await.unwrap();
    // A first small flood, so that what the allocator and the pool keep is there before.
    let first = 20 * AT_A_TIME as u64;
    batch(0..first, server.address, &hello).await;
    assert_eq!(counted(&mut asks, first).await, first, "failed handshakes");
    let (descriptors, rss_kib) = (server.descriptors(), server.rss_kib());

    let stop = Arc::new(AtomicBool::new(false));
    let worker = tokio::spawn(work(server.uri.clone(), stop.clone()));
    let start = Instant::now();
    batch(first..total, server.address, &hello).await;
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (round_trips, connections) = worker.await.expect("a good connection failed");
    assert!(round_trips > 0 && connections > 0);

    // Each ended in an error that its listener counted, within its deadline.
    assert_eq!(counted(&mut asks, total).await, total, "failed handshakes");
    settled("descriptors are left", || server.descriptors() <= descriptors).await;
    let (now, grown) = (server.descriptors(), server.rss_kib().saturating_sub(rss_kib));
    println!(
        "{total} half-open connections, {:.0}/s; beside them {round_trips} round trips and {connections} connections; \
         descriptors {descriptors} -> {now}, memory {rss_kib} KiB + {grown} KiB",
        total as f64 / took.as_secs_f64()
    );
    assert!(grown <= RSS_GROWTH_MAX_KIB, "the server grew by {grown} KiB");
    assert!(server.runs(), "the server is gone");
    round_trip(&mut asks, 1).await;
}

/// These half-open connections, so many at a time.
async fn batch(range: std::ops::Range<u64>, to: SocketAddr, hello: &Arc<[u8]>) {
    let next = Arc::new(AtomicU64::new(range.start));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (next, end, hello) = (next.clone(), range.end, hello.clone());
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= end {
                    return;
                }
                half_open(n, to, &hello).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_in_turn_leave_nothing_behind() {
    let guard = GUARD * (flood_size() / 100_000) as u32;
    tokio::time::timeout(guard, flood()).await.expect("it hangs");
}
