//! Requests and responses to and from header fields.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version, request, response};

use super::block::{Decoder, Encoder};
use super::error::Violation;
use super::field::{FIELD_OVERHEAD, Field};

/// Why a block that could be read makes no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHead {
    Malformed,
    TooLarge,
}

/// Headers that speak of the connection and not of the call.
fn is_of_the_connection(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || name == "keep-alive"
        || name == "proxy-connection"
}

/// Header bytes as the receiver counts them, and fields.
pub(super) fn size_of(headers: &HeaderMap) -> (usize, usize) {
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    (bytes.sum(), headers.len())
}

/// As [`size_of`], with the request line.
pub(super) fn size_of_request(parts: &request::Parts) -> (usize, usize) {
    let (bytes, count) = size_of(&parts.headers);
    let uri = &parts.uri;
    let line = parts.method.as_str().len()
        + uri.path_and_query().map_or(1, |path| path.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.scheme_str().map_or(0, str::len);
    (bytes + line + 4 * (FIELD_OVERHEAD + 10), count + 4)
}

pub(super) fn put_request(encoder: &mut Encoder, parts: request::Parts, out: &mut Vec<u8>) {
    encoder.put(&Field::Method(parts.method), out);
    let uri = parts.uri.into_parts();
    if let Some(scheme) = uri.scheme {
        encoder.put(&Field::Scheme(scheme), out);
    }
    if let Some(authority) = uri.authority {
        encoder.put(&Field::Authority(authority), out);
    }
    let path = uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    encoder.put(&Field::Path(path), out);
    put_headers(encoder, parts.headers, out);
}

pub(super) fn put_response(encoder: &mut Encoder, parts: response::Parts, out: &mut Vec<u8>) {
    encoder.put(&Field::Status(parts.status), out);
    put_headers(encoder, parts.headers, out);
}

pub(super) fn put_headers(encoder: &mut Encoder, headers: HeaderMap, out: &mut Vec<u8>) {
    let mut last: Option<HeaderName> = None;
    for (name, value) in headers {
        // A repeated name comes as `None`.
        if name.is_some() {
            last = name;
        }
        if let Some(name) = &last
            && !is_of_the_connection(name)
        {
            encoder.put(&Field::Header(name.clone(), value), out);
        }
    }
}

/// What a block held, within bounds.
#[derive(Default)]
struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    bytes: usize,
    count: usize,
    bad: Option<BadHead>,
}

/// Bounds of one block.
#[derive(Clone, Copy)]
pub(super) struct BlockLimits {
    pub(super) bytes: usize,
    pub(super) count: usize,
}

impl Fields {
    /// A violation ends the connection; what is merely bad is in the result, and the tables have followed.
    fn read(decoder: &mut Decoder, block: &[u8], limits: BlockLimits) -> Result<Self, Violation> {
        let mut fields = Self::default();
        decoder.read(block, |field| fields.add(field, limits))?;
        Ok(fields)
    }

    fn add(&mut self, field: Field, limits: BlockLimits) {
        self.bytes += field.size();
        self.count += 1;
        if self.bytes > limits.bytes || self.count > limits.count {
            self.bad = Some(BadHead::TooLarge);
        }
        if self.bad.is_some() {
            return;
        }
        let before = match field {
            Field::Header(name, value) => return self.add_header(name, value),
            _ if !self.headers.is_empty() => true,
            Field::Method(method) => self.method.replace(method).is_some(),
            Field::Scheme(scheme) => self.scheme.replace(scheme).is_some(),
            Field::Authority(authority) => self.authority.replace(authority).is_some(),
            Field::Path(path) => self.path.replace(path).is_some(),
            Field::Status(status) => self.status.replace(status).is_some(),
        };
        if before {
            self.bad = Some(BadHead::Malformed);
        }
    }

    fn add_header(&mut self, name: HeaderName, value: HeaderValue) {
        if is_of_the_connection(&name) || self.headers.try_append(name, value).is_err() {
            self.bad = Some(BadHead::Malformed);
        }
    }

    fn has_pseudo(&self) -> bool {
        self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.status.is_some()
    }
}

type Head<T> = Result<Result<T, BadHead>, Violation>;

pub(super) fn read_request(decoder: &mut Decoder, block: &[u8], limits: BlockLimits) -> Head<request::Parts> {
    let fields = Fields::read(decoder, block, limits)?;
    if let Some(bad) = fields.bad {
        return Ok(Err(bad));
    }
    let (Some(method), Some(path), None) = (fields.method, fields.path, fields.status) else {
        return Ok(Err(BadHead::Malformed));
    };
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if let Some(authority) = fields.authority {
        uri.authority = Some(authority);
        uri.scheme = Some(fields.scheme.unwrap_or(Scheme::HTTP));
    }
    let Ok(uri) = Uri::from_parts(uri) else { return Ok(Err(BadHead::Malformed)) };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = Version::HTTP_2;
    parts.headers = fields.headers;
    Ok(Ok(parts))
}

pub(super) fn read_response(
    decoder: &mut Decoder,
    block: &[u8],
    limits: BlockLimits,
) -> Head<response::Parts> {
    let fields = Fields::read(decoder, block, limits)?;
    if let Some(bad) = fields.bad {
        return Ok(Err(bad));
    }
    let request = fields.method.is_some() || fields.path.is_some() || fields.authority.is_some();
    let Some(status) = fields.status.filter(|_| !request && fields.scheme.is_none()) else {
        return Ok(Err(BadHead::Malformed));
    };
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.version = Version::HTTP_2;
    parts.headers = fields.headers;
    Ok(Ok(parts))
}

pub(super) fn read_trailers(decoder: &mut Decoder, block: &[u8], limits: BlockLimits) -> Head<HeaderMap> {
    let fields = Fields::read(decoder, block, limits)?;
    Ok(match fields.bad {
        Some(bad) => Err(bad),
        None if fields.has_pseudo() => Err(BadHead::Malformed),
        None => Ok(fields.headers),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BlockLimits = BlockLimits { bytes: 4096, count: 64 };

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut encoder = Encoder::new(4096);
        let mut out = Vec::new();
        for (name, value) in fields {
            encoder.put(&Field::parse(name.as_bytes(), value.as_bytes()).unwrap(), &mut out);
        }
        out
    }

    fn request(fields: &[(&str, &str)]) -> Result<request::Parts, BadHead> {
        read_request(&mut Decoder::new(4096), &block(fields), LIMITS).unwrap()
    }

    #[test]
    fn a_request_there_and_back() {
        let mut sent = http::Request::post("http://host:80/a?b=c").body(()).unwrap().into_parts().0;
        sent.headers.append("x", HeaderValue::from_static("1"));
        sent.headers.append("x", HeaderValue::from_static("2"));
        sent.headers.insert("connection", HeaderValue::from_static("close"));
        let mut out = Vec::new();
        put_request(&mut Encoder::new(0), sent.clone(), &mut out);
        let got = read_request(&mut Decoder::new(0), &out, LIMITS).unwrap().unwrap();
        assert_eq!((got.method, got.uri), (sent.method, sent.uri));
        sent.headers.remove("connection");
        assert_eq!(got.headers, sent.headers);
    }

    #[test]
    fn heads_that_make_no_sense() {
        let method = (":method", "GET");
        let path = (":path", "/");
        assert!(request(&[method, path]).is_ok());
        for bad in [
            &[method][..],
            &[path],
            &[method, path, path],
            &[method, ("a", "b"), path],
            &[method, path, (":status", "200")],
            &[method, path, ("connection", "close")],
        ] {
            assert_eq!(request(bad).unwrap_err(), BadHead::Malformed, "{bad:?}");
        }
        let response = |fields| read_response(&mut Decoder::new(0), &block(fields), LIMITS).unwrap();
        assert!(response(&[(":status", "200")]).is_ok());
        assert!(response(&[]).is_err());
        assert!(response(&[(":status", "200"), (":path", "/")]).is_err());
        let trailers = |fields| read_trailers(&mut Decoder::new(0), &block(fields), LIMITS).unwrap();
        assert!(trailers(&[("grpc-status", "0")]).is_ok());
        assert!(trailers(&[(":status", "200")]).is_err());
    }

    #[test]
    fn a_block_is_bounded_and_the_tables_follow_all_the_same() {
        // One remembered field of 150 bytes, then one byte for each repetition.
        let long = "v".repeat(150);
        let mut bytes = b"\x40\x01x\x7f\x17".to_vec();
        bytes.extend_from_slice(long.as_bytes());
        bytes.extend_from_slice(&[0x80 | (super::super::table::STATIC_LEN as u8 + 1); 60]);
        let mut decoder = Decoder::new(4096);
        let read = read_trailers(&mut decoder, &bytes, LIMITS).unwrap();
        assert_eq!(read.unwrap_err(), BadHead::TooLarge);
        let next = read_trailers(&mut decoder, &[0x80 | (super::super::table::STATIC_LEN as u8 + 1)], LIMITS);
        assert_eq!(next.unwrap().unwrap()["x"], long);
        let many = block(&[("a", "b"); 65]);
        let read = read_trailers(&mut Decoder::new(4096), &many, BlockLimits { bytes: 1 << 20, count: 64 });
        assert_eq!(read.unwrap().unwrap_err(), BadHead::TooLarge);
    }
}
