//! One header field, parsed; what the tables remember.

use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};

use super::error::Violation;

/// Counted for each field on top of its name and value.
pub(super) const FIELD_OVERHEAD: usize = 32;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(Authority),
    Path(PathAndQuery),
    Status(StatusCode),
    Header(HeaderName, HeaderValue),
}

impl Field {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Method(_) => ":method",
            Self::Scheme(_) => ":scheme",
            Self::Authority(_) => ":authority",
            Self::Path(_) => ":path",
            Self::Status(_) => ":status",
            Self::Header(name, _) => name.as_str(),
        }
    }

    pub(super) fn value(&self) -> &[u8] {
        match self {
            Self::Method(method) => method.as_str().as_bytes(),
            Self::Scheme(scheme) => scheme.as_str().as_bytes(),
            Self::Authority(authority) => authority.as_str().as_bytes(),
            Self::Path(path) => path.as_str().as_bytes(),
            Self::Status(status) => status.as_str().as_bytes(),
            Self::Header(_, value) => value.as_bytes(),
        }
    }

    /// Never remembered by either side.
    pub(super) fn is_sensitive(&self) -> bool {
        matches!(self, Self::Header(_, value) if value.is_sensitive())
    }

    pub(super) fn size(&self) -> usize {
        self.name().len() + self.value().len() + FIELD_OVERHEAD
    }

    pub(super) fn parse(name: &[u8], value: &[u8]) -> Result<Self, Violation> {
        let bad = |what| move |_| Violation::Headers(what);
        Ok(match name {
            b":method" => Self::Method(Method::from_bytes(value).map_err(|_| Violation::Headers("method"))?),
            b":scheme" => Self::Scheme(Scheme::try_from(value).map_err(bad("scheme"))?),
            b":authority" => Self::Authority(Authority::try_from(value).map_err(bad("authority"))?),
            b":path" => Self::Path(PathAndQuery::try_from(value).map_err(bad("path"))?),
            b":status" => {
                Self::Status(StatusCode::from_bytes(value).map_err(|_| Violation::Headers("status"))?)
            }
            // Refuses uppercase, so that a name has one spelling.
            name => Self::Header(
                HeaderName::from_lowercase(name).map_err(|_| Violation::Headers("a name"))?,
                HeaderValue::from_bytes(value).map_err(|_| Violation::Headers("a value"))?,
            ),
        })
    }
}
