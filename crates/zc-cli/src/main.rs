//! The zc program.
fn main() {}
