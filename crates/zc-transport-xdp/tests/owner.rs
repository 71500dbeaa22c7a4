//! Who owns an interface, and with which rights: killed owners, and owners that were granted what they may not open.
//!
//! The other process is this program again, in the namespace of the test.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod bed;

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, End, GUARD, NAME, skipped, until};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use zc_core::transport::Unavailable;
use zc_transport_xdp::device::{
    Device, DeviceOptions, Grant, GrantParts, Mode, OpenError, Umem, UmemOptions,
};
use zc_transport_xdp::netlink::{Interface, Neighbour, Route};
use zc_transport_xdp::program::Rules;

const PORT: u16 = 7000;
/// Set in the other process: what it does.
const ROLE: &str = "ZC_TEST_XDP_ROLE";

fn options() -> DeviceOptions {
    DeviceOptions {
        rules: Rules { ports: vec![PORT], ..Rules::default() },
        best: Mode::ZeroCopy,
        rx_entries: 256,
        tx_entries: 256,
        fill_frames: Some(256),
        ..DeviceOptions::default()
    }
}

/// With what makes modes differ in how memory is made known.
fn all_modes() -> DeviceOptions {
    DeviceOptions { checksums: true, ..options() }
}

fn umem(frames: u32) -> Umem {
    Umem::new(&UmemOptions { frames, ..UmemOptions::default() }).unwrap()
}

/// Gives everything up, this thread.
fn give_up_rights() {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).unwrap();
}

fn may_open() -> bool {
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::BPF;
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    if !may {
        skipped("AF_XDP", "it takes CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF");
    }
    may
}

/// The other process; without the variable there is nothing to do.
#[test]
fn other_process() {
    match std::env::var(ROLE).as_deref() {
        Ok("own") => own(),
        Ok("granted") => granted(),
        Ok("user namespace") => in_a_user_namespace(),
        _ => {}
    }
}

/// Owns the interface and echoes nothing, until it is killed.
fn own() {
    let umem = umem(1024);
    let mut device = Device::open(NAME, &umem, &options()).unwrap();
    let mut packets = Vec::new();
    println!("\nready");
    loop {
        for queue in device.queues_mut() {
            queue.receive(64, &mut packets).unwrap();
            // Some on their way out, too.
            packets.drain(..).for_each(|packet| drop(queue.send(packet)));
            queue.flush().unwrap();
        }
    }
}

/// Gets its descriptors from the process that has rights, and has none itself.
fn granted() {
    let input = std::io::stdin();
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(input.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    give_up_rights();
    let refused = Device::open(NAME, &umem(1024), &options()).unwrap_err();
    println!("\nalone: {}", Unavailable::from(refused).code());
    let parts = GrantParts { bytes: bytes[..got.bytes].into(), descriptors };
    // SAFETY: the other process is this program, which keeps none of the sockets.
    let grant = unsafe { Grant::from_parts(parts) }.unwrap();
    let umem = umem(1024);
    let mut device = Device::start(grant, &umem, &all_modes()).unwrap();
    println!("granted: {} after {} others", device.report().mode, device.report().tried.len());
    device.attachment().add_port(PORT + 1).unwrap();
    let mut packets = Vec::new();
    println!("ready");
    until("a packet", || {
        for queue in device.queues_mut() {
            queue.receive(1, &mut packets).unwrap();
        }
        (!packets.is_empty()).then_some(())
    });
    println!("got {}", packets[0].len());
    // Until we are told to end.
    let _ = input.lock().read(&mut [0]);
}

/// Root there, and nobody elsewhere.
fn in_a_user_namespace() {
    let refused = Device::open("lo", &umem(1024), &options()).unwrap_err();
    let why = Unavailable::from(refused);
    println!("\nrefused: {}\nremedy: {}", why.code(), why.remedy());
}

#[test]
fn in_a_user_namespace_there_is_a_reason() {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(own).args([
        "--exact",
        "other_process",
        "--nocapture",
    ]);
    match command.env(ROLE, "user namespace").output() {
        Ok(output) if output.status.success() => {
            let mut lines = &output.stdout[..];
            assert_eq!(said(&mut lines, "refused: "), "user_namespace");
            assert!(said(&mut lines, "remedy: ").contains("pass a grant"));
        }
        // As long as it was not the test in there that failed.
        Ok(output) if output.stdout.is_empty() => {
            skipped("a user namespace", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output) => panic!("{output:?}"),
        Err(error) => skipped("the program `unshare`", error),
    }
}

fn spawn(end: &End, role: &str, input: Stdio) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = end.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture"])
            .env(ROLE, role)
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// Reads until a line begins so; the rest of it.
fn said(output: &mut impl BufRead, wanted: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended before {wanted:?}: {seen}");
        if let Some(rest) = line.strip_prefix(wanted) {
            return rest.trim().into();
        }
        seen.push_str(&line);
    }
}

fn program(end: &End) -> Option<u32> {
    end.run(|| Interface::find(NAME).unwrap().program)
}

#[test]
fn a_killed_owner_leaves_nothing_attached() {
    if !may_open() {
        return;
    }
    let Some(bed) = Bed::new(2, 1500) else { return };
    for round in 0..3 {
        let (mut child, mut output) = spawn(&bed.near, "own", Stdio::null());
        said(&mut output, "ready");
        assert!(program(&bed.near).is_some());
        let umem = umem(1024);
        let refused = bed.near.run(|| Device::open(NAME, &umem, &options())).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        // In the middle of traffic.
        let client = bed.far.run(|| UdpSocket::bind((bed.far.v4, 0))).unwrap();
        (0..200 * round).for_each(|_| drop(client.send_to(&[0; 100], (bed.near.v4, PORT))));
        child.kill().unwrap();
        child.wait().unwrap();
        until("the program to be detached", || program(&bed.near).is_none().then_some(()));
        the_kernel_has_its_packets(&bed, &client);
    }
}

/// From before it has the interface to the middle of traffic.
#[test]
fn an_owner_may_be_killed_at_any_point() {
    const ROUNDS: u32 = 20;
    if !may_open() {
        return;
    }
    let Some(bed) = Bed::new(2, 1500) else { return };
    let client = bed.far.run(|| UdpSocket::bind((bed.far.v4, 0))).unwrap();
    let mut until_ready = Duration::ZERO;
    for round in 0..ROUNDS {
        let start = Instant::now();
        let (mut child, mut output) = spawn(&bed.near, "own", Stdio::null());
        if round == 0 {
            said(&mut output, "ready");
            until_ready = start.elapsed();
        }
        // As long again at last.
        let until_killed = until_ready * 2 * round / ROUNDS;
        while start.elapsed() < until_killed {
            client.send_to(&[0; 100], (bed.near.v4, PORT)).unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        the_kernel_has_its_packets(&bed, &client);
    }
}

/// ... after an owner was killed; and the interface has room for another one.
fn the_kernel_has_its_packets(bed: &Bed, client: &UdpSocket) {
    until("the program to be detached", || program(&bed.near).is_none().then_some(()));
    let kernel = bed.near.run(|| UdpSocket::bind((bed.near.v4, PORT))).unwrap();
    kernel.set_read_timeout(Some(GUARD)).unwrap();
    for number in 0..20u8 {
        let packet = [number; 13];
        client.send_to(&packet, (bed.near.v4, PORT)).unwrap();
        let mut got = [0; 200];
        // Others may still have been on their way.
        until("the kernel's packet", || (kernel.recv(&mut got).unwrap() == 13).then_some(()));
        assert_eq!(got[..13], packet);
    }
    drop(bed.near.run(|| Device::open(NAME, &umem(1024), &options())).unwrap());
    assert_eq!(program(&bed.near), None, "it is detached when nothing uses it");
}

/// A forked child that drops what it inherited takes nothing from its parent.
#[test]
fn a_forked_child_does_not_detach_the_program() {
    if !may_open() {
        return;
    }
    let Some(bed) = Bed::new(1, 1500) else { return };
    let umem = umem(1024);
    let mut device = bed.near.run(|| Device::open(NAME, &umem, &options())).unwrap();
    // SAFETY: the child drops the device, for which the allocator is ready after a fork, and ends without a destructor.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(device);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: waits for our child; the number is alive.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert!(program(&bed.near).is_some(), "it is the parent's");
    let client = bed.far.run(|| UdpSocket::bind((bed.far.v4, 0))).unwrap();
    client.send_to(b"still ours", (bed.near.v4, PORT)).unwrap();
    let mut packets = Vec::new();
    until("a packet", || (device.queues_mut()[0].receive(1, &mut packets).unwrap() == 1).then_some(()));
}

fn pass(to: &UnixStream, parts: GrantParts) {
    let fds: Vec<_> = parts.descriptors.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(to, &[IoSlice::new(&parts.bytes)], &mut ancillary, SendFlags::empty()).unwrap();
}

#[test]
fn what_a_parent_opens_works_in_a_child_without_rights() {
    if !may_open() {
        return;
    }
    let Some(bed) = Bed::new(2, 1500) else { return };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let grant = bed.near.run(|| Grant::open(NAME, &all_modes())).unwrap();
    let (mut child, mut output) = spawn(&bed.near, "granted", OwnedFd::from(theirs).into());
    let mut parts = grant.into_parts();
    // The driver's features are not known, as on older kernels: zero copy is tried, and refused.
    parts.bytes[3] = 0;
    pass(&ours, parts);
    assert_eq!(said(&mut output, "alone: "), "missing_capability");
    let expected = match bed.modes[0] {
        Mode::ZeroCopy => "zero copy after 0 others",
        _ => "copy (driver) after 1 others",
    };
    assert_eq!(said(&mut output, "granted: "), expected);
    said(&mut output, "ready");
    let client = bed.far.run(|| UdpSocket::bind((bed.far.v4, 0))).unwrap();
    client.send_to(&[5; 100], (bed.near.v4, PORT + 1)).unwrap();
    assert_eq!(said(&mut output, "got "), "142");
    assert!(program(&bed.near).is_some());
    ours.write_all(&[1]).unwrap();
    assert!(child.wait().unwrap().success());
    // The child had the only link.
    until("the program to be detached", || program(&bed.near).is_none().then_some(()));
}

#[test]
fn without_rights_there_is_a_reason_and_a_remedy() {
    if !may_open() {
        return;
    }
    let Some(bed) = Bed::new(1, 1500) else { return };
    let open = |keep: CapabilitySet| {
        bed.near.run(|| {
            let sets =
                CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            Device::open(NAME, &umem(1024), &options())
                .map(|device| device.report().mode)
                .map_err(Unavailable::from)
        })
    };
    let missing = |capability| Err(Unavailable::MissingCapability { capability });
    let (bpf, admin, raw) = (CapabilitySet::BPF, CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW);
    let nothing = open(CapabilitySet::empty());
    assert_eq!(nothing, missing("CAP_BPF"));
    assert!(nothing.unwrap_err().remedy().contains("CAP_BPF"));
    assert_eq!(open(admin | raw), missing("CAP_BPF"));
    assert_eq!(open(bpf | raw), missing("CAP_NET_ADMIN"));
    assert_eq!(open(bpf | admin), missing("CAP_NET_RAW"));
    assert_eq!(open(bpf | admin | raw), Ok(bed.modes[0]));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let Some(soft) = limit.current.filter(|soft| *soft < 64 << 20) else {
        return skipped("the limit of locked memory", "it is higher than what is tried here");
    };
    let too_much = bed.near.run(|| {
        let keep = bpf | admin | raw;
        let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).unwrap();
        Device::open(NAME, &umem(40_000), &options()).map(drop).map_err(Unavailable::from)
    });
    let Err(Unavailable::Memlock { need, soft: said, .. }) = too_much else { panic!("{too_much:?}") };
    assert_eq!((need, said), (40_000 * 2048, soft));
    assert_eq!(program(&bed.near), None, "nothing stays attached");
}

#[test]
fn the_kernel_says_what_it_knows_of_the_interface() {
    let Some(bed) = Bed::new(3, 2000) else { return };
    let (near, missing) = bed.near.run(|| (Interface::find(NAME).unwrap(), Interface::find("missing")));
    assert_eq!((near.mtu, near.address, near.rx_queues), (2000, Some(bed.near.mac), 3));
    assert!(near.program.is_none() && near.index > 0);
    if near.features.known {
        assert!(near.features.redirect && !near.features.zero_copy, "{:?}", near.features);
    }
    assert_eq!(missing.unwrap_err().errno(), Some(19));
    for odd in [format!("{NAME}\0x"), NAME.repeat(3), "x".repeat(65_532) + NAME] {
        let missing = bed.near.run(|| Interface::find(&odd));
        assert_eq!(missing.unwrap_err().errno(), Some(19));
    }
    for (me, other) in [(bed.near.v4, bed.far.v4), (bed.near.v6, bed.far.v6)] {
        let (route, neighbour) =
            bed.near.run(|| (Route::to(other).unwrap(), Neighbour::of(near.index, other)));
        assert_eq!((route.interface, route.gateway, route.source), (near.index, None, Some(me)));
        assert_eq!(neighbour.unwrap(), Neighbour::Known(bed.far.mac));
    }
    let nowhere = bed.near.run(|| Route::to("192.0.2.1".parse().unwrap()));
    assert_eq!(nowhere.unwrap_err().errno(), Some(101), "ENETUNREACH");
    let stranger = bed.near.run(|| Neighbour::of(near.index, "10.77.0.99".parse().unwrap()));
    assert!(!matches!(stranger, Ok(Neighbour::Known(_))));
}
