//! What the two sides of `zc perf` say to each other: an order, then messages, then a summary.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use zc::{Connection, Message};
use zc_core::memory::{KernelCopied, LedgerSnapshot};

use crate::Result;

/// How much of each message is written by its sender and read by its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Touch {
    None,
    Ends,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Test {
    Latency,
    Throughput,
    Remote(Action),
}

impl Test {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
            Self::Remote(Action::Read) => "remote read",
            Self::Remote(Action::Write) => "remote write",
            Self::Remote(Action::Add) => "remote add",
            Self::Remote(Action::Swap) => "remote swap",
        }
    }

    /// One thing is under way at a time, and each is timed.
    pub(crate) fn is_timed(self) -> bool {
        self != Self::Throughput
    }
}

/// A one-sided operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Action {
    Read,
    Write,
    /// Fetch-and-add to a word.
    Add,
    /// Compare-and-swap of a word, which always succeeds.
    Swap,
}

/// The client's first message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) test: Test,
    pub(crate) size: usize,
    pub(crate) touch: Touch,
    pub(crate) inflight: u32,
}

/// The server's last message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) messages: u64,
    pub(crate) cpu_s: f64,
    /// Since the order, warming up included. Older servers say nothing of it.
    #[serde(default)]
    pub(crate) ledger: Option<Counts>,
}

/// A side's ledger.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) moved_bytes: u64,
    pub(crate) copied_bytes: u64,
    pub(crate) inline_bytes: u64,
    /// `None` if the kernel did not say.
    pub(crate) kernel_copied: Option<u64>,
}

impl From<LedgerSnapshot> for Counts {
    fn from(ledger: LedgerSnapshot) -> Self {
        Self {
            moved_bytes: ledger.moved_bytes,
            copied_bytes: ledger.copied_bytes(),
            inline_bytes: ledger.inline_bytes,
            kernel_copied: match ledger.kernel_copied {
                KernelCopied::Known(bytes) => Some(bytes),
                KernelCopied::Unknown => None,
            },
        }
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let none = Self { moved_bytes: 0, copied_bytes: 0, inline_bytes: 0, kernel_copied: Some(0) };
        all.fold(none, |sum, one| Self {
            moved_bytes: sum.moved_bytes + one.moved_bytes,
            copied_bytes: sum.copied_bytes + one.copied_bytes,
            inline_bytes: sum.inline_bytes + one.inline_bytes,
            kernel_copied: sum.kernel_copied.zip(one.kernel_copied).map(|(a, b)| a + b),
        })
    }
}

/// Sends the order and waits for the server's agreement.
pub(crate) async fn begin(conn: &mut Connection, order: &Order) -> Result<()> {
    conn.send(serde_json::to_vec(order)?).await?;
    let answer = conn.recv().await?.ok_or("the peer refused the test")?;
    if answer == b"ok"[..] { Ok(()) } else { Err("the peer is not `zc perf serve`".into()) }
}

/// Parses JSON out of a message.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(message: Message) -> Result<T> {
    Ok(serde_json::from_reader(bytes_reader(message))?)
}

fn bytes_reader(message: Message) -> impl std::io::Read {
    std::io::Cursor::new(message.segments().iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>())
}

/// Reads a message as the test asks; the sum keeps the compiler from leaving the reading out.
pub(crate) fn read(message: &Message, touch: Touch) -> u64 {
    let ends = |part: &[u8]| part.first().zip(part.last()).map_or(0, |(a, b)| u64::from(*a) + u64::from(*b));
    let sum = match touch {
        Touch::None => 0,
        Touch::Ends => message.segments().iter().map(|part| ends(part)).sum(),
        Touch::All => message.segments().iter().map(|part| sum_words(part)).sum(),
    };
    std::hint::black_box(sum)
}

fn sum_words(part: &[u8]) -> u64 {
    let (words, rest) = part.as_chunks::<8>();
    let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}

/// Writes a message as the test asks, into memory of the connection.
pub(crate) fn write(buf: &mut zc::PinnedBufMut, size: usize, touch: Touch, mark: u8) {
    match touch {
        Touch::All => buf.resize(size, mark),
        _ => buf.set_len(size),
    }
    if touch == Touch::Ends && size > 0 {
        buf[0] = mark;
        buf[size - 1] = mark;
    }
}
