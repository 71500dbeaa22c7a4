//! What an idle connection costs: 10,000 of them between two processes; memory, descriptors and CPU of each side.
//!
//! ```text
//! cargo bench --bench idle                                     10,000 connections over TCP, 10 s of idling
//! cargo bench --bench idle -- 2000 zc+unix://@idle 30          so many, over this, for so many seconds
//! cargo bench --bench idle -- 1000 zc+shm://idle-$$ 10 262144  and at most so many bytes each
//! ```
//!
//! Heap bytes are counted by the allocator, so that they are exact; RSS and PSS say what the process really has. RSS
//! counts all pages of the memory files that a side maps, its own and the peer's; PSS gives half of them to either, so that
//! both together are what a connection takes of the machine. "shared" is the part of PSS that is such pages.
//!
//! It fails if a connection takes more than it may, of one side or, where they share memory, of both together, or if doing
//! nothing takes more than two hundredths of a core.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zc::{Connection, Fabric};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CONNECTIONS: usize = 10_000;
const IDLE: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const AT_A_TIME: usize = 64;
/// Descriptors that a process needs besides its connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// What the project wants to stay below, bytes per connection and side.
const STREAM_BYTES: i64 = 8 << 10;
/// The same of both sides together, with all that they share.
const SHM_BYTES: i64 = 256 << 10;
/// Most descriptors of a connection and side while it comes up.
const STREAM_DESCRIPTORS: u64 = 1;
const SHM_DESCRIPTORS: u64 = 8;
/// Part of a core that idling may take.
const IDLE_SHARE: f64 = 0.02;
/// Kinds of block that are listed.
const LISTED: usize = 14;
/// Blocks of this size and more are counted together.
const LARGE: usize = 1 << 17;

/// Counts live heap blocks by size.
struct Counting {
    bytes: AtomicI64,
    blocks: [AtomicI64; LARGE + 1],
}

#[global_allocator]
static HEAP: Counting =
    Counting { bytes: AtomicI64::new(0), blocks: [const { AtomicI64::new(0) }; LARGE + 1] };

impl Counting {
    fn count(&self, size: usize, sign: i64) {
        self.bytes.fetch_add(sign * size as i64, Relaxed);
        self.blocks[size.min(LARGE)].fetch_add(sign, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches nothing else and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.count(layout.size(), -1);
        // SAFETY: the caller keeps the contract of `dealloc`; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(layout.size(), -1);
        self.count(size, 1);
        // SAFETY: the caller keeps the contract of `realloc`; `at` came from `System`.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let uri = args.get(1).copied().unwrap_or("zc+tcp://127.0.0.1:0");
    match args.first().copied() {
        Some("server") => runtime.block_on(server(uri)),
        count => {
            let wanted = count.map_or(Ok(CONNECTIONS), str::parse)?;
            let idle = args.get(2).map_or(Ok(IDLE), |s| s.parse().map(Duration::from_secs))?;
            let most = args.get(3).map(|s| s.parse()).transpose()?;
            let terms = Terms::of(uri, idle, most);
            runtime.block_on(client(allowed(wanted, terms.descriptors)?, uri, &terms))
        }
    }
}

/// What is measured, and what it may take.
struct Terms {
    idle: Duration,
    /// Of a connection.
    most_bytes: i64,
    /// That is for both sides together, since they share most of it.
    together: bool,
    descriptors: u64,
}

impl Terms {
    fn of(uri: &str, idle: Duration, most_bytes: Option<i64>) -> Self {
        let together = uri.starts_with("zc+shm:");
        let (bytes, descriptors) = match together {
            true => (SHM_BYTES, SHM_DESCRIPTORS),
            false => (STREAM_BYTES, STREAM_DESCRIPTORS),
        };
        Self { idle, most_bytes: most_bytes.unwrap_or(bytes), together, descriptors }
    }
}

/// As many as the limit on descriptors allows, which is raised as far as it goes.
fn allowed(wanted: usize, descriptors_each: u64) -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    let need = wanted as u64 * descriptors_each + OTHER_DESCRIPTORS;
    if limit.current.is_some_and(|current| current < need) {
        let raised = limit.maximum.map_or(need, |maximum| maximum.min(need));
        setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum })?;
    }
    let have = getrlimit(Resource::Nofile).current.unwrap_or(need).saturating_sub(OTHER_DESCRIPTORS);
    let count = usize::try_from(have / descriptors_each)?.min(wanted);
    if count < wanted {
        println!("scaled down from {wanted}: the descriptor limit (ulimit -n -H) is {have}");
    }
    Ok(count)
}

/// Echoes, with a task per connection as an application has; answers what the client asks on its standard input.
async fn server(uri: &str) -> Result<()> {
    // As many as there may be: the client says how many come.
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    let mut listener = Fabric::auto()?.listen(uri).await?;
    println!("{}", listener.local_uri());
    let (ask, mut asked) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
            if ask.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut accepted = 0;
    loop {
        tokio::select! {
            conn = listener.accept() => {
                tokio::spawn(echo(conn?));
                accepted += 1;
            }
            asked = asked.recv() => match asked.as_deref() {
                Some("measure") => println!("{}", Sample::now()?.to_line()),
                Some(_) => print!("{}", blocks(accepted)),
                None => return Ok(()),
            },
        }
    }
}

async fn echo(mut conn: Connection) {
    while let Ok(Some(message)) = conn.recv().await {
        if conn.send(message).await.is_err() {
            return;
        }
    }
}

async fn client(count: usize, uri: &str, terms: &Terms) -> Result<()> {
    let mut server = Server::spawn(uri)?;
    let uri = server.line()?;
    let fabric = Fabric::auto()?;
    let mut kept: Vec<Connection> = Vec::with_capacity(count);
    let start = [Sample::now()?, server.measure()?];
    let began = Instant::now();
    while kept.len() < count {
        let batch = (kept.len()..count).take(AT_A_TIME).map(|_| fabric.connect(&uri));
        for conn in futures::future::join_all(batch).await {
            kept.push(conn?);
        }
    }
    println!("{count} connections over {uri} in {:.1} s", began.elapsed().as_secs_f64());
    println!(
        "{:<14} {:>12} {:>12} {:>12} {:>14} {:>12} {:>14}",
        "", "heap B/conn", "RSS B/conn", "PSS B/conn", "shared B/conn", "files/conn", "CPU ms idle"
    );
    let (mut most_bytes, mut most_cpu) = (0, 0.0_f64);
    for state in ["new", "used", "burst"] {
        match state {
            "used" => exchange(&mut kept, AT_A_TIME).await?,
            "burst" => exchange(&mut kept, count).await?,
            _ => {}
        }
        // What is under way ends; then nothing is left to do.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = [Sample::now()?, server.measure()?];
        tokio::time::sleep(terms.idle).await;
        let after = [Sample::now()?, server.measure()?];
        let each = [0, 1].map(|side| after[side].each(&start[side], count as i64));
        for (n, side) in ["client", "server"].into_iter().enumerate() {
            let Sample { heap, rss, pss, shared, descriptors, .. } = each[n];
            let cpu = Duration::from_nanos((after[n].cpu_ns - before[n].cpu_ns).unsigned_abs());
            println!(
                "{state:<6} {side:<7} {heap:>12} {rss:>12} {pss:>12} {shared:>14} {descriptors:>12} {:>14}",
                cpu.as_millis()
            );
            most_cpu = most_cpu.max(cpu.as_secs_f64() / terms.idle.as_secs_f64());
        }
        if state != "burst" {
            // What the pool keeps free after a burst is its own: the next connections use it.
            let bytes = match terms.together {
                true => each.iter().map(|side| side.pss).sum(),
                false => each.iter().map(|side| side.rss.max(side.heap)).max().unwrap_or(0),
            };
            most_bytes = most_bytes.max(bytes);
        }
    }
    println!("\nclient, heap blocks by size:\n{}", blocks(count));
    println!("server, heap blocks by size:\n{}", server.blocks()?);
    let of = if terms.together { "connection, both sides together" } else { "connection and side" };
    let verdict = format!("{most_bytes} bytes per {of}, of {} that it may take", terms.most_bytes);
    if most_bytes > terms.most_bytes {
        return Err(format!("too much: {verdict}").into());
    }
    println!("{verdict}");
    if most_cpu > IDLE_SHARE {
        return Err(format!("idling takes {:.1} % of a core", 100.0 * most_cpu).into());
    }
    Ok(())
}

/// One small message each way on every connection, so many at a time: what was used may keep more than what
/// never was, and what waits at the same time takes memory at the same time.
async fn exchange(kept: &mut [Connection], at_a_time: usize) -> Result<()> {
    for batch in kept.chunks_mut(at_a_time) {
        for conn in batch.iter() {
            conn.send(vec![7; 64]).await?;
        }
        for conn in batch.iter_mut() {
            conn.recv().await?.ok_or("the server finished")?;
        }
    }
    Ok(())
}

/// One process at one moment.
#[derive(Clone, Copy)]
struct Sample {
    heap: i64,
    rss: i64,
    pss: i64,
    shared: i64,
    descriptors: i64,
    cpu_ns: i64,
}

impl Sample {
    fn now() -> Result<Self> {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
        let bytes = |name: &str| -> Option<i64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<i64>().ok()? << 10)
        };
        let mut cpu_ns = 0;
        for task in std::fs::read_dir("/proc/self/task")? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            cpu_ns += text.split_whitespace().next().ok_or("schedstat is empty")?.parse::<i64>()?;
        }
        Ok(Self {
            heap: HEAP.bytes.load(Relaxed),
            rss: bytes("Rss:").ok_or("no Rss")?,
            pss: bytes("Pss:").ok_or("no Pss")?,
            shared: bytes("Pss_Shmem:").ok_or("no Pss_Shmem")?,
            descriptors: i64::try_from(std::fs::read_dir("/proc/self/fd")?.count())?,
            cpu_ns,
        })
    }

    /// What is more than at `start`, divided by so many.
    fn each(&self, start: &Self, count: i64) -> Self {
        let per = |of: fn(&Self) -> i64| (of(self) - of(start)) / count;
        Self {
            heap: per(|s| s.heap),
            rss: per(|s| s.rss),
            pss: per(|s| s.pss),
            shared: per(|s| s.shared),
            descriptors: per(|s| s.descriptors),
            cpu_ns: per(|s| s.cpu_ns),
        }
    }

    fn to_line(self) -> String {
        let Self { heap, rss, pss, shared, descriptors, cpu_ns } = self;
        format!("{heap} {rss} {pss} {shared} {descriptors} {cpu_ns}")
    }

    fn of_line(line: &str) -> Result<Self> {
        let numbers: Vec<i64> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let &[heap, rss, pss, shared, descriptors, cpu_ns] = &numbers[..] else {
            return Err(format!("not a sample: {line}").into());
        };
        Ok(Self { heap, rss, pss, shared, descriptors, cpu_ns })
    }
}

/// The kinds of block that take most: of those there is about one or more per connection.
fn blocks(connections: usize) -> String {
    let live = HEAP.blocks.iter().enumerate().map(|(size, blocks)| (size, blocks.load(Relaxed)));
    let mut live: Vec<(usize, i64)> = live.filter(|(_, blocks)| *blocks >= connections as i64 / 2).collect();
    live.sort_by_key(|(size, blocks)| -(*size as i64 * blocks));
    let mut text = String::new();
    for (size, blocks) in live.into_iter().take(LISTED) {
        let per = blocks as f64 / connections as f64;
        let _ = writeln!(text, "{:>8.0} B per connection: {per:.2} blocks of {size} B", per * size as f64);
    }
    text + "\n"
}

/// The other process; it ends with its standard input.
struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn spawn(uri: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["server", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let input = child.stdin.take();
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() { Err("the server is gone".into()) } else { Ok(line.trim_end().to_owned()) }
    }

    fn ask(&mut self, what: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or("no input")?;
        Ok(writeln!(input, "{what}")?)
    }

    fn measure(&mut self) -> Result<Sample> {
        self.ask("measure")?;
        Sample::of_line(&self.line()?)
    }

    fn blocks(&mut self) -> Result<String> {
        self.ask("blocks")?;
        let mut text = String::new();
        loop {
            match self.line()? {
                line if line.is_empty() => return Ok(text),
                line => text = text + &line + "\n",
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
