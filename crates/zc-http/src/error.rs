//! What can go wrong with a call.

use std::fmt;
use std::sync::Arc;

use zc::ConnectionError;

use crate::proto::{Code, Ended, Violation};

/// Any error.
///
/// ```
/// let error: zc_http::BoxError = "any text, any error".into();
/// assert_eq!(error.to_string(), "any text, any error");
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a failed call may have been executed.
///
/// ```
/// use zc_http::Executed;
///
/// let may_repeat = |executed, idempotent: bool| executed == Executed::No || idempotent;
/// assert!(!may_repeat(Executed::Maybe, false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// No service has seen it: calling again duplicates nothing.
    No,
    /// It may have been, wholly or in part.
    Maybe,
}

/// Why a call failed.
///
/// ```
/// use zc_http::ErrorKind;
///
/// fn is_busy(kind: &ErrorKind) -> bool {
///     matches!(kind, ErrorKind::QueueFull | ErrorKind::Reset(zc_http::Code::REFUSED))
/// }
/// assert!(is_busy(&ErrorKind::QueueFull));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No connection came up.
    #[error("no connection: {0}")]
    Connect(Arc<zc::Error>),
    /// The connection ended while the call was under way.
    #[error("the connection ended: {0}")]
    Connection(#[source] ConnectionError),
    /// The peer broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The peer ended the call.
    #[error("the peer ended the call: {0}")]
    Reset(Code),
    /// The peer goes away and did not take the call.
    #[error("the peer goes away and did not take the call")]
    NotTaken,
    /// This side ended the call.
    #[error("the call was ended here: {0}")]
    Ended(Code),
    /// This side closed the connection.
    #[error("the connection was closed here")]
    Closed,
    /// The deadline of the call has passed.
    #[error("the deadline of the call has passed")]
    Deadline,
    /// The headers or trailers are more than the peer takes.
    #[error("more headers than the peer takes")]
    HeadersTooLarge,
    /// Too many calls wait for a connection that is busy.
    #[error("too many calls are waiting")]
    QueueFull,
    /// HTTP/1 or HTTP/2, where the call went over it, failed.
    #[cfg(feature = "hyper")]
    #[error("{0}")]
    Http(Arc<dyn std::error::Error + Send + Sync>),
    /// The body given to send failed.
    #[error("the body to send failed: {0}")]
    Body(Arc<dyn std::error::Error + Send + Sync>),
    /// The peer connected and sent nothing.
    #[error("the peer's first frame did not come in time")]
    NoGreeting,
    /// There is no tokio runtime.
    #[error("there is no tokio runtime")]
    NoRuntime,
}

/// A call failed.
///
/// ```
/// use http_body_util::Empty;
/// use tower::ServiceExt;
/// use zc_http::{ErrorKind, Executed};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fabric = zc::Fabric::auto()?;
/// let channel = zc_http::Channel::new(&fabric, "zc+mem://nobody-listens")?;
/// let request = http::Request::get("/").body(Empty::<bytes::Bytes>::new())?;
/// let error = channel.oneshot(request).await.err().unwrap();
/// assert!(matches!(error.kind(), ErrorKind::Connect(_)));
/// assert_eq!(error.executed(), Executed::No);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    executed: Executed,
    #[cfg(feature = "tonic")]
    status: Arc<tonic::Status>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, executed: Executed) -> Self {
        Self {
            #[cfg(feature = "tonic")]
            status: Arc::new(grpc::status(&kind, executed)),
            kind,
            executed,
        }
    }

    /// Why a call ended early on a connection that ended for `cause`, if it did.
    pub(crate) fn of_call(ended: Ended, cause: Option<&ErrorKind>) -> Self {
        let connection = || cause.cloned().unwrap_or(ErrorKind::Closed);
        match ended {
            Ended::ByPeer(Code::REFUSED) => Self::new(ErrorKind::Reset(Code::REFUSED), Executed::No),
            Ended::ByPeer(code) => Self::new(ErrorKind::Reset(code), Executed::Maybe),
            Ended::Here(code) => Self::new(ErrorKind::Ended(code), Executed::Maybe),
            Ended::NotTaken => Self::new(ErrorKind::NotTaken, Executed::No),
            Ended::Connection { sent: true } => Self::new(connection(), Executed::Maybe),
            Ended::Connection { sent: false } => Self::new(connection(), Executed::No),
        }
    }

    /// Why.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Whether the call may have been executed.
    pub fn executed(&self) -> Executed {
        self.executed
    }

    /// True when making the call again can't execute it twice.
    pub fn is_retryable(&self) -> bool {
        self.executed == Executed::No
            && !matches!(
                self.kind,
                ErrorKind::HeadersTooLarge | ErrorKind::Deadline | ErrorKind::Body(_) | ErrorKind::NoRuntime
            )
    }
}

impl Error {
    /// The server is there and took this call for no service.
    pub(crate) fn is_refusal(&self) -> bool {
        match &self.kind {
            ErrorKind::Reset(code) => *code == Code::REFUSED,
            #[cfg(feature = "hyper")]
            ErrorKind::Http(error) => is_refused_stream(&**error),
            _ => false,
        }
    }
}

/// What ended with its connection, or was given back by it, is no refusal: the server may be gone.
#[cfg(feature = "hyper")]
fn is_refused_stream(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    let of_stream = errors.find_map(|error| error.downcast_ref::<h2::Error>());
    of_stream.is_some_and(|error| {
        error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.kind).field("executed", &self.executed).finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Body(error) => Some(&**error),
            #[cfg(all(feature = "hyper", not(feature = "tonic")))]
            ErrorKind::Http(error) => Some(&**error),
            // tonic looks for a status in the chain of sources.
            #[cfg(feature = "tonic")]
            _ => Some(&*self.status),
            #[cfg(not(feature = "tonic"))]
            ErrorKind::Connect(error) => Some(&**error),
            #[cfg(not(feature = "tonic"))]
            kind => kind.source(),
        }
    }
}

#[cfg(feature = "tonic")]
mod grpc {
    use tonic::{Code as Grpc, Status};

    use super::{ErrorKind, Executed};
    use crate::proto::Code;

    /// As gRPC's HTTP/2 mapping has it.
    #[cfg_attr(not(feature = "hyper"), allow(unused_variables, reason = "told by the kind"))]
    pub(super) fn status(kind: &ErrorKind, executed: Executed) -> Status {
        let code = match kind {
            ErrorKind::Connect(_)
            | ErrorKind::Connection(_)
            | ErrorKind::NotTaken
            | ErrorKind::Closed
            | ErrorKind::QueueFull
            | ErrorKind::NoGreeting
            | ErrorKind::Violation(_)
            | ErrorKind::Reset(Code::REFUSED) => Grpc::Unavailable,
            ErrorKind::Reset(Code::CANCEL) | ErrorKind::Ended(Code::CANCEL) => Grpc::Cancelled,
            ErrorKind::Reset(Code::TOO_LARGE | Code::FLOOD)
            | ErrorKind::Ended(Code::TOO_LARGE)
            | ErrorKind::HeadersTooLarge => Grpc::ResourceExhausted,
            ErrorKind::Deadline => Grpc::DeadlineExceeded,
            ErrorKind::Reset(_) | ErrorKind::Ended(_) | ErrorKind::NoRuntime => Grpc::Internal,
            // The connection takes no calls any more, whatever it ended with.
            #[cfg(feature = "hyper")]
            ErrorKind::Http(_) if executed == Executed::No => Grpc::Unavailable,
            #[cfg(feature = "hyper")]
            ErrorKind::Http(error) => return of_http(error.clone()),
            ErrorKind::Body(_) => Grpc::Unknown,
        };
        Status::new(code, kind.to_string())
    }

    /// What a stream was reset with says how a call ended; without that its connection is gone.
    #[cfg(feature = "hyper")]
    fn of_http(error: std::sync::Arc<dyn std::error::Error + Send + Sync>) -> Status {
        let of_connection = error.downcast_ref::<hyper::Error>().is_some_and(|error| {
            error.is_canceled() || error.is_closed() || error.is_incomplete_message() || error.is_timeout()
        });
        let text = error.to_string();
        let status = match of_connection {
            true => Status::unavailable(text),
            false => Status::from_error(Box::new(Shared(error))),
        };
        match status.code() {
            // tonic's word for an error without a code, such as a broken socket.
            Grpc::Unknown => Status::unavailable(status.message()),
            _ => status,
        }
    }

    /// tonic looks at the chain of sources.
    #[cfg(feature = "hyper")]
    #[derive(Debug, thiserror::Error)]
    #[error("HTTP/2")]
    struct Shared(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>);
}

#[cfg(feature = "tonic")]
impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Self::from_error(Box::new(error))
    }
}
