//! Packets in and out of frames: AF_XDP sockets on every queue of an interface.
//!
//! A [`Umem`] is memory for packets, cut into frames. A [`Device`] is an interface of which packets for our ports go
//! into frames of such memory, and out of them. It has one [`Queue`] for each of the interface's; a queue belongs to
//! one thread at a time, frames to nobody in particular: a packet that came in on one queue may go out on another one,
//! or on another interface that uses the same memory, without being copied.
//!
//! ```no_run
//! use zc_transport_xdp::device::{Device, DeviceOptions, Umem, UmemOptions};
//! use zc_transport_xdp::program::Rules;
//!
//! let umem = Umem::new(&UmemOptions::default())?;
//! let options = DeviceOptions { rules: Rules { ports: vec![7000], ..Rules::default() }, ..DeviceOptions::default() };
//! let mut device = Device::open("eth1", &umem, &options)?;
//! println!("{}", device.report());
//! let mut packets = Vec::new();
//! loop {
//!     for queue in device.queues_mut() {
//!         queue.reap()?; // Frames that are out come back.
//!         queue.receive(64, &mut packets)?;
//!         for packet in packets.drain(..) {
//!             let _ = queue.send(packet); // Out of the frame that it came in.
//!         }
//!         queue.flush()?;
//!     }
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * The kernel has frames to receive into, however many the application keeps: a part is reserved, and what comes in
//!   beyond the rest is copied out, counted, and the frame used again (see [`Umem`]).
//! * A frame that was sent comes back when the kernel is done with it, and its last [`PinnedBuf`] is dropped.
//! * An interface has one owner at a time; a second one is told so ([`OpenError::InUse`]). When the last queue is
//!   dropped, or the process dies, the kernel has its interface back.
//! * What needs rights is apart from what does not ([`Grant`]).
//!
//! [`PinnedBuf`]: zc_core::memory::PinnedBuf
//!
//! ```text
//! umem       memory for packets
//! grant      what takes rights: the program on the interface, sockets, maps
//! bind       sockets to queues, in the best way that works
//! open       the device
//! queue      packets in and out
//! packet     a packet of one frame or several
//! checksum   that of the Internet
//! refused    why not
//! ```

mod bind;
mod checksum;
mod grant;
mod open;
mod options;
mod packet;
mod queue;
mod refused;
mod umem;

pub(crate) use checksum::checksum;
pub use grant::{Grant, GrantParts};
pub use open::{Attachment, Device, Report};
pub use options::{BusyPolling, DeviceOptions, Mode, UmemOptions};
pub use packet::{Outgoing, Packet};
pub use queue::{KernelStats, Queue, QueueStats, SendFault, Unsendable};
pub use refused::{OpenError, Refusal};
pub use umem::{Umem, UmemStats};
