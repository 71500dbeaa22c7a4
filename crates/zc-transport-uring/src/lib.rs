//! io_uring inside of the caller's runtime: an engine, and the stream transport that stands on it.
//!
//! [`UringTransport`] carries messages over TCP and Unix sockets. An [`Engine`] is one ring and one task on a [`Reactor`](zc_core::transport::Reactor): no second runtime, no
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
//! transport messages over the socket of a control link
//! homes     which engines there are, for each runtime
//! lane/     the stream lane on an engine's socket
//! engine/   what programs use: operations as futures, sockets, files; the task
//! ladder    setting a ring up, from the best way to the weakest, and why not
//! probe     what the kernel has
//! slab      what is in flight, without I/O
//! zcrx      that a NIC puts what it receives into memory of ours: options, and why not
//! steering  which connections come by the queue of that NIC: the one thing that has a thread of its own
//! zero_copy whether to send out of the memory itself, without I/O
//! sys/      the unsafe part: the ring, and memory that the kernel uses
//! ```

mod engine;
mod homes;
mod ladder;
mod lane;
mod limits;
mod probe;
mod slab;
mod steering;
mod sys;
mod transport;
mod zcrx;
mod zero_copy;

pub use engine::{
    DirectAlignment, DirectError, Engine, EngineOptions, EngineStats, Engines, File, Op, SocketRx, SocketTx,
    Spin, Usage, ZeroCopySend,
};
pub use ladder::Flavour;
pub use limits::{
    ABORT_MS, BATCH_BYTES, CQ_ENTRIES, DIRECT_BYTES, DRAIN_MS, GRAVE_MS, HOT_LOOKS, HOT_READ_BYTES, IDLE_MS,
    LARGE_MIN, MAX_GRAVES, MAX_HOT_LANES, MAX_INBOX_BYTES, MAX_LINGERS, MAX_MOVED_RUNTIMES, MAX_OPERATIONS,
    MAX_RECV_BUFFERS, MAX_REGION_BYTES, MAX_REGISTERED_REGIONS, MAX_RINGS, MAX_SOCKETS, MAX_SPILLED_BYTES,
    MAX_STEERING, MAX_TRANSFER_BYTES, MAX_UNASKED_REGION_BYTES, MAX_UNRELEASED_SENDS, MAX_ZCRX_AREA_BYTES,
    MAX_ZCRX_REFILL_ENTRIES, MIN_PIECE_BYTES, MIN_RECV_BUFFER_BYTES, RECV_BUFFER_BYTES, RECV_BUFFERS,
    RECV_POOL_DIVISOR, REFUSED_MS, RELEASE_MS, SCRATCH_BYTES, SLOW_RECEIVE_MS, SQ_ENTRIES, THREADS_PER_RING,
    UNASKED_MEMLOCK_DIVISOR, WHOLE_RECV_BUFFER_BYTES, ZCRX_AREA_BYTES, ZCRX_LENT_DIVISOR, ZCRX_PROBE_BYTES,
    ZCRX_RETRY_MS, ZERO_COPY_MIN_BYTES, ZERO_COPY_PROBES, ZERO_COPY_REST_MAX_MS, ZERO_COPY_REST_MS,
    ZERO_COPY_SETTLED,
};
pub use probe::{Feature, Features, probe};
pub use transport::{EngineThread, UringOptions, UringTransport};
pub use zcrx::{ZcrxOptions, ZcrxSource, probe_zero_copy_receive};
pub use zero_copy::{PeerPlace, ZeroCopyAttempt, ZeroCopyMode, ZeroCopyPolicy};
