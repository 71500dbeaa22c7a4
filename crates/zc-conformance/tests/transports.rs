//! Every transport passes the same suite.

#[allow(dead_code, reason = "its main function")]
#[path = "../../../examples/custom_transport.rs"]
mod custom_transport;
mod queues;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use zc::testing::{FaultPlan, FaultTransport, fabric_over, mem_transport, stream_transport};
use zc::transport::Transport;
use zc::{Fabric, FabricBuilder, Policy};
use zc_conformance::{Setup, suite};
use zc_transport_shm::{ShmOptions, ShmTransport};
use zc_transport_uring::{UringOptions, UringTransport, ZeroCopyMode};
use zc_transport_xdp::{UdpOptions, UdpTransport};

suite!(tcp, || Setup::new(Fabric::auto_builder, "zc+tcp://127.0.0.1:0"));
suite!(unix, || Setup::new(Fabric::auto_builder, "zc+unix://@{}"));
// By io_uring, as far as this machine has it; else this is the tokio engine once more, and says so.
suite!(uring, || Setup::new(uring, "zc://127.0.0.1:0"));
suite!(uring_on_one_thread, || Setup::new(uring, "zc://127.0.0.1:0").on_one_thread().connections(300));
suite!(uring_on_unix, || Setup::new(uring, "zc+unix://@{}").connections(300));
// Each end of a connection has its own ring as a rule, and all of them are shared.
suite!(uring_with_several_rings, || Setup::new(uring_with_rings, "zc://127.0.0.1:0").connections(300));
// Large payloads out of their own memory, which the kernel copies on loopback.
suite!(uring_without_copies, || Setup::new(uring_without_copies, "zc://127.0.0.1:0").connections(300));
// Either end picks its own engine.
suite!(uring_to_tcp, || Setup::new(uring, "zc://127.0.0.1:0").server(tokio_streams).connections(300));
suite!(tcp_to_uring, || Setup::new(tokio_streams, "zc://127.0.0.1:0").server(uring).connections(300));
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
// The message protocol of AF_XDP over ordinary sockets.
suite!(udp, || Setup::new(|| udp(UdpOptions::default()), "zc+udp://127.0.0.1:0"));
suite!(udp_of_ethernet, || {
    Setup::new(udp_of_ethernet, "zc+udp://[::1]:0").connections(300).max_message(16 << 20)
});
suite!(udp_one_by_one, || {
    let setup = Setup::new(udp_one_by_one, "zc+xdp://127.0.0.1:0").on_one_thread();
    setup.connections(300).max_message(16 << 20)
});
suite!(mem, || Setup::new(Fabric::auto_builder, "zc+mem://{}"));
suite!(custom, || Setup::new(custom_transport::fabric, "zc+own://127.0.0.1:0"));
suite!(in_queues, || Setup::new(queues::fabric, "zc+queues://127.0.0.1:0"));

// What holds for a good lane must hold for one that is late, stutters, and hands out frames in small portions.
suite!(tcp_with_faults, || faulty(stream_transport, "zc+tcp://127.0.0.1:0", 2026));
suite!(unix_with_faults, || faulty(stream_transport, "zc+unix://@{}", 2027));
suite!(shm_with_faults, || faulty(shm_transport, "zc+shm://{}", 2029));
suite!(udp_with_faults, || faulty(udp_transport, "zc+udp://127.0.0.1:0", 2030));
suite!(mem_with_faults, || faulty(mem_transport, "zc+mem://{}", 2028));

fn uring() -> FabricBuilder {
    uring_with(UringOptions::default())
}

fn uring_with_rings() -> FabricBuilder {
    let mut options = UringOptions::default();
    options.rings = Some(3);
    uring_with(options)
}

fn uring_without_copies() -> FabricBuilder {
    let mut options = UringOptions::default();
    options.zero_copy = ZeroCopyMode::Always;
    uring_with(options)
}

fn uring_with(mut options: UringOptions) -> FabricBuilder {
    // What a connection leaves behind is waited for.
    options.idle = Duration::from_millis(100);
    let uring = UringTransport::new(options);
    match uring.probe() {
        Ok(_) => fabric_over(Arc::new(uring)),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "no io_uring here: {why}");
            tokio_streams()
        }
    }
}

fn udp(options: UdpOptions) -> FabricBuilder {
    fabric_over(Arc::new(UdpTransport::new(options)))
}

fn udp_of_ethernet() -> FabricBuilder {
    let mut options = UdpOptions::default();
    options.datagram_bytes = 1452;
    udp(options)
}

fn udp_one_by_one() -> FabricBuilder {
    let mut options = UdpOptions::default();
    options.together = false;
    udp(options)
}

fn udp_transport() -> Arc<dyn Transport> {
    Arc::new(UdpTransport::default())
}

fn tokio_streams() -> FabricBuilder {
    fabric_over(stream_transport())
}

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
