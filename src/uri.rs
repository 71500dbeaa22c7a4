//! Addresses.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use zc_core::transport::{LinkAddr, UriParams};
use zc_core::wire::MAX_TRANSPORT_NAME;

/// Longest URI, bytes.
pub const MAX_URI: usize = 4096;

/// An address and, if it names one, the transport.
///
/// `zc://host:port` lets the policy choose; `zc+tcp://host:port`, `zc+unix:///path`,
/// `zc+unix://@name` (abstract), `zc+mem://name` and `zc+NAME://host:port?key=value` name one. `zc+uring://` takes a Unix
/// socket, too, and `zc+xdp://host:port?if=NAME` an interface.
///
/// ```
/// let uri: zc::Uri = "zc+tcp://127.0.0.1:7000?if=lo".parse()?;
/// assert_eq!(uri.transport(), Some("tcp"));
/// assert_eq!(uri.param("if"), Some("lo"));
/// assert_eq!("zc://[::1]:7000".parse::<zc::Uri>()?.transport(), None); // whatever is best
/// # Ok::<(), zc::UriError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    transport: Option<String>,
    addr: LinkAddr,
    params: UriParams,
}

/// A text is not a zc URI.
///
/// ```
/// use zc::{Uri, UriError};
///
/// assert!(matches!("http://127.0.0.1".parse::<Uri>(), Err(UriError::Scheme(_))));
/// assert!(matches!("zc://no-port".parse::<Uri>(), Err(UriError::Address { .. })));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It is longer than [`MAX_URI`].
    #[error("the URI is longer than {MAX_URI} bytes")]
    TooLong,
    /// It does not begin with `zc://` or `zc+NAME://`.
    #[error("`{0}` begins with neither zc:// nor zc+NAME://")]
    Scheme(String),
    /// A parameter that the named transport, or any that may be chosen, does not take.
    #[error("no transport that may be used takes the parameter `{name}`")]
    UnknownParam {
        /// Its name.
        name: String,
    },
    /// The address is not of the scheme's form.
    #[error("`{uri}`: {what}")]
    Address {
        /// The text.
        uri: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl Uri {
    /// The transport that the scheme names.
    pub fn transport(&self) -> Option<&str> {
        self.transport.as_deref()
    }

    /// Where the control link goes.
    pub fn addr(&self) -> &LinkAddr {
        &self.addr
    }

    /// A parameter (`?key=value`).
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.value(key)
    }

    /// All parameters.
    pub fn params(&self) -> &UriParams {
        &self.params
    }

    pub(crate) fn with_addr(&self, addr: LinkAddr) -> Self {
        Self { addr, ..self.clone() }
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > MAX_URI {
            return Err(UriError::TooLong);
        }
        let wrong = |what| UriError::Address { uri: text.to_owned(), what };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let transport = match scheme.strip_prefix("zc") {
            Some("") => None,
            Some(name) => match name.strip_prefix('+') {
                Some(name) if is_transport_name(name) => Some(name.to_owned()),
                _ => return Err(UriError::Scheme(text.to_owned())),
            },
            None => return Err(UriError::Scheme(text.to_owned())),
        };
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut params: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("a parameter is key=value"))?;
            if params.iter().any(|(known, _)| known == key) {
                return Err(wrong("a parameter stands there twice"));
            }
            params.push((key.to_owned(), value.to_owned()));
        }
        let addr = match transport.as_deref() {
            Some("unix") => unix(address).ok_or_else(|| wrong("a Unix socket is ///path or //@name"))?,
            Some("mem") if is_name(address) => LinkAddr::Memory(address.to_owned()),
            Some("mem") => return Err(wrong("a name is letters, digits, '-', '_' and '.'")),
            Some("shm") => unix(address)
                .or_else(|| is_name(address).then(|| LinkAddr::UnixAbstract(format!("zc-{address}"))))
                .ok_or_else(|| wrong("shm takes a name or a ///path"))?,
            Some("uring") => unix(address)
                .or_else(|| host_port(address))
                .ok_or_else(|| wrong("uring takes host:port, ///path or //@name"))?,
            _ => host_port(address).ok_or_else(|| wrong("an address is host:port, with [..] around IPv6"))?,
        };
        Ok(Self { transport, addr, params: UriParams::new(params) })
    }
}

/// What a transport may be called: it must have a place in a URI, in `ZC_TRANSPORTS` and on the wire.
pub(crate) fn is_transport_name(name: &str) -> bool {
    is_name(name) && name.len() <= MAX_TRANSPORT_NAME
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn unix(address: &str) -> Option<LinkAddr> {
    match address.strip_prefix('@') {
        Some(name) if !name.is_empty() && name.len() <= 107 => Some(LinkAddr::UnixAbstract(name.to_owned())),
        None if address.len() > 1 && address.starts_with('/') => {
            Some(LinkAddr::UnixPath(PathBuf::from(address)))
        }
        _ => None,
    }
}

fn host_port(address: &str) -> Option<LinkAddr> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.is_empty() && !host.contains([':', '[', ']', '/', '@']);
    (plain || bracketed).then(|| LinkAddr::Tcp(address.to_owned()))
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Some(name) => write!(f, "zc+{name}://")?,
            None => f.write_str("zc://")?,
        }
        match (&self.addr, self.transport.as_deref()) {
            (LinkAddr::UnixAbstract(name), Some("shm")) => match name.strip_prefix("zc-") {
                Some(short) if is_name(short) => f.write_str(short)?,
                _ => write!(f, "@{name}")?,
            },
            (addr, _) => write!(f, "{addr}")?,
        }
        for (at, (key, value)) in self.params.iter().enumerate() {
            write!(f, "{}{key}={value}", if at == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_writes_the_same() {
        for text in [
            "zc://127.0.0.1:7000",
            "zc+tcp://[::1]:0",
            "zc+unix:///run/zc.sock",
            "zc+unix://@name",
            "zc+uring://[::1]:0",
            "zc+uring:///run/zc.sock",
            "zc+uring://@name",
            "zc+mem://test-1",
            "zc+shm://orders",
            "zc+shm://@orders",
            "zc+shm://@zc-an odd one",
            "zc+shm:///run/zc.sock",
            "zc+rdma://host:1?dev=rxe0&gid=1",
            "zc+my-own_v1.2://host:1",
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
        assert_eq!("zc+xdp://h:1?if=eth1".parse::<Uri>().unwrap().param("if"), Some("eth1"));
    }

    #[test]
    fn what_is_no_uri_says_so() {
        for text in [
            "",
            "zc",
            "http://x:1",
            "zcx://h:1",
            "zc+://h:1",
            "zc+a,b://h:1",
            "zc+a-name-of-more-than-thirty-two-bytes://h:1",
            "zc://h",
            "zc://:1",
            "zc://::1:1",
            "zc://h:99999",
            "zc+unix://rel",
            "zc+mem://",
            "zc+mem://a/b",
            "zc://h:1?x",
            "zc://h:1?x=1&x=2",
        ] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
        assert_eq!("zc://".to_owned().repeat(2000).parse::<Uri>(), Err(UriError::TooLong));
    }
}
