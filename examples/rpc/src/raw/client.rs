//! A client that makes one call at a time.

use prost::Message as _;
use zc::{Connection, Message, PinnedBufMut, Receiver, Sender};

use super::frame::{HEAD_BYTES, Head, Method, Sizes, TIMES_BYTES, begin, fields, put_times};
use crate::BoxError;
use crate::pb::Summary;

/// Calls the service.
pub struct Caller {
    tx: Sender,
    rx: Receiver,
    calls: u32,
    /// A `Collect` whose last message is not sent: the server keeps it, wanted or not.
    collecting: Option<u32>,
}

impl Caller {
    /// On a connection.
    pub fn new(connection: &mut Connection) -> Self {
        let (tx, rx) = connection.split();
        Self { tx, rx, calls: 0, collecting: None }
    }

    /// One message, one answer: its data, in the memory it came in.
    ///
    /// # Errors
    /// The connection ended, or the server makes no sense; like those of the other calls.
    pub async fn unary(&mut self, data: &[u8]) -> Result<Message, BoxError> {
        let mut call = self.call(Method::Unary);
        call.put(data, true).await?;
        call.message().await?.ok_or_else(|| "no answer".into())
    }

    /// Many messages, one answer.
    ///
    /// # Errors
    /// See [`Caller::unary`].
    pub async fn collect(&mut self, payloads: impl Iterator<Item = &[u8]>) -> Result<Summary, BoxError> {
        let mut call = self.call(Method::Collect);
        for data in payloads {
            call.send(data).await?;
        }
        call.finish().await?;
        let answer = call.receive().await?;
        Ok(Summary::decode(answer.slice(HEAD_BYTES..))?)
    }

    /// One message, many answers.
    ///
    /// # Errors
    /// See [`Caller::unary`].
    pub async fn repeat(&mut self, data: &[u8], times: u32) -> Result<Answers<'_>, BoxError> {
        let call = self.call(Method::Repeat);
        let sizes = Sizes { data: data.len(), others: TIMES_BYTES };
        call.caller.end_left().await?;
        let mut buf = begin(&call.caller.tx, call.head(true), sizes).await?;
        buf.put_slice(data);
        put_times(&mut buf, times);
        call.hand_over(buf).await?;
        Ok(call)
    }

    /// As many answers as messages.
    pub fn chat(&mut self) -> Answers<'_> {
        self.call(Method::Chat)
    }

    /// Ends what was dropped half-way; the answer is passed over.
    async fn end_left(&mut self) -> Result<(), BoxError> {
        if let Some(call) = self.collecting {
            let head = Head { call, method: Method::Collect, last: true };
            let buf = begin(&self.tx, head, Sizes::default()).await?;
            self.tx.send(buf.freeze()).await?;
            self.collecting = None;
        }
        Ok(())
    }

    fn call(&mut self, method: Method) -> Answers<'_> {
        self.calls = self.calls.wrapping_add(1);
        Answers { call: self.calls, method, ended: false, caller: self }
    }
}

/// A call under way. What comes on it after it was dropped is passed over; it comes all the same.
pub struct Answers<'a> {
    caller: &'a mut Caller,
    call: u32,
    method: Method,
    ended: bool,
}

impl Answers<'_> {
    /// Sends one message more.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), BoxError> {
        self.put(data, false).await
    }

    /// Says that no more messages come.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn finish(&mut self) -> Result<(), BoxError> {
        self.put(b"", true).await
    }

    /// The next answer's data, in the memory it came in; none after the last.
    ///
    /// # Errors
    /// The connection ended, or the server makes no sense.
    pub async fn message(&mut self) -> Result<Option<Message>, BoxError> {
        if self.ended {
            return Ok(None);
        }
        let answer = self.receive().await?;
        // A stream's end holds nothing.
        if self.ended && self.method != Method::Unary {
            return Ok(None);
        }
        let data = fields(&answer).ok_or("no Payload")?.data;
        Ok(Some(answer.slice(data)))
    }

    fn head(&self, last: bool) -> Head {
        Head { call: self.call, method: self.method, last }
    }

    async fn put(&mut self, data: &[u8], last: bool) -> Result<(), BoxError> {
        if self.caller.collecting != Some(self.call) {
            self.caller.end_left().await?;
        }
        let sizes = Sizes { data: data.len(), others: 0 };
        let mut buf = begin(&self.caller.tx, self.head(last), sizes).await?;
        buf.put_slice(data);
        // Before a message that may not be the last is on its way, and after the last: told twice harms nobody.
        let collects = self.method == Method::Collect;
        if collects && !last {
            self.caller.collecting = Some(self.call);
        }
        self.hand_over(buf).await?;
        if collects && last {
            self.caller.collecting = None;
        }
        Ok(())
    }

    async fn hand_over(&self, buf: PinnedBufMut) -> Result<(), BoxError> {
        Ok(self.caller.tx.send(buf.freeze()).await?)
    }

    async fn receive(&mut self) -> Result<Message, BoxError> {
        loop {
            let answer = self.caller.rx.recv().await?.ok_or("the server has finished")?;
            let head = Head::of(&answer).ok_or("no answer")?;
            if head.call == self.call && head.method == self.method {
                self.ended = head.last;
                return Ok(answer);
            }
        }
    }
}
