//! The example's own loop, with no runtime in sight, drives both ends of a connection.

#![cfg(feature = "tcp")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

#[path = "../examples/own_loop.rs"]
#[allow(dead_code, reason = "the program around what is tested")]
mod own_loop;

use std::sync::mpsc;
use std::time::Duration;

const GUARD: Duration = Duration::from_secs(60);

/// Bytes of the example's rounds: 1 B to 1 MiB and over again.
fn bytes_of(rounds: u32) -> u64 {
    (0..rounds).map(|round| 1 << (round % 21)).sum()
}

fn run(uri: &'static str, rounds: u32) -> u64 {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(own_loop::run(uri, rounds).map_err(|error| error.to_string())));
    result.recv_timeout(GUARD).expect("it hangs").unwrap()
}

#[test]
fn sockets_are_driven_by_a_loop_of_ones_own() {
    assert_eq!(run("zc+tcp://127.0.0.1:0", 50), bytes_of(50));
}

#[test]
fn links_in_memory_need_no_descriptor() {
    assert_eq!(run("zc+mem://own-loop", 50), bytes_of(50));
}

#[test]
fn an_address_where_nobody_listens_is_an_error_on_any_loop() {
    let error = own_loop::run("zc+tcp://127.0.0.1:x", 1).unwrap_err();
    assert!(error.to_string().contains("host:port"), "{error}");
}
