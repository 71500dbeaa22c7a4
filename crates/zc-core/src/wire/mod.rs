//! The wire protocol without I/O: formats, their bounds, and the order of things.
//!
//! Nothing here reads a socket or a clock. All input is taken for hostile: every decoder checks
//! before it believes or allocates. `docs/wire.md` draws the formats.

mod close;
mod codec;
mod control;
mod error;
mod frame;
mod handshake;
mod hello;
mod keepalive;
mod record;
mod remote;
mod seq;
mod tlv;

#[cfg(test)]
mod tests;

pub use self::{
    close::{CloseCode, MAX_REASON},
    control::{
        CONTROL_HEADER_BYTES, CONTROL_LANE, ControlDecoder, ControlMessage, MAX_CONTROL, MAX_OFFER,
        MAX_OFFERS, MAX_TRANSPORT_NAME, OfferEntry, PlanEntry,
    },
    error::WireError,
    frame::{
        FRAME_HEADER_BYTES, FrameFlags, FrameHeader, FrameLimits, FrameType, MAX_FRAME_EXT,
        MIN_FRAME_CREDIT_BYTES, check_frame_ext, frame_credit_bytes, frame_ext_len,
    },
    handshake::{
        ClientHandshake, HandshakeState, MAX_AUTH_ROUNDS, MAX_JOIN_MESSAGES, ServerHandshake, Stage,
    },
    hello::{
        HELLO_HEADER_BYTES, Hello, HelloRole, MAGIC, MAX_AGENT, MAX_AUTH_METHOD, MAX_HELLO_BODY,
        MAX_SOCKET_NAME, SameHost, Sniff, VersionRange, sniff,
    },
    keepalive::{Keepalive, KeepaliveAction, MAX_KEEPALIVE, MIN_KEEPALIVE},
    record::{MAX_RECORD, SessionRecord},
    remote::{
        MAX_REMOTE_CHUNK, MAX_REMOTE_RECORD_BYTES, MAX_REMOTE_RECORDS, REMOTE_ANSWER_BYTES,
        REMOTE_REQUEST_BYTES, REMOTE_WIRE_KEY_BYTES, RemoteAction, RemoteAnswer, RemoteRecord, RemoteRequest,
        RemoteStatus,
    },
    seq::{Delivery, RxSeq, SeqError, TxSeq},
    tlv::{TLV_HEADER_BYTES, TLV_REQUIRED, Tlv, Tlvs, put_tlv},
};
