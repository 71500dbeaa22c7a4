//! Memory that changes while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use zc_core::transport::*;

use super::any_step::{Step, good_step};
use super::{group, join};
use crate::common::run;
use crate::layout::{Descriptor, Head, SLOT_WORDS};
use crate::words::WriteWords;

/// Every page changes all the time while the lane is used.
#[test]
fn memory_that_never_keeps_still() {
    run(async {
        for round in 0..200u64 {
            let (mut good, evil) = join(Trust::Untrusted).await;
            let stop = Arc::new(AtomicBool::new(false));
            let (words, geometry, stopped) = (evil.words.clone(), evil.geometry, stop.clone());
            let scribbler = std::thread::spawn(move || {
                let mut random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut next = || {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                };
                while !stopped.load(Ordering::Relaxed) {
                    let (slot, what) = (next() as usize % 8, next());
                    let at = geometry.ring_at() + slot * SLOT_WORDS;
                    let head = Head {
                        kind: 1 + (what & 1) as u8,
                        flags: (what >> 8) as u8 & 7,
                        count: (what >> 16) as u8 & 7,
                    };
                    words.publish(at, head.pack(1));
                    let d = Descriptor {
                        slab: 0,
                        generation: 0,
                        block: 10 + (what >> 24) as u32 % 20,
                        offset: (what >> 30) as u32 % 4200,
                        len: (what >> 40) as u32 % 4200,
                    };
                    d.pack().into_iter().enumerate().for_each(|(i, word)| words.store(at + 2 + i, word));
                    words.store(
                        geometry.first_block() as usize * geometry.block_len as usize / 8
                            + what as usize % 4000,
                        what,
                    );
                }
            });
            let mut cx = Context::from_waker(Waker::noop());
            let (mut kept, group) = (Vec::new(), group());
            for _ in 0..50 {
                let _ = good_step(&mut good, &Step::Receive, &mut kept, &group, &mut cx);
                let _ = good_step(&mut good, &Step::Send(3000, true), &mut kept, &group, &mut cx);
                let _ = good_step(&mut good, &Step::SendShared(3000), &mut kept, &group, &mut cx);
                kept.clear();
            }
            stop.store(true, Ordering::Relaxed);
            scribbler.join().unwrap();
        }
    });
}
