//! Calls of an echo service: the stacks, and what is expected of zc.

mod bench;
mod capnp;
mod programs;
mod tarpc;

use crate::contender::Contender;
use crate::ipc::zc::Zc;
use crate::job::Test;
use crate::machine::Cores;
use crate::samples::{Key, Metric, Samples, Unit};
use crate::targets::{Bound, Target};
use programs::{Program, Uri};

pub(crate) const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];
const INFLIGHT: [usize; 3] = [1, 16, 128];
/// Where the bare round trip of a message is measured, too.
const BARE_SIZE: usize = 1 << 20;

const GRPC_SHM: &str = "tonic, zc-http shm";
const GRPC_TCP: &str = "tonic, zc-http tcp";
const GRPC_UNIX: &str = "tonic, zc-http unix";
const GRPC_HTTP2: &str = "tonic, HTTP/2 on zc shm";
const INPROC: &str = "tonic in process";
const RAW: &str = "zc messages, shm";
const BARE: &str = "zc perf, shm";
const TONIC_TCP: &str = "tonic tcp";
const TONIC_UNIX: &str = "tonic unix";
const TARPC: [&str; 2] = ["tarpc tcp", "tarpc unix"];
const CAPNP: [&str; 2] = ["capnp tcp", "capnp unix"];

/// What the table's ratios refer to.
pub(crate) const REFERENCE: &str = GRPC_SHM;

pub(crate) fn contenders() -> Vec<Box<dyn Contender>> {
    let grpc = |name, uri| Program { name, program: "grpc_echo", uri, http2: false };
    vec![
        Box::new(grpc(GRPC_SHM, Uri::Shm)),
        Box::new(grpc(GRPC_TCP, Uri::Fixed("zc+tcp://127.0.0.1:0"))),
        Box::new(grpc(GRPC_UNIX, Uri::Path("zc+unix://"))),
        Box::new(Program { http2: true, ..grpc(GRPC_HTTP2, Uri::Shm) }),
        Box::new(grpc(TONIC_TCP, Uri::Fixed("http://127.0.0.1:0"))),
        Box::new(grpc(TONIC_UNIX, Uri::Path("unix:"))),
        Box::new(grpc(INPROC, Uri::Fixed("inproc:"))),
        Box::new(Program { name: RAW, program: "grpc_echo_raw", uri: Uri::Shm, http2: false }),
        Box::new(tarpc::Tarpc { name: TARPC[0], tcp: true }),
        Box::new(tarpc::Tarpc { name: TARPC[1], tcp: false }),
        Box::new(capnp::CapnProto { name: CAPNP[0], tcp: true }),
        Box::new(capnp::CapnProto { name: CAPNP[1], tcp: false }),
        Box::new(Zc {
            name: BARE,
            uri: None,
            transport: "shm",
            polling: "adaptive",
            touch: "none",
            cores: Cores::TWO,
        }),
    ]
}

pub(crate) fn keys(sizes: &[usize]) -> Vec<Key> {
    let calls = |size: &usize| INFLIGHT.map(|inflight| Key { test: Test::Calls, size: *size, inflight });
    let mut keys: Vec<_> = sizes.iter().flat_map(calls).collect();
    if sizes.contains(&BARE_SIZE) {
        keys.push(Key { test: Test::RoundTrip, size: BARE_SIZE, inflight: 1 });
    }
    keys
}

fn rate(size: usize, inflight: usize) -> Unit {
    Unit { metric: Metric::CallsPerS, size, inflight }
}

/// What the project aims at.
pub(crate) fn targets() -> Vec<Target> {
    let [b64, .., m1] = SIZES;
    let mut targets = vec![
        Target::ratio(GRPC_SHM, TONIC_TCP, rate(b64, 1), Bound::AtLeast(10.0)),
        Target::ratio(GRPC_SHM, TONIC_UNIX, rate(b64, 1), Bound::AtLeast(5.0)),
        less_of(rate(b64, 128), 4.0, 0.6),
        less_of(rate(m1, 1), 2.5, 0.8),
    ];
    for at in [rate(b64, 1), rate(b64, 128), rate(m1, 1)] {
        let cpu = Unit { metric: Metric::ServerCpuNs, ..at };
        targets.push(Target::ratio(GRPC_SHM, TONIC_TCP, cpu, Bound::AtMost(0.5)));
    }
    for stream in [GRPC_TCP, GRPC_UNIX] {
        targets.push(Target::ratio(stream, TONIC_TCP, rate(b64, 128), Bound::AtLeast(1.5)));
        targets.push(least(stream, TONIC_TCP, 0.95));
    }
    targets.push(best("tarpc", TARPC, rate(b64, 128), 2.0));
    targets.push(best("capnp", CAPNP, rate(m1, 1), 1.0));
    targets.push(bare_round_trip());
    let copied = Unit { metric: Metric::CopiedBytes, ..rate(m1, 1) };
    targets.push(Target::new(
        format!("{RAW}: copied by the ledger, 1 MiB"),
        Bound::AtMost(0.0),
        move |all, regime| all.median(RAW, copied, regime),
    ));
    targets
        .extend(SIZES.map(|size| Target::ratio(GRPC_HTTP2, TONIC_UNIX, rate(size, 1), Bound::AtLeast(0.95))));
    targets.push(Target::ratio(GRPC_HTTP2, TONIC_UNIX, rate(b64, 1), Bound::AtLeast(3.0)));
    targets
}

/// Over tonic on TCP or over the ceiling in process, whichever bound is less: the better share of the two.
fn less_of(at: Unit, tcp: f64, ceiling: f64) -> Target {
    let title = crate::table::title(at);
    let text = format!("{title}: {GRPC_SHM}, of {tcp} x {TONIC_TCP} or {ceiling} x {INPROC}");
    Target::new(text, Bound::AtLeast(1.0), move |all, regime| {
        let of_tcp = all.ratio(GRPC_SHM, TONIC_TCP, at, regime)? / tcp;
        let of_ceiling = all.ratio(GRPC_SHM, INPROC, at, regime)? / ceiling;
        Some(of_tcp.max(of_ceiling))
    })
}

/// The least of the ratios at all points.
fn least(a: &'static str, b: &'static str, bound: f64) -> Target {
    Target::new(format!("least of all points: {a} / {b}"), Bound::AtLeast(bound), move |all, regime| {
        let at = SIZES.iter().flat_map(|size| INFLIGHT.map(|inflight| rate(*size, inflight)));
        at.filter_map(|at| all.ratio(a, b, at, regime)).min_by(f64::total_cmp)
    })
}

/// The raw service over the better of two.
fn best(what: &str, others: [&'static str; 2], at: Unit, bound: f64) -> Target {
    let text = format!("{}: {RAW} / best of {what}", crate::table::title(at));
    Target::new(text, Bound::AtLeast(bound), move |all, regime| {
        others.iter().filter_map(|other| all.ratio(RAW, other, at, regime)).min_by(f64::total_cmp)
    })
}

/// A raw call against the round trip of a bare message. They are points of their own, so their medians are compared.
fn bare_round_trip() -> Target {
    let call = Unit { metric: Metric::CallNs, size: BARE_SIZE, inflight: 1 };
    let trip = Unit { metric: Metric::RoundTripNs, ..call };
    Target::new(
        format!("1 MiB: {RAW} call / {BARE} round trip"),
        Bound::AtMost(1.3),
        move |all: &Samples, regime| Some(all.median(RAW, call, regime)? / all.median(BARE, trip, regime)?),
    )
}
