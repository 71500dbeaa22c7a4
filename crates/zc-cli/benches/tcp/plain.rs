//! The baseline: what one writes by hand with tokio. Frames are a length and a payload, on a
//! `BufReader`; a message leaves in one write, alone or in a batch.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const BUFFER_BYTES: usize = 64 << 10;
/// Order: what to do (1), size (4), count every (4).
const ORDER_BYTES: usize = 9;
const ECHO: u8 = 0;
const COUNT: u8 = 1;

/// How the messages of a batch are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    Each,
    Batched,
}

/// A socket that is asked again and again instead of being waited for, if `busy`.
struct Source {
    half: OwnedReadHalf,
    busy: bool,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.busy {
            return Pin::new(&mut self.half).poll_read(cx, buf);
        }
        match self.half.try_read(buf.initialize_unfilled()) {
            Ok(n) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// Room for the length in front of a message, so that an echo needs no second buffer.
const LENGTH_BYTES: usize = 4;

struct Frames {
    from: BufReader<Source>,
    frame: Vec<u8>,
}

impl Frames {
    /// The next message with its length in front, or `None` at the end.
    async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let len = match self.from.read_u32_le().await {
            Ok(len) => len as usize,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        self.frame.resize(LENGTH_BYTES + len, 0);
        self.frame[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        self.from.read_exact(&mut self.frame[LENGTH_BYTES..]).await?;
        Ok(Some(&self.frame))
    }

    fn has_more(&self) -> bool {
        !self.from.buffer().is_empty()
    }
}

fn open(stream: TcpStream, busy: bool) -> io::Result<(Frames, OwnedWriteHalf)> {
    stream.set_nodelay(true)?;
    let (half, to) = stream.into_split();
    let from = BufReader::with_capacity(BUFFER_BYTES, Source { half, busy });
    Ok((Frames { from, frame: Vec::new() }, to))
}

fn frame(size: usize) -> Vec<u8> {
    let mut frame = vec![7; 4 + size];
    frame[..4].copy_from_slice(&(size as u32).to_le_bytes());
    frame
}

/// Serves one connection after another, until the process is ended.
pub(crate) async fn serve(busy: bool) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (mut frames, mut to) = open(listener.accept().await?.0, busy)?;
        let mut order = [0; ORDER_BYTES];
        frames.from.read_exact(&mut order).await?;
        let every = u32::from_le_bytes([order[5], order[6], order[7], order[8]]);
        // A client that leaves in the middle has measured enough.
        let _ = match order[0] {
            ECHO => echo(&mut frames, &mut to).await,
            _ => count(&mut frames, &mut to, u64::from(every)).await,
        };
    }
}

async fn echo(frames: &mut Frames, to: &mut OwnedWriteHalf) -> io::Result<()> {
    while let Some(frame) = frames.next().await? {
        to.write_all(frame).await?;
    }
    Ok(())
}

async fn count(frames: &mut Frames, to: &mut OwnedWriteHalf, every: u64) -> io::Result<()> {
    let (mut messages, mut told) = (0_u64, 0_u64);
    while let Some(frame) = frames.next().await? {
        std::hint::black_box((frame.get(LENGTH_BYTES), frame.last()));
        messages += 1;
        if messages - told >= every {
            told = messages;
            to.write_all(&messages.to_le_bytes()).await?;
        }
    }
    Ok(())
}

async fn order(to: &mut OwnedWriteHalf, what: u8, size: usize, every: u32) -> io::Result<()> {
    let mut order = vec![what];
    order.extend_from_slice(&(size as u32).to_le_bytes());
    order.extend_from_slice(&every.to_le_bytes());
    to.write_all(&order).await
}

/// Median round trip, ns.
pub(crate) async fn latency(addr: &str, size: usize, busy: bool, for_: Duration) -> io::Result<f64> {
    let (mut frames, mut to) = open(TcpStream::connect(addr).await?, busy)?;
    order(&mut to, ECHO, size, 1).await?;
    let mut rtt = Histogram::<u64>::new(3).map_err(io::Error::other)?;
    let out = frame(size);
    let started = Instant::now();
    while started.elapsed() < for_ {
        let at = Instant::now();
        to.write_all(&out).await?;
        let back = frames.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(back.len(), LENGTH_BYTES + size);
        if started.elapsed() > for_.mul_f64(0.1) {
            rtt.record(at.elapsed().as_nanos() as u64).map_err(io::Error::other)?;
        }
    }
    Ok(rtt.value_at_quantile(0.5) as f64)
}

/// One-way messages per second that the receiver has processed.
pub(crate) async fn throughput(
    addr: &str,
    size: usize,
    inflight: u32,
    writes: Writes,
    for_: Duration,
) -> io::Result<f64> {
    let (mut frames, mut to) = open(TcpStream::connect(addr).await?, false)?;
    order(&mut to, COUNT, size, (inflight / 4).max(1)).await?;
    let (mut sent, mut processed) = (0_u64, 0_u64);
    let (mut one, mut batch) = (frame(size), Vec::new());
    let started = Instant::now();
    let mut from = None;
    loop {
        while sent - processed < u64::from(inflight) {
            one[4] = sent as u8;
            sent += 1;
            match writes {
                Writes::Each => to.write_all(&one).await?,
                Writes::Batched => batch.extend_from_slice(&one),
            }
        }
        to.write_all(&batch).await?;
        batch.clear();
        processed = frames.from.read_u64_le().await?;
        while frames.has_more() {
            processed = frames.from.read_u64_le().await?;
        }
        let spent = started.elapsed();
        match from {
            None if spent > for_.mul_f64(0.1) => from = Some((Instant::now(), processed)),
            Some((at, first)) if spent > for_ => {
                return Ok((processed - first) as f64 / at.elapsed().as_secs_f64());
            }
            _ => {}
        }
    }
}
