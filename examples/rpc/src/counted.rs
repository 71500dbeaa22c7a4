//! A zc byte stream that others own and whose ledger can be read meanwhile.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::Service;
use zc::LedgerSnapshot;
use zc_http::{ZcConnector, ZcStream};

/// The stream, for tonic to own.
pub struct Counted(Arc<Mutex<ZcStream>>);

/// A [`ZcConnector`] that keeps hold of the last stream it has opened. The lock costs some nanoseconds for each
/// read and write; who does not count takes the connector as it is.
#[derive(Clone)]
pub struct CountingConnector {
    connector: ZcConnector,
    last: Arc<Mutex<Option<Arc<Mutex<ZcStream>>>>>,
}

impl CountingConnector {
    /// Opens what `connector` opens.
    pub fn new(connector: ZcConnector) -> Self {
        Self { connector, last: Arc::default() }
    }

    /// What the last connection has copied.
    pub fn ledger(&self) -> Option<LedgerSnapshot> {
        let stream = lock(&self.last).clone()?;
        lock(&stream).ledger()
    }
}

impl Service<http::Uri> for CountingConnector {
    type Response = TokioIo<Counted>;
    type Error = zc::Error;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Counted>, zc::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), zc::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let (connecting, last) = (self.connector.call(uri), self.last.clone());
        Box::pin(async move {
            let stream = Arc::new(Mutex::new(connecting.await?.into_inner()));
            *lock(&last) = Some(stream.clone());
            Ok(TokioIo::new(Counted(stream)))
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_read(cx, out)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)
    }
}
