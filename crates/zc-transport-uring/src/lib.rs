//! io_uring inside of the caller's runtime: the engine that the stream transport will stand on.
//!
//! An [`Engine`] is one ring and one task on a [`Reactor`](zc_core::transport::Reactor): no second runtime, no
//! thread, and nothing that is not `Send`. Programs begin operations ([`Op`]) on sockets and files from any
//! task; the engine's task submits all of one turn with one system call and hands out what is complete. An eventfd
//! tells the reactor of completions, and is masked while the engine runs anyway.
//!
//! * [`Flavour::OneThread`] is for runtimes of one thread (SINGLE_ISSUER, DEFER_TASKRUN, a registered ring);
//!   [`Flavour::ManyThreads`] for those whose tasks move: one lock, held by whoever runs the engine's task. What the
//!   kernel lacks is left out, rung by rung, and without io_uring there is a typed reason ([`probe()`]).
//! * Sockets receive by themselves ([`SocketRx`]): one operation that goes on, into buffers of the pool from which the
//!   kernel chooses. Small pieces share a buffer; what is long can go straight into memory of the caller's.
//! * Every operation owns its memory until its last completion; dropping a future cancels, and bytes that come too late
//!   are there for the next one. When an engine ends, what the kernel still holds is kept until it lets go.
//!
//! ```text
//! engine/   what programs use: operations as futures, sockets, files; the task
//! ladder    setting a ring up, from the best way to the weakest, and why not
//! probe     what the kernel has
//! slab      what is in flight, without I/O
//! sys/      the unsafe part: the ring, and memory that the kernel uses
//! ```

mod engine;
mod ladder;
mod limits;
mod probe;
mod slab;
mod sys;

pub use engine::{
    Engine, EngineOptions, EngineStats, File, Op, SocketRx, SocketTx, Spin, Usage, ZeroCopySend,
};
pub use ladder::Flavour;
pub use limits::{
    CQ_ENTRIES, DRAIN_MS, GRAVE_MS, MAX_GRAVES, MAX_INBOX_BYTES, MAX_OPERATIONS, MAX_RECV_BUFFERS,
    MAX_SOCKETS, MAX_TRANSFER_BYTES, MIN_PIECE_BYTES, RECV_BUFFER_BYTES, RECV_BUFFERS, SQ_ENTRIES,
    WHOLE_RECV_BUFFER_BYTES,
};
pub use probe::{Feature, Features, probe};
