//! From a choice to an open device with its queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use parking_lot::Mutex;
use zc_core::memory::{AllocError, BufPool, PinnedBufMut};
use zc_core::transport::{Reactor, Unavailable};

use super::core::Core;
use super::{RdmaOptions, Shared};
use crate::gid::{DeviceChoice, GidEntry};
use crate::limits::MAX_SEND_DEPTH;
use crate::verbs::{
    CompletionQueue, Context, Device, Port, PostError, ProtectionDomain, SharedReceiveQueue, unavailable,
};
use crate::wire::{MAX_RECV_BYTES, MAX_RECV_COUNT};

/// A port that could be used.
type Candidate = (Arc<Context>, Port);

pub(super) fn open(
    reactor: &Arc<dyn Reactor>,
    pool: &BufPool,
    choice: &DeviceChoice,
    options: RdmaOptions,
) -> Result<Shared, Unavailable> {
    let ((context, port), local) = choose(choice)?;
    let limits = context.limits()?;
    let options = within(options, limits.shared_work_requests, limits.work_requests, limits.completions);
    let pool = pool.with_origin("rdma receive");
    let domain = ProtectionDomain::new(&context).map_err(|error| unavailable(error, 0))?;
    let completions = CompletionQueue::new(&context, options.completions)?;
    let receives = SharedReceiveQueue::new(&domain, &completions, options.recv_buffers)?;
    // So many as no connection needs: whether there is memory for any, and whether it can be registered.
    let core = Core::new(options.recv_buffers);
    let mut buffers = fill(&pool, core.shares.target(), &options).map_err(|error| Unavailable::Other {
        code: "pool",
        remedy: format!("raise the pool's bound, or ask for fewer receive buffers: {error}"),
    })?;
    let region_bytes = buffers.iter().filter_map(|buf| Some(buf.region()?.len())).max().unwrap_or(0);
    receives.post(&mut buffers).map_err(|error| match error {
        PostError::Memory(error) => unavailable(error, region_bytes),
        PostError::Refused(error) => error.into(),
        other => Unavailable::Other { code: "receive_buffers", remedy: other.to_string() },
    })?;
    let (core, refilling, showable) = (Mutex::new(core), Mutex::new(()), Mutex::default());
    let reactor = reactor.clone();
    Ok(Shared {
        reactor,
        context,
        domain,
        completions,
        receives,
        pool,
        local,
        port,
        limits,
        options,
        core,
        refilling,
        armed: AtomicBool::new(false),
        dozing: AtomicBool::new(false),
        asked: AtomicBool::new(false),
        looks: AtomicU64::new(0),
        receivers: AtomicUsize::new(0),
        showable,
    })
}

fn fill(pool: &BufPool, count: u32, options: &RdmaOptions) -> Result<Vec<PinnedBufMut>, AllocError> {
    (0..count).map(|_| pool.try_alloc(options.recv_buffer_bytes)).collect()
}

/// What the device can do of it.
fn within(options: RdmaOptions, receives: u32, sends: u32, completions: u32) -> RdmaOptions {
    RdmaOptions {
        recv_buffers: options.recv_buffers.clamp(1, receives.clamp(1, MAX_RECV_COUNT)),
        recv_buffer_bytes: options.recv_buffer_bytes.clamp(1, MAX_RECV_BYTES as usize),
        send_depth: options.send_depth.clamp(1, sends.clamp(1, MAX_SEND_DEPTH)),
        completions: options.completions.clamp(1, completions.max(1)),
        ..options
    }
}

/// The best address of all ports that are up.
fn choose(choice: &DeviceChoice) -> Result<(Candidate, GidEntry), Unavailable> {
    let mut devices = Device::all()?;
    devices.retain(|device| choice.device.as_deref().is_none_or(|name| name == device.name()));
    if devices.is_empty() {
        return Err(Unavailable::NoDevice);
    }
    let (mut candidates, mut why_not, mut any_down) = (Vec::new(), None, false);
    for device in devices {
        match ports(&device) {
            Ok(of_device) => {
                any_down |= of_device.iter().any(|((_, port), _)| !port.is_active);
                candidates.extend(of_device.into_iter().filter(|((_, port), _)| port.is_active));
            }
            Err(why) => why_not = Some(why),
        }
    }
    match choice.choose(candidates) {
        Err(_) if any_down => Err(Unavailable::Other {
            code: "port_down",
            remedy: "bring up the network interface of the device's port".to_owned(),
        }),
        // A device that can't be opened says more.
        Err(why) => Err(why_not.unwrap_or(why)),
        found => found,
    }
}

/// All addresses of a device, with the ports that they are of.
fn ports(device: &Device) -> Result<Vec<(Candidate, GidEntry)>, Unavailable> {
    let context = device.open()?;
    let mut found = Vec::new();
    for gid in context.gids()? {
        let port = context.port(gid.port)?;
        if port.is_ethernet {
            found.push(((context.clone(), port), gid));
        }
    }
    Ok(found)
}
