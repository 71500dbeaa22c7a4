//! Echoes over TCP: runtimes under the same load, messages of zc beside plain loops, and what is expected of the
//! io_uring engine.

mod bytes;
mod compio;
mod engine;
mod glommio;
mod load;
mod messages;
mod monoio;
mod plain;
mod raw;
mod targets;
mod tokio;
mod tokio_uring;
mod warm;

use crate::contender::{Contender, Pair};
use crate::ipc::descriptors::Tcp;
use crate::ipc::zc::Zc;
use crate::job::Test;
use crate::machine::Cores;
use crate::samples::Key;
use bytes::Bytes;
use messages::Messages;
use plain::Plain;

pub(crate) use targets::{PEERS, targets};

/// 4 KiB is there for the pipelined messages alone.
pub(crate) const SIZES: [usize; 5] = [64, 1 << 10, 4 << 10, 16 << 10, 1 << 20];
const PIPELINED_SIZES: [usize; 2] = [64, 4 << 10];
/// Messages under way on the one connection of a pipeline.
const PIPELINED: usize = 128;
const CONNECTIONS: [usize; 3] = [1, 16, 128];
const ROUND_TRIP_SIZE: usize = 64;

const ENGINE: &str = "zc engine";
const ENGINE_MANY: &str = "zc engine, multi_thread";
const RAW: &str = "raw io_uring";
const TOKIO: &str = "tokio current_thread";
const TOKIO_MANY: &str = "tokio multi_thread";
const MONOIO: &str = "monoio";
const COMPIO: &str = "compio";
const TOKIO_URING: &str = "tokio-uring";
const GLOMMIO: &str = "glommio";
const ON_URING: &str = "zc messages, uring";
const ON_TCP: &str = "zc messages, tcp";
const PIPED_URING: &str = "zc pipeline, uring";
const PIPED_TCP: &str = "zc pipeline, tcp";
const PLAIN: [&str; 2] = ["plain loop, asleep", "plain loop, spinning"];
const SPINNING_URING: &str = "zc perf busy, uring";
const SPINNING_TCP: &str = "zc perf busy, tcp";
const SPINNING_PAIR: &str = "tcp";

const URING_URI: &str = "zc+uring://127.0.0.1:0";
const TCP_URI: &str = "zc+tcp://127.0.0.1:0";

/// What each server reads with one call at most, where it brings a buffer of its own.
const BUFFER_BYTES: usize = 64 << 10;

pub(crate) fn contenders() -> Vec<Box<dyn Contender>> {
    let bytes = |name, serve| Box::new(Bytes { name, serve }) as Box<dyn Contender>;
    let uri = |transport| if transport == "uring" { URING_URI } else { TCP_URI };
    let messages = |name, test, transport| {
        Box::new(Messages { name, test, uri: uri(transport), transport }) as Box<dyn Contender>
    };
    let spinning = |name, transport| {
        let uri = Some(uri(transport));
        Box::new(Zc { name, uri, transport, polling: "busy", touch: "ends", cores: Cores::TWO })
    };
    vec![
        bytes(ENGINE, engine::one_thread),
        bytes(RAW, raw::serve),
        bytes(TOKIO, tokio::one_thread),
        bytes(MONOIO, monoio::serve),
        bytes(COMPIO, compio::serve),
        bytes(TOKIO_URING, tokio_uring::serve),
        bytes(GLOMMIO, glommio::serve),
        bytes(TOKIO_MANY, tokio::many_threads),
        bytes(ENGINE_MANY, engine::many_threads),
        messages(ON_URING, Test::Echo, "uring"),
        messages(ON_TCP, Test::Echo, "tcp"),
        messages(PIPED_URING, Test::Pipeline, "uring"),
        messages(PIPED_TCP, Test::Pipeline, "tcp"),
        Box::new(Plain { name: PLAIN[0], spins: false }),
        Box::new(Plain { name: PLAIN[1], spins: true }),
        spinning(SPINNING_URING, "uring"),
        spinning(SPINNING_TCP, "tcp"),
        Box::new(Pair::<Tcp>(std::marker::PhantomData)),
    ]
}

/// Sizes that no pipeline and no round trip has are echoed; so are those of `SIZES`, except 4 KiB.
pub(crate) fn keys(sizes: &[usize]) -> Vec<Key> {
    let echo = |size: &usize| CONNECTIONS.map(|inflight| Key { test: Test::Echo, size: *size, inflight });
    let mut keys: Vec<_> = sizes.iter().filter(|size| **size != PIPELINED_SIZES[1]).flat_map(echo).collect();
    let pipelined = PIPELINED_SIZES.into_iter().filter(|size| sizes.contains(size));
    keys.extend(pipelined.map(|size| Key { test: Test::Pipeline, size, inflight: PIPELINED }));
    if sizes.contains(&ROUND_TRIP_SIZE) {
        keys.push(Key { test: Test::RoundTrip, size: ROUND_TRIP_SIZE, inflight: 1 });
    }
    keys
}
