//! `zc info`.

use serde_json::{Value, json};
use zc_core::transport::{Caps, SourceMatrix, Unavailable, ZeroCopy};
use zc_core::wire::VersionRange;

use crate::Result;
use crate::machine::Machine;
use crate::say::say;

/// A receive queue of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queue {
    interface: String,
    number: u32,
}

/// `eth1:3`
pub(crate) fn queue(text: &str) -> std::result::Result<Queue, String> {
    let parts = text.rsplit_once(':').and_then(|(name, number)| Some((name, number.parse().ok()?)));
    let (interface, number) = parts.ok_or("an interface and a queue, as in eth1:3")?;
    Ok(Queue { interface: interface.to_owned(), number })
}

impl Queue {
    fn probe(&self) -> std::result::Result<(), Unavailable> {
        zc_transport_uring::probe_zero_copy_receive(&self.interface, self.number)
    }
}

pub(crate) fn run(as_json: bool, queue: Option<&Queue>) -> Result<()> {
    let machine = Machine::look();
    let transports = transports()?;
    let wire = VersionRange::SUPPORTED;
    if as_json {
        let mut transports: Vec<_> = transports.iter().map(|(name, probe)| to_json(name, probe)).collect();
        for transport in transports.iter_mut().filter(|transport| transport["name"] == "uring") {
            transport["features"] = uring_json();
            if let Some(queue) = queue {
                transport["zero_copy_receive"] = match queue.probe() {
                    Ok(()) => json!({ "available": true }),
                    Err(why) => refusal(&why),
                };
            }
        }
        for transport in transports.iter_mut().filter(|transport| transport["name"] == "rdma") {
            let devices = rdma_devices().into_iter().map(|one| (one.name, one.addresses.into()));
            transport["devices"] = devices.collect::<serde_json::Map<_, Value>>().into();
        }
        let wire = json!({ "min": wire.min(), "max": wire.max() });
        say!("{}", json!({ "machine": machine, "wire_versions": wire, "transports": transports }))?;
        return Ok(());
    }
    say!("{machine}\nwire versions {wire}\n")?;
    for (name, probe) in &transports {
        match probe {
            Ok(caps) => say!("{name:<8} available{}", text(caps))?,
            Err(why) => say!("{name:<8} unavailable: {why}")?,
        }
    }
    for device in rdma_devices() {
        say!("\nRDMA device {}: {}", device.name, device.addresses.join(", "))?;
    }
    if let Ok(found) = zc_transport_uring::probe() {
        let list = found.list().iter().map(|one| {
            let needs = one.needs.map(|needs| format!(", needs {needs}")).unwrap_or_default();
            format!("{} {}{needs}", one.name, if one.found { "yes" } else { "no" })
        });
        say!(
            "\nio_uring, set up as {}:\n         {}",
            found.setup(),
            list.collect::<Vec<_>>().join("\n         ")
        )?;
    }
    if let Some(queue @ Queue { interface, number }) = queue {
        let found =
            queue.probe().map_or_else(|why| format!("no: {why}; {}", why.remedy()), |()| "yes".to_owned());
        say!("\nzero-copy receive by queue {number} of {interface}: {found}")?;
    }
    say!(
        "\nsent as it is, without a copy by us:\n{:<8} {:>16} {:>16} {:>16}",
        "",
        "conn.alloc",
        "a pool of zc",
        "other memory"
    )?;
    for (name, caps) in transports.iter().filter_map(|(name, probe)| Some((name, probe.as_ref().ok()?))) {
        let SourceMatrix { connection, pool, foreign } = caps.sources;
        let word = |yes| if yes { "yes" } else { "copied" };
        say!("{name:<8} {:>16} {:>16} {:>16}", word(connection), word(pool), word(foreign))?;
    }
    Ok(())
}

/// Those of this build, then those that the policy knows and this build lacks.
fn transports() -> Result<Vec<(&'static str, std::result::Result<Caps, Unavailable>)>> {
    let fabric = zc::Fabric::auto()?;
    let lacking = zc::DEFAULT_ORDER.into_iter().filter_map(|name| Some((name, Err(fabric.missing(name)?))));
    Ok(fabric.probe().into_iter().chain(lacking).collect())
}

fn to_json(name: &str, probe: &std::result::Result<Caps, Unavailable>) -> Value {
    match probe {
        Ok(caps) => json!({
            "name": name,
            "available": true,
            "scope": word(caps.scope),
            "isolation": word(caps.isolation),
            "max_message_bytes": caps.max_message,
            "max_segments": caps.max_segments,
            "headroom_bytes": caps.headroom,
            "alignment_bytes": caps.alignment,
            "inline_bytes": caps.inline_size,
            "eager_max_bytes": if caps.eager_max == u32::MAX { Value::Null } else { caps.eager_max.into() },
            "zero_copy_min_bytes": caps.zero_copy_min,
            "zero_copy_tx": zero_copy(caps.zero_copy_tx),
            "zero_copy_rx": zero_copy(caps.zero_copy_rx),
            "user_polled": caps.user_polled,
            "one_sided": word(caps.one_sided),
            "sources": {
                "connection": caps.sources.connection,
                "pool": caps.sources.pool,
                "foreign": caps.sources.foreign,
            },
        }),
        Err(why) => {
            let mut refusal = refusal(why);
            refusal["name"] = name.into();
            refusal
        }
    }
}

fn refusal(why: &Unavailable) -> Value {
    json!({ "available": false, "reason": why.code(), "detail": why.to_string(), "remedy": why.remedy() })
}

struct RdmaDevice {
    name: String,
    /// As they can be named in a URI.
    addresses: Vec<String>,
}

/// Those that can be opened.
fn rdma_devices() -> Vec<RdmaDevice> {
    let describe = |device: &zc_transport_rdma::Device| {
        let gids = device.open().ok()?.gids().ok()?;
        let addresses =
            gids.iter().map(|gid| format!("{} ({:?}, gid={})", gid.gid.ip(), gid.kind, gid.index));
        Some(RdmaDevice { name: device.name().to_owned(), addresses: addresses.collect() })
    };
    zc_transport_rdma::Device::all().unwrap_or_default().iter().filter_map(describe).collect()
}

/// What the kernel has of io_uring; nothing where it is refused.
fn uring_json() -> Value {
    match zc_transport_uring::probe() {
        Ok(found) => {
            let list = found.list().iter().map(|one| (one.name.to_owned(), one.found.into()));
            json!({ "setup": found.setup(), "found": list.collect::<serde_json::Map<_, Value>>() })
        }
        Err(_) => Value::Null,
    }
}

fn text(caps: &Caps) -> String {
    [
        format!("reaches: {}; isolation: {}", word(caps.scope), word(caps.isolation)),
        format!("zero copy: tx {}, rx {}", zero_copy(caps.zero_copy_tx), zero_copy(caps.zero_copy_rx)),
        format!("messages up to {} bytes, {} segments as they are", caps.max_message, caps.max_segments),
        match caps.eager_max {
            u32::MAX => "all messages go at once".to_owned(),
            max => format!("messages up to {max} bytes go at once, longer ones are fetched"),
        },
        format!("a copy is cheaper below {} bytes; inline up to {}", caps.zero_copy_min, caps.inline_size),
        format!("headroom {}, alignment {} bytes", caps.headroom, caps.alignment),
        format!("polling without system calls: {}", if caps.user_polled { "yes" } else { "no" }),
        format!("one-sided operations: {}", word(caps.one_sided)),
    ]
    .map(|line| format!("\n         {line}"))
    .concat()
}

fn zero_copy(how: ZeroCopy) -> String {
    match how {
        ZeroCopy::Conditional(when) => format!("conditional ({when})"),
        other => word(other),
    }
}

/// A name of the code as words: `PerConnection` is `per connection`.
fn word(name: impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for c in format!("{name:?}").chars() {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_a_name_and_a_number() {
        let of = |interface: &str, number| Ok(Queue { interface: interface.to_owned(), number });
        assert_eq!((queue("eth1:3"), queue("a:b:0")), (of("eth1", 3), of("a:b", 0)));
        for bad in ["eth1", "eth1:", "eth1:x", ":"] {
            assert!(queue(bad).is_err(), "{bad}");
        }
    }
}
