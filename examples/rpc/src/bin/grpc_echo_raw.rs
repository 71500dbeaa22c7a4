//! The echo service without tonic: the same protobuf messages on zc's message API, decoded where they lie.
//!
//! A request is a number and an encoded `Payload`; the answer is the same memory, sent back. Neither side touches it, and
//! over shared memory nobody copies it: the client's own memory is lent to the server, which tells it where the answer lies.
//!
//! ```text
//! grpc_echo_raw                               both sides as two processes, one table
//! grpc_echo_raw server zc://127.0.0.1:7000    the sides alone
//! grpc_echo_raw client zc://127.0.0.1:7000
//! grpc_echo_raw bench --uri zc://127.0.0.1:0 --size 64 --inflight 128 --json [--http2]
//! ```
//!
//! To compare, `http://ADDRESS`, `unix:PATH`, `inproc:` and `--http2` take the service with tonic, as `grpc_echo` does.

#![allow(clippy::print_stdout, reason = "a program")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use zc::{Connection, Fabric, Message, PinnedBuf, Receiver, Sender};
use zc_examples_rpc::bench::{Latency, Report};
use zc_examples_rpc::cli::{Args, Command, Point, ServerArgs, print_head, print_row};
use zc_examples_rpc::{BoxError, grpc, process};

/// The call's number, in front of the protobuf message.
const NUMBER_BYTES: usize = 8;
/// Field 1, length-delimited: `Payload.data`.
const DATA_TAG: u8 = 0x0a;
/// A protobuf length takes at most so many bytes here.
const MAX_LENGTH_BYTES: usize = 5;
/// Answers sent with one flush.
const BATCH: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match Args::parse().command {
        None => {
            let server = process::Server::start("zc://127.0.0.1:0", false)?;
            table(&server.uri, || server.cpu_ns()).await
        }
        Some(Command::Server(args)) if args.http2 || grpc::is_baseline(&args.uri) => grpc::serve(&args).await,
        Some(Command::Server(ServerArgs { uri, child, .. })) => serve(&uri, child).await,
        Some(Command::Client { uri }) => table(&uri, || 0).await,
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

/// Answers until the peer has finished, or sends something that is no request.
async fn answer(connection: &mut Connection) -> Result<(), BoxError> {
    let (tx, mut rx) = connection.split();
    let (mut next, mut fed) = (rx.recv().await?, 0);
    while let Some(request) = next {
        if data_of(&request).is_none() {
            return Err("not a Payload".into());
        }
        tx.feed(request).await?;
        fed += 1;
        next = if fed < BATCH { rx.try_recv()? } else { None };
        if next.is_none() {
            tx.flush().await?;
            (next, fed) = (rx.recv().await?, 0);
        }
    }
    Ok(())
}

/// Where the data of the request lies, if it is one: checked in place, nothing is moved.
fn data_of(request: &Message) -> Option<PinnedBuf> {
    let [segment] = request.segments() else { return None };
    let payload = segment.get(NUMBER_BYTES..)?;
    if payload.is_empty() {
        return Some(PinnedBuf::empty());
    }
    let (tag, rest) = payload.split_first()?;
    let (mut len, mut at) = (0, 0);
    loop {
        let byte = *rest.get(at)?;
        len |= usize::from(byte & 0x7f) << (7 * at);
        at += 1;
        if byte < 0x80 {
            break;
        }
        if at == MAX_LENGTH_BYTES {
            return None;
        }
    }
    let start = NUMBER_BYTES + 1 + at;
    let fits = *tag == DATA_TAG && start.checked_add(len)? == segment.len();
    fits.then(|| segment.slice(start..))
}

/// A request in memory that the connection sends as it is.
async fn request(tx: &Sender, number: u64, size: usize) -> Result<Message, BoxError> {
    let mut buf = tx.alloc(NUMBER_BYTES + 1 + MAX_LENGTH_BYTES + size).await?;
    buf.put_slice(&number.to_le_bytes());
    if size > 0 {
        buf.put_slice(&[DATA_TAG]);
        let mut rest = size;
        while rest >= 0x80 {
            buf.put_slice(&[rest as u8 | 0x80]);
            rest >>= 7;
        }
        buf.put_slice(&[rest as u8]);
        let end = buf.len() + size;
        // Whatever the memory holds serves as data.
        buf.set_len(end);
    }
    Ok(buf.freeze().into())
}

async fn table(uri: &str, cpu_ns: impl Fn() -> u64) -> Result<(), BoxError> {
    print_head();
    for (size, inflight) in [(64, 1), (64, 128), (64 << 10, 16), (1 << 20, 1)] {
        let point = Point { size, inflight, duration: Duration::from_millis(500) };
        print_row(&measure(uri, point, &cpu_ns).await?);
    }
    Ok(())
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

/// Keeps `inflight` calls under way. Answers come in order: the server is one task. While there is no room for
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
    let mut number = 0;
    while !(wanted.is_empty() && under_way.is_empty()) {
        let answer = tokio::select! {
            biased;
            asked = ask(tx, number, size), if !wanted.is_empty() => {
                asked?;
                under_way.push_back((number, wanted.pop_front().unwrap_or(end)));
                number += 1;
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
async fn ask(tx: &Sender, number: u64, size: usize) -> Result<(), BoxError> {
    tx.feed(request(tx, number, size).await?).await?;
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

fn check(answer: &Message, number: u64, size: usize) -> Result<(), BoxError> {
    let data = data_of(answer).ok_or("not a Payload")?;
    if data.len() != size || answer.segments()[0][..NUMBER_BYTES] != u64::to_le_bytes(number) {
        return Err("another answer".into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use prost::Message as _;
    use zc_examples_rpc::pb::Payload;

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

    #[test]
    fn the_data_is_found_where_prost_puts_it() {
        for size in [0, 1, 127, 128, 70_000] {
            let payload = Payload { data: vec![7; size].into() };
            let mut bytes = vec![0; NUMBER_BYTES];
            payload.encode(&mut bytes).unwrap();
            assert_eq!(data_of(&bytes.clone().into()).unwrap()[..], payload.data);
            bytes.push(0);
            assert!(data_of(&bytes.into()).is_none());
        }
        for bad in
            [&b"short"[..], b"12345678\x0a", b"12345678\x0a\xff\xff\xff\xff\xff\xff\xff", b"12345678\x12\x00"]
        {
            assert!(data_of(&bad.into()).is_none(), "{bad:?}");
        }
    }
}
