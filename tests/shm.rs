//! Connections over shared memory, through the facade.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use futures::FutureExt;
use zc::{Connection, Fabric};

fn run<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("hangs") })
}

async fn pair(uri: &str) -> (Connection, Connection) {
    let fabric = Fabric::auto().unwrap();
    let mut listener = fabric.listen(uri).await.unwrap();
    let local = listener.local_uri().to_string();
    let (a, b) = tokio::join!(fabric.connect(&local), listener.accept());
    (a.unwrap(), b.unwrap())
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
        let dir = std::env::temp_dir().join(format!("zc-shm-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        ping_pong(&format!("zc+shm://{}", dir.join("s").display())).await;
        std::fs::remove_dir_all(&dir).unwrap();
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
            let (a, b) = tokio::join!(fabric.connect(&uri), listener.accept());
            let (a, mut b) = (a.unwrap(), b.unwrap());
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
