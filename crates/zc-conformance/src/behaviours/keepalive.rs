//! A peer that is stopped is found out; one that is merely slow is left alone.

use std::time::{Duration, Instant};

use zc::ConnectionError;

use crate::data::{ask, number, numbered};
use crate::peer::{Part, Peer};
use crate::run::Verdict;
use crate::setup::{Bench, options, window};

const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(3);

fn watchful() -> zc::ConnectionOptions {
    let mut watchful = options();
    watchful.keepalive_interval = INTERVAL;
    watchful.keepalive_timeout = TIMEOUT;
    watchful
}

/// SIGSTOP: its kernel still answers, its session layer does not.
pub async fn a_stopped_peer_is_declared_dead(bench: &Bench) -> Verdict {
    bench.needs_processes().await?;
    let mut listener = bench.listen(bench.server().options(watchful())).await;
    let peer = Peer::start(bench, Part::Echo, &listener.local_uri().to_string());
    let mut connection = listener.accept().await.unwrap();
    let asked = Instant::now();
    ask(&mut connection, 1, 100).await;
    peer.stop();
    let error = connection.recv().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Dead { .. }), "{error}");
    assert!(asked.elapsed() >= INTERVAL + TIMEOUT, "declared dead after {:?}", asked.elapsed());
    assert!(connection.send(&b"x"[..]).await.is_err());
    Ok(())
}

/// Its application takes nothing for longer than interval and timeout together, and its window is full.
pub async fn a_slow_peer_is_not_declared_dead(bench: &Bench) -> Verdict {
    let limits = window(64 << 10);
    let client = bench.client().options(watchful()).limits(limits);
    let (client, mut server) = bench.pair_of(client, bench.server().limits(limits)).await;
    let sending = tokio::spawn(async move {
        for n in 0..20 {
            client.send(numbered(0, n, 30_000)).await.unwrap();
        }
        client
    });
    tokio::time::sleep(INTERVAL + TIMEOUT + Duration::from_millis(500)).await;
    for n in 0..20 {
        assert_eq!(number(&server.recv().await.unwrap().unwrap()), (0, n));
    }
    drop(sending.await.unwrap());
    Ok(())
}
