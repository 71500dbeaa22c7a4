//! Connections over shared memory, through the facade.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

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
