//! The device.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::bind::{Bound, bind};
use super::{DeviceOptions, Grant, Mode, OpenError, Queue, Refusal, Umem};
use crate::limits::MAX_PACKET_FRAMES;
use crate::netlink::Interface;
use crate::program::{Faults, Redirect};
use crate::sys::Link;

/// An interface whose packets for our ports come to us. The [module](super) shows how its queues are used.
///
/// ```
/// use zc_transport_xdp::device::{Device, DeviceOptions, OpenError, Umem, UmemOptions};
///
/// let umem = Umem::new(&UmemOptions::default())?;
/// match Device::open("eth-none", &umem, &DeviceOptions::default()) {
///     Ok(device) => println!("{}", device.report()),
///     Err(why) => println!("{why}"), // Other means will have to do.
/// }
/// # Ok::<(), OpenError>(())
/// ```
#[derive(Debug)]
pub struct Device {
    queues: Vec<Queue>,
}

/// How a device came up.
///
/// ```
/// use zc_transport_xdp::device::{Mode, Report};
///
/// fn is_fast(report: &Report) -> bool {
///     report.tried.iter().for_each(|refusal| println!("no {}: {}", refusal.mode, refusal.why));
///     report.mode == Mode::ZeroCopy
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The interface.
    pub interface: Interface,
    /// The way that works, as the kernel has confirmed.
    pub mode: Mode,
    /// The better ones that were tried, and why they don't.
    pub tried: Vec<Refusal>,
    /// Whether packets may span frames.
    pub multi_buffer: bool,
    /// Segments that a packet may have on its way out: one unless packets may span frames, at most
    /// [`MAX_PACKET_FRAMES`](crate::MAX_PACKET_FRAMES), as many as the driver takes, and as many as fit the ring.
    pub max_segments: usize,
    /// Whether the device was asked to compute checksums on demand: it does in [`Mode::ZeroCopy`] if its driver can
    /// ([`Features::tx_checksum`](crate::netlink::Features::tx_checksum)), else `send` does.
    pub checksums: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, mode, tried, multi_buffer, max_segments: _, checksums } = self;
        let yes = |is| if is { "yes" } else { "no" };
        write!(f, "{}: {mode}, {} queues, ", interface.name, interface.rx_queues)?;
        write!(f, "packets of several frames: {}, checksums: {}", yes(*multi_buffer), yes(*checksums))?;
        tried.iter().try_for_each(|refusal| write!(f, "\n  no {}: {}", refusal.mode, refusal.why))
    }
}

/// Holds the program on the interface, as long as any queue does, or somebody else who has it.
///
/// ```
/// use zc_transport_xdp::device::Attachment;
///
/// fn moves(attachment: &Attachment, from: u16, to: u16) -> std::io::Result<()> {
///     attachment.add_port(to)?;
///     attachment.remove_port(from)
/// }
/// ```
pub struct Attachment {
    redirect: Redirect,
    report: Report,
    /// The program is detached when this goes.
    _link: Link,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Attachment {
    /// How it came up.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Packets for this UDP port are ours, too, from here on.
    pub fn add_port(&self, port: u16) -> io::Result<()> {
        self.redirect.add_port(port)
    }

    /// Packets for this UDP port are the kernel's again.
    pub fn remove_port(&self, port: u16) -> io::Result<()> {
        self.redirect.remove_port(port)
    }

    /// For tests: loses and damages packets. False if the [rules](crate::program::Rules) did not ask for that.
    pub fn set_faults(&self, faults: Faults) -> io::Result<bool> {
        self.redirect.set_faults(faults)
    }
}

/// See [`Report::max_segments`].
fn max_segments(mode: Mode, multi_buffer: bool, interface: &Interface, options: &DeviceOptions) -> usize {
    let taken = match mode {
        _ if !multi_buffer => 1,
        // What is beyond would be lost by the driver, and the rest sent as a packet of its own.
        Mode::ZeroCopy => interface.features.zero_copy_segments.max(1) as usize,
        Mode::Copy | Mode::Generic => MAX_PACKET_FRAMES,
    };
    taken.min(MAX_PACKET_FRAMES).min(options.tx_entries as usize)
}

impl Device {
    /// Takes an interface of this network namespace, and binds all of its queues to the memory.
    pub fn open(name: &str, umem: &Umem, options: &DeviceOptions) -> Result<Self, OpenError> {
        let granted = |options: &DeviceOptions| Grant::open(name, options);
        Self::open_by(options, granted, || Ok(umem.clone())).map(|(device, _)| device)
    }

    /// The same by whoever grants the interface, for each way of attaching the program once, and with memory that is made once it is
    /// ours: whoever may be refused need not make it before.
    pub fn open_by(
        options: &DeviceOptions,
        mut granted: impl FnMut(&DeviceOptions) -> Result<Grant, OpenError>,
        memory: impl FnOnce() -> Result<Umem, OpenError>,
    ) -> Result<(Self, Umem), OpenError> {
        options.check()?;
        let mut grant = granted(options)?;
        let umem = memory()?;
        let refused = match bind(&mut grant, &umem, options) {
            Ok(bound) => return Ok((Self::assemble(grant, bound, &umem, options)?, umem)),
            Err(OpenError::Refused { tried }) => tried,
            Err(error) => return Err(error),
        };
        if grant.is_generic || !options.allows(Mode::Generic) {
            return Err(OpenError::Refused { tried: refused });
        }
        // The program is attached anew.
        drop(grant);
        let generic = DeviceOptions { best: Mode::Generic, ..options.clone() };
        let mut grant = granted(&generic)?;
        grant.tried = refused;
        let bound = bind(&mut grant, &umem, &generic)?;
        Ok((Self::assemble(grant, bound, &umem, options)?, umem))
    }

    /// Binds what somebody with rights has granted.
    pub fn start(mut grant: Grant, umem: &Umem, options: &DeviceOptions) -> Result<Self, OpenError> {
        options.check()?;
        let bound = bind(&mut grant, umem, options)?;
        Self::assemble(grant, bound, umem, options)
    }

    fn assemble(grant: Grant, bound: Bound, umem: &Umem, options: &DeviceOptions) -> Result<Self, OpenError> {
        let Grant { interface, redirect, link, .. } = grant;
        let Bound { ports, mode, tried, multi_buffer } = bound;
        let max_segments = max_segments(mode, multi_buffer, &interface, options);
        let checksums = options.checksums;
        let report = Report { interface, mode, tried, multi_buffer, max_segments, checksums };
        let attachment = Arc::new(Attachment { redirect, report, _link: link });
        let polls = options.busy_polling.is_some();
        let mut queues = Vec::with_capacity(ports.len());
        for (index, port) in (0..).zip(ports) {
            use std::os::fd::AsFd;
            // From here on packets come.
            let led = attachment.redirect.sockets.attach(index, port.as_fd());
            if let Err(error) = led {
                let refused = super::refused::Refused { operation: "bpf(BPF_MAP_UPDATE_ELEM)", error };
                let mut tried = attachment.report.tried.clone();
                tried.push(Refusal { mode, why: refused.why(mode, 0) });
                return Err(OpenError::Refused { tried });
            }
            queues.push(Queue::new(port, umem.clone(), attachment.clone(), index, polls));
        }
        Ok(Self { queues })
    }

    /// How it came up.
    ///
    /// # Panics
    /// Never: a device has a queue.
    pub fn report(&self) -> &Report {
        self.attachment().report()
    }

    /// What holds it on its interface.
    pub fn attachment(&self) -> &Arc<Attachment> {
        self.queues[0].attachment()
    }

    /// The queues, by number.
    pub fn queues_mut(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// The queues, to be given to threads.
    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }
}
