//! Whether a server answers HTTP/2 with HTTP/2.

use tokio::sync::oneshot;

use crate::stream::{Watch, Watched, ZcStream};

/// The head of a frame: length, kind, flags, stream.
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;

/// Tells once the server has begun with SETTINGS, as HTTP/2 wants it. hyper takes a connection for good before it has heard
/// anything.
pub(super) struct Greeting(Option<Awaited>);

struct Awaited {
    head: Vec<u8>,
    greeted: oneshot::Sender<()>,
}

impl Greeting {
    /// The receiver fails when the server says something else first, or nothing.
    pub(super) fn of(stream: ZcStream) -> (Watched<Self>, oneshot::Receiver<()>) {
        let (greeted, heard) = oneshot::channel();
        let awaited = Awaited { head: Vec::with_capacity(FRAME_HEAD_BYTES), greeted };
        (Watched::new(stream, Self(Some(awaited))), heard)
    }
}

impl Watch for Greeting {
    fn saw(&mut self, bytes: &[u8]) {
        let Some(Awaited { head, .. }) = &mut self.0 else { return };
        head.extend(bytes.iter().take(FRAME_HEAD_BYTES - head.len()));
        let is_settings = head.len() == FRAME_HEAD_BYTES && head[3] == SETTINGS && head[5..] == [0; 4];
        if (head.len() == FRAME_HEAD_BYTES || bytes.is_empty())
            && let Some(Awaited { greeted, .. }) = self.0.take()
            && is_settings
        {
            let _ = greeted.send(());
        }
    }
}
