//! A layer-4 load balancer: UDP for a virtual address comes in on one interface, and goes out of another one to the
//! backend that a consistent hash of its flow picks. The frame that a packet came in is the frame it goes out of.
//!
//! ```console
//! $ sudo xdp_forward eth0 eth1 10.0.0.100:53 10.1.0.11 10.1.0.12
//! ```
//!
//! Only Ethernet addresses and the time to live are rewritten. Every backend has the virtual address on its loopback
//! interface and answers clients directly (direct server return), so answers do not pass through here. IPv4 only. With
//! `--checksums` in front that of UDP is computed anew: a kernel that sends over a veth leaves it out.

#![allow(missing_docs, clippy::print_stdout, reason = "a program")]

mod forward;
mod maglev;
mod packet;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use forward::{Balancer, Counts, Service};

const USAGE: &str = "xdp_forward [--checksums] FROM-INTERFACE TO-INTERFACE VIRTUAL-IPV4:PORT BACKEND-IPV4...";

fn service() -> Option<Service> {
    let mut arguments = std::env::args().skip(1).peekable();
    let checksums = arguments.next_if(|text| text == "--checksums").is_some();
    let (from, to) = (arguments.next()?, arguments.next()?);
    let address = arguments.next()?.parse().ok()?;
    let backends: Vec<_> = arguments.map(|text| text.parse().ok()).collect::<Option<_>>()?;
    (!backends.is_empty()).then_some(Service { from, to, address, backends, checksums })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = service().ok_or(USAGE)?;
    let counts = Counts::of(service.backends.len());
    let mut balancer = Balancer::open(&service)?;
    std::thread::scope(|scope| {
        // Ctrl-C ends the process, and with it everything.
        scope.spawn(|| report(&service, &counts));
        balancer.run(&counts, &AtomicBool::new(false))
    })?;
    Ok(())
}

fn report(service: &Service, counts: &Counts) {
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let each: Vec<u64> = counts.backends.iter().map(|count| count.load(Relaxed)).collect();
        let all = each.iter().sum::<u64>();
        println!("{} packets/s, {} dropped in all", all - before, counts.dropped.load(Relaxed));
        before = all;
        for (backend, count) in service.backends.iter().zip(each) {
            println!("  {backend}: {count}");
        }
    }
}
