//! Values that serde knows, as the messages of a connection: what carries tarpc, or anything else that wants a `Sink`
//! and a `Stream` of its own types.

use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{FutureExt, Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zc::transport::AllocFailure;
use zc::{Message, PinnedBufMut, Receiver, Sender};

/// Sends `Out` and receives `In`, one message each. A value is serialized into memory that the connection sends as it is,
/// and read where it arrived.
pub struct Items<Out, In> {
    tx: Sender,
    rx: Receiver,
    next: Next<Out>,
    received: PhantomData<fn() -> In>,
}

/// The value that is on its way out.
enum Next<Out> {
    None,
    Value(Out),
    /// Its size is known, and there was no memory.
    Waiting(Out, BoxFuture<'static, Result<PinnedBufMut, AllocFailure>>),
    Serialized(Message),
}

// Nothing in it is pinned in place.
impl<Out, In> Unpin for Items<Out, In> {}

impl<Out, In> Items<Out, In> {
    /// On the two halves of a connection.
    pub fn new((tx, rx): (Sender, Receiver)) -> Self {
        Self { tx, rx, next: Next::None, received: PhantomData }
    }
}

impl<Out: Serialize, In> Items<Out, In> {
    /// Ready when nothing is left on its way: the connection has taken it.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.next = match std::mem::replace(&mut self.next, Next::None) {
                Next::None => return Poll::Ready(Ok(())),
                Next::Value(value) => {
                    let len = postcard::experimental::serialized_size(&value).map_err(io::Error::other)?;
                    match std::pin::pin!(self.tx.alloc(len)).poll_unpin(cx) {
                        Poll::Ready(buf) => serialize(&value, buf)?,
                        Poll::Pending => {
                            let tx = self.tx.clone();
                            Next::Waiting(value, async move { tx.alloc(len).await }.boxed())
                        }
                    }
                }
                Next::Waiting(value, mut memory) => match memory.poll_unpin(cx) {
                    Poll::Ready(buf) => serialize(&value, buf)?,
                    Poll::Pending => {
                        self.next = Next::Waiting(value, memory);
                        return Poll::Pending;
                    }
                },
                Next::Serialized(message) => match Pin::new(&mut self.tx).poll_ready(cx) {
                    Poll::Ready(ready) => {
                        ready.map_err(io::Error::other)?;
                        Pin::new(&mut self.tx).start_send(message).map_err(io::Error::other)?;
                        Next::None
                    }
                    Poll::Pending => {
                        self.next = Next::Serialized(message);
                        return Poll::Pending;
                    }
                },
            };
        }
    }
}

fn serialize<Out: Serialize>(value: &Out, buf: Result<PinnedBufMut, AllocFailure>) -> io::Result<Next<Out>> {
    let mut buf = buf.map_err(io::Error::other)?;
    let len = postcard::to_slice(value, buf.unfilled_mut()).map_err(io::Error::other)?.len();
    buf.advance(len);
    Ok(Next::Serialized(buf.freeze().into()))
}

impl<Out: Serialize, In> Sink<Out> for Items<Out, In> {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_hand_over(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, value: Out) -> io::Result<()> {
        self.next = Next::Value(value);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_hand_over(cx))?;
        Pin::new(&mut self.tx).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_hand_over(cx))?;
        Pin::new(&mut self.tx).poll_close(cx).map_err(io::Error::other)
    }
}

impl<Out, In: DeserializeOwned> Stream for Items<Out, In> {
    type Item = io::Result<In>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<In>>> {
        let received = ready!(Pin::new(&mut self.rx).poll_next(cx));
        Poll::Ready(received.map(|message| deserialize(&message.map_err(io::Error::other)?)))
    }
}

fn deserialize<In: DeserializeOwned>(message: &Message) -> io::Result<In> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let bytes = message.as_contiguous().ok_or_else(|| invalid("a value in pieces"))?;
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| invalid(&error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(invalid("more than a value")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use futures::{SinkExt, StreamExt};
    use zc::Fabric;

    use super::*;

    #[tokio::test]
    async fn values_cross_and_what_is_none_is_an_error() {
        let fabric = Fabric::auto().unwrap();
        let mut listener = fabric.listen("zc+mem://items").await.unwrap();
        let (mut client, mut server) =
            tokio::try_join!(fabric.connect("zc+mem://items"), listener.accept()).unwrap();
        let mut near = Items::<(u32, String), ()>::new(client.split());
        let mut far = Items::<(), (u32, String)>::new(server.split());
        for number in [0, 1, u32::MAX] {
            let value = (number, "x".repeat(number.min(100_000) as usize));
            near.send(value.clone()).await.unwrap();
            assert_eq!(far.next().await.unwrap().unwrap(), value);
        }
        for bad in [&b""[..], b"\x01", b"\x01\x01x and more"] {
            client.send(bad).await.unwrap();
            assert_eq!(far.next().await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        near.close().await.unwrap();
        assert!(far.next().await.is_none());
        assert_eq!(client.ledger().copied_bytes(), 0, "serialized where it is sent from");
    }
}
