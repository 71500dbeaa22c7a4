//! Every transport passes the same suite.

#[allow(dead_code, reason = "its main function")]
#[path = "../../../examples/custom_transport.rs"]
mod custom_transport;
mod queues;

use std::sync::Arc;
use std::time::Duration;

use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, stream_transport};
use zc::transport::Transport;
use zc::{Fabric, Policy};
use zc_conformance::{Setup, suite};
use zc_transport_shm::{ShmOptions, ShmTransport};

suite!(tcp, || Setup::new(Fabric::auto_builder, "zc+tcp://127.0.0.1:0"));
suite!(unix, || Setup::new(Fabric::auto_builder, "zc+unix://@{}"));
suite!(shm, || Setup::new(Fabric::auto_builder, "zc+shm://{}"));
suite!(shm_at_a_path, || {
    let path = std::env::temp_dir().join("zc-{}");
    Setup::new(Fabric::auto_builder, format!("zc+shm://{}", path.display())).connections(300)
});
// All is copied out before anybody sees it.
suite!(shm_trusting_nobody, || {
    let builder = || Fabric::auto_builder().policy(Policy::default().trust_nobody());
    Setup::new(builder, "zc+shm://{}").connections(300)
});
// What does not fit into the arenas goes in parts.
suite!(shm_in_small_arenas, || {
    let mut options = ShmOptions::default();
    options.max_arena_bytes = 4 << 20;
    options.longer_in_parts = true;
    options.ring_slots = 16;
    let builder = move || fabric_over(Arc::new(ShmTransport::new(options.clone())));
    let why = "a message that is sent back may take a quarter of the arenas; past it, it is copied out";
    let setup = Setup::new(builder, "zc+shm://{}").connections(300);
    setup.without("nothing_is_copied_where_zero_copy_is_claimed", why)
});
suite!(mem, || Setup::new(Fabric::auto_builder, "zc+mem://{}"));
suite!(custom, || Setup::new(custom_transport::fabric, "zc+own://127.0.0.1:0"));
suite!(in_queues, || Setup::new(queues::fabric, "zc+queues://127.0.0.1:0"));

// What holds for a good lane must hold for one that is late, stutters, and hands out frames in small portions.
suite!(tcp_with_faults, || faulty(stream_transport, "zc+tcp://127.0.0.1:0", 2026));
suite!(unix_with_faults, || faulty(stream_transport, "zc+unix://@{}", 2027));
suite!(shm_with_faults, || faulty(shm_transport, "zc+shm://{}", 2029));
suite!(mem_with_faults, || faulty(mem_transport, "zc+mem://{}", 2028));

fn shm_transport() -> Arc<dyn Transport> {
    Arc::new(ShmTransport::default())
}

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
