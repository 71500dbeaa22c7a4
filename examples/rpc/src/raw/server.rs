//! The service.

use std::collections::{HashMap, VecDeque};

use prost::Message as _;
use zc::memory::MAX_SEGMENTS;
use zc::{Connection, Message, Sender};

use super::frame::{Head, Method, Sizes, begin, fields};
use crate::BoxError;
use crate::pb::Summary;

/// Turns before what was answered is flushed, and others on the same thread get theirs.
const BATCH: usize = 64;
/// Calls of one connection that collect or repeat at a time.
const MAX_OPEN: usize = 1000;
/// Bytes of the requests that these keep.
const MAX_HELD_BYTES: usize = 64 << 20;

/// Answers until the peer has finished, or sends something that is no request.
///
/// # Errors
/// The connection ended, or has to.
pub async fn answer(connection: &mut Connection) -> Result<(), BoxError> {
    let (tx, mut rx) = connection.split();
    let (mut calls, mut turns) = (Calls::default(), 0);
    loop {
        turns += 1;
        let mut request = rx.try_recv()?;
        if request.is_none() && calls.repeating.is_empty() {
            tx.flush().await?;
            let Some(next) = rx.recv().await? else { return Ok(()) };
            (request, turns) = (Some(next), 0);
        }
        if let Some(request) = request
            && let Some(answer) = calls.take(&tx, request).await?
        {
            tx.feed(answer).await?;
        }
        // One message of one call in turn, so that nobody waits for a long answer to others.
        if let Some(answer) = calls.repeat(&tx).await? {
            tx.feed(answer).await?;
        }
        if turns >= BATCH {
            tx.flush().await?;
            // With a peer that is as fast, nothing here may ever have to wait.
            tokio::task::yield_now().await;
            turns = 0;
        }
    }
}

#[derive(Default)]
struct Calls {
    collecting: HashMap<u32, Summary>,
    repeating: VecDeque<Repeat>,
    held_bytes: usize,
}

/// A call that is answered many times with the same.
struct Repeat {
    call: u32,
    /// A `Payload`: a part of the request, in the memory it came in.
    payload: Message,
    /// Of the whole request.
    bytes: usize,
    left: u32,
}

impl Calls {
    /// What is answered at once.
    async fn take(&mut self, tx: &Sender, request: Message) -> Result<Option<Message>, BoxError> {
        let head = Head::of(&request).ok_or("no call")?;
        let fields = fields(&request).ok_or("no message of the service")?;
        match head.method {
            // The answer is the request, in the memory it came in.
            Method::Unary if head.last => return Ok(Some(request)),
            Method::Chat => return Ok(Some(request)),
            Method::Collect if head.last => {
                let summary = self.collecting.remove(&head.call).unwrap_or_default();
                return summarize(tx, head, &summary).await.map(Some);
            }
            Method::Collect => {
                let summary = self.collecting.entry(head.call).or_default();
                summary.messages += 1;
                summary.bytes += fields.data.len() as u64;
            }
            Method::Repeat if head.last => {
                let (payload, bytes) = (beside_head(tx, request.slice(fields.payload)).await?, request.len());
                self.held_bytes += bytes;
                self.repeating.push_back(Repeat { call: head.call, payload, bytes, left: fields.times });
            }
            Method::Unary | Method::Repeat => return Err("a stream where one message is expected".into()),
        }
        if self.collecting.len() + self.repeating.len() > MAX_OPEN {
            return Err("too many calls at a time".into());
        }
        match self.held_bytes > MAX_HELD_BYTES {
            true => Err("too much to keep at a time".into()),
            false => Ok(None),
        }
    }

    /// The next message of the call whose turn it is.
    async fn repeat(&mut self, tx: &Sender) -> Result<Option<Message>, BoxError> {
        let Some(mut repeat) = self.repeating.pop_front() else { return Ok(None) };
        let head = Head { call: repeat.call, method: Method::Repeat, last: repeat.left == 0 };
        let mut answer = Message::from(begin(tx, head, Sizes::default()).await?.freeze());
        if repeat.left > 0 {
            for part in repeat.payload.clone().into_segments() {
                answer.push(part)?;
            }
            repeat.left -= 1;
            self.repeating.push_back(repeat);
        } else {
            self.held_bytes -= repeat.bytes;
        }
        Ok(Some(answer))
    }
}

/// An answer is a head and the payload: one in as many pieces as a message may have is put together.
async fn beside_head(tx: &Sender, payload: Message) -> Result<Message, BoxError> {
    if payload.segments().len() < MAX_SEGMENTS {
        return Ok(payload);
    }
    let mut buf = tx.alloc(payload.len()).await?;
    payload.segments().iter().for_each(|piece| buf.put_slice(piece));
    Ok(buf.freeze().into())
}

async fn summarize(tx: &Sender, head: Head, summary: &Summary) -> Result<Message, BoxError> {
    let encoded = summary.encode_to_vec();
    let mut buf = begin(tx, head, Sizes { data: 0, others: encoded.len() }).await?;
    buf.put_slice(&encoded);
    Ok(buf.freeze().into())
}
