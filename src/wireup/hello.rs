//! The first stage: what each side says about itself.

use zc_core::wire::{HELLO_HEADER_BYTES, MAGIC, MAX_HELLO_BODY, Stage, WireError};

use super::Attempt;
use super::io::{self, IoFault};
use super::join_link::Ways;
use crate::error::Error;

impl Attempt<'_> {
    pub(super) async fn hello(&mut self) -> Result<(), Error> {
        self.flush().await?;
        let result = self.read_hello().await;
        if result.is_ok() && self.shared.authenticator.is_none() {
            self.expect_proof();
        }
        // Even after an error: a peer of another version reads our range from it.
        let flushed = self.flush().await;
        if let Err(Error::Wire { source: WireError::VersionMismatch { .. }, .. }) = &result {
            self.skip_hello().await;
        }
        result?;
        flushed?;
        if let Some(hello) = self.machine.peer() {
            self.identity.agent = hello.agent;
            self.identity.instance = hello.instance;
            self.cx.limits.send_max_message = hello.max_message;
            self.cx.limits.send_window = hello.window;
        }
        Ok(())
    }

    /// Magic first, so that whoever speaks another protocol is told at once; then the header, then the body.
    async fn read_hello(&mut self) -> Result<(), Error> {
        let at = |fault: IoFault| fault.at(Stage::Hello);
        let gone = self.link_gone();
        let Some(Ways { io, .. }) = &mut self.ways else { return Err(gone) };
        let mut want = MAGIC.len();
        loop {
            let bytes = io.fill(want).await.map_err(at)?;
            let taken = self.machine.handle_hello(bytes);
            if taken.map_err(|source| Error::Wire { stage: Stage::Hello, source })?.is_some() {
                io.take();
                return Ok(());
            }
            want = match bytes.get(8..HELLO_HEADER_BYTES) {
                None => HELLO_HEADER_BYTES,
                // The machine has refused a length above its bound already.
                Some(len) => HELLO_HEADER_BYTES + io::length(len),
            };
        }
    }

    /// Reads the rest of a HELLO that is not understood: closing a TCP link with bytes unread resets it, and
    /// the peer might never see our own.
    async fn skip_hello(&mut self) {
        let Some(Ways { io, .. }) = &mut self.ways else { return };
        if let Ok(header) = io.fill(HELLO_HEADER_BYTES).await {
            let len = io::length(&header[8..HELLO_HEADER_BYTES]).min(MAX_HELLO_BODY);
            let _ = io.fill(HELLO_HEADER_BYTES + len).await;
        }
    }
}
