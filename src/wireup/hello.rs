//! The first stage: what each side says about itself.

use zc_core::wire::{HELLO_HEADER_BYTES, MAGIC, MAX_HELLO_BODY, Stage, WireError};

use super::Attempt;
use super::io::{self, IoFault, deadline};
use super::join_link::Ways;
use crate::error::Error;

impl Attempt<'_> {
    pub(super) async fn hello(&mut self) -> Result<(), Error> {
        let (reactor, time) = (&*self.shared.reactor, self.shared.deadlines.hello);
        let limit = self.limit(time);
        let said = deadline(reactor, Stage::Hello, limit, self.exchange_hellos()).await;
        if let Err(Error::Wire { source: WireError::VersionMismatch { .. }, .. }) = &said {
            // A time of its own: whatever becomes of it, the versions are why there is no connection.
            let limit = self.limit(time);
            let _ = deadline(reactor, Stage::Hello, limit, self.skip_hello()).await;
        }
        said
    }

    async fn exchange_hellos(&mut self) -> Result<(), Error> {
        self.flush().await?;
        let result = self.read_hello().await;
        if result.is_ok() && self.shared.authenticator.is_none() {
            self.expect_proof();
        }
        // Even after an error: a peer of another version reads our range from it.
        let flushed = self.flush().await;
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

    /// One byte first, which tells whoever speaks another protocol and then waits for us; then the rest of the
    /// magic, the header, the body.
    async fn read_hello(&mut self) -> Result<(), Error> {
        let at = |fault: IoFault| fault.at(Stage::Hello);
        let gone = self.link_gone();
        let Some(Ways { io, .. }) = &mut self.ways else { return Err(gone) };
        let mut want = 1;
        loop {
            let bytes = io.fill(want).await.map_err(at)?;
            let taken = self.machine.handle_hello(bytes);
            if taken.map_err(|source| Error::Wire { stage: Stage::Hello, source })?.is_some() {
                io.take();
                return Ok(());
            }
            want = match bytes.get(8..HELLO_HEADER_BYTES) {
                None if want < MAGIC.len() => MAGIC.len(),
                None => HELLO_HEADER_BYTES,
                // The machine has refused a length above its bound already.
                Some(len) => HELLO_HEADER_BYTES + io::length(len),
            };
        }
    }

    /// Reads the rest of a HELLO that is not understood: closing a TCP link with bytes unread resets it, and
    /// the peer might never see our own.
    async fn skip_hello(&mut self) -> Result<(), Error> {
        let at = |fault: IoFault| fault.at(Stage::Hello);
        let io = self.io()?;
        let header = io.fill(HELLO_HEADER_BYTES).await.map_err(at)?;
        let len = io::length(&header[8..HELLO_HEADER_BYTES]).min(MAX_HELLO_BODY);
        io.fill(HELLO_HEADER_BYTES + len).await.map_err(at)?;
        Ok(())
    }
}
