//! What a server accepts from: zc only, or also plain links.

use std::task::{Context, Poll};

use zc::{Connection, Listener};

/// A listener to serve. A [`zc::Listener`] takes zc-http only; with a [`zc::MixedListener`] (feature `hyper`) the same port
/// serves HTTP/1 and HTTP/2, too: to clients that know nothing of zc, and over zc connections that are used as byte
/// streams. First bytes tell them apart. A plain client is not asked to authenticate itself by zc: that is for the service.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let listening: zc_http::Listening = fabric.listen("zc+mem://listening").await?.into();
/// # Ok(()) }
/// ```
pub struct Listening(Kind);

enum Kind {
    Zc(Listener),
    #[cfg(feature = "hyper")]
    Mixed(zc::MixedListener),
}

impl From<Listener> for Listening {
    fn from(listener: Listener) -> Self {
        Self(Kind::Zc(listener))
    }
}

#[cfg(feature = "hyper")]
impl From<zc::MixedListener> for Listening {
    fn from(listener: zc::MixedListener) -> Self {
        Self(Kind::Mixed(listener))
    }
}

/// Something that came in.
pub(crate) enum Arrived {
    Zc(Connection),
    /// Its first message says whether it has the connection to itself.
    #[cfg(feature = "hyper")]
    Any(Connection),
    #[cfg(feature = "hyper")]
    Plain(zc::PlainStream),
}

impl Listening {
    pub(crate) async fn accept(&mut self) -> Result<Arrived, zc::Error> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, zc::Error>> {
        match &mut self.0 {
            Kind::Zc(listener) => listener.poll_accept(cx).map_ok(Arrived::Zc),
            #[cfg(feature = "hyper")]
            Kind::Mixed(listener) => listener.poll_accept(cx).map_ok(|incoming| match incoming {
                zc::Incoming::Connection(connection) => Arrived::Any(connection),
                zc::Incoming::Plain(stream) => Arrived::Plain(stream),
            }),
        }
    }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening").finish_non_exhaustive()
    }
}
