//! The stage of the authentication method.

use zc_core::transport::Role;
use zc_core::wire::{ControlMessage, HandshakeState};

use super::Attempt;
use crate::auth::{AuthError, AuthStep, Authenticator};
use crate::error::Error;

impl Attempt<'_> {
    pub(super) async fn authenticate(&mut self) -> Result<(), Error> {
        let shared = self.shared;
        let Some(method) = &shared.authenticator else { return Ok(()) };
        // Both sides named the same method, or HELLO would have failed.
        if !matches!(self.machine.state(), HandshakeState::Authenticate { .. }) {
            return Err(AuthError::new("the method has changed its name").into());
        }
        match self.role {
            Role::Client => self.authenticate_as_client(&**method).await,
            Role::Server => self.authenticate_as_server(&**method).await,
        }
    }

    async fn authenticate_as_client(&mut self, method: &dyn Authenticator) -> Result<(), Error> {
        let mut run = method.client(&self.identity);
        let mut answer = None;
        loop {
            let bytes = run.step(answer.as_deref()).await?;
            let sent = self.machine.send_auth(bytes);
            self.wire(sent)?;
            self.flush().await?;
            match self.next().await? {
                ControlMessage::Auth { bytes } => answer = Some(bytes),
                _ => break, // AUTH_OK: the machine lets nothing else pass
            }
        }
        self.identity.authenticated = run.accepted()?;
        Ok(())
    }

    async fn authenticate_as_server(&mut self, method: &dyn Authenticator) -> Result<(), Error> {
        let mut run = method.server(&self.identity);
        loop {
            let message = self.next().await?;
            let ControlMessage::Auth { bytes } = message else { return Err(self.unexpected(&message)) };
            match run.step(&bytes).await {
                Ok(AuthStep::Continue(answer)) => {
                    let sent = self.machine.send_auth(answer);
                    self.wire(sent)?;
                    self.flush().await?;
                }
                Ok(AuthStep::Accept(name)) => {
                    self.identity.authenticated = name;
                    self.expect_proof();
                    let sent = self.machine.accept_auth();
                    self.wire(sent)?;
                    return self.flush().await;
                }
                // The peer does not learn why: that would help it guess.
                Err(error) => return Err(self.refuse("authentication failed", error.into()).await),
            }
        }
    }
}
