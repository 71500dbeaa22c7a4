//! The lane beside what it is made of: the device without a protocol, and beside the kernel's own UDP, between two network
//! namespaces, in turns and in one run.
//!
//! ```console
//! $ sudo chrt -r 10 cargo bench -p zc-transport-xdp --bench lane
//! $ sudo perf record -e cpu-clock -- cargo bench -p zc-transport-xdp --bench lane "round trip" lane
//! ```
//!
//! Both ends are pinned to a core each and spin. Each line's ratio is that of the two contenders in the same round, the median of
//! all rounds. The targets are those of `docs/xdp.md`; nothing fails when one is missed.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

#[path = "../../tests/bed/mod.rs"]
mod bed;
mod end;
#[path = "../../tests/inside/mod.rs"]
mod inside;
#[path = "../raw/mod.rs"]
mod raw;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bed::Bed;
use end::{LaneEnd, Meet};
use raw::{By, ROUNDS, TRIPS, WARM_UP, median};
use zc::transport::{Role, Transport};
use zc::{ConnectionOptions, Polling};
use zc_transport_xdp::device::Mode;
use zc_transport_xdp::program::Faults;
use zc_transport_xdp::{XdpOptions, XdpTransport};

/// Before a rate is taken: slow start is over by then.
const SETTLING: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(700);
/// UDP payload of an Ethernet frame of 1500 bytes.
const DATAGRAM: usize = 1472;
const LONG: usize = 1 << 20;
const SHORT: usize = 64;

fn in_mode(mode: Mode) -> XdpOptions {
    let mut options = XdpOptions::default();
    (options.best, options.worst) = (mode, mode);
    options
}

/// Runs both ends, each in a thread; what the client says.
fn both<T: Send>(
    bed: &Bed,
    options: &XdpOptions,
    client: impl AsyncFnOnce(LaneEnd) -> T + Send,
    server: impl AsyncFnOnce(LaneEnd) + Send,
) -> T {
    let ((to_server, from_client), (to_client, from_server)) = (channel(), channel());
    let at_server = Meet { say: to_client, hear: from_client };
    let at_client = Meet { say: to_server, hear: from_server };
    std::thread::scope(|scope| {
        scope.spawn(move || end::run(bed, Role::Server, options.clone(), at_server, server));
        let client = scope.spawn(move || end::run(bed, Role::Client, options.clone(), at_client, client));
        client.join().unwrap()
    })
}

/// Microseconds of a round trip over a lane.
fn lane_round_trip(bed: &Bed) -> f64 {
    let is_over = &AtomicBool::new(false);
    let client = async |mut end: LaneEnd| {
        let payload = end.payload(SHORT).await;
        let mut micros = Vec::with_capacity(TRIPS + WARM_UP);
        for _ in 0..TRIPS + WARM_UP {
            let start = Instant::now();
            assert!(end.try_send(&payload));
            end.flush();
            end.spin(|end| {
                let mut came = None;
                assert!(end.take(|message| came = Some(message)), "the lane has ended");
                came
            })
            .await;
            micros.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        is_over.store(true, Relaxed);
        median(&mut micros[WARM_UP..])
    };
    let server = async |mut end: LaneEnd| {
        while !is_over.load(Relaxed) {
            let came = end
                .spin(|end| {
                    let mut came = None;
                    let goes_on = end.take(|message| came = Some(message)) && !is_over.load(Relaxed);
                    if goes_on { came.map(Some) } else { Some(None) }
                })
                .await;
            let Some(message) = came else { return };
            assert!(end.try_send(&message));
            end.flush();
        }
    };
    both(bed, &in_mode(Mode::Copy), client, server)
}

/// The same over a connection, with all that lies above a lane.
fn connection_round_trip(bed: &Bed) -> f64 {
    let transports = || vec![Arc::new(XdpTransport::new(in_mode(Mode::Copy))) as Arc<dyn Transport>];
    let options = || {
        let mut options = ConnectionOptions::default();
        options.polling = Polling::Busy;
        options
    };
    let [near, far] =
        inside::builders(bed, transports).map(|builder| builder.options(options()).build().unwrap());
    let uri = format!("zc+xdp://{}:0?if={}", bed.near.v4, bed::NAME);
    let run = |core, what: std::pin::Pin<Box<dyn Future<Output = f64>>>| {
        raw::pin(core);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
    };
    let (say, hear) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let server = async move {
                let mut listener = near.listen(&uri).await.unwrap();
                say.send(listener.local_uri().to_string()).unwrap();
                let mut connection = listener.accept().await.unwrap();
                while let Ok(Some(message)) = connection.recv().await {
                    if connection.send(message).await.is_err() {
                        break;
                    }
                }
                0.0
            };
            run(1, Box::pin(server))
        });
        let client = scope.spawn(move || {
            let client = async move {
                let uri = hear.recv().unwrap();
                let mut connection = far.connect(&uri).await.unwrap();
                assert_eq!(connection.report().chosen(), "xdp");
                let payload = zc::PinnedBuf::from(vec![7; SHORT]);
                let mut micros = Vec::with_capacity(TRIPS + WARM_UP);
                for _ in 0..TRIPS + WARM_UP {
                    let start = Instant::now();
                    connection.send(payload.clone()).await.unwrap();
                    connection.recv().await.unwrap().unwrap();
                    micros.push(start.elapsed().as_nanos() as f64 / 1e3);
                }
                median(&mut micros[WARM_UP..])
            };
            run(0, Box::pin(client))
        });
        client.join().unwrap()
    })
}

/// Megabytes of messages that arrive in a second.
fn goodput(bed: &Bed, options: &XdpOptions) -> f64 {
    let (is_over, bytes) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let client = async |mut end: LaneEnd| {
        let payload = end.payload(LONG).await;
        let start = Instant::now();
        let (mut from, mut before) = (None, 0);
        end.spin(|end| {
            while end.try_send(&payload) {}
            end.flush();
            end.take(drop);
            if from.is_none() && start.elapsed() >= SETTLING {
                (from, before) = (Some(Instant::now()), bytes.load(Relaxed));
            }
            let elapsed = from?.elapsed();
            (elapsed >= MEASURED).then(|| {
                let rate = (bytes.load(Relaxed) - before) as f64 / elapsed.as_secs_f64() / 1e6;
                is_over.store(true, Relaxed);
                rate
            })
        })
        .await
    };
    let server = async |mut end: LaneEnd| {
        end.spin(|end| {
            let goes_on = end.take(|message| _ = bytes.fetch_add(message.len() as u64, Relaxed));
            (!goes_on || is_over.load(Relaxed)).then_some(())
        })
        .await;
    };
    both(bed, options, client, server)
}

/// Something that is measured.
struct Contender {
    name: &'static str,
    measure: fn(&Bed) -> f64,
}

/// All in turns; the medians, and those of the ratios to the others of the same round. With `alone` it is that one, without ratios.
fn compare(
    what: &str,
    unit: &str,
    bed: &Bed,
    alone: Option<&str>,
    contenders: &[Contender],
    targets: &[(usize, usize, &str)],
) {
    if let Some(one) = contenders.iter().find(|one| Some(one.name) == alone) {
        let mut values: Vec<f64> = (0..ROUNDS).map(|_| (one.measure)(bed)).collect();
        return println!("{what}  {:28} {:9.2} {unit}", one.name, median(&mut values));
    }
    let round = |_| {
        let measured = |one: &Contender| {
            let measure = one.measure;
            std::thread::scope(|scope| scope.spawn(|| measure(bed)).join().unwrap())
        };
        contenders.iter().map(measured).collect()
    };
    let rounds: Vec<Vec<f64>> = (0..ROUNDS).map(round).collect();
    for (number, one) in contenders.iter().enumerate() {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[number]).collect();
        println!("{what}  {:28} {:9.2} {unit}", one.name, median(&mut values));
    }
    for (over, under, target) in targets {
        let mut ratios: Vec<f64> = rounds.iter().map(|round| round[*over] / round[*under]).collect();
        let (over, under) = (contenders[*over].name, contenders[*under].name);
        println!("{what}  {over} / {under}: {:.2} (target {target})", median(&mut ratios));
    }
}

fn main() {
    // `cargo test` runs benches as well, with an argument that says so.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut said = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let (only, alone) = (said.next(), said.next());
    let alone = alone.as_deref();
    let wants = |what: &str| only.as_ref().is_none_or(|only| what.contains(only.as_str()));
    let Some(bed) = Bed::veth(1, 1500) else { return };
    if wants("round trip") {
        let contenders = [
            Contender { name: "kernel UDP", measure: |bed| raw::round_trip(bed, By::Kernel, SHORT) },
            Contender { name: "device", measure: |bed| raw::round_trip(bed, By::Device(Mode::Copy), SHORT) },
            Contender { name: "lane", measure: lane_round_trip },
            Contender { name: "connection", measure: connection_round_trip },
        ];
        let targets = [(2, 1, "<= 1.25"), (2, 0, "< 1.00"), (3, 1, "none")];
        compare("round trip 64 B", "us", &bed, alone, &contenders, &targets);
    }
    if wants("one way") {
        let contenders = [
            Contender {
                name: "device",
                measure: |bed| raw::one_way(bed, By::Device(Mode::Copy), DATAGRAM) * DATAGRAM as f64 / 1e3,
            },
            Contender { name: "lane", measure: |bed| goodput(bed, &in_mode(Mode::Copy)) },
            Contender { name: "lane, 1 % lost", measure: |bed| goodput(bed, &lossy(0.01)) },
        ];
        let targets = [(1, 0, ">= 0.80"), (2, 1, ">= 0.70")];
        compare("one way 1 MiB", "MB/s", &bed, alone, &contenders, &targets);
    }
}

/// At both ends, so acknowledgements are lost as well.
fn lossy(lost: f64) -> XdpOptions {
    let mut options = in_mode(Mode::Copy);
    options.faults = Some(Faults { lost, damaged: 0.0 });
    options
}
