//! The suite that every transport passes, over the device.

use std::sync::Arc;

use zc::testing::fabric_over;
use zc_conformance::{Setup, suite};
use zc_transport_rdma::{RdmaOptions, RdmaTransport};

fn over(options: RdmaOptions) -> Setup {
    let builder = move || fabric_over(Arc::new(RdmaTransport::new(options.clone())));
    let setup = Setup::new(builder, "zc+rdma://10.0.0.1:0").max_message(16 << 20).connections(120);
    if std::env::var_os("ZC_RDMA_MACHINE").is_some() { setup } else { setup.absent("not the test machine") }
}

suite!(rdma, || over(RdmaOptions::default()));
