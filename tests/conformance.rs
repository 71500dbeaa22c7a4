//! Every transport passes the same suite.

#![cfg(all(feature = "tokio", feature = "tcp", feature = "testing"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test helpers")]

use std::sync::Arc;
use std::time::Duration;

use zc::Fabric;
use zc::testing::{FaultPlan, FaultTransport, fabric_over, stream_transport};
use zc_conformance::{Setup, suite};

suite!(tcp, || Setup::new(Fabric::auto_builder, "zc+tcp://127.0.0.1:0"));
suite!(unix, || Setup::new(Fabric::auto_builder, "zc+unix://@{}"));
suite!(mem, || Setup::new(Fabric::auto_builder, "zc+mem://{}"));

// What holds for a good lane must hold for one that is late, stutters, and hands out frames in small portions.
suite!(tcp_with_faults, || {
    let builder = || {
        let plan = FaultPlan::new(2026)
            .delay(Duration::ZERO, Duration::from_millis(3))
            .pending(3)
            .batch(5)
            .room(40, Duration::from_millis(2))
            .late_reports(Duration::from_millis(2));
        fabric_over(Arc::new(FaultTransport::new(stream_transport(), plan)))
    };
    Setup::new(builder, "zc+tcp://127.0.0.1:0").max_message(4 << 20).connections(300)
});
