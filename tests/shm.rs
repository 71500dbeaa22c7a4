//! Connections over shared memory, through the facade.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use zc::memory::{BufPool, Message, PinnedBufMut};
use zc::transport::{Completion, LaneLimits};
use zc::{Connection, ConnectionError, Fabric, Sender};
use zc_transport_shm::{ShmOptions, ShmTransport};
use zc_transport_tcp::StreamLinks;

#[path = "common/skipped.rs"]
mod skipped;

use skipped::skipped;

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("hangs") })
}

async fn pair(uri: &str) -> (Connection, Connection) {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let local = listener.local_uri().to_string();
    tokio::try_join!(fabric.connect(&local), listener.accept()).unwrap()
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31) ^ (i >> 9)) as u8).collect()
}

async fn ping_pong(uri: &str) {
    let (mut a, mut b) = pair(uri).await;
    assert_eq!(a.report().chosen(), "shm", "{}", a.report());
    let (tx, mut rx) = a.split();
    let echo = tokio::spawn(async move {
        let (tx, mut rx) = b.split();
        while let Some(message) = rx.recv().await.unwrap() {
            tx.send(message).await.unwrap();
        }
    });
    for len in [0, 1, 64, 112, 113, 4096, 65536, 1 << 20, 10 << 20, 64] {
        let expect = body(len);
        for _ in 0..10 {
            let mut buf = tx.alloc(len).await.unwrap();
            buf.put_slice(&expect);
            tx.send(buf.freeze()).await.unwrap();
            let back = rx.recv().await.unwrap().unwrap();
            assert!(back == expect[..], "{len} bytes");
        }
    }
    drop((a, tx, rx));
    echo.await.unwrap();
}

#[test]
fn by_name_by_path_and_chosen_on_one_host() {
    run(async {
        ping_pong(&format!("zc+shm://test-{}", std::process::id())).await;
        let dir = tempfile::Builder::new().prefix("zc-shm-").tempdir().unwrap();
        ping_pong(&format!("zc+shm://{}", dir.path().join("s").display())).await;
        ping_pong("zc://127.0.0.1:0").await;
    });
}

#[test]
fn what_a_connection_allocates_it_sends_without_a_copy() {
    run(async {
        let (mut a, mut b) = pair(&format!("zc+shm://alloc-{}", std::process::id())).await;
        let (tx, _rx) = a.split();
        for len in [4096, 1 << 20] {
            for _ in 0..20 {
                let mut buf = tx.alloc(len).await.unwrap();
                buf.put_slice(&body(len));
                tx.send(buf.freeze()).await.unwrap();
                assert!(b.recv().await.unwrap().unwrap() == body(len)[..]);
            }
        }
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (0, 0));
    });
}

#[test]
fn those_who_wait_for_memory_of_the_lane_get_it_in_turn() {
    const LEN: usize = 16 << 20;
    run(async {
        let (mut a, mut b) = pair(&format!("zc+shm://turns-{}", std::process::id())).await;
        let (tx, _rx) = a.split();
        let mut held = Vec::new();
        while let Some(buf) = tx.alloc(LEN).now_or_never() {
            held.push(buf.unwrap());
            assert!(held.len() < 1000, "the arenas have no bound");
        }
        let mut gives_up = Box::pin(tx.alloc(LEN));
        assert!(futures::poll!(&mut gives_up).is_pending());
        let other = tx.clone();
        let waits = tokio::spawn(async move { other.alloc(LEN).await.unwrap().capacity() });
        tokio::task::yield_now().await;
        drop(gives_up);
        // Memory comes back from the application, and from the peer.
        tx.send({
            let mut buf = held.pop().unwrap();
            buf.put_slice(b"there and back");
            buf.freeze()
        })
        .await
        .unwrap();
        drop(b.recv().await.unwrap().unwrap());
        assert!(waits.await.unwrap() >= LEN);
    });
}

/// A fabric whose arenas hold so much.
fn bounded(bytes: u64, longer_in_parts: bool, limits: LaneLimits, pool: Option<BufPool>) -> Fabric {
    let mut options = ShmOptions::default();
    options.max_arena_bytes = bytes;
    options.longer_in_parts = longer_in_parts;
    let shm = Arc::new(ShmTransport::new(options));
    let fabric = Fabric::builder().links(Arc::new(StreamLinks)).transport(shm).limits(limits);
    match pool {
        Some(pool) => fabric.pool(pool),
        None => fabric,
    }
    .build()
    .unwrap()
}

async fn pair_of(fabric: &Fabric, name: &str) -> (Connection, Connection) {
    let uri = format!("zc+shm://{name}-{}", std::process::id());
    let mut listener = fabric.listen(&uri).await.unwrap();
    tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap()
}

/// Fills `len` bytes that differ from page to page, quickly also without optimisation.
fn fill(buf: &mut PinnedBufMut, len: usize) {
    let page = body(4096);
    for at in (0..len).step_by(4096) {
        let n = (len - at).min(4096);
        let mark = (at as u64).to_le_bytes();
        buf.put_slice(&mark[..n.min(8)]);
        buf.put_slice(&page[n.min(8)..n]);
    }
}

fn is_filled(message: &Message, len: usize) -> bool {
    let [bytes] = message.segments() else { return false };
    let page = body(4096);
    let same = |(at, part): (usize, &[u8])| {
        let mark = (at as u64 * 4096).to_le_bytes();
        let n = part.len().min(8);
        part[..n] == mark[..n] && part[n..] == page[n..part.len()]
    };
    bytes.len() == len && bytes.chunks(4096).enumerate().all(same)
}

async fn one(tx: &Sender, b: &mut Connection, len: usize) {
    let sends = async {
        let mut buf = tx.alloc(len).await.unwrap();
        fill(&mut buf, len);
        tx.send(buf.freeze()).await.unwrap();
    };
    let (got, ()) = tokio::join!(b.recv(), sends);
    assert!(is_filled(&got.unwrap().unwrap(), len), "{len} bytes");
}

/// Of every size, through arenas for the longest and through small ones.
#[test]
fn all_sizes_arrive() {
    run(async {
        let limits = LaneLimits::default();
        for (bytes, whole) in [(1 << 30, usize::MAX), (4 << 20, 3 << 20)] {
            let name = format!("sizes-{}", bytes >> 20);
            let (mut a, mut b) = pair_of(&bounded(bytes, true, limits, None), &name).await;
            let (tx, _rx) = a.split();
            let mut copied = 0;
            for size in (6..26).step_by(2).map(|bits| 1 << bits) {
                for len in [size - 1, size, size + 49] {
                    one(&tx, &mut b, len).await;
                    copied += if len > whole { len as u64 } else { 0 };
                }
            }
            assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (copied, copied));
        }
    });
}

/// By default up to 1 GiB goes whole: that much where there is memory for it.
#[test]
fn large_messages_go_whole() {
    run(async {
        let (mut a, mut b) = pair(&format!("zc+shm://whole-{}", std::process::id())).await;
        let (tx, _rx) = a.split();
        one(&tx, &mut b, 64 << 20).await;
        if has_memory("messages of 1 GiB", 3 << 30) {
            one(&tx, &mut b, 300 << 20).await;
            one(&tx, &mut b, 1 << 30).await;
        }
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (0, 0));
    });
}

/// With every limit raised, more than that.
#[test]
fn larger_limits_take_larger_messages() {
    const WHAT: &str = "messages above 1 GiB";
    if std::env::var_os("ZC_SOAK").is_none() {
        return skipped(WHAT, "they take long: only under ZC_SOAK");
    }
    if !has_memory(WHAT, 6 << 30) {
        return;
    }
    run(async {
        let mut limits = LaneLimits::default();
        limits.recv_max_message = 3 << 29;
        let fabric = bounded(2 << 30, false, limits, None);
        let (mut a, mut b) = pair_of(&fabric, "raised").await;
        one(&a.split().0, &mut b, 3 << 29).await;
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (0, 0));
        drop((a, b));
        // And in parts, through arenas of 4 MiB.
        let pool = BufPool::builder().max_bytes(4 << 30).build();
        let fabric = bounded(4 << 20, true, LaneLimits::default(), Some(pool));
        let (mut a, mut b) = pair_of(&fabric, "raised-parts").await;
        one(&a.split().0, &mut b, 1 << 30).await;
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (1 << 30, 1 << 30));
    });
}

/// Whether so many bytes can be mapped, and as many stay free; says so if not.
fn has_memory(what: &str, bytes: u64) -> bool {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let free = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let has = free > 2 * bytes;
    if !has {
        skipped(what, format!("{} MiB of memory are available, {} wanted", free >> 20, bytes >> 19));
    }
    has
}

#[test]
fn beyond_the_bound_messages_are_refused_or_sent_in_parts() {
    run(async {
        let (mut a, mut b) = pair_of(&bounded(4 << 20, false, LaneLimits::default(), None), "refused").await;
        let max = a.caps().max_message as usize;
        let (tx, _rx) = a.split();
        for refused in [tx.send(vec![0; max + 1]).await.unwrap_err(), {
            match tx.try_send(vec![0; max + 1]).unwrap_err() {
                zc::TrySendError::Failed(error) => error,
                other => panic!("{other}"),
            }
        }] {
            assert!(
                matches!(refused.error, ConnectionError::TooLarge { len, max: most } if (len, most) == (max + 1, max))
            );
            assert!(!refused.is_retryable() && refused.into_message().unwrap().len() == max + 1);
        }
        assert!(tx.alloc(max + 1).await.is_err());
        // And the connection goes on. What takes more than half of the arenas is copied out, so that the sender has the rest.
        one(&tx, &mut b, max).await;
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (0, max as u64));

        let (mut a, mut b) = pair_of(&bounded(4 << 20, true, LaneLimits::default(), None), "parts").await;
        let (tx, _rx) = a.split();
        for len in [1000, 5 << 20, 64 << 20, 3 << 20] {
            one(&tx, &mut b, len).await;
        }
        let copied = (5 << 20) + (64 << 20);
        let copied_out = copied + (3 << 20);
        assert_eq!((a.ledger().copied_bytes(), b.ledger().copied_bytes()), (copied, copied_out));
        let (delivered, got) = tokio::join!(tx.send_with(vec![1; 9 << 20], Completion::Delivered), b.recv());
        delivered.unwrap();
        assert_eq!(got.unwrap().unwrap().len(), 9 << 20);
    });
}

/// A middleware hands everything on: that descriptors are wanted, and the link over which arenas grow.
#[cfg(feature = "testing")]
#[test]
fn a_wrapped_lane_grows_like_a_bare_one() {
    use std::sync::Arc;
    use zc::testing::{FaultPlan, FaultTransport, Tracer};
    use zc::transport::Transport;

    fn shm() -> Arc<dyn Transport> {
        Arc::new(zc_transport_shm::ShmTransport::default())
    }
    let wrappers: [fn() -> Arc<dyn Transport>; 2] =
        [|| Arc::new(Tracer::new(shm())), || Arc::new(FaultTransport::new(shm(), FaultPlan::new(1)))];
    for (at, wrapped) in wrappers.into_iter().enumerate() {
        run(async move {
            let fabric = Fabric::auto_builder().transport(wrapped()).build().unwrap();
            let uri = format!("zc+shm://wrapped-{}-{at}", std::process::id());
            let mut listener = fabric.listen(&uri).await.unwrap();
            let (a, mut b) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
            assert_eq!(a.report().chosen(), "shm", "{}", a.report());
            let expect = body(10 << 20);
            for _ in 0..3 {
                let mut buf = a.alloc(expect.len()).await.unwrap();
                buf.put_slice(&expect);
                a.send(buf.freeze()).await.unwrap();
                assert!(b.recv().await.unwrap().unwrap() == expect[..]);
            }
        });
    }
}
