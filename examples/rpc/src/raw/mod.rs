//! The echo service on zc's message API, without tonic and HTTP: the same four calls, the same protobuf messages, decoded
//! where they lie.
//!
//! Every message of a connection is eight bytes, and a protobuf message of `proto/echo.proto` behind them:
//!
//! ```text
//!  0         4        5      6      8
//!  | call    | method | last | 0  0 | Payload, Ask or Summary …
//! ```
//!
//! `call` (little-endian) is a number that the client gives, `method` the method's place in the `.proto`, from 1 on, and
//! `last` is 1 in the last message of a call in its direction. A stream ends with such a message that holds nothing.
//!
//! Over shared memory nobody copies data: an answer is memory of the client, sent back. What is copied there are the heads of
//! `Repeat`'s answers, and of its answers all beyond the 191st: so often a message can be sent back as it lies.
//!
//! Status, metadata, deadlines and cancelling are gRPC's and not here: what makes no sense ends the connection, a `Repeat` that its
//! client no longer wants is sent to its end, and a `Collect` is kept until its last message. The client therefore says that
//! of one that was dropped half-way, with its next call.

mod client;
mod frame;
mod server;

pub use self::client::{Answers, Caller};
pub use self::frame::{HEAD_BYTES, Head, Method, Sizes, begin, fields};
pub use self::server::answer;
