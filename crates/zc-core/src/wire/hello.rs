//! HELLO: the first bytes of each side, and the choice of the wire version.

use std::fmt;

use super::codec::{Reader, check_len, check_text, put, text};
use super::error::WireError;
use super::tlv::{TLV_REQUIRED, Tlv, Tlvs, put_tlv};

/// The first four bytes of a connection.
///
/// `F5` can begin no HTTP/1 request line (methods are ASCII tokens), nor the HTTP/2 preface
/// (`PRI * …`), nor a TLS record (content types 20 to 24, first always 22), nor any UTF-8 text:
/// one port can serve zc beside any of them, and one byte tells.
pub const MAGIC: [u8; 4] = [0xF5, b'z', b'c', 0];
/// The bytes of HELLO in front of its body.
pub const HELLO_HEADER_BYTES: usize = 12;
/// The longest body of a HELLO, in bytes.
pub const MAX_HELLO_BODY: usize = 4096;
/// The longest name of an authentication method, in bytes.
pub const MAX_AUTH_METHOD: usize = 64;
/// The longest agent string, in bytes.
pub const MAX_AGENT: usize = 256;
/// The longest abstract socket name, in bytes, without its leading NUL.
pub const MAX_SOCKET_NAME: usize = 107;

const TLV_INSTANCE: u16 = TLV_REQUIRED | 1;
const TLV_MAX_MESSAGE: u16 = TLV_REQUIRED | 2;
const TLV_WINDOW: u16 = TLV_REQUIRED | 3;
const TLV_AUTH_METHOD: u16 = TLV_REQUIRED | 4;
const TLV_KEEPALIVE: u16 = 5;
const TLV_AGENT: u16 = 6;
const TLV_SAME_HOST: u16 = 7;
const TLV_CONTROL_LANE: u16 = 8;
const TLV_REMOTE: u16 = 9;

/// What the first bytes of a connection are.
///
/// ```
/// use zc_core::wire::{MAGIC, Sniff, sniff};
///
/// assert_eq!(sniff(&MAGIC), Sniff::Zc);
/// assert_eq!(sniff(b"GET /"), Sniff::NotZc);
/// assert_eq!(sniff(&MAGIC[..2]), Sniff::NeedMore);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    /// A zc HELLO.
    Zc,
    /// Something else.
    NotZc,
    /// Too few bytes to tell.
    NeedMore,
}

/// Tells a zc peer from anything else by its first bytes, of which it consumes none.
pub fn sniff(bytes: &[u8]) -> Sniff {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        Sniff::NotZc
    } else if seen == MAGIC.len() {
        Sniff::Zc
    } else {
        Sniff::NeedMore
    }
}

/// The wire versions a side speaks, ends included.
///
/// ```
/// use zc_core::wire::VersionRange;
///
/// let (old, new) = (VersionRange::new(1, 2)?, VersionRange::new(2, 3)?);
/// assert_eq!(old.negotiate(new), Ok(2));
/// assert!(VersionRange::new(1, 1)?.negotiate(new).is_err());
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionRange {
    min: u8,
    max: u8,
}

impl VersionRange {
    /// What this build speaks: a build for version N speaks N and N−1, and 1 is the first.
    pub const SUPPORTED: Self = Self { min: 1, max: 1 };

    /// A range from `min` to `max`; 0 is no version.
    pub fn new(min: u8, max: u8) -> Result<Self, WireError> {
        if min == 0 || min > max {
            return Err(WireError::BadValue { field: "version range" });
        }
        Ok(Self { min, max })
    }

    /// The lowest version.
    pub const fn min(self) -> u8 {
        self.min
    }

    /// The highest version.
    pub const fn max(self) -> u8 {
        self.max
    }

    /// The highest version in both ranges.
    pub fn negotiate(self, theirs: Self) -> Result<u8, WireError> {
        let best = self.max.min(theirs.max);
        if best < self.min.max(theirs.min) {
            return Err(WireError::VersionMismatch { ours: self, theirs });
        }
        Ok(best)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "v{}", self.min)
        } else {
            write!(f, "v{} to v{}", self.min, self.max)
        }
    }
}

/// Which side of a connection.
///
/// ```
/// use zc_core::wire::HelloRole;
///
/// assert_eq!((HelloRole::Client as u8, HelloRole::Server as u8), (0, 1)); // as on the wire
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HelloRole {
    /// The side that connected.
    Client = 0,
    /// The side that accepted.
    Server = 1,
}

/// What a peer needs to find out whether it is on the same host, and to prove it.
///
/// The tags are digests over the nonce, so that they tell a stranger nothing about the host. They only
/// explain why a proof can't succeed; they prove nothing.
///
/// ```
/// use zc_core::wire::SameHost;
///
/// let ours = SameHost { socket_name: "zc-1f".into(), nonce: [7; 16], host_tag: [1; 8], netns_tag: [2; 8] };
/// let theirs = SameHost { netns_tag: [3; 8], ..ours.clone() };
/// // A hint only: what counts is the proof over the socket.
/// assert!(ours.host_tag == theirs.host_tag && ours.netns_tag != theirs.netns_tag);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SameHost {
    /// The name of the abstract Unix socket on which the sender awaits the proof, without its leading
    /// NUL; empty if it has none.
    pub socket_name: String,
    /// Random, made for this connection. Whoever proves that it knows it is this connection's peer.
    pub nonce: [u8; 16],
    /// Equal to the tag that the receiver computes, if both run on one kernel; zero if not known.
    pub host_tag: [u8; 8],
    /// The same for the network namespace.
    pub netns_tag: [u8; 8],
}

/// A HELLO, parsed.
///
/// ```
/// use zc_core::wire::{Hello, HelloRole, VersionRange};
///
/// let hello = Hello {
///     versions: VersionRange::SUPPORTED,
///     role: HelloRole::Client,
///     agent: "doc/1".into(),
///     // …
/// #     instance: [0; 16],
/// #     max_message: 1 << 20,
/// #     window: 1 << 20,
/// #     auth_method: String::new(),
/// #     keepalive_ms: 15_000,
/// #     same_host: None,
/// #     control_lane: true,
/// #     remote: false,
/// };
/// let mut bytes = Vec::new();
/// hello.encode(&mut bytes)?;
/// let (decoded, len) = Hello::decode(&bytes, VersionRange::SUPPORTED)?.unwrap();
/// assert_eq!((decoded, len), (hello, bytes.len()));
/// # Ok::<(), zc_core::wire::WireError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The versions the sender speaks.
    pub versions: VersionRange,
    /// The sender's side.
    pub role: HelloRole,
    /// The sending process's own random id.
    pub instance: [u8; 16],
    /// The longest message it takes, in bytes; at least 1.
    pub max_message: u32,
    /// The credit it gives before the first CREDIT, in bytes; at least 1. What a DATA frame costs of it says
    /// [`frame_credit_bytes`](super::frame_credit_bytes).
    pub window: u32,
    /// The authentication method it demands; empty for none.
    pub auth_method: String,
    /// How often it wants to hear something, in milliseconds; 0 for never.
    pub keepalive_ms: u32,
    /// Its name and version, for logs.
    pub agent: String,
    /// How to prove that the two are on one host.
    pub same_host: Option<SameHost>,
    /// The control link can carry the data, and may.
    pub control_lane: bool,
    /// It takes REMOTE frames.
    pub remote: bool,
}

impl Hello {
    /// Appends the HELLO; leaves `out` alone if a field breaks its bound.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let body = self.encode_body()?;
        check_len("hello body", body.len(), MAX_HELLO_BODY)?;
        put(out, &MAGIC);
        put(out, &[self.versions.min, self.versions.max, self.role as u8, 0]);
        put(out, &(body.len() as u32).to_le_bytes());
        put(out, &body);
        Ok(())
    }

    fn encode_body(&self) -> Result<Vec<u8>, WireError> {
        check_limits(self.max_message, self.window)?;
        check_text("auth method", &self.auth_method, MAX_AUTH_METHOD)?;
        check_text("agent", &self.agent, MAX_AGENT)?;
        let mut body = Vec::new();
        put_tlv(&mut body, TLV_INSTANCE, &self.instance)?;
        put_tlv(&mut body, TLV_MAX_MESSAGE, &self.max_message.to_le_bytes())?;
        put_tlv(&mut body, TLV_WINDOW, &self.window.to_le_bytes())?;
        if !self.auth_method.is_empty() {
            put_tlv(&mut body, TLV_AUTH_METHOD, self.auth_method.as_bytes())?;
        }
        if self.keepalive_ms != 0 {
            put_tlv(&mut body, TLV_KEEPALIVE, &self.keepalive_ms.to_le_bytes())?;
        }
        if !self.agent.is_empty() {
            put_tlv(&mut body, TLV_AGENT, self.agent.as_bytes())?;
        }
        if let Some(same) = &self.same_host {
            check_text("socket name", &same.socket_name, MAX_SOCKET_NAME)?;
            let mut value = Vec::new();
            put(&mut value, &same.nonce);
            put(&mut value, &same.host_tag);
            put(&mut value, &same.netns_tag);
            put(&mut value, same.socket_name.as_bytes());
            put_tlv(&mut body, TLV_SAME_HOST, &value)?;
        }
        if self.control_lane {
            put_tlv(&mut body, TLV_CONTROL_LANE, &[])?;
        }
        if self.remote {
            put_tlv(&mut body, TLV_REMOTE, &[])?;
        }
        Ok(body)
    }

    /// Parses a HELLO off the front of `input`: the HELLO and its length, or `None` if more bytes are needed.
    ///
    /// A peer without a version in common fails before its body is looked at, since only the
    /// header's form is promised never to change.
    pub fn decode(input: &[u8], ours: VersionRange) -> Result<Option<(Self, usize)>, WireError> {
        if sniff(input) == Sniff::NotZc {
            let mut got = [0; 4];
            got.iter_mut().zip(input).for_each(|(to, from)| *to = *from);
            return Err(WireError::BadMagic { got });
        }
        let Some((header, rest)) = input.split_first_chunk::<HELLO_HEADER_BYTES>() else {
            return Ok(None);
        };
        let mut r = Reader::new(header);
        r.array::<4>()?;
        let versions = VersionRange::new(r.u8()?, r.u8()?)?;
        ours.negotiate(versions)?;
        let role = match r.u8()? {
            0 => HelloRole::Client,
            1 => HelloRole::Server,
            _ => return Err(WireError::BadValue { field: "role" }),
        };
        r.zero::<1>("hello reserved")?;
        let len = r.u32()? as usize;
        check_len("hello body", len, MAX_HELLO_BODY)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let hello = Self::decode_body(versions, role, body)?;
        Ok(Some((hello, HELLO_HEADER_BYTES + len)))
    }

    fn decode_body(versions: VersionRange, role: HelloRole, body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::default();
        for tlv in Tlvs::new(body) {
            fields.take(tlv?)?;
        }
        let missing = |field| WireError::BadValue { field };
        let hello = Self {
            versions,
            role,
            instance: fields.instance.ok_or_else(|| missing("instance id"))?,
            max_message: fields.max_message.ok_or_else(|| missing("max message"))?,
            window: fields.window.ok_or_else(|| missing("window"))?,
            auth_method: fields.auth_method.unwrap_or_default(),
            keepalive_ms: fields.keepalive_ms.unwrap_or(0),
            agent: fields.agent.unwrap_or_default(),
            same_host: fields.same_host,
            control_lane: fields.control_lane.is_some(),
            remote: fields.remote.is_some(),
        };
        check_limits(hello.max_message, hello.window)?;
        Ok(hello)
    }
}

/// The body's fields as they turn up.
#[derive(Default)]
struct Fields {
    instance: Option<[u8; 16]>,
    max_message: Option<u32>,
    window: Option<u32>,
    auth_method: Option<String>,
    keepalive_ms: Option<u32>,
    agent: Option<String>,
    same_host: Option<SameHost>,
    control_lane: Option<()>,
    remote: Option<()>,
}

impl Fields {
    fn take(&mut self, tlv: Tlv<'_>) -> Result<(), WireError> {
        let v = tlv.value;
        match tlv.kind {
            TLV_INSTANCE => set(&mut self.instance, exact(v, "instance id")?, "instance id"),
            TLV_MAX_MESSAGE => set(&mut self.max_message, u32_of(v, "max message")?, "max message"),
            TLV_WINDOW => set(&mut self.window, u32_of(v, "window")?, "window"),
            TLV_AUTH_METHOD => {
                let method = bounded(v, MAX_AUTH_METHOD, "auth method")?;
                set(&mut self.auth_method, method, "auth method")
            }
            TLV_KEEPALIVE => set(&mut self.keepalive_ms, u32_of(v, "keepalive")?, "keepalive"),
            TLV_AGENT => set(&mut self.agent, bounded(v, MAX_AGENT, "agent")?, "agent"),
            TLV_SAME_HOST => {
                let mut r = Reader::new(v);
                let (nonce, host_tag, netns_tag) = (r.array()?, r.array()?, r.array()?);
                let socket_name = bounded(r.rest(), MAX_SOCKET_NAME, "socket name")?;
                set(&mut self.same_host, SameHost { socket_name, nonce, host_tag, netns_tag }, "same host")
            }
            TLV_CONTROL_LANE => {
                let [] = exact(v, "control lane")?;
                set(&mut self.control_lane, (), "control lane")
            }
            TLV_REMOTE => {
                let [] = exact(v, "remote")?;
                set(&mut self.remote, (), "remote")
            }
            _ => tlv.unknown(),
        }
    }
}

fn set<T>(slot: &mut Option<T>, value: T, field: &'static str) -> Result<(), WireError> {
    if slot.replace(value).is_some() { Err(WireError::BadValue { field }) } else { Ok(()) }
}

fn exact<const N: usize>(value: &[u8], field: &'static str) -> Result<[u8; N], WireError> {
    value.try_into().map_err(|_| WireError::BadValue { field })
}

fn u32_of(value: &[u8], field: &'static str) -> Result<u32, WireError> {
    Ok(u32::from_le_bytes(exact(value, field)?))
}

fn bounded(value: &[u8], max: usize, field: &'static str) -> Result<String, WireError> {
    check_len(field, value.len(), max)?;
    text(value, field)
}

fn check_limits(max_message: u32, window: u32) -> Result<(), WireError> {
    if max_message == 0 {
        return Err(WireError::BadValue { field: "max message" });
    }
    if window == 0 {
        return Err(WireError::BadValue { field: "window" });
    }
    Ok(())
}
