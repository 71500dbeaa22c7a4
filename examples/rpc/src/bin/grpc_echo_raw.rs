//! The echo service without tonic: the same four calls with the same protobuf messages on zc's message API, decoded where
//! they lie.
//!
//! A request is a head of eight bytes and an encoded message; the answer of a unary call is the same memory, sent back. Neither side
//! touches it, and over shared memory nobody copies it: the client's own memory is lent to the server, which tells it where
//! the answer lies. `zc_examples_rpc::raw` says what goes over the connection; there is no more of gRPC in it than the calls.
//!
//! ```text
//! grpc_echo_raw                               both sides as two processes, the four calls and one table
//! grpc_echo_raw server zc://127.0.0.1:7000    the sides alone
//! grpc_echo_raw client zc://127.0.0.1:7000
//! grpc_echo_raw bench --uri zc://127.0.0.1:0 --size 64 --inflight 128 --json [--http2]
//! ```
//!
//! To compare, `bench` and `server` take `http://ADDRESS`, `unix:PATH`, `inproc:` and `--http2` as `grpc_echo` does: that is
//! the service with tonic.

#![allow(clippy::print_stdout, reason = "a program")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use zc::{Connection, Fabric, Message, Receiver, Sender};
use zc_examples_rpc::bench::{Latency, Report};
use zc_examples_rpc::cli::{Args, Command, Point, ServerArgs, print_head, print_row};
use zc_examples_rpc::raw::{Caller, Head, Method, Sizes, answer, begin, fields};
use zc_examples_rpc::{BoxError, grpc, process};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match Args::parse().command {
        None => both().await,
        Some(Command::Server(args)) if args.http2 || grpc::is_baseline(&args.uri) => grpc::serve(&args).await,
        Some(Command::Server(ServerArgs { uri, child, .. })) => serve(&uri, child).await,
        Some(Command::Client { uri }) => client(&uri).await,
        Some(Command::Bench(args)) if args.http2 || grpc::is_baseline(&args.uri) => {
            args.run(|point| grpc::measure(&args.uri, args.http2, point)).await
        }
        Some(Command::Bench(args)) => {
            let server = process::Server::start(&args.uri, false)?;
            process::pin(1);
            args.run(|point| measure(&server.uri, point, || server.cpu_ns())).await
        }
    }
}

async fn serve(uri: &str, child: bool) -> Result<(), BoxError> {
    if child {
        process::pin(0);
    }
    let mut listener = Fabric::auto()?.listen(uri).await?;
    println!("{}", listener.local_uri());
    let mut stopped = std::pin::pin!(process::stopped(child));
    loop {
        tokio::select! {
            () = &mut stopped => return Ok(()),
            connection = listener.accept() => {
                let mut connection = connection?;
                drop(tokio::spawn(async move { answer(&mut connection).await }));
            }
        }
    }
}

async fn client(uri: &str) -> Result<(), BoxError> {
    let mut connection = Fabric::auto()?.connect(uri).await?;
    println!("{}", connection.report());
    show(&mut connection).await
}

/// The four kinds of call.
async fn show(connection: &mut Connection) -> Result<(), BoxError> {
    let mut caller = Caller::new(connection);
    println!("unary:  {}", text(&caller.unary(b"hello").await?));
    let summary = caller.collect([&b"a"[..], b"bc", b"def"].into_iter()).await?;
    println!("client stream: {} messages, {} bytes", summary.messages, summary.bytes);
    let mut answers = caller.repeat(b"again", 3).await?;
    let mut count = 0;
    while answers.message().await?.is_some() {
        count += 1;
    }
    println!("server stream: {count} messages");
    let mut chat = caller.chat();
    for data in [&b"one"[..], b"two"] {
        chat.send(data).await?;
    }
    chat.finish().await?;
    while let Some(answer) = chat.message().await? {
        println!("both ways: {}", text(&answer));
    }
    Ok(())
}

fn text(data: &Message) -> String {
    let text: String = data.segments().iter().map(|part| String::from_utf8_lossy(part)).collect();
    format!("{text:?}")
}

async fn both() -> Result<(), BoxError> {
    let server = process::Server::start("zc://127.0.0.1:0", false)?;
    client(&server.uri).await?;
    println!();
    print_head();
    for (size, inflight) in [(64, 1), (64, 128), (64 << 10, 16), (1 << 20, 1)] {
        let point = Point { size, inflight, duration: Duration::from_millis(500) };
        print_row(&measure(&server.uri, point, || server.cpu_ns()).await?);
    }
    Ok(())
}

/// A request; whatever the memory holds serves as data.
async fn request(tx: &Sender, call: u32, size: usize) -> Result<Message, BoxError> {
    let head = Head { call, method: Method::Unary, last: true };
    let mut buf = begin(tx, head, Sizes { data: size, others: 0 }).await?;
    let end = buf.len() + size;
    buf.set_len(end);
    Ok(buf.freeze().into())
}

async fn measure(
    uri: &str,
    Point { size: size_bytes, inflight, duration }: Point,
    cpu_ns: impl Fn() -> u64,
) -> Result<Report, BoxError> {
    let mut connection = Fabric::auto()?.connect(uri).await?;
    let mut halves = connection.split();
    drive(&mut halves, size_bytes, inflight, duration / 5, |_| {}).await?;
    let mut histogram = Histogram::<u64>::new_with_max(60_000_000_000, 3)?;
    let (before, ledger, began) = (cpu_ns(), connection.ledger(), Instant::now());
    drive(&mut halves, size_bytes, inflight, duration, |took| histogram.saturating_record(took)).await?;
    let (took, calls) = (began.elapsed(), histogram.len());
    let ledger = connection.ledger().since(&ledger);
    Ok(Report {
        uri: uri.to_owned(),
        size_bytes,
        inflight,
        calls_per_s: calls as f64 / took.as_secs_f64(),
        latency_ns: Latency { p50: histogram.value_at_quantile(0.5), p99: histogram.value_at_quantile(0.99) },
        server_cpu_ns_per_call: cpu_ns().saturating_sub(before) / calls.max(1),
        ledger: (&ledger).into(),
    })
}

/// Keeps `inflight` unary calls under way. Their answers come in order: the server is one task. While there is no room for
/// another request, answers are taken: the server may be waiting for that.
async fn drive(
    (tx, rx): &mut (Sender, Receiver),
    size: usize,
    inflight: usize,
    duration: Duration,
    mut record: impl FnMut(u64),
) -> Result<(), BoxError> {
    let end = Instant::now() + duration;
    let mut wanted = VecDeque::from(vec![Instant::now(); inflight]);
    let mut under_way = VecDeque::with_capacity(inflight);
    let mut call = 0_u32;
    while !(wanted.is_empty() && under_way.is_empty()) {
        let answer = tokio::select! {
            biased;
            asked = ask(tx, call, size), if !wanted.is_empty() => {
                asked?;
                under_way.push_back((call, wanted.pop_front().unwrap_or(end)));
                call = call.wrapping_add(1);
                continue;
            }
            answer = take(tx, rx), if !under_way.is_empty() => answer?,
        };
        let Some((expected, began)) = under_way.pop_front() else { continue };
        check(&answer, expected, size)?;
        let now = Instant::now();
        record((now - began).as_nanos() as u64);
        if now < end {
            wanted.push_back(now);
        }
    }
    Ok(())
}

/// Hands a request over; it goes out with the next flush.
async fn ask(tx: &Sender, call: u32, size: usize) -> Result<(), BoxError> {
    tx.feed(request(tx, call, size).await?).await?;
    Ok(())
}

async fn take(tx: &Sender, rx: &mut Receiver) -> Result<Message, BoxError> {
    if let Some(answer) = rx.try_recv()? {
        return Ok(answer);
    }
    // Nothing is here: what was fed meanwhile goes out as one batch.
    tx.flush().await?;
    Ok(rx.recv().await?.ok_or("the server has finished")?)
}

fn check(answer: &Message, call: u32, size: usize) -> Result<(), BoxError> {
    let head = Head::of(answer).ok_or("no answer")?;
    let data = fields(answer).ok_or("not a Payload")?.data;
    if data.len() != size || head != (Head { call, method: Method::Unary, last: true }) {
        return Err("another answer".into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// More than travels in a slot: that is inline, and no copy.
    #[tokio::test]
    async fn over_shared_memory_nobody_copies() {
        let uri = format!("zc+shm://@zc-raw-copies-{}", std::process::id());
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen(&uri).await.unwrap();
        let (mut client, mut server) = tokio::try_join!(fabric.connect(&uri), listener.accept()).unwrap();
        let mut halves = client.split();
        let mut calls = 0;
        let ask = async {
            for (size, inflight) in [(200, 1), (5000, 64), (64 << 10, 16), (10 << 20, 1)] {
                drive(&mut halves, size, inflight, Duration::from_millis(50), |_| calls += 1).await.unwrap();
            }
        };
        tokio::select! {
            () = ask => {}
            ended = answer(&mut server) => panic!("{ended:?}"),
        }
        assert!(calls >= 82);
        for ledger in [client.ledger(), server.ledger()] {
            assert!(ledger.moved_bytes > 10 << 20, "{ledger:?}");
            assert_eq!((ledger.copied_bytes(), ledger.inline_bytes), (0, 0), "{ledger:?}");
        }
    }
}
