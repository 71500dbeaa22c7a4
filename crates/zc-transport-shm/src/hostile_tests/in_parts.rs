//! Lies about messages that come in parts.

use std::task::{Context, Waker};

use proptest::prelude::*;
use zc_core::transport::*;

use super::{Evil, join, join_with};
use crate::common::{run, try_cases};
use crate::layout::{BY_REFERENCE, Descriptor, Head, Kind};

/// What a lie about a message in parts is, and that a good one after it would have been taken.
#[test]
fn lies_about_messages_in_parts() {
    type Lie = Box<dyn Fn(&Evil) -> Vec<(Head, u64, Vec<u64>)>>;
    let begin = |total: u64| (Head::new(Kind::Large, 0, 8), 1, vec![total]);
    let part = |evil: &Evil, nth: u32, len: u32| {
        let block = evil.geometry.first_block() + nth;
        let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len };
        (Head::new(Kind::Part, BY_REFERENCE, 1), 1, at.pack().to_vec())
    };
    let inline = |len: usize| (Head::new(Kind::Part, 0, len), 1, vec![1; 14]);
    let cases: Vec<(&str, Lie)> = vec![
        ("no message", Box::new(move |e| vec![part(e, 0, 100)])),
        ("no bytes", Box::new(move |_| vec![begin(0)])),
        ("longer than agreed", Box::new(move |_| vec![begin(1 << 31)])),
        ("longer than the pool", Box::new(move |_| vec![begin(1 << 30)])),
        ("no length", Box::new(move |_| vec![(Head::new(Kind::Large, 0, 0), 1, vec![])])),
        ("two at once", Box::new(move |_| vec![begin(5000), begin(5000)])),
        ("more than it said", Box::new(move |e| vec![begin(5000), part(e, 0, 4000), part(e, 1, 1001)])),
        ("more than it said, in a slot", Box::new(move |_| vec![begin(100), inline(101)])),
        ("more parts than it needs", Box::new(move |_| vec![begin(100), inline(100), inline(1)])),
        ("a part of nothing", Box::new(move |e| vec![begin(100), part(e, 0, 0)])),
        ("a slot of nothing", Box::new(move |_| vec![begin(100), inline(0)])),
        ("a slot of too much", Box::new(move |_| vec![begin(1000), inline(113)])),
        ("outside", Box::new(move |e| vec![begin(100_000), part(e, 0, 4161)])),
        ("another block", Box::new(move |e| vec![begin(100_000), part(e, 99, 100)])),
        ("another number", Box::new(move |e| vec![begin(5000), (part(e, 0, 10).0, 2, part(e, 0, 10).2)])),
        (
            "two places",
            Box::new(move |e| vec![begin(5000), (Head { count: 2, ..part(e, 0, 9).0 }, 1, vec![0; 4])]),
        ),
        ("data between", Box::new(move |_| vec![begin(5000), (Head::new(Kind::Data, 0, 8), 1, vec![1])])),
        (
            "a record between",
            Box::new(move |_| vec![begin(5000), (Head::new(Kind::Session, 0, 8), 0, vec![1])]),
        ),
        ("the end between", Box::new(move |_| vec![begin(5000), (Head::new(Kind::Close, 0, 0), 0, vec![])])),
    ];
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        for (what, lie) in &cases {
            run(async {
                let (mut good, mut evil) = join(trust).await;
                for (head, seq, words) in lie(&evil) {
                    evil.slot(head, seq, &words);
                }
                let error = loop {
                    match good.recv().await {
                        Ok(frames) => assert!(frames.iter().all(|f| f.payload.len() == 100), "{what}"),
                        Err(error) => break error,
                    }
                };
                assert!(matches!(error, LaneError::Protocol(_) | LaneError::Memory(_)), "{what}: {error:?}");
                assert_eq!(good.pool.stats().in_use_bytes, 0, "{what}");
            });
        }
        run(async {
            let (mut good, mut evil) = join(trust).await;
            for (head, seq, words) in [begin(5000), part(&evil, 0, 4160), inline(40), part(&evil, 1, 800)] {
                evil.slot(head, seq, &words);
            }
            assert_eq!(good.recv().await.unwrap()[0].payload.len(), 5000);
        });
    }
}

/// Slots of messages in parts, most of them as they should be.
#[derive(Debug, Clone)]
enum Part {
    Begin {
        seq: u64,
        total: u64,
    },
    Named {
        seq: u64,
        nth: u32,
        len: u32,
    },
    Inline {
        seq: u64,
        len: usize,
    },
    Whole,
    /// What is left, or as much of it as fits.
    Right,
}

fn part() -> impl Strategy<Value = Part> {
    let seq = || prop_oneof![30 => Just(1u64), 1 => Just(2)];
    let nth = prop_oneof![30 => 0u32..15, 1 => 15u32..99];
    prop_oneof![
        3 => (seq(), prop_oneof![20 => 1u64..20_000, 1 => Just(0), 1 => any::<u64>()])
            .prop_map(|(seq, total)| Part::Begin { seq, total }),
        4 => (seq(), nth, prop_oneof![20 => 1u32..4161, 1 => any::<u32>()])
            .prop_map(|(seq, nth, len)| Part::Named { seq, nth, len }),
        2 => (seq(), prop_oneof![20 => 1usize..113, 1 => 0usize..256]).prop_map(|(seq, len)| Part::Inline { seq, len }),
        1 => Just(Part::Whole),
        12 => Just(Part::Right),
    ]
}

/// What parts amount to, thought of without any memory.
#[derive(Default)]
struct Model {
    /// Number of the message under way, and bytes that are missing.
    under_way: Option<(u64, usize)>,
    messages: Vec<usize>,
    total: usize,
}

impl Model {
    /// False for a lie.
    fn take(&mut self, part: &Part) -> bool {
        let (seq, len, most) = match *part {
            Part::Whole => {
                self.messages.push(8);
                return self.under_way.is_none();
            }
            Part::Begin { seq, total } => {
                let good = self.under_way.is_none() && (1..=12 << 20).contains(&total);
                self.under_way = Some((seq, total as usize));
                self.total = total as usize;
                return good;
            }
            Part::Named { nth, .. } if nth >= crate::FIRST_BLOCKS => return false,
            Part::Named { seq, len, .. } => (seq, len as usize, crate::FIRST_BLOCK_BYTES as usize),
            Part::Inline { seq, len } => (seq, len, crate::INLINE_MAX),
            Part::Right => unreachable!("made into another"),
        };
        let Some((same, left)) = self.under_way else { return false };
        self.under_way = (left > len).then(|| (seq, left - len));
        if left == len {
            self.messages.push(self.total);
        }
        seq == same && (1..=left.min(most)).contains(&len)
    }

    /// A slot that is as it should be.
    fn right(&self, nth: u32) -> Part {
        match self.under_way {
            None => Part::Begin { seq: 1, total: 9000 },
            Some((seq, left)) if left <= 50 => Part::Inline { seq, len: left },
            Some((seq, left)) => {
                Part::Named { seq, nth: nth % crate::FIRST_BLOCKS, len: left.min(4160) as u32 }
            }
        }
    }
}

impl Evil {
    fn part(&mut self, part: &Part) {
        match *part {
            Part::Begin { seq, total } => self.slot(Head::new(Kind::Large, 0, 8), seq, &[total]),
            Part::Named { seq, nth, len } => {
                let block = self.geometry.first_block() + nth;
                let at = Descriptor { slab: 0, generation: 0, block, offset: 0, len };
                self.slot(Head::new(Kind::Part, BY_REFERENCE, 1), seq, &at.pack());
            }
            Part::Inline { seq, len } => self.slot(Head::new(Kind::Part, 0, len), seq, &[3; 14]),
            Part::Whole => self.slot(Head::new(Kind::Data, 0, 8), 1, &[3]),
            Part::Right => unreachable!("made into another"),
        }
    }
}

const MOST_PARTS: usize = 60;

/// Whatever comes: the messages that are whole before the first lie, in order, and then its end.
async fn tell_in_parts(parts: Vec<Part>, trust: Trust) {
    let (mut good, mut evil) = join(trust).await;
    let (mut model, mut honest) = (Model::default(), true);
    for (nth, part) in parts.into_iter().enumerate() {
        let part = if let Part::Right = part { model.right(nth as u32) } else { part };
        let before = model.messages.len();
        evil.part(&part);
        if !model.take(&part) {
            model.messages.truncate(before);
            honest = false;
            break;
        }
    }
    let (mut got, mut batch, mut looks) = (Vec::new(), Batch::new(), 0);
    let end = loop {
        match good.lane.rx.try_recv(&mut batch) {
            // At each look one part is taken.
            Ok(None) if looks > MOST_PARTS => break Ok(()),
            Ok(None) => looks += 1,
            Ok(_) => got.extend(batch.drain().map(|frame| frame.payload.len())),
            Err(error) => break Err(error),
        }
        got.last().into_iter().for_each(|len| good.lane.rx.release(*len));
    };
    assert_eq!(got, model.messages);
    assert_eq!(end.is_ok(), honest, "{end:?}");
    let pool = good.pool.clone();
    if !honest {
        assert_eq!(pool.stats().in_use_bytes, 0);
    }
    drop(good);
    assert_eq!(pool.stats().in_use_bytes, 0);
}

#[test]
fn fuzz_parts_are_whole_messages_or_the_end() {
    for trust in [Trust::Cooperative, Trust::Untrusted] {
        try_cases(64, &prop::collection::vec(part(), 1..MOST_PARTS), |parts| tell_in_parts(parts, trust));
    }
}

/// However short parts are, a turn takes a bounded number of them.
#[test]
fn short_parts_take_turns_too() {
    run(async {
        let (mut good, mut evil) = join_with(Trust::Untrusted, 4096).await;
        evil.part(&Part::Begin { seq: 1, total: 5000 });
        (0..3000).for_each(|_| evil.part(&Part::Inline { seq: 1, len: 1 }));
        let mut cx = Context::from_waker(Waker::noop());
        let most = (crate::PARTS_TURN_BYTES / crate::MIN_PART_COST_BYTES) as u64;
        for turn in 1..3 {
            assert!(good.lane.rx.poll_recv(&mut cx, &mut Batch::new()).is_pending());
            assert_eq!(good.ledger.snapshot().inline_bytes, turn * most);
        }
        // Who spins looks many times in a turn.
        for look in 1..40 {
            assert!(good.lane.rx.try_recv(&mut Batch::new()).unwrap().is_none());
            assert_eq!(good.ledger.snapshot().inline_bytes, 2 * most + look);
        }
    });
}
