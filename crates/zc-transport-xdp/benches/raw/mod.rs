//! What moves packets without a protocol: the kernel's own UDP, and a device. Both ends are pinned to a core each and spin.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use zc_transport_xdp::device::{
    Device, DeviceOptions, Mode, OpenError, Packet, Queue, SendFault, Umem, UmemOptions,
};
use zc_transport_xdp::program::Rules;

use crate::bed::frame::{Party, Sum, headers, turn_round};
use crate::bed::{Bed, End, NAME};

const PORT: u16 = 7000;
pub(crate) const ROUNDS: usize = 5;
pub(crate) const TRIPS: usize = 20_000;
pub(crate) const WARM_UP: usize = 500;
const ONE_WAY: Duration = Duration::from_millis(400);
/// Packets put on the ring before the kernel is told.
const BATCH: usize = 64;

/// Who moves the packets.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum By {
    Kernel,
    Device(Mode),
}

pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

fn party(end: &End) -> Party {
    Party { mac: end.mac, address: (end.v4, PORT).into() }
}

fn queue(end: &End, mode: Mode) -> Queue {
    let umem = Umem::new(&UmemOptions::default()).unwrap();
    let rules = Rules { ports: vec![PORT], ..Rules::default() };
    let options = DeviceOptions { rules, best: mode, worst: mode, ..DeviceOptions::default() };
    let begun = Instant::now();
    loop {
        match end.run(|| Device::open(NAME, &umem, &options)) {
            // A lane that went before closes its interface in a thread of its own.
            Err(OpenError::InUse { .. }) if begun.elapsed() < Duration::from_secs(5) => {
                std::thread::sleep(Duration::from_millis(1))
            }
            opened => return opened.unwrap().into_queues().pop().unwrap(),
        }
    }
}

fn socket(end: &End, other: &End) -> UdpSocket {
    let socket = end.run(|| UdpSocket::bind((end.v4, PORT))).unwrap();
    socket.connect((other.v4, PORT)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn message(from: &End, to: &End, len: usize) -> Vec<u8> {
    let payload = vec![7; len];
    let mut frame = headers(party(from), party(to), None, &payload, Sum::Here);
    frame.extend(payload);
    frame
}

/// Takes what is there, until told to end.
fn echo(queue: &mut Queue, end: &AtomicBool) {
    let mut packets: Vec<Packet> = Vec::with_capacity(BATCH);
    while !end.load(Relaxed) {
        queue.receive(BATCH, &mut packets).unwrap();
        if packets.is_empty() {
            std::hint::spin_loop();
            continue;
        }
        for mut packet in packets.drain(..) {
            turn_round(packet.head_mut());
            queue.send(packet).unwrap();
        }
        queue.flush().unwrap();
        queue.reap().unwrap();
    }
}

pub(crate) fn timed(mut trip: impl FnMut()) -> f64 {
    let mut micros: Vec<f64> = (0..TRIPS + WARM_UP)
        .map(|_| {
            let start = Instant::now();
            trip();
            start.elapsed().as_nanos() as f64 / 1e3
        })
        .collect();
    median(&mut micros[WARM_UP..])
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Microseconds of a round trip.
pub(crate) fn round_trip(bed: &Bed, by: By, len: usize) -> f64 {
    let end = &AtomicBool::new(false);
    std::thread::scope(|scope| match by {
        By::Kernel => {
            let (near, far) = (socket(&bed.near, &bed.far), socket(&bed.far, &bed.near));
            scope.spawn(move || {
                pin(1);
                let mut buffer = [0; 2048];
                while !end.load(Relaxed) {
                    if let Ok(len) = far.recv(&mut buffer) {
                        far.send(&buffer[..len]).unwrap();
                    }
                }
            });
            pin(0);
            let mut buffer = vec![7; 2048];
            let micros = timed(|| {
                near.send(&buffer[..len]).unwrap();
                while near.recv(&mut buffer).is_err() {}
            });
            end.store(true, Relaxed);
            micros
        }
        By::Device(mode) => {
            let (mut near, mut far) = (queue(&bed.near, mode), queue(&bed.far, mode));
            scope.spawn(move || {
                pin(1);
                echo(&mut far, end);
            });
            pin(0);
            let bytes = message(&bed.near, &bed.far, len);
            let mut frame = near.umem().allocate(256).unwrap();
            frame.put_slice(&bytes);
            let frame = frame.freeze();
            let mut packets = Vec::with_capacity(BATCH);
            let micros = timed(|| {
                near.send(frame.clone()).unwrap();
                near.flush().unwrap();
                while near.receive(BATCH, &mut packets).unwrap() == 0 {
                    std::hint::spin_loop();
                }
                packets.clear();
                near.reap().unwrap();
            });
            end.store(true, Relaxed);
            micros
        }
    })
}

/// Thousands of packets that arrive in a second.
pub(crate) fn one_way(bed: &Bed, by: By, len: usize) -> f64 {
    let (end, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (end, count) = (&end, &count);
    std::thread::scope(|scope| {
        let start = match by {
            By::Kernel => {
                let (near, far) = (socket(&bed.near, &bed.far), socket(&bed.far, &bed.near));
                far.set_nonblocking(false).unwrap();
                far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                scope.spawn(move || {
                    pin(1);
                    let mut buffer = [0; 2048];
                    while !end.load(Relaxed) {
                        count.fetch_add(u64::from(far.recv(&mut buffer).is_ok()), Relaxed);
                    }
                });
                pin(0);
                let (start, payload) = (Instant::now(), vec![7; len]);
                while start.elapsed() < ONE_WAY {
                    let _ = near.send(&payload);
                }
                start
            }
            By::Device(mode) => {
                let (mut near, mut far) = (queue(&bed.near, mode), queue(&bed.far, mode));
                scope.spawn(move || {
                    pin(1);
                    let mut packets = Vec::with_capacity(BATCH);
                    let mut seen = 0u64;
                    while !end.load(Relaxed) {
                        if far.receive(BATCH, &mut packets).unwrap() == 0 {
                            std::hint::spin_loop();
                        }
                        for packet in packets.drain(..) {
                            seen += u64::from(packet.head()[42] == 7);
                        }
                        count.store(seen, Relaxed);
                    }
                });
                pin(0);
                send_for_a_while(&mut near, &message(&bed.near, &bed.far, len))
            }
        };
        let rate = count.load(Relaxed) as f64 / start.elapsed().as_secs_f64() / 1e3;
        end.store(true, Relaxed);
        rate
    })
}

fn send_for_a_while(queue: &mut Queue, bytes: &[u8]) -> Instant {
    let frames: Vec<_> = (0..2 * BATCH)
        .map(|_| {
            let mut frame = queue.umem().allocate(256).unwrap();
            frame.put_slice(bytes);
            frame.freeze()
        })
        .collect();
    let start = Instant::now();
    let mut next = frames.iter().cycle();
    while start.elapsed() < ONE_WAY {
        for frame in next.by_ref().take(BATCH) {
            if let Err(refused) = queue.send(frame.clone()) {
                assert_eq!(refused.fault, SendFault::Full);
                break;
            }
        }
        queue.flush().unwrap();
        queue.reap().unwrap();
    }
    start
}
