//! What a machine says that has no RDMA. One that has it has nothing to say here.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use zc_core::memory::BufPool;
use zc_core::transport::Unavailable;
use zc_transport_rdma::{Device, DeviceChoice, Engine, RdmaOptions};

/// Each reason is only given where it is true.
#[test]
fn the_reason_is_the_first_thing_that_is_missing() {
    let why = match Device::all() {
        Ok(devices) => return println!("this machine has {devices:?}"),
        Err(why) => why,
    };
    let has_kernel_support = Path::new("/sys/class/infiniband_verbs/abi_version").exists();
    match &why {
        Unavailable::LibraryMissing { library } => assert_eq!(*library, "libibverbs.so.1"),
        Unavailable::NoKernelSupport { .. } => assert!(!has_kernel_support),
        Unavailable::NoDevice => assert!(has_kernel_support),
        other => panic!("{other}"),
    }
    assert!(!why.remedy().is_empty() && !why.is_expected());
}

/// ... and an engine says the same, having begun nothing.
#[tokio::test]
async fn an_engine_passes_the_reason_on() {
    let Err(why) = Device::all() else { return };
    let pool = BufPool::builder().build();
    let reactor = Arc::new(zc::TokioReactor::new());
    let started = Engine::start(reactor, &pool, &DeviceChoice::default(), RdmaOptions::default());
    assert_eq!(started.map(drop), Err(why));
    assert_eq!(pool.stats().in_use_bytes, 0);
}
