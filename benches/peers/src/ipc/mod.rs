//! Messages between two processes: the contenders, and what is expected of zc.

#[cfg(feature = "aeron")]
mod aeron;
pub(crate) mod descriptors;
mod eventfd;
mod iceoryx;
mod iceoryx_pubsub;
mod iceoryx_request;
pub(crate) mod line;
mod ready;
mod tokio_unix;
pub(crate) mod zc;

use std::marker::PhantomData;

use crate::contender::{Contender, Pair};
use crate::job::Test;
use crate::machine::Cores;
use crate::samples::{Key, Metric, Unit};
use crate::targets::{Bound, Target};

pub(crate) const SIZES: [usize; 5] = [64, 4 << 10, 64 << 10, 1 << 20, 10 << 20];

const BUSY: &str = "zc busy";
const ADAPTIVE: &str = "zc adaptive";
const INTERRUPT: &str = "zc interrupt";
const INTERRUPT_SAME: &str = "zc interrupt, same core";
const ENDS: &str = "zc busy, ends touched";
const AERON: &str = "aeron";

/// What the table's ratios refer to.
pub(crate) const REFERENCE: &str = BUSY;

pub(crate) fn contenders() -> Vec<Box<dyn Contender>> {
    vec![
        zc(BUSY, "busy", "all", Cores::TWO),
        Box::new(line::Line),
        pair::<iceoryx_pubsub::PubSub>(),
        pair::<iceoryx_request::RequestResponse>(),
        #[cfg(feature = "aeron")]
        pair::<aeron::Aeron>(),
        zc(ADAPTIVE, "adaptive", "all", Cores::TWO),
        pair::<descriptors::UnixSocket>(),
        pair::<descriptors::SeqPacket>(),
        pair::<descriptors::Pipe>(),
        pair::<descriptors::Tcp>(),
        pair::<tokio_unix::TokioUnix>(),
        zc(INTERRUPT, "interrupt", "all", Cores::TWO),
        pair::<eventfd::TwoCores>(),
        zc(INTERRUPT_SAME, "interrupt", "all", Cores::SAME),
        pair::<eventfd::SameCore>(),
        zc(ENDS, "busy", "ends", Cores::TWO),
    ]
}

fn zc(name: &'static str, polling: &'static str, touch: &'static str, cores: Cores) -> Box<dyn Contender> {
    Box::new(zc::Zc { name, uri: None, transport: "shm", polling, touch, cores })
}

fn pair<L: crate::contender::Link + 'static>() -> Box<dyn Contender> {
    Box::new(Pair::<L>(PhantomData))
}

pub(crate) fn keys(sizes: &[usize]) -> Vec<Key> {
    let of = |test| sizes.iter().map(move |size| Key { test, size: *size, inflight: 1 });
    of(Test::RoundTrip).chain(of(Test::OneWay)).collect()
}

/// What the project aims at.
pub(crate) fn targets() -> Vec<Target> {
    let trip = |size| Unit { metric: Metric::RoundTripNs, size, inflight: 1 };
    let rate = |size| Unit { metric: Metric::OneWayPerS, size, inflight: 1 };
    let [b64, k4, k64, m1, m10] = SIZES;
    let pubsub = "iceoryx2 pub-sub";
    let mut targets = vec![
        Target::ratio(BUSY, pubsub, trip(b64), Bound::AtMost(0.4)),
        Target::ratio(BUSY, AERON, trip(b64), Bound::AtMost(1.3)),
        Target::ratio(BUSY, "cache line", trip(b64), Bound::AtMost(3.0)),
        Target::ratio(BUSY, pubsub, trip(k4), Bound::AtMost(0.75)),
    ];
    targets.extend(
        [k64, m1, m10]
            .map(|size| Target::ratio(BUSY, pubsub, trip(size), Bound::AtMost(1.05)).in_both_regimes()),
    );
    targets.extend([
        Target::difference(ENDS, trip(m10), trip(k4), Bound::AtMost(150.0)),
        copied_by_the_ledger(m10),
        Target::ratio(BUSY, pubsub, rate(b64), Bound::AtLeast(5.0)),
        Target::ratio(BUSY, AERON, rate(b64), Bound::AtLeast(1.0)),
        Target::ratio(BUSY, pubsub, rate(m1), Bound::AtLeast(1.0)),
    ]);
    targets.extend(SIZES.map(|size| Target::ratio(ADAPTIVE, BUSY, trip(size), Bound::AtMost(1.4))));
    targets.extend([
        Target::ratio(INTERRUPT, "eventfd, asleep", trip(b64), Bound::AtMost(1.15)),
        Target::ratio(INTERRUPT_SAME, "eventfd, asleep, same core", trip(b64), Bound::AtMost(1.15)),
        Target::ratio(ADAPTIVE, "tokio unix stream", trip(b64), Bound::AtMost(1.0 / 20.0)),
        Target::ratio(ADAPTIVE, "tokio unix stream", rate(m1), Bound::AtLeast(4.0)),
    ]);
    targets
}

/// What both sides' ledgers say that they copied while only the ends of the messages were touched.
fn copied_by_the_ledger(size: usize) -> Target {
    let copied = Unit { metric: Metric::CopiedBytes, size, inflight: 1 };
    Target::new(format!("{ENDS}: {}", crate::table::title(copied)), Bound::AtMost(0.0), move |all, regime| {
        all.median(ENDS, copied, regime)
    })
}
