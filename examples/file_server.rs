//! Serves the files of a directory to many clients, over whatever transport the URI finds.
//!
//! ```text
//! cargo run --release --example file_server                                     both sides: checked, then measured
//! cargo run --release --example file_server -- serve DIR zc://127.0.0.1:7000    the sides alone
//! cargo run --release --example file_server -- get zc://127.0.0.1:7000 NAME [--to FILE] [--resume] [--range A-B]
//! cargo run --release --example file_server -- bench [--how splice|read|direct] [--uri URI] [--mib N] [--quick]
//! ```
//!
//! A request is one message, `GET HOW START END NAME` with `-` for "to its end". The answer is `OK TOTAL START LEN` and
//! the bytes as messages, or `NO` and why. A file that becomes shorter while it is sent ends the connection with the
//! reason: the client has whole messages and asks for the rest by range.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use zc::{CloseCode, Connection, Fabric, FileFault, FileWay, Message, SendFileOptions, Sender};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long clients may take to get the rest of what they asked for when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How long a client may ask for nothing.
const IDLE: Duration = Duration::from_secs(60);
/// The longest request.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// Most requests that are open at a time, each with a file.
const MAX_CLIENTS: usize = 1024;
/// What the loop that is measured beside `send_file` reads at once: about the size that is fastest.
const LOOP_BYTES: usize = 128 << 10;

const USAGE: &str = "usage: file_server [--quick]\n       \
    file_server serve DIR URI\n       \
    file_server get URI NAME [--to FILE] [--resume] [--range A-B]\n       \
    file_server bench [--how splice|read|direct]... [--uri URI] [--mib N] [--quick]";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => both(false).await,
        ["--quick"] => both(true).await,
        ["serve", dir, uri] => serve(Path::new(dir), uri, false).await,
        ["serve", dir, uri, "--child"] => serve(Path::new(dir), uri, true).await,
        ["get", uri, name, ref rest @ ..] => get(uri, name, &GetOptions::parse(rest)?).await,
        ["bench", ref rest @ ..] => bench(&BenchOptions::parse(rest)?).await,
        _ => Err(USAGE.into()),
    }
}

// ---------------------------------------------------------------------------------------------- the server

/// Serves until Ctrl-C, or as a child until its parent goes away.
async fn serve(dir: &Path, uri: &str, child: bool) -> Result<()> {
    let dir: Arc<OwnedFd> = Arc::new(File::open(dir)?.into());
    let fabric = Fabric::auto()?;
    let mut listener = fabric.listen(uri).await?;
    println!("{}", listener.local_uri());
    if child {
        println!("{}", serve_by_loop(dir.clone())?);
    }
    let (stop, stopping) = watch::channel(false);
    let mut end = Box::pin(stopped(child));
    let mut clients = JoinSet::new();
    let (mut served, mut bytes) = (0_u64, 0_u64);
    loop {
        tokio::select! {
            () = &mut end => break,
            conn = listener.accept(), if clients.len() < MAX_CLIENTS => {
                served += 1;
                clients.spawn(serve_client(conn?, dir.clone(), stopping.clone()));
            }
            Some(done) = clients.join_next() => bytes += done?,
        }
    }
    drop(listener);
    stop.send(true)?; // what was asked for is finished, nothing new begins
    let end = tokio::time::Instant::now() + GRACE;
    while let Ok(Some(done)) = tokio::time::timeout_at(end, clients.join_next()).await {
        bytes += done?;
    }
    eprintln!("server: {served} clients, {bytes} bytes");
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

/// Answers one client's requests, one after the other; how many bytes of files it got.
async fn serve_client(mut conn: Connection, dir: Arc<OwnedFd>, mut stopping: watch::Receiver<bool>) -> u64 {
    let mut sent = 0;
    let sender = conn.sender();
    loop {
        let request = tokio::select! {
            request = conn.recv() => Ok(request),
            _ = stopping.wait_for(|stop| *stop) => Err("the server stops"),
            () = tokio::time::sleep(IDLE) => Err("nothing was asked for"),
        };
        let request = match request {
            Ok(Ok(Some(request))) => request,
            Ok(_) => return sent,
            Err(why) => {
                let _ = conn.go_away(why);
                let _ = conn.drain(Duration::ZERO).await;
                return sent;
            }
        };
        match answer(&sender, &request, &dir).await {
            Ok(bytes) => sent += bytes,
            // The client learns from the reason that it has less than it was promised.
            Err(error) => {
                eprintln!("server: {error}");
                conn.close(CloseCode::INTERNAL, &error.to_string()).await;
                return sent;
            }
        }
    }
}

/// One request. Errors are those after which the client can't tell bytes from answers.
async fn answer(sender: &Sender, request: &Message, dir: &Arc<OwnedFd>) -> Result<u64> {
    let text = text_of(request, MAX_REQUEST_BYTES);
    if text.as_deref() == Some("CPU") {
        sender.send(format!("CPU {}", cpu_ns()).into_bytes()).await?;
        return Ok(0);
    }
    let opened = match text.as_deref().map(Request::from_str) {
        Some(Ok(request)) => {
            let (dir, way) = (dir.clone(), request.way);
            spawn_blocking(move || request.open(&dir)).await?.map(|opened| (opened, way))
        }
        _ => Err("not a request".into()),
    };
    let ((file, total, range), way) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            sender.send(format!("NO {why}").into_bytes()).await?;
            return Ok(0);
        }
    };
    let len = range.end - range.start;
    sender.feed(format!("OK {total} {} {len}", range.start).into_bytes()).await?;
    let mut options = SendFileOptions::default();
    options.way = way;
    match sender.send_file(file, range, options).await {
        Ok(sent) => Ok(sent.bytes),
        Err(error) if matches!(error.fault, FileFault::Connection(_)) => Ok(error.sent()), // it went away
        Err(error) => Err(error.into()),
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    way: FileWay,
    start: u64,
    end: Option<u64>,
    name: String,
}

impl FromStr for Request {
    type Err = Box<dyn Error + Send + Sync>;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.splitn(5, ' ').collect();
        let ["GET", how, start, end, name] = parts[..] else { return Err("not a request".into()) };
        let end = if end == "-" { None } else { Some(end.parse()?) };
        Ok(Self { way: way(how)?, start: start.parse()?, end, name: name.to_owned() })
    }
}

fn way(how: &str) -> Result<FileWay> {
    match how {
        "splice" => Ok(FileWay::Auto),
        "read" => Ok(FileWay::Read),
        "direct" => Ok(FileWay::Direct),
        other => Err(format!("{other} is no way to send a file").into()),
    }
}

impl Request {
    /// The file, its length, and the range that it has. May wait for the disk.
    fn open(&self, dir: &OwnedFd) -> Result<(File, u64, Range<u64>)> {
        let file = open_below(dir, &self.name).map_err(|error| format!("{}: {error}", self.name))?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(format!("{}: not a file", self.name).into());
        }
        let end = self.end.unwrap_or(about.len());
        if self.start > end || end > about.len() {
            return Err(format!("{}: it has {} bytes", self.name, about.len()).into());
        }
        Ok((file, about.len(), self.start..end))
    }
}

/// The kernel sees to it that nothing outside of the directory is opened: no `..`, no absolute path, no link that leads
/// out, whatever others rename meanwhile. A FIFO does not hold us up.
fn open_below(dir: &OwnedFd, name: &str) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?.into())
}

fn text_of(message: &Message, most: usize) -> Option<String> {
    if message.len() > most {
        return None;
    }
    String::from_utf8(message.segments().iter().flat_map(|part| part.iter().copied()).collect()).ok()
}

/// What this process has used, all threads together.
fn cpu_ns() -> u128 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos()
}

/// The same files by what one would write without this library: `read` and `write` on a thread for each socket. Its port.
fn serve_by_loop(dir: Arc<OwnedFd>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let dir = dir.clone();
            std::thread::spawn(move || loop_client(socket, &dir).err());
        }
    });
    Ok(port)
}

fn loop_client(mut socket: TcpStream, dir: &OwnedFd) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut buf = vec![0; LOOP_BYTES];
    for name in BufReader::new(socket.try_clone()?).lines() {
        let (file, mut at) = (open_below(dir, &name?)?, 0);
        loop {
            let n = file.read_at(&mut buf, at)?;
            if n == 0 {
                break;
            }
            socket.write_all(&buf[..n])?;
            at += n as u64;
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------- the client

#[derive(Default)]
struct GetOptions {
    to: Option<PathBuf>,
    resume: bool,
    range: Option<(u64, Option<u64>)>,
}

impl GetOptions {
    fn parse(args: &[&str]) -> Result<Self> {
        let (mut options, mut args) = (Self::default(), args.iter());
        while let Some(arg) = args.next() {
            match *arg {
                "--resume" => options.resume = true,
                "--to" => options.to = Some(args.next().ok_or(USAGE)?.into()),
                "--range" => {
                    let (start, end) = args.next().and_then(|range| range.split_once('-')).ok_or(USAGE)?;
                    let end = if end.is_empty() { None } else { Some(end.parse()?) };
                    options.range = Some((start.parse()?, end));
                }
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// Fetches a file, or the rest of one.
async fn get(uri: &str, name: &str, options: &GetOptions) -> Result<()> {
    let mut conn = Fabric::auto()?.connect(uri).await?;
    eprintln!("{}", conn.report());
    let last = Path::new(name).file_name().ok_or("a name is needed")?;
    let path = options.to.clone().unwrap_or_else(|| last.into());
    let (from, end) = options.range.unwrap_or_default();
    let mut file = OpenOptions::new().create(true).write(true).truncate(!options.resume).open(&path)?;
    let have = file.seek(SeekFrom::End(0))?;
    let request = Request { way: FileWay::Auto, start: from + have, end, name: name.to_owned() };
    let mut progress = Progress::new(have);
    // Writing blocks this thread, which has nothing else to do.
    let got = fetch(&mut conn, &request, |bytes| {
        progress.add(bytes.len());
        Ok(file.write_all(bytes)?)
    })
    .await;
    progress.end();
    let len = got.map_err(|error| format!("{error}; go on with --resume"))?;
    println!("{}: {len} bytes, {} there before", path.display(), have);
    Ok(())
}

/// Asks for a range and hands its bytes on as they come; how many.
async fn fetch(
    conn: &mut Connection,
    request: &Request,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let how = match request.way {
        FileWay::Auto => "splice",
        FileWay::Read => "read",
        _ => "direct",
    };
    let end = request.end.map_or_else(|| "-".to_owned(), |end| end.to_string());
    conn.send(format!("GET {how} {} {end} {}", request.start, request.name).into_bytes()).await?;
    let head = conn.recv().await?.ok_or("the server has ended")?;
    let head = text_of(&head, MAX_REQUEST_BYTES).ok_or("not an answer")?;
    let parts: Vec<_> = head.split(' ').collect();
    let ["OK", _total, start, len] = parts[..] else { return Err(head.into()) };
    let len: u64 = len.parse()?;
    if start.parse() != Ok(request.start) {
        return Err("another range than was asked for".into());
    }
    let mut left = len;
    while left > 0 {
        let message = conn.recv().await?.ok_or("the server has ended")?;
        left = left.checked_sub(message.len() as u64).ok_or("more bytes than were promised")?;
        for part in message.segments() {
            take(part)?;
        }
    }
    Ok(len)
}

/// One line that is written again and again, if somebody looks.
struct Progress {
    bytes: u64,
    began: Instant,
    told: Instant,
    before: u64,
}

impl Progress {
    fn new(before: u64) -> Self {
        let now = Instant::now();
        Self { bytes: 0, began: now, told: now, before }
    }
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.told.elapsed() > Duration::from_millis(200) && std::io::stderr().is_terminal() {
            self.told = Instant::now();
            self.tell();
        }
    }
    fn tell(&self) {
        let mb_per_s = self.bytes as f64 / 1e6 / self.began.elapsed().as_secs_f64();
        eprint!("\r{:>10.1} MB, {mb_per_s:>8.1} MB/s", (self.before + self.bytes) as f64 / 1e6);
    }
    fn end(&self) {
        if std::io::stderr().is_terminal() {
            self.tell();
            eprintln!();
        }
    }
}

// ---------------------------------------------------------------------------------------------- both sides

/// A server in a process of its own; it ends when this is dropped.
struct Server {
    child: Child,
    uri: String,
    /// Of the loop that is measured beside it.
    port: u16,
}

impl Server {
    fn start(dir: &Path, uri: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(dir)
            .args([uri, "--child"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("the server has no output")?).lines();
        let mut line = || -> Result<String> { Ok(lines.next().ok_or("the server has ended")??) };
        let uri = line()?;
        Ok(Self { child, uri, port: line()?.parse()? })
    }

    /// Ends it in order.
    fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        if self.child.wait()?.success() { Ok(()) } else { Err("the server has failed".into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // its end is the server's signal to stop
        let _ = self.child.wait();
    }
}

/// Checks it, and then measures it.
async fn both(quick: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    check(dir.path(), if quick { 3 << 20 } else { 40 << 20 }).await?;
    let args: &[&str] = if quick { &["--quick"] } else { &[] };
    bench(&BenchOptions::parse(args)?).await
}

/// A check of bytes in order, which needs no more time than it takes to read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checksum {
    sum: u64,
    len: u64,
}

impl Checksum {
    fn new() -> Self {
        Self { sum: 0xcbf2_9ce4_8422_2325, len: 0 }
    }
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.len += bytes.len() as u64;
    }
}

/// Content that differs everywhere.
fn make(path: &Path, len: usize) -> Result<Checksum> {
    let (mut file, mut sum, mut at) = (File::create(path)?, Checksum::new(), 0);
    while at < len {
        let part: Vec<u8> =
            (at..len.min(at + (1 << 20))).map(|at| ((at * 31) ^ (at >> 9) ^ (at >> 17)) as u8).collect();
        sum.add(&part);
        file.write_all(&part)?;
        at += part.len();
    }
    Ok(sum)
}

/// Many clients at once, each byte checked; one that loses its connection and resumes; requests that must be refused.
async fn check(dir: &Path, len: usize) -> Result<()> {
    let (public, outside) = (dir.join("public"), dir.join("secret"));
    std::fs::create_dir(&public)?;
    std::fs::write(&outside, "nobody's business")?;
    std::os::unix::fs::symlink(&outside, public.join("link"))?;
    std::fs::create_dir(public.join("deep"))?;
    let sum = make(&public.join("deep/film"), len)?;
    make(&public.join("empty"), 0)?;
    let server = Server::start(&public, "zc+tcp://127.0.0.1:0")?;
    let fabric = Fabric::auto()?;

    let mut clients = JoinSet::new();
    for n in 0..8 {
        let (fabric, uri) = (fabric.clone(), server.uri.clone());
        clients.spawn(async move {
            let way = [FileWay::Auto, FileWay::Read][n % 2];
            // Loses its connection so many times on the way.
            let (mut got, mut losses) = (Checksum::new(), n % 4);
            loop {
                let mut conn = fabric.connect(&uri).await?;
                let request = Request { way, start: got.len, end: None, name: "deep/film".into() };
                let until = if losses > 0 { got.len + len as u64 / 5 } else { u64::MAX };
                let done = fetch(&mut conn, &request, |bytes| {
                    got.add(bytes);
                    if got.len > until { Err("lost on purpose".into()) } else { Ok(()) }
                });
                match done.await {
                    Ok(_) => return Ok::<Checksum, Box<dyn Error + Send + Sync>>(got),
                    Err(_) if losses > 0 => losses -= 1,
                    Err(error) => return Err(error),
                }
            }
        });
    }
    while let Some(got) = clients.join_next().await {
        if got?? != sum {
            return Err("a file arrived damaged".into());
        }
    }

    let mut conn = fabric.connect(&server.uri).await?;
    // Nothing is left to be sent: only the answer comes.
    for (name, start) in [("empty", 0), ("deep/film", len as u64)] {
        let request = Request { way: FileWay::Auto, start, end: None, name: name.into() };
        if fetch(&mut conn, &request, |_| Ok(())).await? != 0 {
            return Err(format!("{name} has more bytes than it had").into());
        }
    }
    let outside = outside.display().to_string();
    for name in ["../secret", "deep/../../secret", "link", "/etc/passwd", &outside, "deep", "none", ""] {
        let request = Request { way: FileWay::Auto, start: 0, end: None, name: name.into() };
        match fetch(&mut conn, &request, |_| Ok(())).await {
            Err(error) if error.to_string().starts_with("NO ") => {}
            other => return Err(format!("{name:?} must be refused: {other:?}").into()),
        }
    }
    for (start, end) in [(0, Some(len as u64 + 1)), (7, Some(5)), (len as u64 + 1, None)] {
        let request = Request { way: FileWay::Auto, start, end, name: "deep/film".into() };
        if fetch(&mut conn, &request, |_| Ok(())).await.is_ok() {
            return Err("a range outside of the file must be refused".into());
        }
    }
    drop(conn);
    server.stop()?;
    println!("checked: 8 clients, 12 resumed ranges, {len} bytes each; 11 requests refused");
    Ok(())
}

// ---------------------------------------------------------------------------------------------- what it costs

struct BenchOptions {
    ways: Vec<(String, FileWay)>,
    uri: String,
    mib: u64,
    rounds: usize,
}

impl BenchOptions {
    fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self { ways: Vec::new(), uri: "zc+tcp://127.0.0.1:0".into(), mib: 512, rounds: 7 };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--quick" => (options.mib, options.rounds) = (32, 3),
                "--how" => {
                    let how = args.next().ok_or(USAGE)?;
                    options.ways.push((format!("send_file {how}"), way(how)?));
                }
                "--uri" => options.uri = (*args.next().ok_or(USAGE)?).to_owned(),
                "--mib" => options.mib = args.next().ok_or(USAGE)?.parse()?,
                _ => return Err(USAGE.into()),
            }
        }
        if options.ways.is_empty() {
            options.ways =
                vec![("send_file splice".into(), FileWay::Auto), ("send_file read".into(), FileWay::Read)];
        }
        Ok(options)
    }
}

/// The server's CPU time for each GB, in turns with a loop that reads and writes the same file to a socket.
async fn bench(options: &BenchOptions) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = File::create(dir.path().join("film"))?;
    for at in 0..options.mib {
        file.write_all_at(&vec![at as u8; 1 << 20], at << 20)?;
    }
    let (server, fabric) = (Server::start(dir.path(), &options.uri)?, Fabric::auto()?);
    let mut conn = fabric.connect(&server.uri).await?;
    println!("{}", conn.report()); // shared memory has no pipes: there `splice` reads, too
    let bytes = options.mib << 20;
    let mut socket = TcpStream::connect(("127.0.0.1", server.port))?;
    // One more in front: CPU and seconds for each GB, of the loop and of each way.
    let mut costs = vec![Vec::new(); 1 + options.ways.len()];
    for round in 0..=options.rounds {
        for (n, costs) in costs.iter_mut().enumerate() {
            let (began, cpu) = (Instant::now(), server_cpu(&mut conn).await?);
            if n == 0 {
                socket = spawn_blocking(move || read_all(socket, bytes)).await??;
            } else {
                let way = options.ways[n - 1].1;
                let request = Request { way, start: 0, end: None, name: "film".into() };
                fetch(&mut conn, &request, |_| Ok(())).await?;
            }
            let (took, cpu) = (began.elapsed(), server_cpu(&mut conn).await? - cpu);
            if round > 0 {
                costs.push((cpu.as_secs_f64() * 1e9 / bytes as f64, took.as_secs_f64() * 1e9 / bytes as f64));
            }
        }
    }
    let median = |n: usize, of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = costs[n].iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "{} MiB from the page cache, medians of {} rounds in turns, {}",
        options.mib, options.rounds, server.uri
    );
    println!("{:<20} {:>14} {:>8} {:>10}", "", "server CPU s/GB", "ratio", "GB/s");
    let names = std::iter::once("read and write loop").chain(options.ways.iter().map(|way| way.0.as_str()));
    for (n, name) in names.enumerate() {
        let (cpu, s) = (median(n, |cost| cost.0), median(n, |cost| cost.1));
        println!("{name:<20} {cpu:>15.3} {:>8.2} {:>10.2}", cpu / median(0, |cost| cost.0), 1.0 / s);
    }
    drop(conn);
    server.stop()
}

async fn server_cpu(conn: &mut Connection) -> Result<Duration> {
    conn.send(&b"CPU"[..]).await?;
    let answer = conn.recv().await?.ok_or("the server has ended")?;
    let text = text_of(&answer, MAX_REQUEST_BYTES).ok_or("not an answer")?;
    Ok(Duration::from_nanos(text.strip_prefix("CPU ").ok_or("not an answer")?.parse()?))
}

fn read_all(mut socket: TcpStream, bytes: u64) -> Result<TcpStream> {
    socket.write_all(b"film\n")?;
    let (mut buf, mut left) = (vec![0; 512 << 10], bytes);
    while left > 0 {
        match socket.read(&mut buf)? {
            0 => return Err("the loop has ended".into()),
            n => left -= n as u64,
        }
    }
    Ok(socket)
}
