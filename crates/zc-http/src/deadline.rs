//! `grpc-timeout`: how long a call may take.

use std::fmt::Write;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep};

const NAME: HeaderName = HeaderName::from_static("grpc-timeout");

/// Digits of the header's number.
const MAX_DIGITS: usize = 8;

/// What has the value 10^[`MAX_DIGITS`] no longer fits.
const TOO_LONG: u128 = 100_000_000;

/// A call that waited for less goes out with its header as it was: a value that is new each time costs more than that.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// The units in which a header may count, and their nanoseconds, the finest first.
const UNITS: [(char, u128); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60 * 1_000_000_000),
    ('H', 3600 * 1_000_000_000),
];

/// When a call ends, done or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    began: Instant,
    at: Instant,
}

impl Due {
    /// Counted from now, if the headers say how long.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let timeout = parse(headers.get(NAME)?.as_bytes())?;
        let began = Instant::now();
        Some(Self { began, at: began.checked_add(timeout)? })
    }

    pub(crate) fn has_passed(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Makes the header of a call that has waited say what is left, and never less.
    pub(crate) fn shorten(&self, headers: &mut HeaderMap) {
        let now = Instant::now();
        if now.duration_since(self.began) >= MIN_WAIT {
            headers.insert(NAME, format(self.at.saturating_duration_since(now)));
        }
    }
}

/// A [`Due`] that wakes whom it concerns.
pub(crate) struct Deadline {
    due: Due,
    /// Made where it is waited for first: that is on a runtime.
    timer: Option<Pin<Box<Sleep>>>,
}

impl From<Due> for Deadline {
    fn from(due: Due) -> Self {
        Self { due, timer: None }
    }
}

impl Deadline {
    /// Also true for a task that has used up its turn: then timers are not ready, and a body that always is could go on for ever.
    pub(crate) fn has_passed(&self) -> bool {
        self.due.has_passed()
    }

    /// For who has to wait: what is ready needs no timer.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.due.has_passed() {
            return Poll::Ready(());
        }
        let at = self.due.at;
        self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).as_mut().poll(cx)
    }
}

/// What the future comes to, if its deadline has not passed by then.
pub(crate) async fn within<F: Future>(deadline: &mut Option<Deadline>, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| poll_within(deadline, cx, |cx| future.as_mut().poll(cx))).await
}

/// What is polled, if its deadline has not passed; none if it has. The deadline comes first: what is polled may never end.
pub(crate) fn poll_within<T>(
    deadline: &mut Option<Deadline>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Poll<Option<T>> {
    let Some(deadline) = deadline else { return poll(cx).map(Some) };
    if deadline.has_passed() {
        return Poll::Ready(None);
    }
    match poll(cx) {
        Poll::Ready(ready) => Poll::Ready(Some(ready)),
        Poll::Pending => deadline.poll_passed(cx).map(|()| None),
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

/// In the finest unit that has room for it, rounded up: who called gives up first.
fn format(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos();
    let fits = |(_, unit): &&(char, u128)| nanos.div_ceil(*unit) < TOO_LONG;
    let (name, unit) = UNITS.iter().find(fits).copied().unwrap_or(UNITS[UNITS.len() - 1]);
    let mut text = String::with_capacity(MAX_DIGITS + 1);
    let _ = write!(text, "{}{name}", nanos.div_ceil(unit).min(TOO_LONG - 1));
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready_needs_no_timer() {
        let headers = HeaderMap::from_iter([(NAME, HeaderValue::from_static("1H"))]);
        let mut deadline = Due::of(&headers).map(Deadline::from);
        // Without a runtime a timer would panic.
        let ready = futures::FutureExt::now_or_never(within(&mut deadline, std::future::ready(7)));
        assert_eq!(ready, Some(Some(7)));
        assert!(deadline.unwrap().timer.is_none());
    }

    #[test]
    fn what_is_a_timeout() {
        assert_eq!(parse(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in [&b""[..], b"m", b"5", b"5x", b"-5m", b"123456789m"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn what_is_left_is_said_as_finely_as_it_can_be() {
        let texts = [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (Duration::from_millis(150), "150000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(60 * 99_999_999 + 1), "1666667H"),
        ];
        for (left, text) in texts {
            assert_eq!(format(left), text);
            assert!(parse(text.as_bytes()).unwrap() >= left);
        }
    }
}
