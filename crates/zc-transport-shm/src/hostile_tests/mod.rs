//! A peer that writes anything at any time into every page it has and sends anything on the link.

mod any_step;
mod arenas;
mod bells;
mod ends;
mod groups;
mod in_parts;
mod scribbler;
mod sent_back;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, Waker};

use zc_core::memory::{Backing, BufPool, MemoryGroup, PinnedBuf, Region};
use zc_core::transport::*;

use crate::common::{End, Setup, body, data, links, try_end};
use crate::layout::{Geometry, Head, REMOTE_RING, Return, SLOT_WORDS};
use crate::limits::{REMOTE_SLOTS, RING_SLOTS};
use crate::sys;
use crate::transport::own_uid;
use crate::words::{OwnWords, WriteWords};

/// The evil side: writable memory of its own, and the link.
pub(crate) struct Evil {
    pub(crate) words: OwnWords,
    geometry: Geometry,
    region: Region,
    pub(crate) link: Box<dyn ControlLink>,
    slot: u64,
    returned: u64,
    said: u64,
    pub(crate) theirs: Vec<OwnedFd>,
}

pub(crate) async fn join(trust: Trust) -> (End, Evil) {
    join_with(trust, RING_SLOTS).await
}

/// With so many slots of the evil side.
async fn join_with(trust: Trust, slots: u32) -> (End, Evil) {
    let (mut evil, good) = links().await;
    let geometry = Geometry::new(slots);
    let offer =
        crate::offer::ShmOffer { geometry, max_arena_bytes: 64 << 20, uid: own_uid(), pid: 1, wary: false };
    let offer = Offer { version: crate::offer::VERSION, bytes: offer.encode() };
    let region = sys::create(geometry.bytes()).unwrap();
    let words = OwnWords::new(&region, geometry.bytes());
    geometry.write(&words);
    let bell: OwnedFd = match trust {
        Trust::Cooperative => rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(),
        Trust::Untrusted => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
    };
    let setup = Setup { trust, pool_bytes: 16 << 20, ..Setup::default() };
    let fds = [region.fd().unwrap(), bell.as_fd()];
    std::future::poll_fn(|cx| evil.poll_send_descriptors(cx, &fds)).await.unwrap();
    let end = try_end(good, Role::Server, &setup, Some(offer)).await.unwrap();
    let theirs = std::future::poll_fn(|cx| evil.poll_recv_descriptors(cx, 2)).await.unwrap();
    let evil = Evil { words, geometry, region, link: evil, slot: 0, returned: 0, said: 0, theirs };
    (end, evil)
}

impl Evil {
    fn slot(&mut self, head: Head, seq: u64, words: &[u64]) {
        let slots = u64::from(self.geometry.slots);
        let at = self.geometry.ring_at() + (self.slot % slots) as usize * SLOT_WORDS;
        self.words.store(at + 1, seq);
        words.iter().enumerate().for_each(|(i, word)| self.words.store(at + 2 + i, *word));
        self.words.publish(at, head.pack((self.slot / slots) as u32 + 1));
        self.slot += 1;
    }

    fn give_back(&mut self, back: Return) {
        let entries = u64::from(self.geometry.returns);
        let at = self.geometry.returns_at() + (self.returned % entries) as usize;
        self.words.publish(at, back.pack((self.returned / entries) as u16 + 1));
        self.returned += 1;
    }

    /// What the one-sided half says.
    pub(crate) fn say(&mut self, head: Head, words: &[u64]) {
        let slots = u64::from(REMOTE_SLOTS);
        let at = REMOTE_RING + (self.said % slots) as usize * SLOT_WORDS;
        words.iter().enumerate().for_each(|(i, word)| self.words.store(at + 2 + i, *word));
        self.words.publish(at, head.pack((self.said / slots) as u32 + 1));
        self.said += 1;
    }

    fn arena(&mut self, bytes: u64, sealed: bool, cx: &mut Context<'_>) {
        let fd: OwnedFd = match sealed {
            true => match sys::create((bytes as usize).next_multiple_of(4096).max(4096)) {
                Ok(region) => region.fd().unwrap().try_clone_to_owned().unwrap(),
                Err(_) => return,
            },
            false => std::fs::File::open("/dev/null").unwrap().into(),
        };
        let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); if bytes.is_multiple_of(7) { 2 } else { 1 }];
        let _ = self.link.poll_send_descriptors(cx, &fds);
    }
}

async fn send_arenas(evil: &mut Evil, count: usize) {
    let region = sys::create(4096).unwrap();
    for _ in 0..count {
        std::future::poll_fn(|cx| evil.link.poll_send_descriptors(cx, &[region.fd().unwrap()]))
            .await
            .unwrap();
    }
}

/// A message in memory of the lane, sent, and a clone of it.
async fn send_own(good: &mut End, len: usize) -> PinnedBuf {
    let mut buf = good.alloc(len).await;
    buf.put_slice(&body(len, 1));
    let keep = buf.freeze();
    good.send(data(1, keep.clone())).await.unwrap();
    keep
}

fn first_block() -> u32 {
    Geometry::new(RING_SLOTS).first_block()
}

/// What the sending half finds when it looks at the return ring.
fn look(good: &mut End) -> Option<LaneError> {
    let mut cx = Context::from_waker(Waker::noop());
    match good.lane.tx.poll_completions(&mut cx, &mut Batch::new()) {
        Poll::Ready(Err(error)) => Some(error),
        _ => None,
    }
}

fn group() -> MemoryGroup {
    MemoryGroup::forwarding(BufPool::builder().backing(Backing::Memfd).max_bytes(8 << 20))
}
