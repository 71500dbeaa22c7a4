//! Messages whose every byte can be checked, and fast enough to check megabytes in a debug build.

use std::sync::OnceLock;

use zc::{Connection, Message, Sender};

/// A prime, so that no size of a buffer is a multiple of the pattern.
const PERIOD: usize = 65_521;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut random = Random(1);
        (0..PERIOD).map(|_| random.next() as u8).collect()
    })
}

/// The pattern from `seed` on, in pieces of at most [`PERIOD`] bytes.
fn pieces(seed: usize, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let (mut at, mut left) = (seed % PERIOD, len);
    std::iter::from_fn(move || {
        let piece = &table()[at..PERIOD.min(at + left)];
        left -= piece.len();
        at = 0;
        (!piece.is_empty()).then_some(piece)
    })
}

/// `len` bytes of the pattern.
pub(crate) fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    pieces(seed, len).for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// The same in memory of the connection.
pub(crate) async fn lent(sender: &Sender, seed: usize, len: usize) -> Message {
    let mut buf = sender.alloc(len).await.unwrap();
    pieces(seed, len).for_each(|piece| buf.put_slice(piece));
    buf.freeze().into()
}

/// Checks every byte of a message.
#[track_caller]
pub(crate) fn assert_is(message: &Message, seed: usize, len: usize) {
    assert_eq!(message.len(), len, "length of message {seed}");
    let mut at = seed;
    for segment in message.segments() {
        let mut rest = &segment[..];
        for piece in pieces(at, rest.len()) {
            let (head, tail) = rest.split_at(piece.len());
            assert!(
                head == piece,
                "message {seed} of {len} bytes differs before byte {}",
                at - seed + head.len()
            );
            rest = tail;
        }
        at += segment.len();
    }
}

/// Bytes in front of a numbered message's pattern.
pub(crate) const NUMBER_BYTES: usize = 8;

/// A message that says who sent it and which it is.
pub(crate) fn numbered(sender: u32, n: u32, len: usize) -> Message {
    let mut message = Message::new();
    let head: Vec<u8> = sender.to_le_bytes().into_iter().chain(n.to_le_bytes()).collect();
    message.push([head, bytes(n as usize, len)].concat()).unwrap();
    message
}

/// Who sent it and which it is; every byte is checked.
#[track_caller]
pub(crate) fn number(message: &Message) -> (u32, u32) {
    assert!(message.len() >= NUMBER_BYTES, "a message of {} bytes", message.len());
    let head = message.slice(..NUMBER_BYTES);
    let head: Vec<u8> = head.segments().iter().flat_map(|part| part.iter().copied()).collect();
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (sender, n) = (word(0), word(4));
    assert_is(&message.slice(NUMBER_BYTES..), n as usize, message.len() - NUMBER_BYTES);
    (sender, n)
}

/// Sends everything back as it came, until the peer is done or gone.
#[allow(clippy::print_stderr, reason = "shown when the test fails")]
pub(crate) async fn echo(mut connection: Connection) {
    let (sender, mut receiver) = connection.split();
    loop {
        let message = match receiver.recv().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                eprintln!("echo: receiving ended: {error}");
                return;
            }
        };
        if let Err(error) = sender.send(message).await {
            eprintln!("echo: sending ended: {error}");
            return;
        }
    }
}

/// One message there and back.
pub(crate) async fn ask(connection: &mut Connection, n: u32, len: usize) {
    connection.send(numbered(0, n, len)).await.unwrap();
    let back = connection.recv().await.unwrap().expect("an answer");
    assert_eq!(number(&back), (0, n));
}
