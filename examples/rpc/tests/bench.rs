//! The echo programs' `bench`, on every kind of URI that they take.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const HANG: Duration = Duration::from_secs(60);
/// How long each point is measured.
const SECONDS: &str = "0.1";
const GRPC: &str = env!("CARGO_BIN_EXE_grpc_echo");
const RAW: &str = env!("CARGO_BIN_EXE_grpc_echo_raw");
const TARPC: &str = env!("CARGO_BIN_EXE_tarpc_echo");

/// What is to be measured, and over what.
struct Point<'a> {
    uri: &'a str,
    size: u64,
    inflight: u64,
    http2: bool,
}

fn at(uri: &str) -> Point<'_> {
    Point { uri, size: 64, inflight: 1, http2: false }
}

/// The program, and what it has to carry messages with: over a Unix socket zc would choose shared memory.
fn start(program: &str, point: &Point<'_>) -> Child {
    let (size, inflight) = (point.size.to_string(), point.inflight.to_string());
    let transports = if point.uri.starts_with("zc+unix:") { "tcp" } else { "shm,tcp" };
    Command::new(program)
        .args(["bench", "--json", "--duration-s", SECONDS, "--uri", point.uri])
        .args(["--size", &size, "--inflight", &inflight])
        .args(point.http2.then_some("--http2"))
        .env("ZC_TRANSPORTS", transports)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How it ended, what it printed, and what it complained about.
fn wait(mut child: Child, what: &str) -> (ExitStatus, String, String) {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > HANG {
            child.kill().unwrap();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut printed, mut complained) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut complained).unwrap();
    (status, printed, complained)
}

/// The one JSON object that is printed, with all that it has to have.
fn bench(program: &str, point: &Point<'_>) -> Value {
    let what = format!("{program} {}", point.uri);
    let (status, printed, complained) = wait(start(program, point), &what);
    assert!(status.success(), "{what}: {status}, {complained}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    let all =
        ["calls_per_s", "inflight", "latency_ns", "ledger", "server_cpu_ns_per_call", "size_bytes", "uri"];
    assert_eq!(keys(&report), all);
    assert_eq!(report["uri"], point.uri);
    assert_eq!((number(&report, "size_bytes"), number(&report, "inflight")), (point.size, point.inflight));
    assert!(report["calls_per_s"].as_f64().unwrap() > 0.0, "{printed}");
    assert!(number(&report, "server_cpu_ns_per_call") > 0, "{printed}");
    let latency = &report["latency_ns"];
    assert_eq!(keys(latency), ["p50", "p99"]);
    assert!(0 < number(latency, "p50") && number(latency, "p50") <= number(latency, "p99"), "{printed}");
    let known = |key: &&str| *key != "kernel_copied_bytes";
    let counted: Vec<_> = keys(&report["ledger"]).into_iter().filter(known).collect();
    assert_eq!(counted, ["copied_bytes", "inline_bytes", "moved_bytes"]);
    report
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn number(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or_else(|| panic!("{field} of {of}"))
}

fn ledger(report: &Value, field: &str) -> u64 {
    number(&report["ledger"], field)
}

/// The data of all calls, both ways, in the time that was asked for; it may have been more.
fn carried(report: &Value) -> f64 {
    report["calls_per_s"].as_f64().unwrap()
        * SECONDS.parse::<f64>().unwrap()
        * 2.0
        * number(report, "size_bytes") as f64
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

/// Counted is what is moved, and over shared memory what the kernel copies: nothing.
fn check_moved(report: &Value) {
    assert!(ledger(report, "moved_bytes") as f64 > carried(report), "{report}");
    if report["uri"].as_str().unwrap().starts_with("zc+shm:") {
        assert_eq!(ledger(report, "kernel_copied_bytes"), 0, "{report}");
    }
}

#[test]
fn tarpc_on_every_transport() {
    for uri in uris("tarpc") {
        for (size, inflight) in [(640, 8), (100_000, 4)] {
            let report = bench(TARPC, &Point { size, inflight, ..at(&uri) });
            check_moved(&report);
            if uri.contains("shm") {
                assert_eq!(ledger(&report, "copied_bytes"), 0, "{report}");
            }
        }
    }
}

#[test]
fn grpc_both_ways() {
    for uri in uris("grpc") {
        for http2 in [false, true] {
            let report = bench(GRPC, &Point { size: 5000, http2, ..at(&uri) });
            check_moved(&report);
            // A byte stream copies both ways; zc-http into shared memory only.
            let copied = ledger(&report, "copied_bytes") as f64;
            match (http2, uri.contains("shm")) {
                (true, _) => assert!(copied > carried(&report), "{report}"),
                (false, true) => assert!(copied > carried(&report) / 2.0, "{report}"),
                (false, false) => assert!(copied < ledger(&report, "moved_bytes") as f64 / 2.0, "{report}"),
            }
        }
    }
}

#[test]
fn the_baselines_of_both() {
    for (program, name) in [(GRPC, "grpc"), (RAW, "raw")] {
        let socket = std::env::temp_dir().join(format!("zc-bench-{name}-{}", std::process::id()));
        for uri in ["inproc:", "http://127.0.0.1:0", &format!("unix:{}", socket.display())] {
            let report = bench(program, &Point { size: 300, inflight: 4, ..at(uri) });
            assert_eq!(ledger(&report, "moved_bytes"), 0, "nobody counts: {report}");
            let point = Point { http2: true, ..at(uri) };
            let (status, printed, complained) = wait(start(program, &point), uri);
            assert!(!status.success() && printed.is_empty(), "{uri}: {printed}");
            assert!(complained.contains("--http2 is HTTP/2 over zc"), "{uri}: {complained}");
        }
        assert!(!socket.exists());
    }
    let report = bench(RAW, &Point { http2: true, ..at("zc+tcp://127.0.0.1:0") });
    assert!(ledger(&report, "copied_bytes") > 0, "{report}");
}

#[test]
fn messages_are_not_copied() {
    for uri in uris("raw") {
        for (size, inflight) in [(64, 1), (64, 128), (64 << 10, 16), (1 << 20, 1)] {
            let report = bench(RAW, &Point { size, inflight, ..at(&uri) });
            let (moved, inline) = (ledger(&report, "moved_bytes"), ledger(&report, "inline_bytes"));
            assert!((moved + inline) as f64 > carried(&report), "{report}");
            let copied = ledger(&report, "copied_bytes");
            match uri.contains("shm") {
                true => assert_eq!(copied, 0, "{report}"),
                // A stream may cut a message at the end of what it reads into.
                false => assert!(copied <= moved / 2, "{report}"),
            }
        }
        // More than the windows hold: answers have to be taken before there is room for the rest.
        bench(RAW, &Point { size: 1 << 20, inflight: 32, ..at(&uri) });
    }
}
