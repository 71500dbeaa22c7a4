//! `grpc-timeout`: how long a call may take.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Sleep;

/// Digits of the header's number.
const MAX_DIGITS: usize = 8;

/// The moment at which a call ends, done or not.
pub(crate) struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    /// Counted from now, if the headers say how long.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let timeout = parse(headers.get("grpc-timeout")?.as_bytes())?;
        Some(Self(Box::pin(tokio::time::sleep(timeout))))
    }

    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// `None` when it is no timeout: then there is none, as with HTTP/2.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_timeout() {
        assert_eq!(parse(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in [&b""[..], b"m", b"5", b"5x", b"-5m", b"123456789m"] {
            assert_eq!(parse(bad), None);
        }
    }
}
