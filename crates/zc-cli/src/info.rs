//! `zc info`.

use serde_json::json;
use zc_core::wire::VersionRange;

use crate::Result;
use crate::machine::Machine;

pub(crate) fn run(as_json: bool) -> Result<()> {
    let machine = Machine::look();
    let fabric = zc::Fabric::auto()?;
    let probes = fabric.probe();
    let wire = VersionRange::SUPPORTED;
    if as_json {
        let transports: Vec<_> = probes
            .iter()
            .map(|(name, probe)| match probe {
                Ok(caps) => json!({
                    "name": name,
                    "available": true,
                    "max_message_bytes": caps.max_message,
                    "max_segments": caps.max_segments,
                    "zero_copy_min_bytes": caps.zero_copy_min,
                    "zero_copy_tx": format!("{:?}", caps.zero_copy_tx),
                    "zero_copy_rx": format!("{:?}", caps.zero_copy_rx),
                    "scope": format!("{:?}", caps.scope),
                    "one_sided": format!("{:?}", caps.one_sided),
                    "sources": {
                        "connection": caps.sources.connection,
                        "pool": caps.sources.pool,
                        "foreign": caps.sources.foreign,
                    },
                }),
                Err(why) => json!({
                    "name": name,
                    "available": false,
                    "reason": why.code(),
                    "remedy": why.remedy(),
                }),
            })
            .collect();
        let wire = json!({ "min": wire.min(), "max": wire.max() });
        println!("{}", json!({ "machine": machine, "wire_versions": wire, "transports": transports }));
        return Ok(());
    }
    println!("{machine}\nwire version  {wire}\n");
    for (name, probe) in probes {
        match probe {
            Ok(caps) => {
                println!("{name:<8} available");
                println!("         zero copy: tx {:?}, rx {:?}", caps.zero_copy_tx, caps.zero_copy_rx);
                println!(
                    "         messages up to {} bytes, {} segments as they are",
                    caps.max_message, caps.max_segments
                );
                let s = caps.sources;
                println!(
                    "         sent as they are: connection {}, pool {}, foreign {}",
                    s.connection, s.pool, s.foreign
                );
            }
            Err(why) => println!("{name:<8} unavailable: {why}"),
        }
    }
    Ok(())
}
