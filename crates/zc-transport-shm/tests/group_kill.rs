//! Members of a group killed with -9 while they hold its buffers, and messages of others: the hub gets back what they
//! held, memory and descriptors, and the other members go on.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use common::process::{Killed, again, as_child, descriptors};
use common::*;
use zc_core::memory::{Backing, BufPool, MemoryGroup, PinnedBuf};
use zc_core::transport::*;
use zc_transport_tcp::StreamLinks;

/// ... and what it does there.
const PART: &str = "ZC_SHM_GROUP_KILL_PART";
/// Kills of one run; many times that many under `ZC_SOAK`.
const KILLS: u64 = 40;
/// Messages to every member between two kills.
const MESSAGES: u64 = 12;
/// What each of the messages is long, and the answer that is forwarded.
const LENS: [usize; 3] = [300, 20_000, 150_000];
/// Descriptors and mappings that the steady ones may have more at one time than at another.
const MAX_STEADY: usize = 16;
const GUARD: Duration = Duration::from_secs(300);

fn message(seq: u64) -> Vec<u8> {
    body(LENS[seq as usize % LENS.len()], seq as usize)
}

/// Not a test of its own: a process that is a member.
#[test]
fn child() {
    let part = std::env::var(PART).unwrap_or_default();
    as_child(&Setup::default(), async |mut end| match &part[..] {
        "answers" => answers(&mut end).await,
        _ => holds(&mut end).await,
    });
}

/// Checks all that comes, gives it back, and answers with as much. Ends with the hub.
async fn answers(end: &mut End) {
    let mut seq = 0;
    while let Ok(frames) = end.recv().await {
        for frame in frames {
            seq += 1;
            assert!(frame.seq == seq && frame.payload == message(seq)[..], "message {seq}");
            end.lane.rx.release(frame.payload.len());
            drop(frame);
            let answer = message(seq);
            let mut buf = end.alloc(answer.len()).await;
            buf.put_slice(&answer);
            if end.send(data(seq, buf.freeze())).await.is_err() {
                return;
            }
        }
    }
}

/// Gives nothing back, and says how much it has.
async fn holds(end: &mut End) {
    let mut kept = Vec::new();
    while let Ok(frames) = end.recv().await {
        for frame in frames {
            end.lane.rx.release(frame.payload.len());
            kept.push(frame);
            if end.send(data(kept.len() as u64, vec![1; 8])).await.is_err() {
                return;
            }
        }
    }
}

struct Hub {
    name: String,
    listener: Box<dyn LinkListener>,
    group: MemoryGroup,
}

impl Hub {
    async fn admit(&mut self, part: &str) -> (Killed, End) {
        let mut command = again(&self.name);
        let child = Killed(command.env(PART, part).stderr(Stdio::inherit()).spawn().unwrap());
        let mut end = accepted(&mut *self.listener, &Setup::default()).await;
        end.lane.tx.join_group(&self.group).unwrap();
        (child, end)
    }

    fn filled(&self, seq: u64) -> PinnedBuf {
        let message = message(seq);
        let mut buf = self.group.pool().try_alloc(message.len()).expect("memory that nobody gives back");
        buf.put_slice(&message);
        buf.freeze()
    }
}

/// One frame, of which the sender is told that it was taken.
async fn take(end: &mut End) -> Frame {
    let mut frames = end.recv().await.unwrap();
    assert_eq!(frames.len(), 1);
    let frame = frames.remove(0);
    end.lane.rx.release(frame.payload.len());
    frame
}

/// Mappings, and their bytes.
fn mappings(name: &str) -> (usize, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bytes = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
    };
    let all: Vec<_> = maps.lines().filter(|line| line.contains(name)).filter_map(bytes).collect();
    (all.len(), all.iter().sum())
}

#[test]
fn killed_members_leave_the_others_everything() {
    let kills = if std::env::var_os("ZC_SOAK").is_some() { 20 * KILLS } else { KILLS };
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rounds = async {
        let name = format!("zc-shm-group-kill-{}", std::process::id());
        let reactor: Arc<dyn Reactor> = Arc::new(TokioReactor::new());
        let listener = StreamLinks.bind(&LinkAddr::UnixAbstract(name.clone()), &reactor).await.unwrap();
        // Less than those would keep who are killed.
        let pool = BufPool::builder().name("group-kill").backing(Backing::Memfd).max_bytes(8 << 20);
        let mut hub = Hub { name, listener, group: MemoryGroup::forwarding(pool) };
        let before = descriptors();
        let (_one, mut one) = hub.admit("answers").await;
        let (_other, mut other) = hub.admit("answers").await;
        let (mut seq, mut start) = (0, None);
        for kill in 0..kills {
            let (mut holder, mut holding) = hub.admit("holds").await;
            let (at, mut acks) = (kill.wrapping_mul(7919) % MESSAGES, 0);
            for round in 0..MESSAGES {
                seq += 1;
                let kept = hub.group.pool().stats().in_use_bytes;
                let buf = hub.filled(seq);
                if round == at {
                    assert!(at == 0 || kept > 0, "kill {kill} met nobody with a buffer");
                    holder.0.kill().unwrap();
                }
                let mut held = holding.send(data(2 * round + 1, buf.clone())).await.is_ok();
                for steady in [&mut one, &mut other] {
                    steady.send(data(seq, buf.clone())).await.unwrap();
                }
                drop(buf);
                for (which, steady) in [&mut one, &mut other].into_iter().enumerate() {
                    let answer = take(steady).await;
                    assert!(answer.seq == seq && answer.payload == message(seq)[..], "answer {seq}");
                    if which == 0 {
                        held &= holding.send(data(2 * round + 2, answer.payload)).await.is_ok();
                    }
                }
                if round < at {
                    assert!(held);
                    while acks < 2 * (round + 1) {
                        acks += holding.recv().await.unwrap().len() as u64;
                    }
                    let copied = holding.ledger.snapshot().copied_bytes();
                    assert_eq!(copied, 0, "kill {kill}: it was sent copies");
                }
            }
            holder.0.wait().unwrap();
            while holding.recv().await.is_ok() {}
            assert!(holding.send(data(1, vec![0; 500])).await.is_err());
            drop(holding);
            // To allocate is to look at what a steady one gave back. That the link of the killed one has ended may be heard only now:
            // then its loans are kept for it, and a steady lane looks at them when it is flushed, as its connection does.
            while hub.group.pool().stats().in_use_bytes > 0 {
                for steady in [&mut one, &mut other] {
                    drop(steady.alloc(100_000).await);
                    steady.flush().await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!((hub.group.lent_bytes(), hub.group.members()), (0, 2));
            // Arenas of the steady ones come and go; what each of those killed leaves would add up.
            let now = descriptors() + mappings("zc-shm").0 + mappings("group-kill").0;
            if kill >= kills / 4 {
                let start = *start.get_or_insert(now);
                assert!(
                    now <= start + MAX_STEADY,
                    "kill {kill}: {now} descriptors and mappings, and {start} before"
                );
            }
            assert!(mappings("group-kill").1 <= 8 << 20);
        }
        for steady in [&one, &other] {
            assert_eq!(steady.ledger.snapshot().copied_bytes(), 0, "the others are sent no copies");
        }
        drop((one, other));
        drop(hub.group);
        assert_eq!((descriptors(), mappings("zc-shm"), mappings("group-kill")), (before, (0, 0), (0, 0)));
    };
    rt.block_on(async { tokio::time::timeout(GUARD, rounds).await.expect("hangs") });
}
