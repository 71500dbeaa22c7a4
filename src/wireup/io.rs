//! The handshake's bytes on a control link, under a deadline per stage.
//!
//! Reads exactly one message at a time and never past it: what follows COMMIT belongs to the lane.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use zc_core::transport::{ControlLink, LinkAddr, LinkError, Reactor, Timer};
use zc_core::wire::{
    CONTROL_HEADER_BYTES, ClientHandshake, ControlDecoder, ControlMessage, HELLO_HEADER_BYTES, Hello,
    MAX_CONTROL, MAX_HELLO_BODY, ServerHandshake, Stage, WireError,
};

use crate::error::Error;
use crate::identity::PeerIdentity;

/// Either side's state machine.
pub(super) trait Handshake {
    fn handle_hello(&mut self, bytes: &[u8]) -> Result<Option<usize>, WireError>;
    fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError>;
    fn peer(&self) -> Option<&Hello>;
}

macro_rules! handshake {
    ($($side:ty),*) => {$(
        impl Handshake for $side {
            fn handle_hello(&mut self, bytes: &[u8]) -> Result<Option<usize>, WireError> {
                <$side>::handle_hello(self, bytes)
            }
            fn handle(&mut self, message: &ControlMessage) -> Result<(), WireError> {
                <$side>::handle(self, message)
            }
            fn peer(&self) -> Option<&Hello> {
                <$side>::peer(self)
            }
        }
    )*};
}
handshake!(ClientHandshake, ServerHandshake);

/// A timer with the stage it guards.
pub(super) struct StageTimer<'a> {
    timer: &'a mut Option<Box<dyn Timer>>,
    stage: Stage,
}

impl StageTimer<'_> {
    /// Runs a future until the stage's deadline.
    pub(super) async fn within<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Error> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            let expired = self.timer.as_mut().is_some_and(|timer| timer.poll_expired(cx).is_ready());
            if expired { Poll::Ready(Err(Error::Timeout { stage: self.stage })) } else { Poll::Pending }
        })
        .await
    }
}

pub(super) struct Wire<'a> {
    link: Option<Box<dyn ControlLink>>,
    reactor: &'a Arc<dyn Reactor>,
    timer: Option<Box<dyn Timer>>,
    stage: Stage,
    identity: PeerIdentity,
}

impl<'a> Wire<'a> {
    pub(super) fn new(link: Box<dyn ControlLink>, reactor: &'a Arc<dyn Reactor>) -> Self {
        let identity = PeerIdentity {
            addr: link.peer(),
            cred: link.peer_cred(),
            agent: String::new(),
            instance: [0; 16],
        };
        Self { link: Some(link), reactor, timer: None, stage: Stage::Hello, identity }
    }

    /// Enters a stage and sets its deadline.
    pub(super) fn stage(&mut self, stage: Stage, limit: Duration) -> Result<(), Error> {
        self.stage = stage;
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let timer = self.reactor.timer().map_err(|error| Error::NoRuntime(error.to_string()))?;
                none.insert(timer)
            }
        };
        timer.reset(self.reactor.now() + limit);
        Ok(())
    }

    pub(super) fn peer(&self) -> &LinkAddr {
        &self.identity.addr
    }

    pub(super) fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// The link, unless an in-band lane took it.
    pub(super) fn take_link(&mut self) -> Option<Box<dyn ControlLink>> {
        self.link.take()
    }

    pub(super) fn link_and_timer(&mut self) -> (&mut Option<Box<dyn ControlLink>>, StageTimer<'_>) {
        (&mut self.link, StageTimer { timer: &mut self.timer, stage: self.stage })
    }

    pub(super) fn check(&self, result: Result<(), WireError>) -> Result<(), Error> {
        result.map_err(|source| Error::Wire { stage: self.stage, source })
    }

    pub(super) fn bad(&self, field: &'static str) -> Error {
        Error::Wire { stage: self.stage, source: WireError::BadValue { field } }
    }

    pub(super) fn unexpected(&self, message: &ControlMessage) -> Error {
        let source = WireError::UnexpectedMessage { message: message.name(), stage: self.stage };
        Error::Wire { stage: self.stage, source }
    }

    pub(super) async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.io("write", |link, cx| link.poll_write(cx, &bytes[sent..])).await?;
        }
        Ok(())
    }

    /// Reads the peer's HELLO into the state machine.
    pub(super) async fn hello(&mut self, hs: &mut impl Handshake) -> Result<Hello, Error> {
        let mut bytes = vec![0; HELLO_HEADER_BYTES];
        self.fill(&mut bytes).await?;
        // The header alone is checked first: a stranger's first bytes end it here.
        let mut done = hs.handle_hello(&bytes);
        if let Ok(None) = done {
            let body = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
            if body > MAX_HELLO_BODY {
                return Err(self.bad("HELLO length"));
            }
            bytes.resize(HELLO_HEADER_BYTES + body, 0);
            self.fill(&mut bytes[HELLO_HEADER_BYTES..]).await?;
            done = hs.handle_hello(&bytes);
        }
        self.check(done.map(drop))?;
        hs.peer().cloned().ok_or_else(|| self.bad("HELLO"))
    }

    /// Reads one control message through the state machine.
    pub(super) async fn control(&mut self, hs: &mut impl Handshake) -> Result<ControlMessage, Error> {
        let mut bytes = vec![0; CONTROL_HEADER_BYTES];
        self.fill(&mut bytes).await?;
        let body = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        if body > MAX_CONTROL {
            return Err(self.bad("control message length"));
        }
        bytes.resize(CONTROL_HEADER_BYTES + body, 0);
        self.fill(&mut bytes[CONTROL_HEADER_BYTES..]).await?;
        let mut decoder = ControlDecoder::new();
        if decoder.push(&bytes) != bytes.len() {
            return Err(self.bad("control message length"));
        }
        match decoder.next_message() {
            Some(Ok(message)) => {
                self.check(hs.handle(&message))?;
                Ok(message)
            }
            Some(Err(source)) => Err(Error::Wire { stage: self.stage, source }),
            None => Err(self.bad("control message")),
        }
    }

    async fn fill(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let mut at = 0;
        while at < buf.len() {
            let got = self.io("read", |link, cx| link.poll_read(cx, &mut buf[at..])).await?;
            if got == 0 {
                return Err(self.link_error("read", io::ErrorKind::UnexpectedEof.into()));
            }
            at += got;
        }
        Ok(())
    }

    async fn io(
        &mut self,
        operation: &'static str,
        mut call: impl FnMut(&mut dyn ControlLink, &mut std::task::Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Result<usize, Error> {
        let (link, mut timer) = self.link_and_timer();
        let done = timer
            .within(poll_fn(|cx| match link {
                Some(link) => call(&mut **link, cx),
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            }))
            .await?;
        done.map_err(|error| self.link_error(operation, error))
    }

    fn link_error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Link { stage: self.stage, source: LinkError::Io { operation, source } }
    }
}
