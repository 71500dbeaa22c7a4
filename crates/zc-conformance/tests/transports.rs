//! Every transport passes the same suite.

#[allow(dead_code, reason = "its main function")]
#[path = "../../../examples/custom_transport.rs"]
mod custom_transport;
mod queues;

use std::sync::Arc;
use std::time::Duration;

use zc::Fabric;
use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, stream_transport};
use zc::transport::Transport;
use zc_conformance::{Setup, suite};

suite!(tcp, || Setup::new(Fabric::auto_builder, "zc+tcp://127.0.0.1:0"));
suite!(unix, || Setup::new(Fabric::auto_builder, "zc+unix://@{}"));
suite!(shm, || Setup::new(Fabric::auto_builder, "zc+shm://{}"));
suite!(mem, || Setup::new(Fabric::auto_builder, "zc+mem://{}"));
suite!(custom, || Setup::new(custom_transport::fabric, "zc+own://127.0.0.1:0"));
suite!(in_queues, || Setup::new(queues::fabric, "zc+queues://127.0.0.1:0"));

// What holds for a good lane must hold for one that is late, stutters, and hands out frames in small portions.
suite!(tcp_with_faults, || faulty(stream_transport, "zc+tcp://127.0.0.1:0", 2026));
suite!(unix_with_faults, || faulty(stream_transport, "zc+unix://@{}", 2027));
suite!(mem_with_faults, || faulty(mem_transport, "zc+mem://{}", 2028));

fn faulty(transport: fn() -> Arc<dyn Transport>, uri: &str, seed: u64) -> Setup {
    let builder = move || {
        let plan = FaultPlan::new(seed)
            .delay(Duration::ZERO, Duration::from_millis(3))
            .pending(3)
            .batch(5)
            .room(40, Duration::from_millis(2))
            .late_reports(Duration::from_millis(2));
        fabric_over(Arc::new(FaultTransport::new(transport(), plan)))
    };
    Setup::new(builder, uri).max_message(4 << 20).connections(300)
}
