//! What every contender is: two processes that exchange messages.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Result;
use crate::child::Running;
use crate::job::{Job, Test};
use crate::machine::{Cores, pin};
use crate::samples::Metric;

/// Part of the time that warms up and is not counted.
const WARM_UP: f64 = 0.2;
/// Marks of data; the payload is filled with its mark.
const DATA_MARKS: u8 = 100;
/// The receiver of one-way messages answers this one.
const SYNC: u8 = 254;
/// The server ends.
const END: u8 = 255;
/// Bytes of one-way messages between two looks at the clock, and their number.
const UNTIMED_BYTES: usize = 1 << 16;
const UNTIMED_MESSAGES: usize = 256;

/// A system under comparison.
pub(crate) trait Contender {
    fn name(&self) -> &'static str;

    /// Whether it has this point.
    fn takes(&self, test: Test, size: usize) -> bool;

    /// The point's values. Runs in the process that is the client.
    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>>;

    /// The other process.
    fn serve(&self, job: &Job) -> Result<()>;
}

/// One side's end of a connection.
pub(crate) trait End {
    /// Sends `size` bytes that are all written with `mark`.
    async fn send(&mut self, mark: u8, size: usize) -> Result<()>;

    /// The next message, read in full with [`read`].
    async fn recv(&mut self, size: usize) -> Result<u8>;
}

/// A way to connect two processes; a [`Contender`] as a [`Pair`].
pub(crate) trait Link {
    const NAME: &'static str;
    const CORES: Cores = Cores::TWO;
    type End: End;

    fn takes(_test: Test, _size: usize) -> bool {
        true
    }

    /// Starts the server and connects to it. Runs within tokio.
    fn client(job: &Job) -> Result<(Running, Self::End)>;

    /// The server's end. Runs within tokio.
    fn server(job: &Job) -> Result<Self::End>;
}

/// Two ends that are driven alike for every contender.
pub(crate) struct Pair<L>(pub(crate) std::marker::PhantomData<L>);

impl<L: Link> Contender for Pair<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn takes(&self, test: Test, size: usize) -> bool {
        [Test::RoundTrip, Test::OneWay].contains(&test) && L::takes(test, size)
    }

    fn measure(&self, job: &Job) -> Result<Vec<(Metric, f64)>> {
        pin(L::CORES.client)?;
        block_on(async {
            let (server, mut end) = L::client(job)?;
            let value = match job.test {
                Test::OneWay => (Metric::OneWayPerS, one_way(&mut end, job.size, job.duration()?).await?),
                _ => (Metric::RoundTripNs, round_trip(&mut end, job.size, job.duration()?).await?),
            };
            end.send(END, job.size).await?;
            server.farewell();
            Ok(vec![value])
        })
    }

    fn serve(&self, job: &Job) -> Result<()> {
        pin(L::CORES.server)?;
        block_on(async { answer(L::server(job)?, job.test, job.size).await })
    }
}

/// One thread: what is measured is the connection, not a scheduler.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Reads every byte of a message: its mark, if nothing else is in it.
pub(crate) fn read(message: &[u8], size: usize) -> Result<u8> {
    let (Some(mark), true) = (message.first(), message.len() == size) else {
        return Err(format!("{} bytes came instead of {size}", message.len()).into());
    };
    let (words, rest) = message.as_chunks::<8>();
    let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    let sum = rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
    let word = u64::from_le_bytes([*mark; 8]);
    let expected = word.wrapping_mul(words.len() as u64).wrapping_add(u64::from(*mark) * rest.len() as u64);
    if sum == expected { Ok(*mark) } else { Err("the payload came changed".into()) }
}

async fn answer(mut end: impl End, test: Test, size: usize) -> Result<()> {
    loop {
        match end.recv(size).await? {
            END => return Ok(()),
            mark if mark == SYNC || test == Test::RoundTrip => end.send(mark, size).await?,
            _ => {}
        }
    }
}

async fn round_trip(end: &mut impl End, size: usize, duration: Duration) -> Result<f64> {
    let mut times = Histogram::<u64>::new(3)?;
    let counted_from = Instant::now() + duration.mul_f64(WARM_UP);
    let until = counted_from + duration;
    for mark in (0..DATA_MARKS).cycle() {
        let sent = Instant::now();
        end.send(mark, size).await?;
        if end.recv(size).await? != mark {
            return Err("another message came back".into());
        }
        let now = Instant::now();
        if now >= counted_from {
            times.record((now - sent).as_nanos() as u64)?;
        }
        if now >= until && !times.is_empty() {
            break;
        }
    }
    Ok(times.value_at_quantile(0.5) as f64)
}

async fn one_way(end: &mut impl End, size: usize, duration: Duration) -> Result<f64> {
    // Some connect only with the first message, and lose what overtakes that.
    end.send(SYNC, size).await?;
    end.recv(size).await?;
    stream(end, size, duration.mul_f64(WARM_UP)).await?;
    stream(end, size, duration).await
}

/// Messages a second, until the receiver has answered the last one.
async fn stream(end: &mut impl End, size: usize, duration: Duration) -> Result<f64> {
    let untimed = (UNTIMED_BYTES / size).clamp(1, UNTIMED_MESSAGES);
    let began = Instant::now();
    let mut messages = 1_u64;
    while began.elapsed() < duration {
        for _ in 0..untimed {
            end.send((messages % u64::from(DATA_MARKS)) as u8, size).await?;
            messages += 1;
        }
    }
    end.send(SYNC, size).await?;
    if end.recv(size).await? != SYNC {
        return Err("another message came back".into());
    }
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}
