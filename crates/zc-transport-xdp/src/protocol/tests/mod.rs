//! Tests of whole sessions.

mod ending;
mod fairness;
mod faults;
mod golden;
mod hostile;
mod memory;
mod peer;
mod random;
mod reno;
mod sim;
