//! What comes in at a listener: zc only, or also plain links.

use zc::{Connection, Listener};

pub(super) enum Arrived {
    Zc(Connection),
    #[cfg(feature = "hyper")]
    Plain(zc::PlainStream),
}

pub(super) enum Source {
    Zc(Listener),
    #[cfg(feature = "hyper")]
    Mixed(zc::MixedListener),
}

impl Source {
    pub(super) async fn accept(&mut self) -> Result<Arrived, zc::Error> {
        match self {
            Self::Zc(listener) => listener.accept().await.map(Arrived::Zc),
            #[cfg(feature = "hyper")]
            Self::Mixed(listener) => listener.accept().await.map(|incoming| match incoming {
                zc::Incoming::Connection(connection) => Arrived::Zc(connection),
                zc::Incoming::Plain(stream) => Arrived::Plain(stream),
            }),
        }
    }
}
