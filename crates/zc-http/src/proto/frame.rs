//! The frames: one per zc message. See `docs/http.md` for the byte diagrams.

use bytes::BufMut;

use super::code::Code;
use super::error::Violation;

/// Spoken by this crate.
pub(crate) const VERSION: u8 = 1;
/// "zcht": the first frame of both sides carries it.
const MAGIC: u32 = u32::from_le_bytes(*b"zcht");

/// Whether a first message is the beginning of this protocol, and not of another that has the connection to itself.
#[cfg(feature = "hyper")]
pub(crate) fn is_settings(message: &zc::Message) -> bool {
    let mut bytes = message.segments().iter().flat_map(|segment| segment.iter().copied());
    let kind = bytes.next();
    let rest = bytes.skip(3).take(size_of::<u32>());
    kind == Some(kind::SETTINGS) && rest.eq(MAGIC.to_le_bytes())
}
/// Bytes in front of a CALL frame's blocks.
pub(crate) const CALL_HEADER_BYTES: usize = 12;
/// Fields of SETTINGS that every peer sends.
const SETTINGS_OF_THE_FIRST: usize = 7;
/// The longest frame without a body: control frames are copied before they are parsed.
pub(crate) const MAX_CONTROL_BYTES: usize = 512;
/// The longest reason of a GOAWAY.
pub(crate) const MAX_REASON: usize = 256;

pub(super) mod kind {
    pub(crate) const SETTINGS: u8 = 1;
    pub(crate) const CALL: u8 = 2;
    pub(crate) const RESET: u8 = 3;
    pub(crate) const WINDOW: u8 = 4;
    pub(crate) const PING: u8 = 5;
    pub(crate) const GOAWAY: u8 = 6;
}

/// A CALL frame has a block of headers.
pub(crate) const FLAG_HEADERS: u8 = 1;
/// A CALL frame has a block of trailers.
pub(crate) const FLAG_TRAILERS: u8 = 2;
/// Nothing follows in this direction of the call.
pub(crate) const FLAG_END: u8 = 4;
const ALL_FLAGS: u8 = FLAG_HEADERS | FLAG_TRAILERS | FLAG_END;

/// What a side grants and takes; its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) max_calls: u32,
    pub(crate) call_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) max_header_bytes: u32,
    pub(crate) max_header_count: u32,
    pub(crate) table_bytes: u32,
    pub(crate) max_body_bytes: u32,
    /// 0 from a peer that knows of none.
    pub(crate) call_reserve: u32,
}

/// The fixed part of a CALL frame; blocks and body follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallHeader {
    pub(crate) flags: u8,
    pub(crate) call: u32,
    pub(crate) headers_len: u16,
    pub(crate) trailers_len: u16,
}

/// Everything but CALL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    Settings(Settings),
    Reset {
        call: u32,
        code: Code,
    },
    /// Call 0 is the connection.
    Window {
        call: u32,
        add: u32,
    },
    Ping {
        answer: bool,
        nonce: u64,
    },
    GoAway {
        last: u32,
        code: Code,
        reason: String,
    },
}

impl CallHeader {
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn encode(self, out: &mut impl BufMut) {
        out.put_u8(kind::CALL);
        out.put_u8(self.flags);
        out.put_u16_le(self.headers_len);
        out.put_u32_le(self.call);
        out.put_u16_le(self.trailers_len);
        out.put_u16_le(0);
    }

    pub(crate) fn decode(bytes: &[u8; CALL_HEADER_BYTES]) -> Result<Self, Violation> {
        let [kind, flags, h0, h1, c0, c1, c2, c3, t0, t1, reserved @ ..] = *bytes;
        debug_assert_eq!(kind, kind::CALL);
        let header = Self {
            flags,
            call: u32::from_le_bytes([c0, c1, c2, c3]),
            headers_len: u16::from_le_bytes([h0, h1]),
            trailers_len: u16::from_le_bytes([t0, t1]),
        };
        if flags & !ALL_FLAGS != 0 || reserved != [0; 2] {
            return Err(Violation::Frame("reserved bits are set"));
        }
        if header.call == 0 {
            return Err(Violation::Frame("call 0"));
        }
        if header.headers_len > 0 && !header.has(FLAG_HEADERS)
            || header.trailers_len > 0 && !header.has(FLAG_TRAILERS)
        {
            return Err(Violation::Frame("a block without its flag"));
        }
        if header.has(FLAG_TRAILERS) && !header.has(FLAG_END) {
            return Err(Violation::Frame("trailers before the end"));
        }
        Ok(header)
    }
}

impl Control {
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        match self {
            Self::Settings(settings) => {
                out.put_u8(kind::SETTINGS);
                out.put_u8(VERSION);
                out.put_u16_le(0);
                out.put_u32_le(MAGIC);
                for value in settings.values() {
                    out.put_u32_le(value);
                }
            }
            Self::Reset { call, code } => {
                out.put_u8(kind::RESET);
                out.put_u8(code.0);
                out.put_u16_le(0);
                out.put_u32_le(*call);
            }
            Self::Window { call, add } => {
                out.put_u8(kind::WINDOW);
                out.put_bytes(0, 3);
                out.put_u32_le(*call);
                out.put_u32_le(*add);
            }
            Self::Ping { answer, nonce } => {
                out.put_u8(kind::PING);
                out.put_u8((*answer).into());
                out.put_u16_le(0);
                out.put_u64_le(*nonce);
            }
            Self::GoAway { last, code, reason } => {
                out.put_u8(kind::GOAWAY);
                out.put_u8(code.0);
                out.put_u16_le(0);
                out.put_u32_le(*last);
                let mut ends = (0..=reason.len().min(MAX_REASON)).rev();
                let end = ends.find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
                out.put_slice(&reason.as_bytes()[..end]);
            }
        }
    }

    /// `None`: a kind that a later version may know and this one skips.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let Some((&[kind, second, third, fourth], body)) = bytes.split_first_chunk::<4>() else {
            return Err(Violation::Frame("shorter than a frame can be"));
        };
        if kind >= 0x80 {
            return Ok(None);
        }
        if [third, fourth] != [0; 2] {
            return Err(Violation::Frame("reserved bits are set"));
        }
        let mut body = Reader(body);
        let decoded = match kind {
            kind::SETTINGS => {
                if body.u32()? != MAGIC {
                    return Err(Violation::NotHttp);
                }
                if second < VERSION {
                    return Err(Violation::Version(second));
                }
                let mut values = [0; 8];
                for value in &mut values[..SETTINGS_OF_THE_FIRST] {
                    *value = body.u32()?;
                }
                // The first release ended here. A later one may append.
                values[SETTINGS_OF_THE_FIRST] = body.u32().unwrap_or(0);
                body.0 = &[];
                Self::Settings(Settings::from_values(values))
            }
            kind::RESET => {
                let call = body.u32()?;
                if call == 0 {
                    return Err(Violation::Frame("call 0"));
                }
                Self::Reset { call, code: Code(second) }
            }
            kind::WINDOW if second == 0 => Self::Window { call: body.u32()?, add: body.u32()? },
            kind::PING if second <= 1 => Self::Ping { answer: second == 1, nonce: body.u64()? },
            kind::GOAWAY => {
                let last = body.u32()?;
                let reason = std::mem::take(&mut body.0);
                if reason.len() > MAX_REASON {
                    return Err(Violation::Frame("a long reason"));
                }
                Self::GoAway {
                    last,
                    code: Code(second),
                    reason: String::from_utf8_lossy(reason).into_owned(),
                }
            }
            kind::WINDOW | kind::PING => return Err(Violation::Frame("reserved bits are set")),
            _ => return Err(Violation::Frame("an unknown kind")),
        };
        if body.0.is_empty() { Ok(Some(decoded)) } else { Err(Violation::Frame("bytes after its end")) }
    }
}

impl Settings {
    fn values(&self) -> [u32; 8] {
        [
            self.max_calls,
            self.call_window,
            self.connection_window,
            self.max_header_bytes,
            self.max_header_count,
            self.table_bytes,
            self.max_body_bytes,
            self.call_reserve,
        ]
    }

    fn from_values(values: [u32; 8]) -> Self {
        let [max_calls, call_window, connection_window, rest @ ..] = values;
        let [max_header_bytes, max_header_count, table_bytes, max_body_bytes, call_reserve] = rest;
        Self {
            max_calls,
            call_window,
            connection_window,
            max_header_bytes,
            max_header_count,
            table_bytes,
            max_body_bytes,
            call_reserve,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            return Err(Violation::Frame("cut short"));
        };
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(control: &Control) -> Vec<u8> {
        let mut bytes = Vec::new();
        control.encode(&mut bytes);
        bytes
    }

    fn settings() -> Settings {
        Settings {
            max_calls: 1,
            call_window: 2,
            connection_window: 3,
            max_header_bytes: 4,
            max_header_count: 5,
            table_bytes: 6,
            max_body_bytes: 0x0102_0304,
            call_reserve: 7,
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: [(Control, &[u8]); 5] = [
            (
                Control::Settings(settings()),
                b"\x01\x01\0\0zcht\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\0\x06\0\0\0\x04\x03\x02\x01\x07\0\0\0",
            ),
            (Control::Reset { call: 0x0a0b, code: Code::CANCEL }, b"\x03\x01\0\0\x0b\x0a\0\0"),
            (Control::Window { call: 7, add: 258 }, b"\x04\0\0\0\x07\0\0\0\x02\x01\0\0"),
            (Control::Ping { answer: true, nonce: 9 }, b"\x05\x01\0\0\x09\0\0\0\0\0\0\0"),
            (
                Control::GoAway { last: 3, code: Code::DONE, reason: "bye".into() },
                b"\x06\0\0\0\x03\0\0\0bye",
            ),
        ];
        for (control, bytes) in golden {
            assert_eq!(encoded(&control), bytes);
            assert_eq!(Control::decode(bytes), Ok(Some(control)));
        }
        let header = CallHeader { flags: 7, call: 0x0102, headers_len: 3, trailers_len: 0x0405 };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert_eq!(bytes, b"\x02\x07\x03\0\x02\x01\0\0\x05\x04\0\0");
        assert_eq!(CallHeader::decode(bytes[..].try_into().unwrap()), Ok(header));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        assert_eq!(Control::decode(b"\x01\x01\0\0zcXX"), Err(Violation::NotHttp));
        assert_eq!(Control::decode(b"\x01\0\0\0zcht"), Err(Violation::Version(0)));
        assert_eq!(Control::decode(b"\x80abc"), Ok(None));
        let mut longer = encoded(&Control::Settings(settings()));
        longer.put_slice(b"later");
        assert_eq!(Control::decode(&longer), Ok(Some(Control::Settings(settings()))));
        // A peer of the first release, and one that broke off in the middle of what it does not have.
        let without = Settings { call_reserve: 0, ..settings() };
        for len in 36..40 {
            assert_eq!(
                Control::decode(&encoded(&Control::Settings(settings()))[..len]),
                Ok(Some(Control::Settings(without)))
            );
        }
        for bad in [&b"\x03\x01\0\0\0\0\0\0"[..], b"\x04\x01\0\0\0\0\0\0\0\0\0\0", b"\x07\0\0\0", b"\x03"] {
            assert!(matches!(Control::decode(bad), Err(Violation::Frame(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_control_frames(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0_u8..9) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(Some(control)) = Control::decode(&bytes) {
                let again = encoded(&control);
                prop_assert_eq!(Control::decode(&again), Ok(Some(control)));
            }
        }

        #[test]
        fn fuzz_call_headers(mut bytes in any::<[u8; CALL_HEADER_BYTES]>()) {
            bytes[0] = kind::CALL;
            bytes[1] &= 7;
            if let Ok(header) = CallHeader::decode(&bytes) {
                let mut again = Vec::new();
                header.encode(&mut again);
                prop_assert_eq!(&again[..], &bytes[..]);
            }
        }
    }
}
