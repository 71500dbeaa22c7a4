//! Peers that lie, go or keep silent while memory and bells are exchanged: each time a typed error, and nothing is left.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::fs::File;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use common::process::{descriptors, mappings};
use common::*;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use zc_core::transport::*;
use zc_transport_shm::{ShmOptions, ShmTransport};

/// Nothing else in this program may open and close descriptors while they are counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a side comes to.
#[derive(Clone, Copy)]
enum Want {
    Joined,
    /// A lie about this.
    Lie(&'static str),
    Unavailable(&'static str),
    Link,
}

impl Want {
    fn check(self, what: &str, got: Result<Lane, WireupError>) {
        let fits = match (self, &got) {
            (Self::Joined, Ok(_)) => true,
            (Self::Lie(field), Err(WireupError::Wire(error))) => error.to_string().contains(field),
            (Self::Unavailable(code), Err(WireupError::Unavailable(why))) => why.code() == code,
            (Self::Link, Err(WireupError::Link(LinkError::Io { .. }))) => true,
            _ => false,
        };
        assert!(fits, "{what}: {:?}", got.map(|lane| lane.caps));
    }

    /// Whether the link must be good for another transport.
    fn leaves_link(self) -> bool {
        matches!(self, Self::Lie(_) | Self::Unavailable(_))
    }
}

fn setup(trust: Trust) -> Setup {
    Setup { trust, ..Setup::default() }
}

fn offer(setup: &Setup) -> Offer {
    ShmTransport::new(setup.options.clone()).offer(&setup.context().0).unwrap()
}

/// Comes up, or does not, with a peer that made this offer.
async fn join(
    link: &mut Option<Box<dyn ControlLink>>,
    setup: &Setup,
    peer: Offer,
) -> Result<Lane, WireupError> {
    let (cx, ..) = setup.context();
    let transport = ShmTransport::new(setup.options.clone());
    let mine = transport.offer(&cx).unwrap();
    transport.join(Role::Server, mine, peer, link, cx).await
}

/// What an honest peer sends: its memory and its bell.
async fn honest(setup: &Setup) -> [OwnedFd; 2] {
    let (evil, good) = links().await;
    let (mut evil, mut good) = (evil, Some(good));
    let peer = offer(setup);
    let mut join = std::pin::pin!(join(&mut good, setup, peer));
    let got = poll_fn(|cx| {
        assert!(join.as_mut().poll(cx).is_pending());
        evil.poll_recv_descriptors(cx, 2)
    });
    got.await.unwrap().try_into().unwrap()
}

async fn pass(link: &mut dyn ControlLink, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    poll_fn(|cx| link.poll_send_descriptors(cx, &fds)).await.unwrap();
}

/// The peer offers and sends this. A link that must not be lost is used afterwards.
async fn refused(what: &str, setup: &Setup, peer: Offer, fds: Vec<OwnedFd>, want: Want) {
    let before = descriptors() - fds.len();
    let (mut evil, good) = links().await;
    pass(&mut *evil, &fds).await;
    drop(fds);
    let mut good = Some(good);
    want.check(what, join(&mut good, setup, peer).await);
    if want.leaves_link() {
        let good = good.as_mut().expect("the link is there");
        // It got our byte, and whatever follows is what it sends next.
        poll_fn(|cx| evil.poll_recv_descriptors(cx, 2)).await.unwrap();
        poll_fn(|cx| evil.poll_write(cx, b"next")).await.unwrap();
        let mut next = [0; 9];
        assert_eq!(poll_fn(|cx| good.poll_read(cx, &mut next)).await.unwrap(), 4, "{what}");
        assert_eq!(&next[..4], b"next", "{what}");
    }
    drop((evil, good));
    nothing_is_left(what, before);
}

fn nothing_is_left(what: &str, descriptors_before: usize) {
    assert_eq!(mappings(), 0, "{what}: memory is left");
    assert_eq!(descriptors(), descriptors_before, "{what}: descriptors are left");
}

/// Tokio's own descriptors are there once something waits.
async fn warm_up() {
    drop(links().await);
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[test]
fn lies_in_the_offer() {
    let _alone = alone();
    run(async {
        warm_up().await;
        let setup = setup(Trust::Cooperative);
        let right = offer(&setup);
        // Its words: slots, returns, block length, blocks, most bytes in two, user, process, flags, nothing.
        let with = |word: usize, value: u32| {
            let mut offer = right.clone();
            offer.bytes[4 * word..][..4].copy_from_slice(&value.to_le_bytes());
            offer
        };
        let of_len = |len: usize| Offer {
            bytes: [&right.bytes[..], &[0; 40]].concat()[..len].to_vec(),
            ..right.clone()
        };
        let lie = Want::Lie;
        let cases = [
            ("version", Offer { version: right.version + 1, ..right.clone() }, lie("shm version")),
            ("version 0", Offer { version: 0, ..right.clone() }, lie("shm version")),
            ("nothing", of_len(0), lie("shm offer length")),
            ("too short", of_len(39), lie("shm offer length")),
            ("too long", of_len(41), lie("shm offer length")),
            ("no slots", with(0, 0), lie("shm ring slots")),
            ("slots that are no power of two", with(0, 255), lie("shm ring slots")),
            ("slots without end", with(0, 1 << 31), lie("shm ring slots")),
            ("another return ring", with(1, 2048), lie("shm return ring")),
            ("no block length", with(2, 0), lie("shm block length")),
            ("odd block length", with(2, 4161), lie("shm block length")),
            ("blocks without end", with(2, u32::MAX - 63), lie("shm block length")),
            ("no blocks", with(3, 0), lie("shm blocks")),
            ("more blocks than have numbers", with(3, u32::MAX), lie("shm blocks")),
            ("a flag that is none", with(8, 2), lie("shm offer flags")),
            ("a word that is none", with(9, 1), lie("shm offer flags")),
            // Who it is says the kernel; what it says chooses the bells.
            ("another user with our bell", with(6, u32::MAX), lie("shm bell")),
            // Right, and not what the memory says.
            ("more slots", with(0, 512), lie("of another size")),
            ("fewer slots", with(0, 128), lie("of another size")),
        ];
        for (what, peer, want) in cases {
            let fds = honest(&setup).await.into();
            refused(what, &setup, peer, fds, want).await;
        }
        for why in [Unavailable::DifferentHost, Unavailable::HostNotProved] {
            let elsewhere = Setup { same_host: Err(why.clone()), ..setup.clone() };
            refused("another host", &elsewhere, right.clone(), Vec::new(), Want::Unavailable(why.code()))
                .await;
        }
    });
}

/// A memfd of so many bytes, with pages for the first ones and these seals; its first bytes are `head`.
fn memfd(bytes: u64, there: u64, seals: SealFlags, head: &[u8]) -> OwnedFd {
    let file: File =
        rustix::fs::memfd_create("zc-join-test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
    file.set_len(bytes).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, there).unwrap();
    file.write_all_at(head, 0).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

/// Of other kinds than any that is asked for.
fn odd_kinds() -> Vec<(&'static str, OwnedFd)> {
    let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
    vec![
        ("the end of a pipe to read", rustix::pipe::pipe().unwrap().0),
        ("the end of a pipe to write", rustix::pipe::pipe().unwrap().1),
        ("a datagram socket", UnixDatagram::unbound().unwrap().into()),
        ("a tcp socket", std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()),
        ("a directory", open("/proc/self")),
        ("a file", open("/proc/self/exe")),
        ("/dev/zero", open("/dev/zero")),
        ("/dev/null", open("/dev/null")),
        ("a file of the kernel's", open("/proc/self/maps")),
    ]
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

fn stream() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

#[test]
fn memory_that_is_none() {
    let _alone = alone();
    run(async {
        warm_up().await;
        for trust in [Trust::Cooperative, Trust::Untrusted] {
            let setup = setup(trust);
            let [memory, bell] = honest(&setup).await;
            let size = rustix::fs::fstat(&memory).unwrap().st_size as u64;
            let mut head = [0; 32];
            File::from(memory).read_exact_at(&mut head, 0).unwrap();
            let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
            let made = |bytes, seals| memfd(bytes, bytes, seals, &head);
            let mut cases = vec![
                ("as it should be", made(size, all), Want::Joined),
                ("unsealed", made(size, SealFlags::empty()), Want::Lie("not sealed")),
                ("writable", made(size, all - SealFlags::FUTURE_WRITE), Want::Lie("not sealed")),
                ("it can shrink", made(size, all - SealFlags::SHRINK), Want::Lie("not sealed")),
                ("a page less", made(size - 4096, all), Want::Lie("another size")),
                ("a byte less", made(size - 1, all), Want::Lie("another size")),
                ("a page more", made(size + 4096, all), Want::Lie("another size")),
                ("nothing", made(4096, all), Want::Lie("another size")),
                ("a hole at its end", memfd(size, size - 4096, all, &head), Want::Lie("holes")),
                ("holes alone", memfd(size, 4096, all, &head), Want::Lie("holes")),
                ("no header", memfd(size, size, all, &[]), Want::Lie("shm header")),
                ("an eventfd", eventfd(), Want::Lie("not sealed")),
                ("a stream socket", stream(), Want::Lie("not sealed")),
            ];
            for at in [0, 7, 8, 16, 31] {
                let mut wrong = head;
                wrong[at] ^= 1;
                cases.push(("another header", memfd(size, size, all, &wrong), Want::Lie("shm header")));
            }
            cases.extend(odd_kinds().into_iter().map(|(what, fd)| (what, fd, Want::Lie("not sealed"))));
            for (what, memory, want) in cases {
                let fds = vec![memory, bell.try_clone().unwrap()];
                refused(what, &setup, offer(&setup), fds, want).await;
            }
        }
    });
}

#[test]
fn bells_that_are_none() {
    let _alone = alone();
    run(async {
        warm_up().await;
        for trust in [Trust::Cooperative, Trust::Untrusted] {
            let setup = setup(trust);
            let [memory, bell] = honest(&setup).await;
            let lie = Want::Lie("shm bell");
            let other = if trust == Trust::Cooperative { stream() } else { eventfd() };
            let mut cases =
                vec![("the other kind", other, lie), ("memory", memory.try_clone().unwrap(), lie)];
            cases.extend(odd_kinds().into_iter().map(|(what, fd)| (what, fd, lie)));
            cases.push(("a bell", bell.try_clone().unwrap(), Want::Joined));
            for (what, bell, want) in cases {
                refused(what, &setup, offer(&setup), vec![memory.try_clone().unwrap(), bell], want).await;
            }
        }
    });
}

#[test]
fn too_many_and_too_few_descriptors() {
    let _alone = alone();
    run(async {
        warm_up().await;
        for trust in [Trust::Cooperative, Trust::Untrusted] {
            let setup = setup(trust);
            let [memory, bell] = honest(&setup).await;
            let some = |which: &str| {
                let fd = |c| if c == 'm' { memory.try_clone() } else { bell.try_clone() };
                which.chars().map(|c| fd(c).unwrap()).collect::<Vec<_>>()
            };
            let none = Want::Unavailable("peer_failed");
            for (which, want) in [
                ("", none),
                ("m", none),
                ("b", none),
                ("bm", Want::Lie("shm bell")),
                ("mm", Want::Lie("shm bell")),
                ("bb", Want::Lie("not sealed")),
                ("mb", Want::Joined),
                ("mbb", Want::Link),
                ("mbmbmbmb", Want::Link),
            ] {
                refused(which, &setup, offer(&setup), some(which), want).await;
            }
        }
    });
}

/// The byte that descriptors come with has any value, and comes alone too.
#[test]
fn bytes_without_descriptors() {
    let _alone = alone();
    run(async {
        warm_up().await;
        let setup = setup(Trust::Cooperative);
        for bytes in [&[0][..], &[255], &[1, 2, 3, 4]] {
            let before = descriptors();
            let (mut evil, good) = links().await;
            poll_fn(|cx| evil.poll_write(cx, bytes)).await.unwrap();
            let mut good = Some(good);
            Want::Unavailable("peer_failed").check("bytes", join(&mut good, &setup, offer(&setup)).await);
            // One byte was taken.
            let mut rest = [0; 9];
            if bytes.len() > 1 {
                let left = poll_fn(|cx| good.as_mut().unwrap().poll_read(cx, &mut rest)).await.unwrap();
                assert_eq!(rest[..left], bytes[1..]);
            }
            drop((evil, good));
            nothing_is_left("bytes", before);
        }
    });
}

/// How far a peer goes with it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Nothing,
    Sent,
    Received,
}

/// Our link and the peer's, who has sent what it is to send or not.
async fn go_so_far(step: Step, setup: &Setup) -> (Option<Box<dyn ControlLink>>, Box<dyn ControlLink>) {
    let fds = honest(setup).await;
    let (mut evil, good) = links().await;
    if step == Step::Sent {
        pass(&mut *evil, &fds).await;
    }
    (Some(good), evil)
}

#[test]
fn peers_that_go_at_each_step() {
    let _alone = alone();
    run(async {
        warm_up().await;
        for trust in [Trust::Cooperative, Trust::Untrusted] {
            let setup = setup(trust);
            for step in [Step::Nothing, Step::Sent] {
                let before = descriptors();
                let (mut good, evil) = go_so_far(step, &setup).await;
                drop(evil);
                Want::Link.check("gone", join(&mut good, &setup, offer(&setup)).await);
                drop(good);
                nothing_is_left("gone before we sent", before);
            }
            for step in [Step::Nothing, Step::Received] {
                let before = descriptors();
                let (mut good, mut evil) = go_so_far(step, &setup).await;
                let mut join = Box::pin(join(&mut good, &setup, offer(&setup)));
                // Until our byte is out, and perhaps read.
                let mut out = false;
                poll_fn(|cx| {
                    assert!(join.as_mut().poll(cx).is_pending());
                    if step == Step::Received {
                        return evil.poll_recv_descriptors(cx, 2).map(drop);
                    }
                    cx.waker().wake_by_ref();
                    if std::mem::replace(&mut out, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                drop(evil);
                Want::Link.check("gone", join.as_mut().await);
                drop(join);
                drop(good);
                nothing_is_left("gone after we sent", before);
            }
            // Its stream ends, and it still reads.
            let before = descriptors();
            let (mut good, mut evil) = go_so_far(Step::Nothing, &setup).await;
            poll_fn(|cx| evil.poll_shutdown(cx)).await.unwrap();
            Want::Link.check("shut down", join(&mut good, &setup, offer(&setup)).await);
            drop((good, evil));
            nothing_is_left("shut down", before);
        }
    });
}

/// Who waits for a peer that keeps silent sets itself an end, as the facade does, and has everything back then.
#[test]
fn peers_that_keep_silent_at_each_step() {
    let _alone = alone();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    rt.block_on(async {
        warm_up().await;
        for trust in [Trust::Cooperative, Trust::Untrusted] {
            let setup = setup(trust);
            for step in [Step::Nothing, Step::Received, Step::Sent] {
                let before = descriptors();
                let (mut good, mut evil) = go_so_far(step, &setup).await;
                if step == Step::Sent {
                    // It never reads: there is no room for our byte.
                    fill(good.as_mut().unwrap()).await;
                }
                let start = tokio::time::Instant::now();
                let deadline = Duration::from_secs(10);
                let peer = offer(&setup);
                let silent = async {
                    if step == Step::Received {
                        poll_fn(|cx| evil.poll_recv_descriptors(cx, 2)).await.unwrap();
                    }
                    std::future::pending::<()>().await;
                };
                let both = futures::future::join(join(&mut good, &setup, peer), silent);
                assert!(tokio::time::timeout(deadline, both).await.is_err(), "{step:?}");
                assert!(start.elapsed() >= deadline);
                drop((good, evil));
                nothing_is_left(&format!("{step:?}"), before);
            }
        }
    });
}

async fn fill(link: &mut Box<dyn ControlLink>) {
    poll_fn(|cx| {
        loop {
            match link.poll_write(cx, &[0; 4096]) {
                Poll::Ready(written) => drop(written.unwrap()),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// A peer with other options is none that lies.
#[test]
fn the_other_side_may_have_another_ring() {
    let _alone = alone();
    run(async {
        let mut small = setup(Trust::Cooperative);
        small.options = ShmOptions::default();
        small.options.ring_slots = 32;
        let (mut a, mut b) = pair_of(&small, &Setup::default()).await;
        a.send(data(1, body(5000, 1))).await.unwrap();
        assert!(b.recv().await.unwrap()[0].payload == body(5000, 1)[..]);
    });
}
