//! `zc ping`.

use std::time::{Duration, Instant};

use zc::Connection;

use crate::perf::protocol::{Order, Test, Touch, begin};
use crate::say::say;
use crate::{Result, block_on};

/// Bytes of a ping.
const SIZE: usize = 64;

pub(crate) fn run(uri: &str, count: u64, interval_ms: u64) -> Result<()> {
    block_on(async {
        let fabric = zc::Fabric::auto()?;
        let mut conn = fabric.connect(uri).await?;
        say!("{}", conn.report())?;
        begin(&mut conn, &Order { test: Test::Latency, size: SIZE, touch: Touch::None, inflight: 1 }).await?;
        let stop = tokio::signal::ctrl_c();
        tokio::pin!(stop);
        let mut times = Vec::new();
        for seq in 1.. {
            let at = Instant::now();
            tokio::select! {
                _ = &mut stop => break,
                answer = round_trip(&mut conn) => answer?,
            }
            let took = at.elapsed();
            times.push(took);
            say!("{SIZE} bytes from {uri}: seq={seq} time={:.1} µs", took.as_secs_f64() * 1e6)?;
            if seq == count {
                break;
            }
            tokio::select! {
                _ = &mut stop => break,
                () = tokio::time::sleep(Duration::from_millis(interval_ms)) => {}
            }
        }
        if times.is_empty() {
            return Err("no answer came".into());
        }
        let micros = |d: &Duration| d.as_secs_f64() * 1e6;
        let sum: f64 = times.iter().map(micros).sum();
        let min = times.iter().map(micros).fold(f64::INFINITY, f64::min);
        let max = times.iter().map(micros).fold(0.0, f64::max);
        say!(
            "{} round trips, min/mean/max {min:.1}/{:.1}/{max:.1} µs",
            times.len(),
            sum / times.len() as f64
        )?;
        conn.drain(Duration::from_secs(2)).await?;
        Ok(())
    })
}

async fn round_trip(conn: &mut Connection) -> Result<()> {
    let mut buf = conn.alloc(SIZE).await?;
    buf.resize(SIZE, 0);
    conn.send(buf.freeze()).await?;
    conn.recv().await?.ok_or("the peer finished")?;
    Ok(())
}
