//! The echo programs' `bench`, on every kind of URI that they take.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const HANG: Duration = Duration::from_secs(60);
const GRPC: &str = env!("CARGO_BIN_EXE_grpc_echo");
const RAW: &str = env!("CARGO_BIN_EXE_grpc_echo_raw");
const TARPC: &str = env!("CARGO_BIN_EXE_tarpc_echo");

/// The one JSON object that is printed.
fn bench(program: &str, args: &str) -> Value {
    let mut child = Command::new(program)
        .args(["bench", "--json", "--duration-s", "0.1"])
        .args(args.split_whitespace())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > HANG {
            child.kill().unwrap();
            panic!("{program} {args} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{program} {args}: {status}");
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let report: Value = serde_json::from_str(&printed).unwrap();
    let mut keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected =
        ["calls_per_s", "inflight", "latency_ns", "ledger", "server_cpu_ns_per_call", "size_bytes", "uri"];
    assert_eq!(keys, expected);
    assert!(report["calls_per_s"].as_f64().unwrap() > 0.0, "{printed}");
    assert!(report["latency_ns"]["p50"].as_u64() <= report["latency_ns"]["p99"].as_u64(), "{printed}");
    report
}

/// One URI for each kind of zc connection; the names are this test's own.
fn uris(test: &str) -> [String; 3] {
    let process = std::process::id();
    [
        "zc+tcp://127.0.0.1:0".to_owned(),
        format!("zc+unix://@zc-bench-{test}-{process}"),
        format!("zc+shm://@zc-bench-{test}-shm-{process}"),
    ]
}

fn ledger(report: &Value, field: &str) -> u64 {
    report["ledger"][field].as_u64().unwrap()
}

#[test]
fn tarpc_on_every_transport() {
    for uri in uris("tarpc") {
        for (size, inflight) in [(64, 8), (100_000, 4)] {
            let report = bench(TARPC, &format!("--uri {uri} --size {size} --inflight {inflight}"));
            assert!(ledger(&report, "moved_bytes") > 0, "{report}");
            if uri.contains("shm") {
                assert_eq!(ledger(&report, "copied_bytes"), 0, "{report}");
            }
        }
    }
}

#[test]
fn grpc_both_ways() {
    for uri in uris("grpc") {
        for http2 in ["", "--http2"] {
            let report = bench(GRPC, &format!("--uri {uri} --size 5000 {http2}"));
            let calls = report["calls_per_s"].as_f64().unwrap() * 0.1;
            assert!(ledger(&report, "moved_bytes") as f64 > calls * 2.0 * 5000.0, "{report}");
        }
        let http2 = bench(GRPC, &format!("--uri {uri} --size 5000 --http2"));
        assert!(ledger(&http2, "copied_bytes") > 0, "a byte stream copies: {http2}");
    }
}

#[test]
fn the_baselines_of_both() {
    for (program, name) in [(GRPC, "grpc"), (RAW, "raw")] {
        let socket = std::env::temp_dir().join(format!("zc-bench-{name}-{}", std::process::id()));
        for uri in ["inproc:", "http://127.0.0.1:0", &format!("unix:{}", socket.display())] {
            assert_eq!(bench(program, &format!("--uri {uri}"))["uri"], uri);
        }
        assert!(!socket.exists());
    }
    let report = bench(RAW, "--uri zc+tcp://127.0.0.1:0 --http2");
    assert!(ledger(&report, "copied_bytes") > 0, "{report}");
}

#[test]
fn messages_are_not_copied() {
    let [_, _, shm] = uris("raw");
    for (size, inflight) in [(64, 1), (64, 128), (64 << 10, 16), (1 << 20, 1)] {
        let report = bench(RAW, &format!("--uri {shm} --size {size} --inflight {inflight}"));
        assert_eq!(ledger(&report, "copied_bytes"), 0, "{report}");
    }
    // More than the windows hold: answers have to be taken before there is room for the rest.
    bench(RAW, &format!("--uri {shm} --size {} --inflight 32", 1 << 20));
}
