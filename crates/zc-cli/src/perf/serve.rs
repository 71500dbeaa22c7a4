//! The serving side.

use std::io::Read;

use zc::Connection;
use zc::transport::Access;

use super::Waiting;
use super::protocol::{Order, Summary, Test, parse, read, write};
use crate::machine::cpu_s;
use crate::say::{complain, say};
use crate::{Result, block_on};

const WORD_BYTES: usize = 8;
/// Largest message that an order may name, bytes.
const MAX_SIZE: usize = 1 << 30;

pub(super) fn run(uri: &str, polling: Waiting, child: bool) -> Result<()> {
    block_on(async {
        let fabric = polling.fabric()?;
        let mut listener = fabric.listen(uri).await?;
        say!("{}", listener.local_uri())?;
        let (ended, mut end) = tokio::sync::oneshot::channel();
        if child {
            std::thread::spawn(move || {
                let _ = std::io::stdin().read(&mut [0]);
                let _ = ended.send(());
            });
        } else {
            tokio::spawn(async move {
                let _ = tokio::signal::ctrl_c().await;
                let _ = ended.send(());
            });
        }
        loop {
            tokio::select! {
                _ = &mut end => return Ok(()),
                conn = listener.accept() => {
                    // Fails only once the listener is closed, never for a peer.
                    let conn = conn?;
                    tokio::spawn(async move {
                        if let Err(error) = one(conn).await {
                            complain(format_args!("zc perf serve: {error}"));
                        }
                    });
                }
            }
        }
    })
}

async fn one(mut conn: Connection) -> Result<()> {
    let Some(first) = conn.recv().await? else { return Ok(()) };
    let order: Order = parse(first)?;
    if order.size > MAX_SIZE || order.inflight == 0 {
        return Err(format!("an order out of bounds: {order:?}").into());
    }
    conn.send(&b"ok"[..]).await?;
    let (cpu, ledger) = (cpu_s(), conn.ledger());
    let asked = match order.test {
        Test::Latency => echo(&mut conn, &order).await?,
        Test::Throughput => count(&mut conn, &order).await?,
        Test::Remote(_) => lend(&mut conn, &order).await?,
    };
    // `zc ping` goes when it has had enough, and waits for no summary.
    let Some(messages) = asked else { return Ok(()) };
    let ledger = Some(conn.ledger().since(&ledger).into());
    let summary = Summary { messages, cpu_s: cpu_s() - cpu, ledger };
    conn.send(serde_json::to_vec(&summary)?).await?;
    conn.drain(std::time::Duration::ZERO).await?;
    Ok(())
}

/// How many came before the summary was asked for; `None` if the peer left without.
async fn echo(conn: &mut Connection, order: &Order) -> Result<Option<u64>> {
    let mut messages = 0;
    while let Some(message) = conn.recv().await? {
        // An empty message ends the test; the summary follows.
        if message.is_empty() && order.size > 0 {
            return Ok(Some(messages));
        }
        read(&message, order.touch);
        if order.touch == super::Touch::All {
            drop(message);
            let mut buf = conn.alloc(order.size).await?;
            write(&mut buf, order.size, order.touch, messages as u8);
            conn.send(buf.freeze()).await?;
        } else {
            conn.send(message).await?;
        }
        messages += 1;
    }
    Ok(None)
}

/// Lends memory until the summary is asked for, and says how many operations took this side's session layer.
async fn lend(conn: &mut Connection, order: &Order) -> Result<Option<u64>> {
    let fabric = zc::Fabric::auto()?;
    let export = fabric.export(order.size.max(WORD_BYTES))?;
    let key = export.grant(conn, Access::ALL, ..)?;
    conn.send(key.to_bytes()).await?;
    let asked = conn.recv().await?.map(|_| conn.stats().remote_operations);
    export.revoke(&key)?;
    Ok(asked)
}

/// Counts messages and reports the count often enough that the sender never waits for it alone. Ends as `echo`.
async fn count(conn: &mut Connection, order: &Order) -> Result<Option<u64>> {
    let every = u64::from(order.inflight / 4).max(1);
    let (mut messages, mut told) = (0_u64, 0_u64);
    while let Some(message) = conn.recv().await? {
        if message.is_empty() {
            return Ok(Some(messages));
        }
        read(&message, order.touch);
        drop(message);
        messages += 1;
        if messages - told >= every {
            told = messages;
            let mut buf = conn.alloc(8).await?;
            buf.put_slice(&messages.to_le_bytes());
            conn.send(buf.freeze()).await?;
        }
    }
    Ok(None)
}
