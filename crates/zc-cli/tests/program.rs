//! The program as a user runs it: its JSON has the promised keys, and its two sides find each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "test helpers")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn zc(args: &str) -> Output {
    // Another package of a whole build may have shared memory compiled in, which would be chosen on this host.
    let command = &mut Command::new(env!("CARGO_BIN_EXE_zc"));
    command.args(args.split(' ')).env("ZC_TRANSPORTS", "^shm,uring").output().unwrap()
}

fn text(args: &str) -> String {
    let output = zc(args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &str) -> Value {
    serde_json::from_str(&text(args)).unwrap()
}

/// Sorted, as the program prints them.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// `zc perf serve`; it ends with its standard input, and is killed however the test ends.
struct Serve(Child, String);

impl Serve {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zc"))
            .args(["perf", "serve", "--child", "--uri", "zc+tcp://127.0.0.1:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut uri = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        Self(child, uri.trim().to_owned())
    }
}

impl Serve {
    /// What it complained about until its standard input ended.
    fn complaints(mut self) -> String {
        drop(self.0.stdin.take());
        std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn perf_prints_one_object_with_the_promised_keys() {
    let of = |test: &str| {
        json(&format!("perf {test} --uri zc+tcp://127.0.0.1:0 --size 1000 --duration-s 0.1 --json"))
    };
    let (latency, throughput) = (of("latency"), of("throughput"));
    let remote = ["read", "write", "add", "swap"].map(|one| (one, of(&format!("remote --operation {one}"))));
    for (operation, result) in &remote {
        assert_eq!(
            (&result["test"], &result["inflight"]),
            (&format!("remote {operation}").into(), &1.into())
        );
        assert!(result["rtt_ns"]["p50"].as_u64().unwrap() > 0);
    }
    for result in [&latency, &throughput].into_iter().chain(remote.iter().map(|(_, result)| result)) {
        let promised = [
            "connections",
            "cpu_s",
            "duration_s",
            "inflight",
            "ledger",
            "messages",
            "messages_per_s",
            "payload_bytes_per_s",
            "polling",
            "rtt_ns",
            "selection",
            "server_ledger",
            "size_bytes",
            "test",
            "transport",
            "uri",
        ];
        assert_eq!(keys(result), promised);
        assert_eq!(keys(&result["cpu_s"]), ["client", "server"]);
        for ledger in ["ledger", "server_ledger"] {
            assert_eq!(
                keys(&result[ledger]),
                ["copied_bytes", "inline_bytes", "kernel_copied", "moved_bytes"]
            );
        }
        assert_eq!((&result["transport"], &result["size_bytes"]), (&"tcp".into(), &1000.into()));
        assert!(result["messages"].as_u64().unwrap() > 0 && result["selection"]["chosen"] == "tcp");
    }
    assert_eq!(keys(&latency["rtt_ns"]), ["max", "mean", "min", "p50", "p90", "p99", "p999"]);
    assert_eq!((&latency["test"], &latency["inflight"]), (&"latency".into(), &1.into()));
    assert_eq!((&throughput["test"], &throughput["inflight"]), (&"throughput".into(), &64.into()));
}

#[test]
fn perf_takes_every_option() {
    let result = json(&format!(
        "perf throughput --uri zc+unix://@zc-cli-options-{} --size 100000 --duration-s 0.1 --inflight 3 --connections 2 \
         --polling interrupt --touch all --pin 0,0 --json",
        std::process::id()
    ));
    assert_eq!((&result["inflight"], &result["connections"]), (&3.into(), &2.into()));
    assert_eq!((&result["polling"], &result["transport"]), (&"interrupt".into(), &"tcp".into()));
}

#[test]
fn a_side_that_runs_alone_serves_perf_and_ping() {
    let server = Serve::start();
    let result = json(&format!("perf latency --remote --uri {} --duration-s 0.1 --json", server.1));
    assert!(result["messages"].as_u64().unwrap() > 0);
    let ping = text(&format!("ping {} --count 2 --interval-ms 1", server.1));
    assert!(ping.contains("seq=1 ") && ping.contains("seq=2 ") && ping.contains("2 round trips"), "{ping}");
    let (report, _) = ping.split_once("64 bytes from").unwrap();
    assert!(report.contains("chosen"), "the selection report comes first: {ping}");
    assert_eq!(server.complaints(), "", "all of them ended in order");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let server = Serve::start();
    let ping = format!("ping {} --count 2 --interval-ms 1", server.1);
    for args in ["info", "info --json", "perf latency --duration-s 0.1", "perf serve --child", &ping] {
        // Nobody will ever read it.
        let (_, stdout) = std::io::pipe().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_zc"))
            .args(args.split(' '))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && words.is_empty(), "{args}: {}: {words}", output.status);
    }
}

#[test]
fn info_names_every_transport_with_caps_or_reason_and_remedy() {
    let info = json("info --json");
    assert_eq!(keys(&info), ["machine", "transports", "wire_versions"]);
    let machine =
        ["cores", "hugepages", "io_uring_disabled", "kernel", "memlock_bytes", "nofile", "numa_nodes"];
    assert_eq!(keys(&info["machine"]), machine);
    let transports = info["transports"].as_array().unwrap();
    for name in ["tcp", "mem", "uring", "shm", "rdma", "xdp", "udp"] {
        let found = transports.iter().find(|transport| transport["name"] == name).expect(name);
        if found["available"] == true {
            assert_eq!(keys(&found["sources"]), ["connection", "foreign", "pool"]);
        } else {
            assert!(
                !found["reason"].as_str().unwrap().is_empty()
                    && !found["remedy"].as_str().unwrap().is_empty()
            );
        }
    }
    let uring = transports.iter().find(|transport| transport["name"] == "uring").unwrap();
    let found = &uring["features"]["found"];
    assert_eq!(found["send_zc"].is_boolean(), uring["available"] == true, "{uring}");
    // Loopback has no NIC behind it, whatever the machine.
    let asked = json("info --json --zero-copy-receive lo:0");
    let uring = asked["transports"].as_array().unwrap().iter().find(|one| one["name"] == "uring").unwrap();
    assert_eq!(uring["zero_copy_receive"]["available"], false, "{uring}");
    assert!(text("info --zero-copy-receive lo:0").contains("zero-copy receive by queue 0 of lo: no: "));
    let words = text("info");
    assert_eq!(words.contains("send_zc"), uring["available"] == true, "{words}");
    assert!(
        words.contains("wire versions") && words.contains("sent as it is") && words.contains("memlock"),
        "{words}"
    );
}

#[test]
fn what_can_not_work_is_an_error_in_words() {
    for args in
        ["ping zc+tcp://127.0.0.1:1", "ping http://x", "perf latency --duration-s 0", "perf latency --size 0"]
    {
        let output = zc(args);
        assert_eq!(output.status.code(), Some(1), "{args}");
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.starts_with("zc: ") && words.lines().count() == 1, "{args}: {words}");
    }
}
