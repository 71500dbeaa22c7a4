//! Streams by io_uring: which engine is chosen and why, and that nothing is lost or left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test helpers"
)]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::task::{Context, Poll};

use zc::transport::{
    BoxFuture, ControlLink, LinkAddr, LinkError, LinkListener, LinkProvider, Reactor, Unavailable,
};
use zc::{
    BufPool, Completion, Connection, Error, Fabric, FabricBuilder, Fallback, FellBack, Message, Observer,
    Outcome, Policy, SelectionReport,
};
use zc_transport_tcp::{StreamLinks, TcpTransport};
use zc_transport_uring::{EngineThread, UringOptions, UringTransport};

#[path = "common/random.rs"]
mod random;

use random::Random;

/// A guard against hanging, no bound on speed.
const GUARD: Duration = Duration::from_secs(120);

async fn guarded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.expect("it hangs")
}

fn works() -> bool {
    let found = zc_transport_uring::probe();
    if let Err(why) = &found {
        eprintln!("skipped, no io_uring here: {why}");
    }
    found.is_ok()
}

/// Without what else may be compiled in and come first, or be missed where there is no device.
fn without_shm(policy: Policy) -> FabricBuilder {
    Fabric::auto_builder().policy(policy.with_override("^shm,rdma").unwrap())
}

async fn try_pair(
    client: FabricBuilder,
    server: FabricBuilder,
    uri: &str,
) -> Result<(Connection, Connection), Error> {
    let mut listener = server.build().unwrap().listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    let client = client.build().unwrap();
    guarded(async { tokio::try_join!(client.connect(&uri), listener.accept()) }).await
}

fn outcome(report: &SelectionReport, name: &str) -> Outcome {
    let candidate = report.candidates().iter().find(|candidate| candidate.transport == name);
    candidate.unwrap_or_else(|| panic!("{name} is not in\n{report}")).outcome.clone()
}

fn unix() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("zc+unix://@uring-{}-{n}", std::process::id())
}

async fn talk(client: &Connection, server: &mut Connection) {
    client.send(&b"hello"[..]).await.unwrap();
    assert_eq!(guarded(server.recv()).await.unwrap().unwrap(), b"hello"[..]);
}

/// Each side chooses its own engine; both are in its report.
#[tokio::test]
async fn each_side_chooses_its_engine() {
    if !works() {
        return;
    }
    let any = || without_shm(Policy::default());
    let tokio = || without_shm(Policy::default().with_override("^uring").unwrap());
    let prefers_tokio = || without_shm(Policy::default().prefer(["tcp"]));
    for uri in ["zc://127.0.0.1:0".to_owned(), unix()] {
        for (client, server, chosen) in [
            (any(), any(), ("uring", "uring")),
            (tokio(), any(), ("tcp", "uring")),
            (any(), tokio(), ("uring", "tcp")),
            (any(), prefers_tokio(), ("uring", "tcp")),
        ] {
            let (client, mut server) = try_pair(client, server, &uri).await.unwrap();
            assert_eq!((client.report().chosen(), server.report().chosen()), chosen);
            talk(&client, &mut server).await;
        }
    }
    let (client, server) = try_pair(any(), tokio(), "zc://127.0.0.1:0").await.unwrap();
    assert_eq!(outcome(client.report(), "tcp"), Outcome::NotNeeded);
    let forbidden = Outcome::Unavailable(Unavailable::ForbiddenByPolicy);
    assert_eq!(outcome(server.report(), "uring"), forbidden);
}

/// The scheme demands it of the side that uses it, and of no other.
#[tokio::test]
async fn an_address_may_demand_io_uring() {
    if !works() {
        return;
    }
    let uris = ["zc+uring://127.0.0.1:0".to_owned(), unix().replace("zc+unix", "zc+uring")];
    for uri in uris {
        let (client, mut server) =
            try_pair(Fabric::auto_builder(), Fabric::auto_builder(), &uri).await.unwrap();
        assert_eq!((client.report().chosen(), server.report().chosen()), ("uring", "uring"));
        talk(&client, &mut server).await;
    }
    let mut listener = Fabric::auto().unwrap().listen("zc+uring://127.0.0.1:0").await.unwrap();
    let address = listener.local_uri().addr().to_string();
    let fabric = Fabric::auto().unwrap();
    let uri = format!("zc+tcp://{address}");
    let (client, server) =
        guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
    assert_eq!((client.report().chosen(), server.report().chosen()), ("tcp", "uring"));
    let error = try_pair(
        without_shm(Policy::default().with_override("^uring").unwrap()),
        Fabric::auto_builder(),
        "zc+uring://127.0.0.1:0",
    );
    assert!(matches!(error.await, Err(Error::NoTransport(_))));
}

/// TCP links of which nobody can have the socket, as if something stood between it and who uses the link.
struct Wrapped;

#[derive(Debug)]
struct Wrapping(Box<dyn ControlLink>);

impl ControlLink for Wrapping {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<std::io::Result<usize>> {
        self.0.poll_read(cx, buf)
    }
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.poll_write(cx, buf)
    }
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
    fn peer(&self) -> LinkAddr {
        self.0.peer()
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

impl LinkProvider for Wrapped {
    fn accepts(&self, addr: &LinkAddr) -> bool {
        matches!(addr, LinkAddr::Tcp(_))
    }
    fn connect<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn ControlLink>, LinkError>> {
        Box::pin(async move {
            Ok(Box::new(Wrapping(StreamLinks.connect(addr, reactor).await?)) as Box<dyn ControlLink>)
        })
    }
    fn bind<'a>(
        &'a self,
        addr: &'a LinkAddr,
        reactor: &'a Arc<dyn Reactor>,
    ) -> BoxFuture<'a, Result<Box<dyn LinkListener>, LinkError>> {
        StreamLinks.bind(addr, reactor)
    }
}

#[tokio::test]
async fn a_link_that_is_no_bare_socket_goes_by_the_tokio_engine() {
    if !works() {
        return;
    }
    let client = Fabric::builder()
        .links(Arc::new(Wrapped))
        .transport(Arc::new(UringTransport::default()))
        .transport(Arc::new(TcpTransport))
        .policy(Policy::default().fallback(Fallback::Deny));
    let (client, mut server) =
        try_pair(client, without_shm(Policy::default()), "zc://127.0.0.1:0").await.unwrap();
    assert_eq!((client.report().chosen(), server.report().chosen()), ("tcp", "uring"));
    let why = outcome(client.report(), "uring");
    assert!(matches!(why, Outcome::Unavailable(Unavailable::NotApplicable { .. })), "{}", client.report());
    talk(&client, &mut server).await;
}

/// The machine has it and the offers were made with it, and then it can't begin: the other engine takes the link.
#[tokio::test]
async fn an_engine_that_can_not_begin_leaves_the_link_to_the_other() {
    if !works() {
        return;
    }
    let pool = BufPool::builder().max_bytes(1 << 20).region_bytes(64 << 10).build();
    let mut all = Vec::new();
    for len in [64 << 10, 1] {
        while let Ok(buf) = pool.try_alloc(len) {
            all.push(buf);
        }
    }
    let client = without_shm(Policy::default()).pool(pool.clone());
    let (client, mut server) =
        try_pair(client, without_shm(Policy::default()), "zc://127.0.0.1:0").await.unwrap();
    assert_eq!((client.report().chosen(), server.report().chosen()), ("tcp", "uring"));
    let Outcome::Unavailable(why) = outcome(client.report(), "uring") else { panic!("{}", client.report()) };
    assert_eq!(why.code(), "no_memory");
    drop(all);
    talk(&client, &mut server).await;
    server.send(&b"and back"[..]).await.unwrap();
}

/// An engine takes little of a pool, whatever its size, and gives all back.
#[tokio::test]
async fn a_small_pool_is_enough() {
    if !works() {
        return;
    }
    let pool = BufPool::builder().max_bytes(1 << 20).region_bytes(64 << 10).build();
    let builder = || without_shm(Policy::default()).pool(pool.clone());
    let (client, mut server) = try_pair(builder(), builder(), "zc://127.0.0.1:0").await.unwrap();
    assert_eq!(client.report().chosen(), "uring");
    for n in 0..100u8 {
        client.send(vec![n; 100_000]).await.unwrap();
        let message = guarded(server.recv()).await.unwrap().unwrap();
        assert!(message.len() == 100_000 && message.segments().iter().all(|s| s.iter().all(|b| *b == n)));
    }
    drop((client, server));
    guarded(async {
        while pool.stats().in_use_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A fabric that outlives runtimes has an engine in each of them.
#[test]
fn every_runtime_has_its_engine() {
    if !works() {
        return;
    }
    let fabric = without_shm(Policy::default()).build().unwrap();
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtimes = [one(), one(), many, one()];
    let mut alive = Vec::new();
    for runtime in &runtimes {
        let (fabric, other) = (fabric.clone(), without_shm(Policy::default()));
        let pair = runtime.block_on(async {
            let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
            let uri = listener.local_uri().to_string();
            let other = other.build().unwrap();
            let (client, mut server) =
                guarded(async { tokio::try_join!(other.connect(&uri), listener.accept()) }).await.unwrap();
            assert_eq!((client.report().chosen(), server.report().chosen()), ("uring", "uring"));
            talk(&client, &mut server).await;
            (client, server)
        });
        alive.push(pair);
    }
    drop(alive);
}

/// A runtime of one thread that another thread goes on with loses its connections, and the next ones work.
#[test]
fn a_runtime_that_moves_gets_another_engine() {
    if !works() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fabric = without_shm(Policy::default()).build().unwrap();
    let connect = |fabric: Fabric| async move {
        let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        let (client, mut server) =
            guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
        assert_eq!(client.report().chosen(), "uring");
        talk(&client, &mut server).await;
        (client, server)
    };
    let before = runtime.block_on(connect(fabric.clone()));
    let runtime = std::thread::spawn(move || {
        runtime.block_on(async {
            let ended = guarded(before.0.closed()).await;
            println!("{ended}");
            let after = connect(fabric.clone()).await;
            drop((before, after));
        });
        runtime
    });
    drop(runtime.join().unwrap());
}

/// A ring that is kept behind its last connection is of its thread: another one that goes on with the runtime gets a new ring,
/// and no connection breaks.
#[test]
fn a_ring_that_is_kept_breaks_nobody_in_another_thread() {
    if !works() {
        return;
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fabric = without_shm(Policy::default()).build().unwrap();
    for _ in 0..3 {
        let fabric = fabric.clone();
        let in_another = std::thread::spawn(move || {
            runtime.block_on(async {
                let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
                let uri = listener.local_uri().to_string();
                let (client, mut server) =
                    guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) })
                        .await
                        .unwrap();
                assert_eq!(client.report().chosen(), "uring");
                talk(&client, &mut server).await;
                drop((client, server));
                // The engine's task comes to rest in this thread.
                tokio::time::sleep(Duration::from_millis(20)).await;
            });
            runtime
        });
        runtime = in_another.join().unwrap();
    }
}

/// The ring in a thread of its own, connections in a runtime of several others.
#[test]
fn rings_may_have_a_thread_of_their_own() {
    if !works() {
        return;
    }
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reactor = Arc::new(zc::TokioReactor::on(own.handle().clone()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ = own.block_on(stopped);
    });
    let mut options = UringOptions::default();
    options.thread = Some(EngineThread::of(reactor));
    let transport = Arc::new(UringTransport::new(options));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let fabric =
            Fabric::builder().transport(transport.clone()).links(Arc::new(StreamLinks)).build().unwrap();
        let mut listener = fabric.listen("zc+uring://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        // One after the other: between two of them nobody uses the ring, which stays.
        for _ in 0..3 {
            let (client, mut server) =
                guarded(async { tokio::try_join!(fabric.connect(&uri), listener.accept()) }).await.unwrap();
            talk(&client, &mut server).await;
            client.send(vec![7; 3 << 20]).await.unwrap();
            let long = guarded(server.recv()).await.unwrap().unwrap();
            assert!(long.len() == 3 << 20 && long.segments().iter().all(|s| s.iter().all(|b| *b == 7)));
            assert_eq!(transport.stats().rings, 1, "of one thread, so there is one");
            drop((client, server));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    drop((runtime, stop));
    thread.join().unwrap();
}

const REFUSE: &str = "ZC_TEST_URING_REFUSE";

/// From here on this process gets `errno` from system call `call`.
fn refuse(call: i64, errno: i32) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(load, 0, 0, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
        op(equal, 0, 1, call as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        op(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl(2) reads `filter` and the program it points to, both alive, and keeps its own copy (M1).
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

#[derive(Default)]
struct Fell(std::sync::Mutex<u32>);

impl Observer for Fell {
    fn fell_back(&self, _: &FellBack) {
        *self.0.lock().unwrap() += 1;
    }
}

/// What the child does; without the variable it is no test.
#[test]
fn refused_child() {
    let Ok(what) = std::env::var(REFUSE) else { return };
    let (call, errno) = what.split_once(' ').unwrap();
    refuse(call.parse().unwrap(), errno.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = |client, server| try_pair(client, server, "zc://127.0.0.1:0");
        let any = || without_shm(Policy::default());
        for rule in [Fallback::Warn, Fallback::Deny] {
            let fell = Arc::new(Fell::default());
            let side = || without_shm(Policy::default().fallback(rule)).observer(fell.clone());
            let (client, mut server) = connect(side(), side()).await.unwrap();
            talk(&client, &mut server).await;
            for end in [&client, &server] {
                assert_eq!(end.report().chosen(), "tcp");
                let Outcome::Unavailable(why) = outcome(end.report(), "uring") else {
                    panic!("{}", end.report())
                };
                assert!(!why.remedy().is_empty());
                println!("\nreason: {} {why}", why.code());
            }
            assert_eq!(*fell.0.lock().unwrap(), 0, "the wire is the same");
        }
        // Whoever asks for it by name hears of it.
        for asks in
            [Policy::default().prefer(["uring"]), Policy::default().with_override("uring,tcp").unwrap()]
        {
            let fell = Arc::new(Fell::default());
            let (client, mut server) =
                connect(without_shm(asks.clone()).observer(fell.clone()), any()).await.unwrap();
            talk(&client, &mut server).await;
            assert_eq!(*fell.0.lock().unwrap(), 1, "it is told");
            let denies = || without_shm(asks.clone().fallback(Fallback::Deny));
            assert!(connect(denies(), any()).await.is_err());
            assert!(connect(any(), denies()).await.is_err());
        }
        let demands =
            try_pair(Fabric::auto_builder(), Fabric::auto_builder(), "zc+uring://127.0.0.1:0").await;
        assert!(matches!(demands, Err(Error::NoTransport(_))));
    });
}

/// Filters can't be taken off, so a child has them.
#[test]
fn where_it_is_refused_the_tokio_engine_carries_on_and_says_why() {
    if !works() {
        return;
    }
    for (call, errno, code) in [
        (libc::SYS_io_uring_setup, libc::EPERM, "seccomp"),
        (libc::SYS_io_uring_enter, libc::EPERM, "seccomp"),
        (libc::SYS_io_uring_register, libc::ENOSYS, "seccomp"),
        (libc::SYS_io_uring_setup, libc::EMFILE, "os"),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "refused_child", "--nocapture"]).env(REFUSE, format!("{call} {errno}"));
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let reasons: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("reason: ")).collect();
        assert!(reasons.len() == 4 && reasons.iter().all(|reason| reason.starts_with(code)), "{text}");
    }
}

fn soaks() -> bool {
    std::env::var_os("ZC_SOAK").is_some()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const CROWD: &str = "ZC_TEST_URING_CROWD";

/// 10,000 connections, one after the other and some at the same time; in a process of its own, for it counts descriptors.
#[test]
fn crowd_child() {
    if std::env::var_os(CROWD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = BufPool::builder().build();
        let fabric = without_shm(Policy::default()).pool(pool.clone()).build().unwrap();
        let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        // In front of the first ring, which goes with the others in the end.
        let before = open_descriptors();
        let count = 10_000;
        for _ in 0..count / 20 {
            let clients = (0..20).map(|_| fabric.connect(&uri));
            let accepting = async {
                let mut servers = Vec::new();
                for _ in 0..20 {
                    servers.push(listener.accept().await?);
                }
                Ok(servers)
            };
            // Who fails to connect is nobody to accept.
            let crowd = async { tokio::try_join!(futures::future::try_join_all(clients), accepting) };
            let (clients, servers) = guarded(crowd).await.unwrap();
            for client in clients {
                assert_eq!(client.report().chosen(), "uring");
                client.send(&b"hello"[..]).await.unwrap();
                client.drain(GUARD).await.unwrap();
            }
            drop(servers);
        }
        is_as_before(before, &pool).await;
    });
}

async fn is_as_before(descriptors: usize, pool: &BufPool) {
    let until = Instant::now() + GUARD;
    while open_descriptors() > descriptors || pool.stats().in_use_bytes > 0 {
        let (open, used) = (open_descriptors(), pool.stats().in_use_bytes);
        assert!(Instant::now() < until, "{open} descriptors of {descriptors} before, {used} bytes in use");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn ten_thousand_connections_leave_no_ring_descriptor_or_buffer() {
    if !works() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", "crowd_child", "--nocapture"]).env(CROWD, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A message that tells whose it is, and whether it is whole.
fn numbered(n: u64, len: usize) -> Message {
    let mut bytes = Vec::from(n.to_le_bytes());
    bytes.extend((0..len).map(|at| (at as u64).wrapping_mul(n | 1).wrapping_add(n >> 3) as u8));
    bytes.into()
}

/// Both ends send and receive, and futures are given up at random; every message that was accepted arrives once, whole and in order.
async fn soak(seed: u64, time: Duration) {
    let (client, server) =
        try_pair(without_shm(Policy::default()), without_shm(Policy::default()), "zc://127.0.0.1:0")
            .await
            .unwrap();
    assert_eq!(client.report().chosen(), "uring");
    let ends = [client, server].map(|mut end| end.split());
    let [(tx_a, rx_a), (tx_b, rx_b)] = ends;
    let end = Instant::now() + time;
    let send = |tx: zc::Sender, seed: u64| async move {
        let mut random = Random::new(seed);
        let mut n = 0;
        while Instant::now() < end {
            let len = match random.below(10) {
                0 => random.below(2_000_000),
                1 => random.below(300_000),
                2..=4 => random.below(30_000),
                _ => random.below(600),
            };
            let patience = Duration::from_micros(random.below(500) as u64);
            match tokio::time::timeout(patience, tx.reserve(len + 8)).await {
                Ok(permit) => {
                    permit.unwrap().send(numbered(n, len)).unwrap();
                    n += 1;
                }
                Err(_) => tokio::task::yield_now().await,
            }
            if random.below(50) == 0 {
                let _ = tokio::time::timeout(patience, tx.flush()).await;
            }
        }
        tx.send_with(numbered(u64::MAX, 0), Completion::Accepted).await.unwrap();
        tx.flush().await.unwrap();
        (n, tx)
    };
    let receive = |mut rx: zc::Receiver, seed: u64| async move {
        let mut random = Random::new(seed);
        let (mut n, mut held) = (0, std::collections::VecDeque::new());
        loop {
            let patience = Duration::from_micros(random.below(300) as u64);
            let Ok(message) = tokio::time::timeout(patience, rx.recv()).await else { continue };
            let message = message.unwrap().expect("an end before the last message");
            let flat: Vec<u8> = message.segments().iter().flat_map(|s| s.iter().copied()).collect();
            let number = u64::from_le_bytes(*flat.first_chunk().unwrap());
            if number == u64::MAX {
                return (n, rx);
            }
            assert_eq!(number, n);
            assert!(numbered(n, flat.len() - 8) == flat[..], "message {n} of {} bytes", flat.len());
            n += 1;
            held.push_back(message);
            if held.len() > random.below(40) {
                held.drain(..held.len() / 2);
            }
        }
    };
    let (a, b, c, d) = tokio::time::timeout(time + GUARD, async {
        tokio::join!(
            tokio::spawn(send(tx_a, seed)),
            tokio::spawn(receive(rx_b, seed + 1)),
            tokio::spawn(send(tx_b, seed + 2)),
            tokio::spawn(receive(rx_a, seed + 3)),
        )
    })
    .await
    .expect("it hangs");
    let (a, b, c, d) = (a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap());
    assert_eq!((a.0, c.0), (b.0, d.0));
    assert!(a.0 > 0 && c.0 > 0);
}

const KILLED: &str = "ZC_TEST_URING_KILLED";
const KILLER: &str = "ZC_TEST_URING_KILLER";

/// Sends and receives until it is killed.
#[test]
fn killed_child() {
    let Ok(uri) = std::env::var(KILLED) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = without_shm(Policy::default()).build().unwrap().connect(&uri).await.unwrap();
        assert_eq!(connection.report().chosen(), "uring");
        let (tx, mut rx) = connection.split();
        let send = async {
            let mut random = Random::new(std::process::id().into());
            for n in 0.. {
                let most = [600, 30_000, 2_000_000][random.below(3)];
                tx.send(numbered(n, random.below(most))).await.unwrap();
            }
        };
        let receive = async { while rx.recv().await.unwrap().is_some() {} };
        futures::join!(send, receive);
    });
}

/// Kills those who are connected to it; in a process of its own, for it counts descriptors.
#[test]
fn killer_child() {
    if std::env::var_os(KILLER).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = BufPool::builder().build();
        let fabric = without_shm(Policy::default()).pool(pool.clone()).build().unwrap();
        let mut listener = fabric.listen("zc://127.0.0.1:0").await.unwrap();
        let uri = listener.local_uri().to_string();
        let (before, mut random) = (open_descriptors(), Random::new(7));
        for _ in 0..if soaks() { 300 } else { 10 } {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", "killed_child"]).env(KILLED, &uri).stdout(Stdio::null());
            let mut child = child.spawn().unwrap();
            let (tx, mut rx) = guarded(listener.accept()).await.unwrap().split();
            let life = Duration::from_micros(random.below(50_000) as u64);
            // Messages may come without end, and then nobody else of this task has a turn.
            let kill = tokio::task::spawn_blocking(move || {
                std::thread::sleep(life);
                child.kill().unwrap();
                child.wait().unwrap();
            });
            // What has come is whole and in order, and then both halves hear of the end.
            let receive = async {
                let mut n = 0;
                while let Ok(Some(message)) = rx.recv().await {
                    let flat: Vec<u8> = message.segments().iter().flat_map(|s| s.iter().copied()).collect();
                    assert!(numbered(n, flat.len() - 8) == flat[..], "message {n} of {} bytes", flat.len());
                    n += 1;
                }
            };
            let send = async { while tx.send(numbered(1, 100_000)).await.is_ok() {} };
            guarded(async { futures::join!(kill, receive, send) }).await.0.unwrap();
        }
        is_as_before(before, &pool).await;
    });
}

#[test]
fn peers_killed_at_any_moment_leave_nothing_behind() {
    if !works() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", "killer_child", "--nocapture"]).env(KILLER, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn soak_time() -> Duration {
    Duration::from_secs(if soaks() { 120 } else { 2 })
}

#[test]
fn futures_given_up_at_random_lose_nothing_on_one_thread() {
    if works() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(soak(1, soak_time()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_given_up_at_random_lose_nothing_on_many_threads() {
    if works() {
        tokio::join!(soak(2, soak_time()), soak(3, soak_time()));
    }
}
