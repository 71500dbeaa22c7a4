//! The suite of every transport, between the two cards of the test machine, without a copy.
//!
//! ```console
//! $ cargo test --release -p zc-transport-xdp --test cards --no-run
//! $ cargo xtask vm --kernel backports --bare --timeout 1200 --with target/release/deps/cards-… -- \
//!       sh -c 'ZC_XDP_MACHINE=1 cards-… --test-threads=1'
//! ```
//!
//! The stage `xdpvm` runs it. Elsewhere there are no such cards, and nothing is tested. There is no way around here: where the driver
//! copies, or nothing opens, no connection comes up.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bed;
mod inside;

use bed::has_cards;
use zc_conformance::{Setup, suite};
use zc_transport_xdp::XdpOptions;
use zc_transport_xdp::device::Mode;

suite!(cards, || {
    if !has_cards() {
        return Setup::new(zc::Fabric::auto_builder, "zc+tcp://127.0.0.1:0").absent("not the test machine");
    }
    let mut options = XdpOptions::default();
    options.worst = Mode::ZeroCopy;
    // All is emulated there.
    inside::setup(1, "10.77.0.1", options).connections(60).max_message(4 << 20)
});
