//! The time in which a client must have said which HTTP it speaks.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::stream::{Watch, Watched, ZcStream};

/// What a client on HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reading fails once the time is up, for as long as what was read may still become the preface of HTTP/2 and is not
/// yet. From then on times are the protocol's.
pub(super) struct Preface {
    /// Of the preface, what was read; and until when the rest is awaited.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Preface {
    /// The time begins now.
    pub(super) fn within(time: Duration, stream: ZcStream) -> Watched<Self> {
        Watched::new(stream, Self { awaited: Some((0, Box::pin(tokio::time::sleep(time)))) })
    }
}

impl Watch for Preface {
    fn saw(&mut self, bytes: &[u8]) {
        let Some((seen, _)) = &mut self.awaited else { return };
        let rest = &PREFACE[*seen..];
        *seen += bytes.len();
        if *seen >= PREFACE.len() || !rest.starts_with(bytes) {
            self.awaited = None;
        }
    }

    fn poll_tired(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some((_, time)) = &mut self.awaited else { return Poll::Pending };
        time.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
    }
}
