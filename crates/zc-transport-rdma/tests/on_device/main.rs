//! What needs a device. `cargo xtask test --only rdma` runs it on the test machine, where `ZC_RDMA_MACHINE` is set; elsewhere
//! each test says that it is not there, and passes by.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests"
)]

mod conformance;
mod engine;
mod hostile;
mod lane;
mod one_sided;
mod processes;
mod queues;
mod rig;
