//! What tests of a transport's own do with two lanes, without connections on top.

use std::task::{Context, Poll};

use zc::memory::Message;
use zc::transport::{Batch, Frame, FrameKind, Lane, Reactor, Received};

/// Sends all messages from `a` to `b`, as data numbered from 1; `b` gives credit back, and both are driven. Ends when
/// all of `expect` has come, in order.
///
/// # Panics
/// When anything else happens.
pub async fn exchange(
    a: &mut Lane,
    b: &mut Lane,
    reactor: &dyn Reactor,
    messages: Vec<Message>,
    expect: &[Vec<u8>],
) {
    let mut queue = (1..).zip(messages).peekable();
    let mut got = 0;
    std::future::poll_fn(|cx| {
        send_some(a, cx, &mut queue);
        let flushed = a.tx.poll_flush(cx).map(Result::unwrap).is_ready();
        take_some(b, cx, expect, &mut got);
        for drive in [a.drive.as_mut(), b.drive.as_mut()].into_iter().flatten() {
            drive.poll_drive(cx, reactor.now()).unwrap();
        }
        if flushed && queue.peek().is_none() && got == expect.len() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// As many as are taken now. Credit comes in by reading.
fn send_some(
    lane: &mut Lane,
    cx: &mut Context<'_>,
    queue: &mut std::iter::Peekable<impl Iterator<Item = (u64, Message)>>,
) {
    loop {
        assert!(lane.rx.poll_recv(cx, &mut Batch::new()).is_pending());
        let Some((_, next)) = queue.peek() else { return };
        match lane.tx.poll_ready(cx, next.len()) {
            Poll::Pending => return,
            Poll::Ready(ready) => ready.unwrap(),
        }
        if let Some((seq, payload)) = queue.next() {
            let frame = Frame { kind: FrameKind::Data, ack: false, seq, payload };
            lane.tx.start_send(frame, false).unwrap();
        }
    }
}

fn take_some(lane: &mut Lane, cx: &mut Context<'_>, expect: &[Vec<u8>], got: &mut usize) {
    let mut batch = Batch::new();
    while *got < expect.len() {
        match lane.rx.poll_recv(cx, &mut batch) {
            Poll::Ready(received) => assert_eq!(received.unwrap(), Received::Some),
            Poll::Pending => return,
        }
        for frame in batch.drain() {
            assert_eq!(frame.seq, *got as u64 + 1);
            assert!(frame.payload == expect[*got][..], "message {got}");
            lane.rx.release(frame.payload.len());
            *got += 1;
        }
    }
}
