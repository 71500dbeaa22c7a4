//! The bounds of a connection.

use super::frame::Settings;

/// The widest window that can be granted, bytes.
pub(crate) const MAX_WINDOW: u32 = i32::MAX as u32;
/// The most header bytes that a block can hold.
pub(crate) const MAX_HEADER_BYTES: u32 = 60 << 10;
/// The most bytes of a header table, whatever the peer offers.
pub(crate) const MAX_TABLE_BYTES: u32 = 64 << 10;
/// Control frames queued for a peer that does not read, beyond those of open calls.
pub(crate) const MAX_CONTROL_QUEUED: usize = 4096;
/// Segments of one body frame.
pub(crate) const MAX_BODY_SEGMENTS: usize = 16;
/// The smallest body frame a peer can insist on.
pub(crate) const MIN_BODY_BYTES: u32 = 1 << 10;

/// What one side takes; every field is a bound. The peer learns those that concern it.
///
/// ```
/// let mut limits = zc_http::Limits::default();
/// limits.max_calls = 64;
/// limits.call_window_bytes = 256 << 10;
/// let server = zc_http::Server::new().limits(limits);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Calls at a time on one connection, as a server. Default 1024.
    pub max_calls: u32,
    /// Body bytes of one call that may arrive before the application takes any. Default 1 MiB.
    pub call_window_bytes: u32,
    /// Body bytes of all calls that may arrive before the application takes any. Default 8 MiB.
    pub connection_window_bytes: u32,
    /// Body bytes of one call that may arrive although `connection_window_bytes` are used up, so that calls which nobody reads
    /// never block the others. 0: none. Default 16 KiB.
    pub call_reserve_bytes: u32,
    /// Names and values of one header block, plus 32 bytes for each field; at most 60 KiB. Default 16 KiB.
    pub max_header_bytes: u32,
    /// Fields of one header block. Default 128.
    pub max_header_count: u32,
    /// Header fields remembered per connection and direction, bytes; at most 64 KiB. Default 4 KiB.
    pub table_bytes: u32,
    /// Body bytes of one frame: how long one call can hold up others. At least 1 KiB. Default 65,280.
    pub max_body_frame_bytes: u32,
    /// Body bytes of a call that wait for the peer before its body is asked for more. Default 64 KiB.
    pub send_buffer_bytes: usize,
    /// Calls that the peer may cancel per second, in the long run. Default 1024.
    pub resets_per_s: u32,
    /// Calls that the peer may cancel at once. Default 4096.
    pub reset_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_calls: 1024,
            call_window_bytes: 1 << 20,
            connection_window_bytes: 8 << 20,
            call_reserve_bytes: 16 << 10,
            max_header_bytes: 16 << 10,
            max_header_count: 128,
            table_bytes: 4 << 10,
            max_body_frame_bytes: 65_280,
            send_buffer_bytes: 64 << 10,
            resets_per_s: 1024,
            reset_burst: 4096,
        }
    }
}

impl Limits {
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            max_calls: self.max_calls,
            call_window: self.call_window_bytes.min(MAX_WINDOW),
            connection_window: self.connection_window_bytes.min(MAX_WINDOW),
            max_header_bytes: self.max_header_bytes.min(MAX_HEADER_BYTES),
            max_header_count: self.max_header_count,
            table_bytes: self.table_bytes.min(MAX_TABLE_BYTES),
            max_body_bytes: self.max_body_frame_bytes.max(MIN_BODY_BYTES),
            call_reserve: self.call_reserve_bytes.min(MAX_WINDOW),
        }
    }
}
