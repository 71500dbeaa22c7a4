//! Memory that the ring knows ahead, and files past the page cache. One test at a time: locked memory is the process's.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod common;

use common::*;
use futures::FutureExt;
use std::fs::OpenOptions;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use zc_core::memory::{
    Backing, BufPool, MemlockBudget, MemoryGroup, PinnedBuf, Region, RegionId, RegisterError, Registrar,
    RegistrarId, RegistrarSlot,
};
use zc_transport_uring::{DirectError, Engine, EngineOptions, Flavour, MAX_UNASKED_REGION_BYTES, Usage};

static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

const PART: usize = 64 << 10;

fn content(len: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(len, 0)).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

/// `None` where the file system has no such thing, with a word about it.
fn open_direct(file: &NamedTempFile) -> Option<OwnedFd> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path()) {
        Ok(file) => Some(file.into()),
        Err(error) => {
            eprintln!("skipped, no O_DIRECT here: {error}");
            None
        }
    }
}

fn locked() -> u64 {
    MemlockBudget::process().used_bytes()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + GUARD;
    while !is_so() {
        assert!(Instant::now() < until, "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Fills a buffer of the pool.
fn filled(pool: &BufPool, len: usize, seed: usize) -> PinnedBuf {
    let mut buf = pool.try_alloc(len).unwrap();
    buf.put_slice(&pattern(len, seed));
    buf.freeze()
}

/// A pool of few regions, so that all of them are known when one is.
fn long_pool(bytes: usize) -> BufPool {
    BufPool::builder().region_bytes(bytes).max_bytes(bytes).build()
}

async fn registered(engine: &Engine, pool: &BufPool) {
    drop(pool.try_alloc(1).unwrap());
    let regions = pool.regions();
    for region in &regions {
        engine.register(region).unwrap();
    }
    until("the regions are known", || engine.stats().registered_regions == regions.len()).await;
}

async fn direct(engine: &Engine, pool: &BufPool) {
    let len = 10 * PART + 1000;
    let path = content(len);
    let Some(file) = open_direct(&path) else { return };
    let file = engine.file(file);
    let alignment = file.direct_alignment().unwrap().unwrap();
    assert!(alignment.memory_bytes.is_power_of_two() && alignment.offset_bytes.is_power_of_two());
    let expected = pattern(len, 0);
    let mut parts = Vec::new();
    for n in 0..11 {
        let part = file.read_direct(pool, (n * PART) as u64, PART).await.unwrap();
        assert!(part.as_ptr().addr().is_multiple_of(alignment.memory_bytes));
        assert_eq!(part[..], expected[n * PART..len.min((n + 1) * PART)], "{n}");
        parts.push(part);
    }
    assert!(file.read_direct(pool, (11 * PART) as u64, PART).await.unwrap().is_empty());
    let stats = engine.stats();
    assert!(stats.registered_regions > 0 && stats.registered_operations > 0, "{stats:?}");
    assert!(stats.registered_bytes >= stats.registered_regions as u64 * 4096);
    assert_eq!(engine.not_registered(), None);
    // Back again in another order, out of the same memory.
    for (n, part) in parts[..10].iter().rev().enumerate() {
        assert_eq!(file.write_direct(part.clone(), (n * PART) as u64).await.unwrap(), PART);
    }
    let mut found = Vec::new();
    path.reopen().unwrap().read_to_end(&mut found).unwrap();
    for n in 0..10 {
        assert_eq!(found[n * PART..][..PART], parts[9 - n][..]);
    }
}

#[test]
fn direct_operations_use_it_from_the_second_on() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        let pool = pool();
        on_one_thread(async {
            let Some(engine) = engine(&pool, flavour) else { return };
            direct(&engine, &pool).await;
            engine.shutdown().await;
        });
        wait_until("nothing is locked", || locked() == 0);
    }
}

#[test]
fn what_is_not_aligned_is_told_before_anything_happens() {
    let _alone = ALONE.lock();
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let path = content(2 * PART);
        let buffered = engine.file(path.reopen().unwrap().into());
        assert!(matches!(buffered.read_direct(&pool, 0, PART).await, Err(DirectError::NotDirect)));
        let Some(file) = open_direct(&path) else { return };
        let file = engine.file(file);
        let needs = file.direct_alignment().unwrap().unwrap();
        let misaligned = |result: Result<(), DirectError>| match result {
            Err(DirectError::Misaligned { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let read = async |offset, len| file.read_direct(&pool, offset, len).await.map(drop);
        assert_eq!(misaligned(read(1, PART).await), "offset");
        assert_eq!(misaligned(read(0, PART + 1).await), "length");
        let whole = file.read_direct(&pool, 0, PART).await.unwrap();
        let shifted = whole.slice(1..1 + needs.offset_bytes);
        assert_eq!(misaligned(file.write_direct(shifted, 0).await.map(drop)), "address");
        assert_eq!(misaligned(file.write_direct(whole.slice(..1), 0).await.map(drop)), "length");
        assert_eq!(whole[..], pattern(PART, 0));
        // Unchecked, it is the kernel that says so.
        let error = file.write_at(whole.slice(1..PART), 0).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        engine.shutdown().await;
    });
}

/// Through the page cache it is used where it is known anyway, on files of every kind, and not on pipes.
#[test]
fn other_files_use_it_where_it_is_known() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let pool = long_pool(4 << 20);
            let Some(engine) = engine(&pool, flavour) else { return };
            let len = 100_000;
            let path = content(len);
            let file = engine.file(path.reopen().unwrap().into());
            let buf = file.read_at(pool.try_alloc(len).unwrap(), len, 0).await.unwrap();
            assert_eq!((buf[..].to_vec(), engine.stats().registered_regions), (pattern(len, 0), 0));
            drop(buf);
            registered(&engine, &pool).await;
            let mut buf = pool.try_alloc(len).unwrap();
            buf.put_slice(b"head");
            let buf = file.read_at(buf, 1000, 500).await.unwrap();
            assert_eq!(buf[..4], b"head"[..]);
            assert_eq!(buf[4..], pattern(1500, 0)[500..]);
            assert_eq!(file.write_at(filled(&pool, 2000, 9), 100).await.unwrap(), 2000);
            let back = file.read_at(pool.try_alloc(2000).unwrap(), 2000, 100).await.unwrap();
            assert_eq!(back[..], pattern(2000, 9));
            assert_eq!(engine.stats().registered_operations, 3);
            for path in ["/proc/self/status", "/proc/meminfo", "/sys/kernel/mm/transparent_hugepage/enabled"]
            {
                let Ok(file) = std::fs::File::open(path) else { continue };
                let read = engine.file(file.into()).read_at(pool.try_alloc(4096).unwrap(), 4096, 0).await;
                assert!(!read.unwrap().is_empty(), "{path}");
            }
            let before = engine.stats().registered_operations;
            let (read, write) = rustix::pipe::pipe().unwrap();
            let (read, write) = (engine.file(read), engine.file(write));
            assert_eq!(write.write_at(filled(&pool, 10, 1), 0).await.unwrap(), 10);
            assert_eq!(read.read_at(pool.try_alloc(10).unwrap(), 10, 0).await.unwrap()[..], pattern(10, 1));
            assert_eq!(engine.stats().registered_operations, before);
            engine.shutdown().await;
        });
        wait_until("nothing is locked", || locked() == 0);
    }
}

#[test]
fn sends_out_of_the_memory_itself_use_it() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        let pool = pool();
        on_one_thread(async {
            let Some(engine) = engine(&pool, flavour) else { return };
            let (a, b) = tcp_pair();
            let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
            for round in 0..5 {
                let len = 200_000 + round;
                let mut send = tx.send_zero_copy(filled(&pool, len, round).slice(3..), true);
                let sent = async {
                    assert_eq!(poll_fn(|cx| send.poll_sent(cx)).await.unwrap(), len - 3);
                    assert_eq!(poll_fn(|cx| send.poll_released(cx)).await.unwrap(), Usage::Copied);
                };
                let receive = async {
                    let mut got = Vec::new();
                    while got.len() < len - 3 {
                        got.extend_from_slice(&rx.recv().await.unwrap());
                    }
                    assert_eq!(got, pattern(len, round)[3..]);
                };
                futures::join!(sent, receive);
            }
            assert!(engine.stats().registered_operations >= 3, "{:?}", engine.stats());
            engine.shutdown().await;
        });
        wait_until("all memory is back", || pool.stats().in_use_bytes == 0 && locked() == 0);
    }
}

/// A region that goes is forgotten, also by an engine that sleeps; and what is mapped in its place is another one.
#[test]
fn regions_come_and_go() {
    let _alone = ALONE.lock();
    for flavour in FLAVOURS {
        on_one_thread(async {
            let rx_pool = pool();
            let Some(engine) = engine(&rx_pool, flavour) else { return };
            let path = content(PART);
            let file = engine.file(path.reopen().unwrap().into());
            for round in 0..30 {
                let pool = long_pool(1 << 20);
                registered(&engine, &pool).await;
                assert!(locked() > 0);
                file.write_at(filled(&pool, 5000, round), 0).await.unwrap();
                let back = file.read_at(pool.try_alloc(5000).unwrap(), 5000, 0).await.unwrap();
                assert_eq!(back[..], pattern(5000, round));
                assert!(engine.stats().registered_operations >= 2 * (round as u64 + 1));
                // Asked for and gone before the engine has come to it, in another thread.
                let short = BufPool::builder().max_bytes(1 << 20).build();
                drop(short.try_alloc(1).unwrap());
                engine.register(&short.regions()[0]).unwrap();
                std::thread::spawn(move || drop((short, back, pool))).join().unwrap();
                until("it is forgotten", || engine.stats().registered_regions == 0 && locked() == 0).await;
            }
            engine.shutdown().await;
        });
    }
}

#[test]
fn what_can_not_be_known_is_left_out() {
    let _alone = ALONE.lock();
    on_one_thread(async {
        let pool = pool();
        let Some(engine) = engine(&pool, Flavour::OneThread) else { return };
        let path = content(PART);
        // SAFETY: nobody else knows the file, and nobody writes it from here on (M5).
        let read_only = unsafe { Region::map_file(path.reopen().unwrap()) }.unwrap();
        assert!(matches!(engine.register(&read_only), Err(RegisterError::Unsupported(_))));
        let group = MemoryGroup::new(BufPool::builder().max_bytes(1 << 20));
        let of_group = group.pool().try_alloc(PART).unwrap();
        assert!(matches!(engine.register(of_group.region().unwrap()), Err(RegisterError::NotInGroup)));
        // Such memory is used as ever.
        if let Some(file) = open_direct(&path) {
            let file = engine.file(file);
            let part = file.read_direct(group.pool(), 0, PART).await.unwrap();
            assert_eq!(part[..], pattern(PART, 0));
            assert_eq!(file.write_direct(part, 0).await.unwrap(), PART);
        }
        assert_eq!((engine.stats().registered_regions, engine.not_registered()), (0, None));
        engine.shutdown().await;
        drop(of_group);
        assert!(engine.register(&Region::builder(4096).build().unwrap()).is_err(), "it has ended");
    });
}

#[test]
fn a_full_table_is_no_error() {
    let _alone = ALONE.lock();
    on_one_thread(async {
        let rx_pool = pool();
        let mut options = EngineOptions::new(Flavour::OneThread);
        options.registered_regions = 1;
        let Some(engine) = engine_with(&rx_pool, options) else { return };
        let path = content(PART);
        let Some(file) = open_direct(&path) else { return };
        let file = engine.file(file);
        let [first, second] = [(); 2].map(|()| BufPool::builder().max_bytes(8 << 20).build());
        registered(&engine, &first).await;
        for _ in 0..3 {
            assert_eq!(file.read_direct(&second, 0, PART).await.unwrap()[..], pattern(PART, 0));
        }
        assert_eq!(engine.stats().registered_operations, 0);
        assert_eq!(engine.not_registered().unwrap().code(), "no_room");
        drop(first);
        until("there is room again", || engine.stats().registered_regions == 0).await;
        for _ in 0..3 {
            assert_eq!(file.read_direct(&second, 0, PART).await.unwrap()[..], pattern(PART, 0));
        }
        assert_eq!(engine.stats().registered_regions, 1);
        assert!(engine.stats().registered_operations > 0);
        engine.shutdown().await;
    });
}

/// The kernel holds what a send reads until it lets go; the engine's end and the runtime's change nothing about it.
#[test]
fn it_is_let_go_of_with_the_ring() {
    let _alone = ALONE.lock();
    for (flavour, workers, shuts_down) in [
        (Flavour::OneThread, 0, true),
        (Flavour::OneThread, 0, false),
        (Flavour::ManyThreads, 0, false),
        (Flavour::ManyThreads, 2, true),
        (Flavour::ManyThreads, 2, false),
    ] {
        let pool = BufPool::builder().max_bytes(64 << 20).build();
        let mut builder = match workers {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(workers.max(1)).enable_all().build().unwrap();
        let Some((engine, kept)) = runtime.block_on(async {
            let engine = engine(&pool, flavour)?;
            registered(&engine, &pool).await;
            let mut big = pool.try_alloc(16 << 20).unwrap();
            big.set_len(16 << 20);
            let big = big.freeze();
            engine.register(big.region().unwrap()).unwrap();
            until("it is known", || {
                engine.not_registered().is_some() || engine.stats().registered_bytes > 16 << 20
            })
            .await;
            // Nobody receives, so it is under way as long as the socket lives.
            let (a, b) = tcp_pair();
            let (tx, rx) = engine.socket(a).unwrap();
            let mut send = tx.send_zero_copy(big, true);
            assert!(poll_fn(|cx| send.poll_sent(cx)).now_or_never().is_none());
            until("it is under way", || engine.stats().in_flight > 0).await;
            engine.nop().await.unwrap();
            assert!(engine.stats().registered_operations > 0);
            if shuts_down {
                engine.shutdown().await;
            }
            Some((engine, (send, tx, rx, b)))
        }) else {
            return;
        };
        assert!(locked() > 0 || shuts_down);
        drop(runtime);
        drop(kept);
        wait_until("all memory is back", || pool.stats().in_use_bytes == 0 && locked() == 0);
        drop(engine);
        drop(pool);
    }
}

/// From all threads at once, with tasks that move and block, while regions come and go.
#[test]
fn from_many_threads() {
    let _alone = ALONE.lock();
    on_many_threads(async {
        let rx_pool = pool();
        let Some(engine) = engine(&rx_pool, Flavour::ManyThreads) else { return };
        let path = content(8 * PART);
        let Some(file) = open_direct(&path) else { return };
        let (file, expected) = (engine.file(file), Arc::new(pattern(8 * PART, 0)));
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let (engine, file, expected) = (engine.clone(), file.clone(), expected.clone());
                tokio::spawn(async move {
                    for round in 0..25 {
                        let pool = BufPool::builder().backing(Backing::Anonymous).max_bytes(4 << 20).build();
                        for _ in 0..3 {
                            let part = file.read_direct(&pool, (n * PART) as u64, PART).await.unwrap();
                            assert_eq!(part[..], expected[n * PART..][..PART]);
                            tokio::task::yield_now().await;
                            if round % 5 == n % 5 {
                                let engine = engine.clone();
                                tokio::task::block_in_place(move || {
                                    tokio::runtime::Handle::current().block_on(engine.nop()).unwrap();
                                    drop(part);
                                });
                            }
                        }
                        // Dropped while it is under way, now and then.
                        let mut op = Box::pin(file.read_direct(&pool, 0, PART));
                        let _ = (&mut op).now_or_never();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(engine.stats().registered_operations > 0);
        until("all are forgotten", || engine.stats().registered_regions == 0 && locked() == 0).await;
        assert_eq!(engine.stats().unknown, 0);
        engine.shutdown().await;
    });
}

/// Once nothing is under way nobody receives: the buffers go at once, however long the ring itself lives.
#[test]
fn receive_buffers_do_not_wait_for_the_ring() {
    let _alone = ALONE.lock();
    let pool = BufPool::builder().max_bytes(64 << 20).build();
    let (give, take) = std::sync::mpsc::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let rx_pool = pool.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine = runtime.block_on(async {
            let engine = engine(&rx_pool, Flavour::OneThread)?;
            let (a, b) = unix_pair();
            let ((tx, _rx), (_tx, mut rx)) = (engine.socket(a).unwrap(), engine.socket(b).unwrap());
            tx.send(bytes(10, 1), true).await.unwrap();
            assert_eq!(rx.recv().await.unwrap()[..], pattern(10, 1));
            drop((tx, _rx, _tx, rx));
            until("nothing is under way", || engine.stats().in_flight == 0).await;
            let keep = long_pool(1 << 20);
            registered(&engine, &keep).await;
            Some((engine, keep))
        });
        give.send((runtime, engine)).unwrap();
        // Its ring lives as long as this thread.
        let _ = ends.recv();
    });
    let (runtime, engine) = take.recv().unwrap();
    if engine.is_some() {
        assert!(pool.stats().in_use_bytes > 0);
    }
    drop(runtime);
    assert_eq!(pool.stats().in_use_bytes, 0);
    drop((engine, end));
    thread.join().unwrap();
    wait_until("nothing is locked", || locked() == 0);
}

/// A long one would keep the engine from everything else for too long.
#[test]
fn long_regions_are_made_known_only_when_it_is_asked_for() {
    let _alone = ALONE.lock();
    on_one_thread(async {
        let rx_pool = pool();
        let Some(engine) = engine(&rx_pool, Flavour::OneThread) else { return };
        let path = content(PART);
        let Some(file) = open_direct(&path) else { return };
        let file = engine.file(file);
        let long = long_pool(MAX_UNASKED_REGION_BYTES + (4 << 20));
        for _ in 0..3 {
            assert_eq!(file.read_direct(&long, 0, PART).await.unwrap()[..], pattern(PART, 0));
        }
        assert_eq!(engine.stats().registered_regions, 0);
        assert_eq!(engine.not_registered().unwrap().code(), "long_region");
        registered(&engine, &long).await;
        file.read_direct(&long, 0, PART).await.unwrap();
        assert_eq!(engine.stats().registered_operations, 1);
        engine.shutdown().await;
    });
    wait_until("nothing is locked", || locked() == 0);
}

/// Asks the engine when it lets go of a region.
struct Asks {
    slot: RegistrarSlot,
    engine: Engine,
    asked: AtomicUsize,
}

impl Registrar for Asks {
    fn id(&self) -> RegistrarId {
        self.slot.id()
    }
    fn register(&self, _: &Region) -> Result<u64, RegisterError> {
        Ok(1)
    }
    fn deregister(&self, _: RegionId, _: u64) -> std::io::Result<()> {
        self.engine.stats();
        self.asked.fetch_add(1, Relaxed);
        Ok(())
    }
}

/// The engine may be the last that has a region; letting go of it runs other people's code, which may use the engine.
#[test]
fn regions_are_let_go_of_without_the_lock() {
    let _alone = ALONE.lock();
    for ends in [false, true] {
        on_one_thread(async {
            let rx_pool = pool();
            let Some(engine) = engine(&rx_pool, Flavour::OneThread) else { return };
            engine.nop().await.unwrap();
            let slot = RegistrarSlot::allocate().unwrap();
            let asks = Arc::new(Asks { slot, engine: engine.clone(), asked: AtomicUsize::new(0) });
            let registrar: Arc<dyn Registrar> = asks.clone();
            let region = Region::builder(4096).build().unwrap();
            region.register_with(&registrar).unwrap();
            engine.register(&region).unwrap();
            drop(region);
            if !ends {
                until("it is let go of", || asks.asked.load(Relaxed) == 1).await;
            }
            engine.shutdown().await;
            until("it is let go of", || asks.asked.load(Relaxed) == 1).await;
        });
        wait_until("nothing is locked", || locked() == 0);
    }
}

/// For the child: the number of its flavour, and to be somebody who may lock hardly anything.
const POOR: &str = "ZC_TEST_POOR";

/// The kernel counts locked memory by user, and takes a ring's off only a while after its end. So each child is another
/// user, and none is the one that other tests are.
const POOR_UID: u32 = 65_000;

/// What the child does; without the variable it is no test.
#[test]
fn child() {
    let Ok(number) = std::env::var(POOR) else { return };
    let number: u8 = number.parse().unwrap();
    // What it tries is counted for who it is now.
    let features = zc_transport_uring::probe().unwrap();
    // Enough for the ring itself.
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    let path = content(PART);
    let file = open_direct(&path);
    // SAFETY: plain integers and a limit that is alive.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert!(libc::geteuid() != 0 || libc::setuid(POOR_UID + u32::from(number)) == 0);
    }
    if features.has("recv_zc") {
        let why = zc_transport_uring::probe_zero_copy_receive("lo", 0).unwrap_err();
        assert_eq!(why.code(), "missing_capability");
    }
    on_one_thread(async {
        let pool = long_pool(8 << 20);
        let engine = Engine::start(
            Arc::new(zc::TokioReactor::new()),
            &pool,
            EngineOptions::new(FLAVOURS[usize::from(number)]),
        );
        let engine = engine.unwrap();
        let big = filled(&pool, PART, 0);
        assert!(matches!(engine.register(big.region().unwrap()), Err(RegisterError::Memlock(_))));
        let why = engine.not_registered().unwrap();
        assert_eq!(why.code(), "memlock");
        println!("\nreason: {why}");
        let Some(file) = file.as_ref().map(|file| engine.file(file.try_clone().unwrap())) else { return };
        for _ in 0..3 {
            assert_eq!(file.read_direct(&pool, 0, PART).await.unwrap()[..], pattern(PART, 0));
        }
        assert_eq!(engine.stats().registered_operations, 0);
        // What fits is still made known, as long as half of the limit is left to others.
        let [short, other] = [(); 2].map(|()| long_pool(256 << 10));
        for pool in [&short, &other, &short, &other] {
            assert_eq!(file.read_direct(pool, 0, PART).await.unwrap()[..], pattern(PART, 0));
            engine.nop().await.unwrap();
        }
        assert_eq!(engine.stats().registered_regions, 2, "{:?}", engine.not_registered());
        assert_eq!(engine.stats().registered_operations, 2);
        let third = long_pool(256 << 10);
        file.read_direct(&third, 0, PART).await.unwrap();
        engine.nop().await.unwrap();
        assert_eq!(engine.stats().registered_regions, 2);
        drop((short, other, third));
        until("they are forgotten", || locked() == 0).await;
        engine.shutdown().await;
    });
}

/// Without locked memory everything goes on, and it is said why not in the better way.
#[test]
fn locked_memory_that_is_refused_is_no_error() {
    if zc_transport_uring::probe().is_err() {
        return;
    }
    for number in 0..FLAVOURS.len() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output =
            child.args(["--exact", "child", "--nocapture"]).env(POOR, number.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("reason: memlock") && text.contains("soft limit 1048576"), "{text}");
    }
}
