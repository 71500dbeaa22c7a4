//! The suite of every transport, between two network namespaces.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bed;
mod inside;

use zc_conformance::{Setup, suite};
use zc_transport_xdp::XdpOptions;
use zc_transport_xdp::device::Mode;
use zc_transport_xdp::program::Faults;

suite!(driver, || between(1, "10.77.0.1", |_| {}));
suite!(generic, || between(1, "[fd77::1]", |options| options.best = Mode::Generic));
// Payload in frames, behind headers in frames of their own.
suite!(in_place, || between(2, "10.77.0.1", |options| options.in_place = Some(true)));
// One packet in a hundred is lost, and as many are damaged.
suite!(lossy, || between(1, "10.77.0.1", |options| {
    options.faults = Some(Faults { lost: 0.01, damaged: 0.01 });
})
.max_message(4 << 20));

fn between(queues: u32, host: &str, change: impl FnOnce(&mut XdpOptions)) -> Setup {
    let mut options = XdpOptions::default();
    change(&mut options);
    // The suite is to end in its time in a debug build on a busy machine, too.
    inside::setup(queues, host, options).connections(100).max_message(16 << 20)
}
