//! Lies about what we lent and get back as a message.

use zc_core::transport::*;

use super::{first_block, join, look, send_own};
use crate::common::{body, data, run};
use crate::layout::{BACK, BY_REFERENCE, Descriptor, Head, Kind, Return};

/// What is said of a loan that is sent back: which, of what generation, and where in what was sent.
#[test]
fn only_what_was_lent_is_delivered_as_sent_back() {
    let right = Descriptor { slab: BACK, generation: 0, block: 0, offset: 100, len: 4000 };
    for (what, wrong) in [
        ("generation", Descriptor { generation: 1, ..right }),
        ("arena", Descriptor { slab: BACK | 1, ..right }),
        ("arena of the last number", Descriptor { slab: BACK | 63, ..right }),
        ("block", Descriptor { block: 1, ..right }),
        ("no block", Descriptor { block: u32::MAX, ..right }),
        ("before what was sent", Descriptor { offset: 99, ..right }),
        ("behind what was sent", Descriptor { len: 4001, ..right }),
        ("far behind", Descriptor { offset: u32::MAX, len: u32::MAX, ..right }),
        ("nothing", Descriptor { len: 0, ..right }),
    ] {
        sent_back(&[right, wrong], None, what);
    }
    let back = Return { slab: 0, sent_back: 0, generation: 0, block: 0 };
    sent_back(&[right], Some(Return { sent_back: 0, ..back }), "given back without a word of it");
    sent_back(&[right, right], Some(Return { sent_back: 1, ..back }), "once too often");
    sent_back(&[right; 300], None, "more often than can be said");
}

/// A peer that holds a part of a block sends it back by each of `names`, and says that it gives it back before the last. Either
/// half may find the lie, but one does, and what was sent stays as it is.
fn sent_back(names: &[Descriptor], back: Option<Return>, what: &str) {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        run(async {
            let (mut good, mut evil) = join(trust).await;
            let mut buf = good.alloc(4160).await;
            buf.put_slice(&body(4160, 1));
            let whole = buf.freeze();
            let part = whole.slice(100..4100);
            good.send(data(1, part.clone())).await.unwrap();
            let block = first_block();
            let mut error = None;
            for (n, name) in names.iter().enumerate() {
                if n + 1 == names.len()
                    && let Some(back) = back
                {
                    evil.give_back(Return { block: block as u16, ..back });
                    error = look(&mut good);
                }
                let name = Descriptor { block: name.block.saturating_add(block), ..*name };
                evil.slot(Head::new(Kind::Data, BY_REFERENCE, 1), 1, &name.pack());
                if error.is_some() {
                    break;
                }
                match good.recv().await {
                    Ok(frames) => {
                        for frame in frames {
                            let at = name.offset as usize;
                            assert!(frame.payload == whole[at..at + name.len as usize]);
                            good.lane.rx.release(frame.payload.len());
                        }
                    }
                    Err(found) => error = Some(found),
                }
            }
            let error = error.unwrap_or_else(|| panic!("{what}: nobody minds"));
            assert!(matches!(error, LaneError::Protocol(_)), "{what}: {error}");
            assert!(part.clone().try_into_mut().is_err() && part == whole[100..4100]);
        });
    }
}

/// A block that is given back with too high a count is as one that is not given back.
#[test]
fn who_says_too_much_keeps_the_block() {
    run(async {
        let (mut good, mut evil) = join(Trust::Cooperative).await;
        let sent = send_own(&mut good, 4000).await;
        let back = Return { slab: 0, sent_back: 3, generation: 0, block: first_block() as u16 };
        evil.give_back(back);
        assert!(look(&mut good).is_none());
        let sent = sent.try_into_mut().unwrap_err();
        // It can't be given back once more.
        evil.give_back(back);
        assert!(matches!(look(&mut good), Some(LaneError::Protocol(_))));
        drop(good);
        assert!(sent.try_into_mut().is_err(), "kept until the peer is gone (M2)");
        drop(evil.link);
    });
}

/// A part of a message in parts is never what was lent to the sender: there would be no end of it.
#[test]
fn parts_are_never_sent_back() {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        run(async {
            let (mut good, mut evil) = join(trust).await;
            drop(send_own(&mut good, 4000).await);
            evil.slot(Head::new(Kind::Large, 0, 8), 1, &[8000]);
            let name = Descriptor { slab: BACK, generation: 0, block: first_block(), offset: 0, len: 4000 };
            evil.slot(Head::new(Kind::Part, BY_REFERENCE, 1), 1, &name.pack());
            assert!(matches!(good.recv().await, Err(LaneError::Protocol(_))));
            assert_eq!(good.pool.stats().in_use_bytes, 0);
        });
    }
}

/// Nothing is sent back that a session or a one-sided record could be.
#[test]
fn records_are_never_sent_back() {
    for kind in [Kind::Session, Kind::Remote] {
        run(async {
            let (mut good, mut evil) = join(Trust::Cooperative).await;
            drop(send_own(&mut good, 4000).await);
            let name = Descriptor { slab: BACK, generation: 0, block: first_block(), offset: 0, len: 200 };
            evil.slot(Head::new(kind, BY_REFERENCE, 1), 1, &name.pack());
            assert!(matches!(good.recv().await, Err(LaneError::Protocol(_))));
        });
    }
}
