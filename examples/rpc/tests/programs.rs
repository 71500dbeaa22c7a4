//! The programs, as somebody would run them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const HANG: Duration = Duration::from_secs(60);
const AXUM: &str = env!("CARGO_BIN_EXE_axum_hello");
const GRPC: &str = env!("CARGO_BIN_EXE_grpc_echo");
const RAW: &str = env!("CARGO_BIN_EXE_grpc_echo_raw");
const PUBSUB: &str = env!("CARGO_BIN_EXE_pubsub");

/// A URI of each kind, and what has to carry the messages there.
fn kinds(test: &str) -> [(String, &'static str); 4] {
    let process = std::process::id();
    [
        ("zc+tcp://127.0.0.1:0".to_owned(), "tcp"),
        (format!("zc+unix://@zc-programs-{test}-{process}"), "tcp"),
        (format!("zc+shm://@zc-programs-{test}-shm-{process}"), "shm"),
        // The programs' own default: whatever is best between processes of one host.
        ("zc://127.0.0.1:0".to_owned(), "shm,tcp"),
    ]
}

/// A program under way, ended when this is dropped.
struct Program {
    child: Child,
    printed: BufReader<ChildStdout>,
}

impl Program {
    fn start(program: &str, transports: &str, args: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .env("ZC_TRANSPORTS", transports)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap());
        Self { child, printed }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.printed.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < HANG, "it hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All that it has still to say, once it has ended well.
    fn rest(&mut self) -> String {
        assert!(self.wait().success());
        let mut rest = String::new();
        self.printed.read_to_string(&mut rest).unwrap();
        rest
    }

    /// As Ctrl-C does.
    fn interrupt(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `curl` gets, or where there is none, somebody who speaks HTTP/1.1 by hand: the status and the body.
fn curl(url: &str, json: Option<&str>) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--noproxy", "*", "--max-time", "60", "--write-out", "\n%{http_code}"]).arg(url);
    if let Some(json) = json {
        curl.args(["--header", "content-type: application/json", "--data", json]);
    }
    match curl.stdin(Stdio::null()).output() {
        Ok(done) => {
            assert!(done.status.success(), "curl {url}: {done:?}");
            let printed = String::from_utf8(done.stdout).unwrap();
            let (body, status) = printed.rsplit_once('\n').unwrap();
            (status.parse().unwrap(), body.to_owned())
        }
        Err(_) => by_hand(url, json),
    }
}

fn by_hand(url: &str, json: Option<&str>) -> (u16, String) {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (method, body) = json.map_or(("GET", ""), |json| ("POST", json));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let len = body.len();
    let head = format!("{method} /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    let fields = format!("content-type: application/json\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all(format!("{head}{fields}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn axum_answers_curl_over_tcp_and_its_own_client_over_zc() {
    for (uri, transports) in kinds("axum") {
        let mut server = Program::start(AXUM, transports, &["server", &uri, "127.0.0.1:0"]);
        let (zc, url) = (server.line(), server.line());
        for _ in 0..2 {
            assert_eq!(curl(&url, None), (200, r#"{"text":"Hello, World!"}"#.to_owned()));
            assert_eq!(by_hand(&url, None), (200, r#"{"text":"Hello, World!"}"#.to_owned()));
            let root = url.strip_suffix("/hello/World").unwrap();
            let sum = format!("{root}/sum");
            assert_eq!(curl(&sum, Some(r#"{"numbers":[1,2,3,36]}"#)), (200, "42".to_owned()));
            assert_eq!(curl(&sum, Some("nonsense")).0, 400);
            assert_eq!(curl(&format!("{root}/elsewhere"), None).0, 404);
            let mut client = Program::start(AXUM, transports, &["client", &zc, "Zoe"]);
            assert_eq!(client.rest(), "Hello, Zoe!\nthe sum is 42\n", "{zc}");
        }
        server.interrupt();
        assert!(server.wait().success(), "{zc}: it does not end when it is told to");
    }
}

/// What a client prints of the four kinds of call.
const FOUR_CALLS: &str = "client stream: 3 messages, 6 bytes\nserver stream: 3 messages\nboth ways: ";

/// The report of the selection, if it has one, and the answers.
fn check_calls(program: &str, printed: &str, chosen: Option<&str>) {
    // The generated type and the bytes in place print differently.
    let unquoted = printed.replace("b\"", "\"");
    assert!(unquoted.contains("unary:  \"hello\"\n"), "{program}: {printed}");
    assert!(printed.contains(FOUR_CALLS), "{program}: {printed}");
    assert!(unquoted.contains("both ways: \"one\"\nboth ways: \"two\"\n"), "{program}: {printed}");
    let carried = |name: &str| printed.lines().any(|line| line.contains(name) && line.contains("chosen"));
    assert!(chosen.is_none_or(carried), "{program}: {printed}");
}

#[test]
fn the_echo_programs_call_each_other_on_every_transport() {
    for program in [GRPC, RAW] {
        for (uri, transports) in kinds("echo") {
            let mut server = Program::start(program, transports, &["server", &uri]);
            let mut client = Program::start(program, transports, &["client", &server.line()]);
            check_calls(program, &client.rest(), transports.split(',').next());
            server.interrupt();
            assert!(server.wait().success(), "{program} {uri}: it does not end when it is told to");
        }
    }
    let socket = std::env::temp_dir().join(format!("zc-programs-echo-{}", std::process::id()));
    for uri in ["http://127.0.0.1:0", &format!("unix:{}", socket.display())] {
        let mut server = Program::start(GRPC, "tcp", &["server", uri]);
        let mut client = Program::start(GRPC, "tcp", &["client", &server.line()]);
        check_calls(GRPC, &client.rest(), None);
        server.interrupt();
        assert!(server.wait().success(), "{uri}: it does not end when it is told to");
    }
    assert!(!socket.exists());
}

#[test]
fn without_arguments_the_echo_programs_call_themselves_and_print_a_table() {
    let grpc = [
        "inproc:",
        "zc://127.0.0.1:0",
        "zc+tcp://127.0.0.1:0",
        "zc+unix://@grpc_echo-",
        "http://127.0.0.1:0",
        "unix:",
        "zc://127.0.0.1:0 --http2",
        "zc+tcp://127.0.0.1:0 --http2",
        "zc+unix://@grpc_echo-",
    ];
    for (program, rows, points) in [(GRPC, &grpc[..], 3), (RAW, &["zc://127.0.0.1:"], 4)] {
        let mut both = Program::start(program, "shm,tcp", &[]);
        let printed = both.rest();
        check_calls(program, &printed, Some("shm"));
        let table: Vec<_> = printed.lines().skip_while(|line| !line.contains("calls/s")).skip(1).collect();
        assert_eq!(table.len(), rows.len() * points, "{printed}");
        for (lines, row) in table.chunks(points).zip(rows) {
            for line in lines {
                assert!(line.starts_with(row), "{row}: {printed}");
                let numbers: Vec<f64> =
                    line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                let [_size, _inflight, calls_per_s, p50, p99, _cpu, _copied] = numbers[..] else {
                    panic!("{line}")
                };
                assert!(calls_per_s > 0.0 && 0.0 < p50 && p50 <= p99, "{line}");
            }
        }
    }
}

/// `name: 300 messages of 65536 bytes, 0 missed, 0 bytes copied in user space`: its numbers.
fn numbers(line: &str) -> Vec<u64> {
    let (_, line) = line.split_once(": ").unwrap();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn every_subscriber_gets_every_message_and_nobody_copies_the_groups_buffer() {
    const MESSAGES: u64 = 300;
    for (uri, transports) in kinds("pubsub") {
        let mut publisher = Program::start(PUBSUB, transports, &["publish", &uri]);
        let zc = publisher.line();
        let args = ["subscribe", &zc, &MESSAGES.to_string()];
        let subscribers: Vec<_> = (0..3).map(|_| Program::start(PUBSUB, transports, &args)).collect();
        for mut subscriber in subscribers {
            let printed = subscriber.rest();
            let [got, size, missed, copied] = numbers(&printed)[..] else { panic!("{printed}") };
            assert_eq!([got, size, missed], [MESSAGES, 64 << 10, 0], "{zc}: {printed}");
            // A stream may cut a message at the end of what it reads into; shared memory never does.
            let cut = if transports.starts_with("shm") { 0 } else { MESSAGES / 10 * size };
            assert!(copied <= cut, "{zc}: {printed}");
        }
        for _ in 0..3 {
            // Some more may be under way when a subscriber has enough.
            let line = publisher.line();
            let [sent, missed, copied] = numbers(&line)[..] else { panic!("{line}") };
            assert!(sent >= MESSAGES && missed == 0 && copied == 0, "{zc}: {line}");
        }
        publisher.interrupt();
        assert!(publisher.wait().success());
    }
}
