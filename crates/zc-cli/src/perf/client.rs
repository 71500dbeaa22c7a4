//! The measuring side.

use std::io::{BufRead, BufReader, IsTerminal, Write, stderr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use zc::Connection;
use zc::transport::RemoteKey;
use zc_core::memory::LedgerSnapshot;

use super::output::Outcome;
use super::protocol::{Action, Counts, Order, Summary, Test, begin, parse, read, write};
use super::{Run, pin_to};
use crate::machine::cpu_s;
use crate::{Result, block_on};

/// Part of the duration that warms up and is not counted.
const WARM_UP: f64 = 0.1;

pub(super) struct One {
    pub(super) messages: u64,
    pub(super) spent: Duration,
    pub(super) rtt: Histogram<u64>,
    pub(super) ledger: Counts,
    pub(super) server: Summary,
    pub(super) transport: String,
    pub(super) report: serde_json::Value,
}

/// The peer process; it ends with its standard input.
struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

fn spawn(run: &Run) -> Result<(Server, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["perf", "serve", "--child", "--uri", &run.uri, "--polling", run.polling.name()]);
    if let Some((server, _)) = run.pin {
        command.args(["--pin", &server.to_string()]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("the server has no output")?;
    let stdin = child.stdin.take();
    let server = Server { child, stdin };
    let mut uri = String::new();
    BufReader::new(stdout).read_line(&mut uri)?;
    if uri.trim().is_empty() {
        return Err("the server did not start".into());
    }
    Ok((server, uri.trim().to_owned()))
}

pub(super) fn run(test: Test, run: Run) -> Result<()> {
    let duration = run.duration()?;
    if run.inflight == 0 || run.connections == 0 {
        return Err("--inflight and --connections take 1 or more".into());
    }
    if run.size == 0 {
        return Err("--size takes 1 byte or more".into());
    }
    let spawned = if run.remote { None } else { Some(spawn(&run)?) };
    let uri = spawned.as_ref().map_or(run.uri.as_str(), |(_, uri)| uri).to_owned();
    if let Some((_, client)) = run.pin {
        pin_to(client)?;
    }
    let outcome = block_on(async {
        let fabric = run.polling.fabric()?;
        let progress = Arc::new(AtomicU64::new(0));
        let ticker =
            (!run.json && stderr().is_terminal()).then(|| tokio::spawn(tick(progress.clone(), duration)));
        let cpu = cpu_s();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..run.connections {
            let conn = fabric.connect(uri.as_str()).await?;
            tasks.spawn(one(conn, test, run.clone(), duration, progress.clone()));
        }
        let mut parts = Vec::new();
        while let Some(part) = tasks.join_next().await {
            parts.push(part??);
        }
        if let Some(ticker) = ticker {
            ticker.abort();
            let _ = write!(stderr(), "\r\x1b[K");
        }
        Ok(Outcome::of(test, &run, &uri, parts, cpu_s() - cpu))
    })?;
    outcome.print(run.json)
}

/// The progress line.
async fn tick(progress: Arc<AtomicU64>, duration: Duration) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let (n, t) = (progress.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
        let (whole, rate) = (duration.as_secs_f64(), n as f64 / t);
        let _ = write!(stderr(), "\r{t:.1} s of {whole:.1} s, {n} messages, {rate:.0}/s ");
    }
}

async fn one(
    mut conn: Connection,
    test: Test,
    run: Run,
    duration: Duration,
    progress: Arc<AtomicU64>,
) -> Result<One> {
    let order = Order { test, size: run.size, touch: run.touch, inflight: run.inflight };
    begin(&mut conn, &order).await?;
    let mut rtt = Histogram::<u64>::new(3)?;
    let warm = duration.mul_f64(WARM_UP);
    let started = Instant::now();
    let (messages, spent, before) = match test {
        Test::Latency => latency(&mut conn, &order, started, warm, duration, &mut rtt, &progress).await?,
        Test::Throughput => throughput(&mut conn, &order, started, warm, duration, &progress).await?,
        Test::Remote(action) => {
            let spans = Spans { started, warm, duration };
            remote(&mut conn, &order, action, spans, &mut rtt, &progress).await?
        }
    };
    let ledger = conn.ledger().since(&before).into();
    conn.send(zc::Message::new()).await?;
    let summary: Summary = loop {
        let message = conn.recv().await?.ok_or("the server ended without a summary")?;
        if message.len() > 8 || test.is_timed() {
            break parse(message)?;
        }
    };
    let (transport, report) = (conn.report().chosen().to_owned(), conn.report().to_json());
    conn.drain(Duration::ZERO).await?;
    Ok(One { messages, spent, rtt, ledger, server: summary, transport, report })
}

async fn latency(
    conn: &mut Connection,
    order: &Order,
    started: Instant,
    warm: Duration,
    duration: Duration,
    rtt: &mut Histogram<u64>,
    progress: &AtomicU64,
) -> Result<(u64, Duration, LedgerSnapshot)> {
    let (mut messages, mut from, mut before) = (0_u64, None, conn.ledger());
    // As for one-sided operations.
    let mut at = Instant::now();
    loop {
        let mut buf = conn.alloc(order.size).await?;
        write(&mut buf, order.size, order.touch, messages as u8);
        conn.send(buf.freeze()).await?;
        let back = conn.recv().await?.ok_or("the server finished early")?;
        read(&back, order.touch);
        if back.len() != order.size {
            return Err(format!("{} bytes came back for {}", back.len(), order.size).into());
        }
        drop(back);
        let now = Instant::now();
        let spent = now - std::mem::replace(&mut at, now);
        match from {
            Some(from) => {
                rtt.record(spent.as_nanos() as u64)?;
                messages += 1;
                progress.store(messages, Ordering::Relaxed);
                if now - started >= warm + duration {
                    return Ok((messages, now - from, before));
                }
            }
            None if now - started >= warm => {
                from = Some(now);
                before = conn.ledger();
            }
            None => {}
        }
    }
}

struct Spans {
    started: Instant,
    warm: Duration,
    duration: Duration,
}

/// Until an operation is complete: it has taken effect then.
async fn remote(
    conn: &mut Connection,
    order: &Order,
    action: Action,
    spans: Spans,
    took: &mut Histogram<u64>,
    progress: &AtomicU64,
) -> Result<(u64, Duration, LedgerSnapshot)> {
    let message = conn.recv().await?.ok_or("the server lends nothing")?;
    let key = message.as_contiguous().and_then(RemoteKey::from_bytes).ok_or("not a key")?;
    let (memory, mut words) = (conn.remote(), 0_u64);
    let (mut operations, mut from, mut before) = (0_u64, None, conn.ledger());
    // One look at the clock for each: where that is slow it would count twice.
    let mut at = Instant::now();
    loop {
        match action {
            Action::Read => {
                let seen = memory.read(&key, 0, order.size).await?;
                read(&seen, order.touch);
            }
            Action::Write => {
                let mut buf = conn.alloc(order.size).await?;
                write(&mut buf, order.size, order.touch, words as u8);
                memory.write(&key, 0, buf.freeze()).await?;
            }
            Action::Add => {
                memory.fetch_add(&key, 0, 1).await?;
            }
            Action::Swap => {
                let seen = memory.compare_swap(&key, 0, words, words + 1).await?;
                if seen != words {
                    return Err(format!("the word was {seen} instead of {words}").into());
                }
            }
        }
        words += 1;
        let now = Instant::now();
        let spent = now - std::mem::replace(&mut at, now);
        match from {
            Some(from) => {
                took.record(spent.as_nanos() as u64)?;
                operations += 1;
                progress.store(operations, Ordering::Relaxed);
                if now - spans.started >= spans.warm + spans.duration {
                    return Ok((operations, now - from, before));
                }
            }
            None if now - spans.started >= spans.warm => {
                from = Some(now);
                before = conn.ledger();
            }
            None => {}
        }
    }
}

async fn throughput(
    conn: &mut Connection,
    order: &Order,
    started: Instant,
    warm: Duration,
    duration: Duration,
    progress: &AtomicU64,
) -> Result<(u64, Duration, LedgerSnapshot)> {
    let tx = conn.sender();
    let inflight = u64::from(order.inflight);
    let (mut sent, mut processed) = (0_u64, 0_u64);
    let (mut counted_from, mut before) = (None, conn.ledger());
    loop {
        while sent - processed < inflight {
            let mut buf = tx.alloc(order.size).await?;
            write(&mut buf, order.size, order.touch, sent as u8);
            tx.feed(buf.freeze()).await?;
            sent += 1;
        }
        tx.flush().await?;
        let message = conn.recv().await?.ok_or("the server finished early")?;
        let count: [u8; 8] =
            message.as_contiguous().and_then(|bytes| bytes.try_into().ok()).ok_or("not a count")?;
        processed = u64::from_le_bytes(count);
        if processed > sent {
            return Err("the server counted more than was sent".into());
        }
        progress.store(processed, Ordering::Relaxed);
        let now = Instant::now();
        match counted_from {
            None if now - started >= warm => {
                counted_from = Some((now, processed));
                before = conn.ledger();
            }
            Some((from, first)) if now - started >= warm + duration => {
                return Ok((processed - first, now - from, before));
            }
            _ => {}
        }
    }
}
