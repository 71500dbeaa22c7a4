//! What the kernel has of io_uring.

use zc_core::memory::BufPool;
use zc_core::transport::Unavailable;

use crate::ladder::{self, Flavour, kernel_version};
use crate::sys::{Buffers, Opcode, Ring};

/// One thing that a kernel may have or lack.
///
/// ```
/// if let Ok(features) = zc_transport_uring::probe() {
///     for feature in features.list() {
///         println!("{}: {}", feature.name, if feature.found { "yes" } else { "no" });
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// A short stable name.
    pub name: &'static str,
    /// Whether the kernel has it.
    pub found: bool,
    /// What else it takes, of which nothing is known here.
    pub needs: Option<&'static str>,
}

impl Feature {
    fn new(name: &'static str, found: bool) -> Self {
        Self { name, found, needs: None }
    }
}

/// What was found.
///
/// ```
/// match zc_transport_uring::probe() {
///     Ok(features) => assert!(features.has("send_zc")),
///     Err(why) => println!("{why}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    rung: &'static str,
    list: Vec<Feature>,
}

impl Features {
    /// How the ring was set up.
    pub fn setup(&self) -> &'static str {
        self.rung
    }

    /// Everything that was looked for.
    pub fn list(&self) -> &[Feature] {
        &self.list
    }

    /// Whether it was looked for and found.
    pub fn has(&self, name: &str) -> bool {
        self.list.iter().any(|feature| feature.name == name && feature.found)
    }

    pub(crate) fn of(ring: &Ring, rung: &'static str) -> Self {
        let has = ring.opcodes().ok();
        let of = |op| has.as_ref().is_some_and(|has| has(op));
        let mut list: Vec<_> = OPCODES.iter().map(|(name, op)| Feature::new(name, of(*op))).collect();
        list.push(Feature::new(BUFFER_RING, takes_buffers(ring, false)));
        list.push(Feature::new(BUNDLES, ring.has_bundles()));
        // Kernels have it from 6.12 on. Before 6.16 a completion could overtake another one of the same buffer,
        // and nothing in it says where in the buffer its bytes lie.
        let in_order = kernel_version() >= (6, 16);
        list.push(Feature::new(INCREMENTAL, in_order && takes_buffers(ring, true)));
        list.push(Feature::new("registered_buffers", takes_table(ring)));
        // Nothing but a send shows it, and that takes a peer.
        list.push(Feature::new(REPORT_USAGE, of(Opcode::SendZc) && kernel_version() >= (6, 2)));
        let found = of(Opcode::RecvZc);
        list.push(Feature { name: RECV_ZC, found, needs: Some("an interface whose driver splits headers") });
        Self { rung, list }
    }
}

/// Rings of receive buffers.
pub(crate) const BUFFER_RING: &str = "buffer_ring";
/// One completion over several receive buffers.
pub(crate) const BUNDLES: &str = "recv_bundle";
/// Receive buffers that are filled bit by bit.
pub(crate) const INCREMENTAL: &str = "incremental_buffers";
/// Sends out of the memory itself.
pub(crate) const SEND_ZC: &str = "send_zc";
/// The same for several pieces.
pub(crate) const SENDMSG_ZC: &str = "sendmsg_zc";
/// Receives into memory that the NIC writes, see [`probe_zero_copy_receive`](crate::probe_zero_copy_receive).
const RECV_ZC: &str = "recv_zc";
/// Such sends tell whether the kernel copied.
pub(crate) const REPORT_USAGE: &str = "report_usage";

const OPCODES: &[(&str, Opcode)] = &[
    ("recv", Opcode::Recv),
    ("send", Opcode::Send),
    ("sendmsg", Opcode::SendMsg),
    (SEND_ZC, Opcode::SendZc),
    (SENDMSG_ZC, Opcode::SendMsgZc),
    ("read", Opcode::Read),
    ("write", Opcode::Write),
    ("read_fixed", Opcode::ReadFixed),
    ("write_fixed", Opcode::WriteFixed),
    ("fsync", Opcode::Fsync),
    ("splice", Opcode::Splice),
    ("async_cancel", Opcode::Cancel),
    ("close", Opcode::Close),
    ("poll_add", Opcode::PollAdd),
];

// The group of the ring that is only tried out.
const TRIAL_GROUP: u16 = u16::MAX;

fn takes_table(ring: &Ring) -> bool {
    ring.register_table(1).is_ok() && ring.unregister_table().is_ok()
}

fn takes_buffers(ring: &Ring, incremental: bool) -> bool {
    let pool = BufPool::builder().max_bytes(4096).build();
    let tried = Buffers::new(ring, &pool, TRIAL_GROUP, 1, 1, incremental);
    tried.is_ok() && ring.unregister_buffers(TRIAL_GROUP).is_ok()
}

/// Looks what this machine has, now.
///
/// # Errors
/// The typed reason why there is no io_uring, with a remedy.
pub fn probe() -> Result<Features, Unavailable> {
    let (ring, rung) = ladder::open(Flavour::OneThread)?;
    Ok(Features::of(&ring, rung.name))
}
