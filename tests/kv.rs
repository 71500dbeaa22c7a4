//! The kv example: several clients at once, clients that die or stand still with a lock, and clients that write nonsense.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "../examples/kv/main.rs"]
#[allow(dead_code, reason = "the program around what is tested")]
mod kv;

use std::future::Future;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kv::bench::{is_whole, value};
use kv::client::{Client, Thwarted};
use kv::error::KvError;
use kv::layout::{Look, NOBODY, Shape, State, WAYS};
use kv::leases::COPY_PAUSE;
use kv::server::Server;
use kv::table::SERVER;
use kv::wire::{Answer, Request, Terms};
use tokio::task::{JoinHandle, JoinSet};
use zc::{CloseCode, Connection, ConnectionError, Fabric, Message};

const GUARD: Duration = Duration::from_secs(120);
const ROOM: u32 = 96;
/// Set in the other process: where to connect to.
const CHILD: &str = "ZC_KV_CHILD";

/// On the test machine (`docs/testing.md`) that of its device alone.
fn kinds() -> &'static [&'static str] {
    match std::env::var_os("ZC_RDMA_MACHINE") {
        Some(_) => &["rdma"],
        None if cfg!(feature = "shm") => &["shm", "tcp"],
        None => &["tcp"],
    }
}

/// A server, and where it is.
struct Served {
    fabric: Fabric,
    uri: String,
    task: JoinHandle<Result<(u64, u64), KvError>>,
}

impl Served {
    async fn start(kind: &str, slots: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let fabric = Fabric::auto().unwrap();
        let uri = match kind {
            "tcp" => "zc+tcp://127.0.0.1:0".to_owned(),
            "rdma" => "zc+rdma://10.0.0.1:0".to_owned(),
            other => {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                format!("zc+{other}://kv-{}-{n}", std::process::id())
            }
        };
        let listener = fabric.listen(&uri).await.unwrap();
        let uri = listener.local_uri().to_string();
        let server = Arc::new(Server::new(&fabric, slots, ROOM).unwrap());
        let task = tokio::spawn(server.serve(listener, std::future::pending()));
        Self { fabric, uri, task }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.fabric, &self.uri).await.unwrap()
    }

    /// A client of nobody's make, with a lease.
    async fn stranger(&self) -> (Connection, Terms) {
        let mut conn = self.fabric.connect(&self.uri).await.unwrap();
        conn.send(Request::Lease.encode(1)).await.unwrap();
        let answer = conn.recv().await.unwrap().unwrap();
        let Some((1, Answer::Lease(terms))) = Answer::decode(&answer) else { panic!("no lease") };
        (conn, terms)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn over_each<F: Future>(test: impl Fn(&'static str) -> F) {
    for kind in kinds() {
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        rt.block_on(async { tokio::time::timeout(GUARD, test(kind)).await.expect("it hangs") });
    }
}

fn number(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

async fn count(client: &mut Client, key: &[u8]) {
    let add = |old: &[u8]| Some(Vec::from((number(old) + 1).to_le_bytes()));
    client.update(key, add).await.unwrap().unwrap();
}

#[test]
fn what_is_put_is_found_until_it_is_deleted() {
    over_each(|kind| async move {
        let served = Served::start(kind, 256).await;
        let (mut one, mut other) = (served.client().await, served.client().await);
        assert_eq!(one.is_native(), kind != "tcp");
        assert_eq!(one.get(b"fruit").await.unwrap(), None);
        for value in [&b"apple"[..], b"", b"pear", &[7; 91]] {
            one.put(b"fruit", value).await.unwrap();
            assert_eq!(other.get(b"fruit").await.unwrap().as_deref(), Some(value));
            assert_eq!(other.get_by_message(b"fruit").await.unwrap().as_deref(), Some(value));
        }
        other.put_by_message(b"fruit", b"plum").await.unwrap();
        assert_eq!(one.get(b"fruit").await.unwrap().as_deref(), Some(&b"plum"[..]));
        assert!(other.delete(b"fruit").await.unwrap());
        assert!(!one.delete(b"fruit").await.unwrap());
        assert_eq!(one.get(b"fruit").await.unwrap(), None);
        assert_eq!(one.update(b"fruit", |_| Some(vec![1])).await.unwrap(), None);
        let size = |error| matches!(error, Err(KvError::Size { room: ROOM, .. }));
        assert!(size(one.put(b"fruit", &[7; 92]).await) && size(one.put(b"", b"x").await));
        assert!(size(one.put_by_message(&[1; 5000], b"").await));
        // A change to what does not fit leaves no lock behind.
        one.put(b"fruit", b"fig").await.unwrap();
        let leases = one.seen.leases;
        assert!(size(one.update(b"fruit", |_| Some(vec![1; 92])).await.map(drop)));
        assert_eq!(other.get(b"fruit").await.unwrap().as_deref(), Some(&b"fig"[..]));
        one.put(b"fruit", b"date").await.unwrap();
        assert_eq!((one.seen.leases, other.seen.contended), (leases, 0));
    });
}

#[test]
fn the_server_takes_part_in_nothing_that_the_lane_can_do() {
    over_each(|kind| async move {
        let served = Served::start(kind, 256).await;
        let mut client = served.client().await;
        client.put(b"key", b"0").await.unwrap();
        let before = client.server_counts().await.unwrap();
        for n in 0..100_u64 {
            client.put(b"key", &n.to_le_bytes()).await.unwrap();
            assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&n.to_le_bytes()[..]));
        }
        let after = client.server_counts().await.unwrap();
        assert_eq!(after.0, before.0, "messages");
        // Two reads, three swaps and a write.
        assert_eq!(after.1 - before.1, if kind == "tcp" { 600 } else { 0 }, "operations");
        client.get_by_message(b"key").await.unwrap();
        assert_eq!(client.server_counts().await.unwrap().0, before.0 + 1);
    });
}

#[test]
fn a_counter_ends_exact_while_others_come_and_go() {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 300;
    const GO: u64 = 10;
    over_each(|kind| async move {
        let served = Served::start(kind, 16).await;
        served.client().await.put(b"count", &[0; 8]).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (mut client, stop) = (served.client().await, stop.clone());
            clients.spawn(async move {
                let mut counted = 0;
                while counted < EACH || !stop.load(Ordering::Relaxed) {
                    count(&mut client, b"count").await;
                    counted += 1;
                }
                (counted, client.seen.leases)
            });
        }
        // Each that goes takes the memory from the others where it keeps a mapping of it.
        let mut passers_by = served.client().await;
        for _ in 0..GO {
            count(&mut passers_by, b"count").await;
            passers_by = served.client().await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        stop.store(true, Ordering::Relaxed);
        let (mut counted, mut leases) = (GO, 0);
        while let Some(done) = clients.join_next().await {
            let done = done.unwrap();
            (counted, leases) = (counted + done.0, leases + done.1);
        }
        let total = served.client().await.get(b"count").await.unwrap().unwrap();
        assert_eq!(number(&total), counted);
        assert!(kind != "shm" || leases > CLIENTS, "{leases} leases");
        assert!(kind != "rdma" || leases == CLIENTS, "{leases} leases: a key ends without a copy there");
        println!("{kind}: counted to {counted} with {leases} leases");
    });
}

#[test]
fn a_lock_made_of_a_value_excludes() {
    const CLIENTS: u8 = 3;
    const EACH: u64 = 50;
    over_each(|kind| async move {
        let served = Served::start(kind, 64).await;
        let mut first = served.client().await;
        first.put(b"lock", &[0]).await.unwrap();
        first.put(b"sum", &[0; 8]).await.unwrap();
        let mut clients = JoinSet::new();
        for me in 1..=CLIENTS {
            let mut client = served.client().await;
            clients.spawn(async move {
                for _ in 0..EACH {
                    let take = |old: &[u8]| (old == [0]).then(|| vec![me]);
                    while client.update(b"lock", take).await.unwrap().unwrap() != [0] {
                        tokio::task::yield_now().await;
                    }
                    // Two steps, which only the lock keeps together.
                    let sum = number(&client.get(b"sum").await.unwrap().unwrap());
                    tokio::task::yield_now().await;
                    client.put(b"sum", &(sum + 1).to_le_bytes()).await.unwrap();
                    assert_eq!(client.update(b"lock", |_| Some(vec![0])).await.unwrap().unwrap(), [me]);
                }
            });
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        assert_eq!(number(&first.get(b"sum").await.unwrap().unwrap()), u64::from(CLIENTS) * EACH);
    });
}

#[test]
fn reads_are_never_torn() {
    const KEYS: u64 = 2;
    over_each(|kind| async move {
        let served = Served::start(kind, 1).await;
        let mut first = served.client().await;
        for key in 0..KEYS {
            first.put(&[1 + key as u8], &value(key, 0, 90)).await.unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..2_u64 {
            let (mut client, stop) = (served.client().await, stop.clone());
            writers.spawn(async move {
                let mut n = writer;
                while !stop.load(Ordering::Relaxed) {
                    // Of different lengths, by both ways.
                    let (key, len) = (n % KEYS, 40 + (n % 50) as usize);
                    let (name, value) = ([1 + key as u8], value(key, n, len));
                    match n % 8 {
                        0 => client.put_by_message(&name, &value).await.unwrap(),
                        _ => client.put(&name, &value).await.unwrap(),
                    }
                    n += 1;
                }
                n
            });
        }
        let (began, mut reads) = (std::time::Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(2) || reads < 500 {
            let key = reads % KEYS;
            let found = first.get(&[1 + key as u8]).await.unwrap().expect("it is never away");
            assert!(is_whole(key, &found), "read {reads}");
            reads += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        while let Some(done) = writers.join_next().await {
            written += done.unwrap();
        }
        println!("{kind}: {reads} reads, {written} writes, {} torn and read again", first.seen.torn);
        assert!(written > 100);
    });
}

#[test]
fn a_table_is_of_bounded_size() {
    let fabric = Fabric::auto().unwrap();
    for (slots, room) in
        [(0, ROOM), (64, 0), (64, u32::MAX), (u64::MAX, ROOM), (1 << 20, ROOM), (1 << 14, 4096)]
    {
        assert!(matches!(Server::new(&fabric, slots, room), Err(KvError::Shape { .. })), "{slots} {room}");
    }
    assert!(Server::new(&fabric, 1 << 16, ROOM).is_ok());
}

#[test]
fn a_full_table_is_an_error_of_its_own() {
    over_each(|kind| async move {
        let served = Served::start(kind, 1).await;
        let mut client = served.client().await;
        for key in 0..WAYS as u8 {
            client.put(&[key], &[key]).await.unwrap();
        }
        assert!(matches!(client.put(b"more", b"").await, Err(KvError::Full)));
        // What is there can still be changed, and what is deleted makes room.
        client.put(&[3], b"changed").await.unwrap();
        assert!(client.delete(&[5]).await.unwrap());
        client.put(b"more", b"fits").await.unwrap();
        assert!(matches!(client.put(b"again", b"").await, Err(KvError::Full)));
        assert_eq!(client.get(b"more").await.unwrap().as_deref(), Some(&b"fits"[..]));
        assert_eq!(client.get(&[3]).await.unwrap().as_deref(), Some(&b"changed"[..]));
    });
}

/// Killed however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the other process. It takes a lock, says so, and is killed.
#[test]
fn child() {
    let Ok(uri) = std::env::var(CHILD) else { return };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async {
        let mut client = Client::connect(&Fabric::auto().unwrap(), &uri).await.unwrap();
        let locked = client.lock(b"key", &mut Thwarted::default()).await.unwrap().unwrap();
        assert_eq!(locked.value, b"before");
        std::future::pending::<()>().await;
    });
}

#[test]
fn the_lock_of_a_killed_client_is_broken() {
    over_each(|kind| async move {
        let served = Served::start(kind, 64).await;
        let mut client = served.client().await;
        client.put(b"key", b"before").await.unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1"])
            .env(CHILD, &served.uri)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let child = Killed(child);
        let (mut watcher, terms) = served.stranger().await;
        let (memory, at) = (watcher.remote(), terms.shape.state_at(terms.shape.home(b"key")));
        loop {
            let word = bytes(&memory.read(&terms.key, at, 8).await.unwrap());
            let state = State(u64::from_ne_bytes(*word.first_chunk().unwrap()));
            if state.owner() != NOBODY {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Who only reads is not held up.
        assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&b"before"[..]));
        drop(child);
        client.put(b"key", b"after").await.unwrap();
        assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&b"after"[..]));
        watcher.send(Request::Counts.encode(2)).await.unwrap();
        assert!(watcher.recv().await.unwrap().is_some());
    });
}

fn bytes(message: &Message) -> Vec<u8> {
    message.segments().iter().flat_map(|segment| segment.iter().copied()).collect()
}

#[test]
fn a_lock_that_a_living_client_keeps_is_broken_and_its_change_is_not_made() {
    over_each(|kind| async move {
        let served = Served::start(kind, 64).await;
        let (mut slow, mut other) = (served.client().await, served.client().await);
        slow.put(b"count", &[5, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let locked = slow.lock(b"count", &mut Thwarted::default()).await.unwrap().unwrap();
        // The server, too, waits no longer than that.
        other.put_by_message(b"count", &[6, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        assert!(!slow.unlock(locked, b"count", Some(&[0; 8])).await.unwrap());
        assert_eq!(number(&other.get(b"count").await.unwrap().unwrap()), 6);

        let locked = slow.lock(b"count", &mut Thwarted::default()).await.unwrap().unwrap();
        count(&mut other, b"count").await;
        assert!(!slow.unlock(locked, b"count", Some(&[0; 8])).await.unwrap());
        count(&mut slow, b"count").await;
        assert_eq!(number(&other.get(b"count").await.unwrap().unwrap()), 8);

        // Dropped on its way: the next operation has the server open the lock.
        drop(slow.lock(b"count", &mut Thwarted::default()).await.unwrap().unwrap());
        let leases = slow.seen.leases;
        count(&mut slow, b"count").await;
        assert_eq!((slow.seen.leases, number(&slow.get(b"count").await.unwrap().unwrap())), (leases + 1, 9));
    });
}

#[test]
fn a_lock_that_went_with_its_lease_writes_nothing() {
    over_each(|kind| async move {
        let served = Served::start(kind, 64).await;
        let (mut one, mut other) = (served.client().await, served.client().await);
        one.put(b"key", b"before").await.unwrap();
        let locked = one.lock(b"key", &mut Thwarted::default()).await.unwrap().unwrap();
        // With another lease, whose key is valid.
        assert_eq!(one.get(b"another").await.unwrap(), None);
        other.put(b"key", b"theirs").await.unwrap();
        assert!(!one.unlock(locked, b"key", Some(b"stale")).await.unwrap());
        for client in [&mut one, &mut other] {
            assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&b"theirs"[..]));
        }
    });
}

#[test]
fn a_client_can_not_hurry_the_server_from_copy_to_copy() {
    over_each(|kind| async move {
        const ROUNDS: u64 = 3;
        let served = Served::start(kind, 64).await;
        let began = std::time::Instant::now();
        let (mut conn, mut terms) = served.stranger().await;
        for round in 0..ROUNDS {
            // A key that was used, so that the peer has the memory.
            let memory = conn.remote();
            memory.read(&terms.key, 0, 8).await.unwrap();
            conn.send(Request::Lease.encode(2 + round)).await.unwrap();
            let answer = conn.recv().await.unwrap().unwrap();
            let Some((_, Answer::Lease(renewed))) = Answer::decode(&answer) else { panic!("no lease") };
            assert!(memory.read(&terms.key, 0, 8).await.is_err());
            terms = renewed;
        }
        // Nor with other connections.
        let _others = (served.stranger().await, served.stranger().await);
        let pauses = ROUNDS as u32 + 2;
        // No less: how much more it takes is the machine's business.
        assert!(kind == "tcp" || began.elapsed() >= COPY_PAUSE * pauses, "{:?}", began.elapsed());
    });
}

#[test]
fn whoever_says_nonsense_loses_its_connection_alone() {
    over_each(|kind| async move {
        let served = Served::start(kind, 64).await;
        let mut client = served.client().await;
        client.put(b"key", b"value").await.unwrap();
        let mut long = Request::Put { key: vec![1; 9], value: vec![2; 8000] }.encode(1);
        let numbered = |kind: u8, rest: &[u8]| [&1_u64.to_le_bytes()[..], &[kind], rest].concat();
        for nonsense in [
            vec![],
            vec![1; 8],
            numbered(0, &[]),
            numbered(1, &[0]),
            numbered(3, &[9, 0, 1]),
            numbered(5, &[0; 15]),
        ]
        .into_iter()
        .chain([std::mem::take(&mut long)])
        {
            let mut conn = served.fabric.connect(&served.uri).await.unwrap();
            conn.send(nonsense.clone()).await.unwrap();
            match conn.recv().await {
                Err(ConnectionError::ClosedByPeer { code: CloseCode::PROTOCOL_ERROR, .. }) => {}
                other => panic!("{nonsense:?}: {other:?}"),
            }
        }
        // These are requests, about what is not there.
        let (mut conn, terms) = served.stranger().await;
        for (number, slot) in [(2, u64::MAX), (3, terms.shape.all_slots()), (4, 0)] {
            let request = Request::Stuck { slot, state: State(u64::MAX) };
            conn.send(request.encode(number)).await.unwrap();
            let answer = conn.recv().await.unwrap().unwrap();
            assert_eq!(Answer::decode(&answer), Some((number, Answer::Done)));
        }
        assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&b"value"[..]));
    });
}

#[test]
fn whatever_is_written_to_the_table_harms_the_table_only() {
    over_each(|kind| async move {
        let served = Served::start(kind, 4).await;
        let mut client = served.client().await;
        let (conn, terms) = served.stranger().await;
        let (memory, shape) = (conn.remote(), terms.shape);
        let mut random = 0x1234_5678_9ABC_DEF1_u64;
        for round in 0..20_u32 {
            client.put(b"key", b"value").await.unwrap();
            let mut garbage = vec![0; shape.bytes()];
            garbage.iter_mut().for_each(|byte| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = if round % 2 == 0 { (random >> 33) as u8 } else { (random >> 40) as u8 & 1 };
            });
            // Locks: of nobody that there is, of the server, of this client, of the other one, and none.
            for slot in 0..shape.all_slots() {
                let owner = [0xFFF0, SERVER, terms.owner, terms.owner - 1, NOBODY][slot as usize % 5];
                let state = State::new(2 + u64::from(round), owner).0.to_ne_bytes();
                let at = shape.state_at(slot) as usize;
                garbage[at..].iter_mut().zip(state).for_each(|(to, from)| *to = from);
            }
            if memory.write(&terms.key, 0, garbage).await.is_err() {
                assert!(round > 0, "its lease ended when somebody waited for its locks");
                break;
            }
            let found = client.get(b"key").await;
            assert!(matches!(found, Err(KvError::Damaged)), "{found:?}");
            assert!(matches!(client.get_by_message(b"key").await, Err(KvError::Damaged)));
            assert!(!client.delete(b"key").await.unwrap());
            // Placed in a slot that is damaged, whoever claims to have it locked.
            for key in 0..WAYS as u8 {
                match client.put(&[key], b"mended").await {
                    Ok(()) => assert_eq!(client.get(&[key]).await.unwrap().as_deref(), Some(&b"mended"[..])),
                    Err(error) => assert!(matches!(error, KvError::Full), "{error}"),
                }
            }
            for key in 0..WAYS as u8 {
                client.delete(&[key]).await.unwrap();
            }
        }
        client.put(b"key", b"value").await.unwrap();
        assert_eq!(client.get(b"key").await.unwrap().as_deref(), Some(&b"value"[..]));
    });
}

#[test]
fn fuzz_bytes_of_a_slot_are_what_they_say_or_torn() {
    let shape = Shape { slots: 4, room: ROOM, seed: [9; 16] };
    let mut random = 7_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    for _ in 0..2000 {
        let (slot, version) = (next() % 8, 1 + next() % 5);
        let (key, value) =
            (vec![next() as u8; 1 + next() as usize % 8], vec![next() as u8; next() as usize % 80]);
        let mut bytes = vec![0; shape.slot_bytes()];
        bytes.iter_mut().zip(State::new(version, 3).0.to_ne_bytes()).for_each(|(to, from)| *to = from);
        let at = (shape.copy_at(slot, version) - shape.state_at(slot)) as usize;
        let copy = shape.copy(slot, version, &key, &value);
        bytes[at..].iter_mut().zip(&copy).for_each(|(to, from)| *to = *from);
        let whole = Look::Pair { key: &key, value: &value };
        assert_eq!(shape.look(slot, &bytes), (State::new(version, 3), whole));
        // Of another slot or version it is none.
        assert_eq!(shape.look(slot + 1, &bytes).1, Look::Torn);
        let mut damaged = bytes.clone();
        damaged[at + next() as usize % copy.len()] ^= 1 << (next() % 8);
        assert_eq!(shape.look(slot, &damaged).1, Look::Torn);
        bytes.truncate(next() as usize % (at + copy.len()));
        assert!(!matches!(shape.look(slot, &bytes).1, Look::Pair { .. }));
    }
}

#[test]
fn fuzz_messages_are_parsed_or_refused() {
    let mut random = 3_u64;
    for len in (0..4000).map(|n| n % 100) {
        let bytes: Vec<u8> = (0..len)
            .map(|at| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if at == 8 { (random >> 40) as u8 % 11 } else { (random >> 33) as u8 }
            })
            .collect();
        let message = Message::from(bytes.clone());
        if let Some((number, request)) = Request::decode(&message) {
            assert_eq!(request.encode(number), bytes);
        }
        if let Some((number, answer)) = Answer::decode(&message) {
            assert_eq!(answer.encode(number), bytes);
        }
    }
}
