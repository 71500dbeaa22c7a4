//! A connection allocates nothing on the heap per message in steady state.

#![cfg(all(feature = "tokio", feature = "tcp"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use zc::{Connection, ConnectionOptions, Fabric, Polling};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

// SAFETY: forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LEN: usize = 64;
/// Enough for every queue and cache to have grown to what it stays at, and for a look of the driver.
const WARM_UP: usize = 5_000;
const COUNTED: usize = 10_000;
/// One of so many windows of that many messages has to be free of allocations.
const WINDOWS: usize = 3;

async fn pair(uri: &str, polling: Polling) -> (Connection, Connection) {
    let mut options = ConnectionOptions::default();
    options.polling = polling;
    let fabric = Fabric::auto_builder().options(options).build().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let uri = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap()
}

async fn send(conn: &Connection) {
    let mut buf = conn.alloc(LEN).await.unwrap();
    buf.put_slice(&[7; LEN]);
    conn.send(buf.freeze()).await.unwrap();
}

async fn receive(conn: &mut Connection) {
    assert_eq!(conn.recv().await.unwrap().unwrap().len(), LEN);
}

/// There and back, one at a time.
async fn ping_pong(client: &mut Connection, server: &mut Connection, rounds: usize) {
    let there = async {
        for _ in 0..rounds {
            send(client).await;
            receive(client).await;
        }
    };
    let back = async {
        for _ in 0..rounds {
            receive(server).await;
            send(server).await;
        }
    };
    tokio::join!(there, back);
}

/// Many in flight.
async fn stream(client: &mut Connection, server: &mut Connection, messages: usize) {
    const BURST: usize = 16;
    let there = async {
        for _ in 0..messages / BURST {
            for _ in 0..BURST {
                send(client).await;
            }
            receive(client).await;
        }
    };
    let back = async {
        for _ in 0..messages / BURST {
            for _ in 0..BURST {
                receive(server).await;
            }
            send(server).await;
        }
    };
    tokio::join!(there, back);
}

fn steady_state(uri: &str, polling: Polling) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = async {
        let (mut client, mut server) = pair(uri, polling).await;
        ping_pong(&mut client, &mut server, WARM_UP).await;
        stream(&mut client, &mut server, WARM_UP).await;
        // A queue may still grow once, when the driver looks at an odd moment; that is not per message.
        let mut seen = Vec::new();
        while seen.len() < WINDOWS && !seen.contains(&(0, 0)) {
            let before = allocations();
            ping_pong(&mut client, &mut server, COUNTED).await;
            let after_ping_pong = allocations();
            stream(&mut client, &mut server, COUNTED).await;
            seen.push((after_ping_pong - before, allocations() - after_ping_pong));
        }
        assert!(
            seen.contains(&(0, 0)),
            "{uri}, {polling:?}: allocations in {COUNTED} round trips and {COUNTED} messages in bursts: {seen:?}"
        );
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), body).await.expect("it hangs") });
}

#[test]
fn nothing_per_message_in_process() {
    steady_state("zc+mem://no-alloc", Polling::Interrupt);
}

#[test]
fn nothing_per_message_over_tcp() {
    steady_state("zc+tcp://127.0.0.1:0", Polling::Interrupt);
}

#[test]
fn nothing_per_message_over_tcp_while_spinning() {
    steady_state("zc+tcp://127.0.0.1:0", Polling::Adaptive { spin: Duration::from_micros(20) });
}

#[cfg(feature = "shm")]
#[test]
fn nothing_per_message_over_shared_memory() {
    for polling in [
        Polling::Interrupt,
        Polling::Busy,
        Polling::Adaptive { spin: Duration::ZERO },
        Polling::Adaptive { spin: Duration::from_micros(20) },
    ] {
        steady_state(&format!("zc+shm://no-alloc-{}", std::process::id()), polling);
    }
}

#[test]
fn a_received_message_becomes_bytes_with_at_most_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, mut server) = pair("zc+mem://no-alloc-bytes", Polling::Interrupt).await;
        for len in [LEN, 100_000] {
            client.send(vec![3; len]).await.unwrap();
            let message = server.recv().await.unwrap().unwrap();
            let mut segments = message.into_segments();
            let (first, none) = (segments.next().unwrap(), segments.next());
            assert!(none.is_none());
            let before = allocations();
            let bytes = bytes::Bytes::from(first);
            assert!(allocations() - before <= 1, "{len}");
            assert_eq!(bytes.len(), len);
        }
    });
}
