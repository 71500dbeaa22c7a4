//! The result, as text or as one JSON object.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Run;
use super::client::One;
use super::protocol::{Counts, Test};
use crate::Result;
use crate::say::say;

pub(super) struct Outcome(Value);

impl Outcome {
    pub(super) fn of(test: Test, run: &Run, uri: &str, parts: Vec<One>, client_cpu_s: f64) -> Self {
        let mut rtt = Histogram::<u64>::new_from(&parts[0].rtt);
        let (mut messages, mut per_s, mut spent_s, mut server_cpu_s) = (0, 0.0, 0.0_f64, 0.0_f64);
        for part in &parts {
            let _ = rtt.add(&part.rtt);
            messages += part.messages;
            per_s += part.messages as f64 / part.spent.as_secs_f64();
            spent_s = spent_s.max(part.spent.as_secs_f64());
            server_cpu_s = server_cpu_s.max(part.server.cpu_s);
        }
        let client: Counts = parts.iter().map(|part| part.ledger).sum();
        let server: Option<Vec<Counts>> = parts.iter().map(|part| part.server.ledger).collect();
        let server: Option<Counts> = server.map(|all| all.into_iter().sum());
        let q = |q| rtt.value_at_quantile(q);
        let rtt = test.is_timed().then(|| {
            json!({
                "min": rtt.min(), "p50": q(0.5), "p90": q(0.9), "p99": q(0.99), "p999": q(0.999),
                "max": rtt.max(), "mean": rtt.mean(),
            })
        });
        Self(json!({
            "test": test.name(),
            "uri": uri,
            "transport": parts[0].transport,
            "size_bytes": run.size,
            "polling": run.polling.name(),
            "inflight": if test.is_timed() { 1 } else { run.inflight },
            "connections": run.connections,
            "messages": messages,
            "duration_s": spent_s,
            "rtt_ns": rtt,
            "messages_per_s": per_s,
            "payload_bytes_per_s": per_s * run.size as f64,
            "cpu_s": { "client": client_cpu_s, "server": server_cpu_s },
            "ledger": client,
            "server_ledger": server,
            "selection": parts[0].report,
        }))
    }

    pub(super) fn print(&self, as_json: bool) -> Result<()> {
        let v = &self.0;
        if as_json {
            say!("{v}")?;
            return Ok(());
        }
        say!(
            "{} over {} ({}), {} bytes, {} polling",
            text(&v["test"]),
            text(&v["transport"]),
            text(&v["uri"]),
            v["size_bytes"],
            text(&v["polling"])
        )?;
        say!(
            "{:.0} messages/s, {:.3} GB/s",
            v["messages_per_s"].as_f64().unwrap_or(0.0),
            v["payload_bytes_per_s"].as_f64().unwrap_or(0.0) / 1e9
        )?;
        if let Value::Object(rtt) = &v["rtt_ns"] {
            let us = |name: &str| rtt[name].as_f64().unwrap_or(0.0) / 1e3;
            say!(
                "round trip µs: min {:.1} p50 {:.1} p90 {:.1} p99 {:.1} p99.9 {:.1} max {:.1}",
                us("min"),
                us("p50"),
                us("p90"),
                us("p99"),
                us("p999"),
                us("max")
            )?;
        }
        let sides =
            [("client's ledger", &v["ledger"]), ("server's, warming up included", &v["server_ledger"])];
        for (side, ledger) in sides.into_iter().filter(|(_, ledger)| !ledger.is_null()) {
            say!(
                "{side}: moved {} B, copied by us {} B, inline {} B, by the kernel {}",
                ledger["moved_bytes"],
                ledger["copied_bytes"],
                ledger["inline_bytes"],
                ledger["kernel_copied"].as_u64().map_or("unknown".into(), |bytes| format!("{bytes} B"))
            )?;
        }
        say!(
            "cpu s: client {:.2}, server {:.2}",
            v["cpu_s"]["client"].as_f64().unwrap_or(0.0),
            v["cpu_s"]["server"].as_f64().unwrap_or(0.0)
        )?;
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
