//! The device beside the kernel's own UDP, between two network namespaces, in turns and in one run.
//!
//! ```console
//! $ sudo chrt -r 10 cargo bench -p zc-transport-xdp --bench device
//! ```
//!
//! On the test machine (`cargo xtask test --only xdpvm`) it is one way between two cards, without a copy as well. All is
//! emulated there: the figures mean nothing, the ratio of the modes that something is left out.
//!
//! Both ends are pinned to a core each and spin. A round trip is timed one by one; one way counts what arrives. Ratios
//! are to the kernel's `send` and `recv` of the same round, medians of all rounds.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

#[path = "../tests/bed/mod.rs"]
mod bed;
mod raw;

use bed::{Bed, has_cards};
use raw::{By, ROUNDS, median, one_way, round_trip};
use zc_transport_xdp::device::Mode;

type Contenders = [(By, &'static str); 3];

const ON_VETH: Contenders = [
    (By::Kernel, "kernel UDP"),
    (By::Device(Mode::Copy), "device, driver"),
    (By::Device(Mode::Generic), "device, generic"),
];
const ON_CARDS: Contenders = [
    (By::Device(Mode::Copy), "device, driver"),
    (By::Kernel, "kernel UDP"),
    (By::Device(Mode::ZeroCopy), "zero copy"),
];

/// All contenders in turns; the medians, and those of the ratios to the first.
fn compare(
    what: &str,
    unit: &str,
    bed: &Bed,
    contenders: &Contenders,
    measure: fn(&Bed, By, usize) -> f64,
    len: usize,
) {
    let rounds: Vec<Vec<f64>> = (0..ROUNDS)
        .map(|_| {
            contenders
                .iter()
                .map(|(by, _)| std::thread::scope(|s| s.spawn(|| measure(bed, *by, len)).join().unwrap()))
                .collect()
        })
        .collect();
    for (number, (_, name)) in contenders.iter().enumerate() {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[number]).collect();
        let mut ratios: Vec<f64> = rounds.iter().map(|round| round[number] / round[0]).collect();
        println!(
            "{what} {len:5} B  {name:16} {:9.2} {unit}  {:5.2}x",
            median(&mut values),
            median(&mut ratios)
        );
    }
}

fn main() {
    // `cargo test` runs benches as well, with an argument that says so.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let Some(bed) = Bed::new(1, 1500) else { return };
    let contenders = if has_cards() { &ON_CARDS } else { &ON_VETH };
    if !has_cards() {
        compare("round trip", "us", &bed, contenders, round_trip, 64);
    }
    for len in [64, 1400] {
        compare("one way   ", "k/s", &bed, contenders, one_way, len);
    }
}
