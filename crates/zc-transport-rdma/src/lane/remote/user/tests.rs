//! In which order things end, with a queue pair that does what it is told.

use std::cell::RefCell;
use std::rc::Rc;

use zc_core::memory::BufPool;

use super::*;
use crate::gid::Gid;
use crate::verbs::WorkError;
use crate::wire::{PathMtu, Psn, QueuePairNumber};

/// `IBV_WC_REM_ACCESS_ERR`, `IBV_WC_WR_FLUSH_ERR` and `IBV_WC_RETRY_EXC_ERR`.
const REFUSED: i32 = 10;
const FLUSHED: i32 = 5;
const SILENCE: i32 = 12;
const KEY: Key = [1; 16];

#[derive(Default)]
struct State {
    finished: Vec<Finished>,
    end: Option<EndpointEnd>,
    is_drained: bool,
}

/// One of several, of which the last one that was begun is told what to do.
#[derive(Clone, Default)]
struct Script {
    all: Rc<RefCell<Vec<Rc<RefCell<State>>>>>,
    mine: Rc<RefCell<State>>,
}

impl Script {
    fn end(&self) -> End {
        End {
            number: QueuePairNumber::new(17).unwrap(),
            psn: Psn::new(1),
            gid: Gid([9; 16]),
            recv_bytes: 4096,
            recv_count: 1,
            inline_bytes: 0,
            mtu: PathMtu::from_bytes(1024).unwrap(),
            reads: 4,
        }
    }
}

impl Queue for Script {
    fn another(&self) -> Result<Self, EndpointError> {
        let mine = Rc::<RefCell<State>>::default();
        self.all.borrow_mut().push(mine.clone());
        Ok(Self { all: self.all.clone(), mine })
    }

    fn describe(&self) -> End {
        self.end()
    }

    fn connect(&self, _: &End, _: QueueEnd) -> Result<(), EndpointError> {
        Ok(())
    }

    fn collect(&self, finished: &mut Vec<Finished>) -> Option<EndpointEnd> {
        let mut mine = self.mine.borrow_mut();
        finished.append(&mut mine.finished);
        mine.end.clone()
    }

    fn has_ended(&self) -> bool {
        self.mine.borrow().end.is_some()
    }

    fn is_idle(&self) -> bool {
        self.mine.borrow().is_drained
    }

    fn fail(&self, end: EndpointEnd) {
        self.mine.borrow_mut().end.get_or_insert(end);
    }
}

#[derive(Default)]
struct Rig {
    user: User<Script>,
    messages: Script,
    out: Outbox,
}

fn failure(status: i32) -> EndpointEnd {
    WorkError { status, vendor: 0 }.into()
}

impl Rig {
    /// The round is begun and the key known.
    fn open(&mut self, round: u32, access: Access) {
        assert!(matches!(self.next(), Next::Wait));
        assert!(matches!(self.said()[..], [Record::Open(end), Record::Ask(KEY)] if end.round == round));
        let end = self.messages.end();
        let opened = QueueEnd { round, number: end.number, psn: end.psn };
        self.user.opened(&end, opened).unwrap();
        let place = RemotePlace { address: 0x1000, key: 7 };
        self.user.granted(Granted { round, key: KEY, place, len: 4096, access }).unwrap();
    }

    fn next(&mut self) -> Next {
        self.user.next(&self.messages, &mut self.out)
    }

    fn said(&mut self) -> Vec<Record> {
        std::iter::from_fn(|| self.out.first().inspect(|_| self.out.sent())).collect()
    }

    fn write(&mut self, notify: Option<u64>) -> RemoteToken {
        let message = Message::from(&b"some"[..]);
        self.user.start(Some(KEY), 0, RemoteOp::Write { message, notify })
    }

    /// Hands the next one to the device, as the lane does.
    fn begin(&mut self) -> Work {
        assert!(matches!(self.next(), Next::Begun));
        let last = self.user.flying.back_mut().unwrap();
        let payload = match &last.operation.what {
            What::Write { message, .. } => message.clone(),
            _ => panic!("only writes here"),
        };
        (last.handed, last.is_handed, last.works) = (payload.len(), true, 1);
        Work::new(last.id, verbs::Operation::Write { payload, to: last.place, immediate: None })
    }

    fn device(&self) -> Rc<RefCell<State>> {
        self.messages.all.borrow().last().unwrap().clone()
    }

    fn ends(&self, work: Work, status: i32) {
        let device = self.device();
        let mut device = device.borrow_mut();
        device.end.get_or_insert(failure(status));
        device.finished.push(Finished { work, result: Err(Unsent::Ended(failure(status))) });
    }

    fn done(&mut self) -> Vec<(RemoteToken, RemoteStatus)> {
        std::iter::from_fn(|| self.user.next_done()).map(|done| (done.token, done.status)).collect()
    }
}

#[test]
fn a_refusal_that_was_told_of_before_the_rest_is_flushed_ends_nobody_else() {
    let mut rig = Rig::default();
    let (first, second) = (rig.write(None), rig.write(None));
    rig.open(1, Access::WRITE);
    let (refused, flushed) = (rig.begin(), rig.begin());

    rig.ends(refused, REFUSED);
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(first, RemoteStatus::Revoked)]);

    rig.ends(flushed, FLUSHED);
    rig.device().borrow_mut().is_drained = true;
    rig.user.look().unwrap();
    rig.open(2, Access::WRITE);
    let work = rig.begin();
    rig.device().borrow_mut().finished.push(Finished { work, result: Ok(()) });
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(second, RemoteStatus::Done)]);
}

#[test]
fn what_was_flushed_without_a_refusal_is_the_end() {
    let mut rig = Rig::default();
    rig.write(None);
    rig.write(None);
    rig.open(1, Access::WRITE);
    let (lost, flushed) = (rig.begin(), rig.begin());
    rig.ends(lost, SILENCE);
    assert_eq!(rig.user.look(), Err(failure(SILENCE)));
    rig.ends(flushed, FLUSHED);
    rig.device().borrow_mut().is_drained = true;
    assert_eq!(rig.user.look(), Err(failure(SILENCE)));
}

#[test]
fn what_the_device_never_had_is_done_in_the_next_round_in_its_order() {
    let mut rig = Rig::default();
    let tokens: Vec<_> = (0..4).map(|_| rig.write(None)).collect();
    rig.open(1, Access::WRITE);
    let (refused, flushed, late) = (rig.begin(), rig.begin(), rig.begin());
    rig.ends(refused, REFUSED);
    // It ended while the third was being handed over.
    rig.user.not_taken(late, Unsent::NotTaken(failure(REFUSED)), 4).unwrap();
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(tokens[0], RemoteStatus::Revoked)]);
    assert!(matches!(rig.next(), Next::Wait), "no more is handed to one that has ended");

    rig.ends(flushed, FLUSHED);
    rig.device().borrow_mut().is_drained = true;
    rig.user.look().unwrap();
    rig.open(2, Access::WRITE);
    for _ in 1..4 {
        let work = rig.begin();
        rig.device().borrow_mut().finished.push(Finished { work, result: Ok(()) });
    }
    rig.user.look().unwrap();
    let done: Vec<_> = tokens[1..].iter().map(|token| (*token, RemoteStatus::Done)).collect();
    assert_eq!(rig.done(), done);
}

#[test]
fn one_that_has_ended_otherwise_does_not_keep_those_in_front_of_it_from_the_next_round() {
    let mut rig = Rig::default();
    let tokens = [rig.write(None), rig.write(None)];
    let none = rig.user.start(None, 0, RemoteOp::FetchAdd { add: 1 });
    rig.open(1, Access::WRITE);
    let (refused, flushed) = (rig.begin(), rig.begin());
    assert!(matches!(rig.next(), Next::Ended));
    rig.ends(refused, REFUSED);
    rig.ends(flushed, FLUSHED);
    rig.device().borrow_mut().is_drained = true;
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(tokens[0], RemoteStatus::Revoked)]);
    rig.open(2, Access::WRITE);
    let work = rig.begin();
    assert!(matches!(rig.next(), Next::Ended));
    assert_eq!(rig.done(), [], "in their order");
    rig.device().borrow_mut().finished.push(Finished { work, result: Ok(()) });
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(tokens[1], RemoteStatus::Done), (none, RemoteStatus::Revoked)]);
}

#[test]
fn a_peer_can_take_no_notification_that_it_was_not_told() {
    let mut rig = Rig::default();
    rig.write(Some(5));
    rig.write(Some(6));
    rig.open(1, Access::WRITE);
    let (done, refused) = (rig.begin(), rig.begin());
    assert!(rig.user.taken(1).is_err(), "its write is under way");
    rig.device().borrow_mut().finished.push(Finished { work: done, result: Ok(()) });
    rig.user.look().unwrap();
    rig.user.tell(&mut rig.out);
    assert_eq!(rig.said(), [Record::Notify { key: KEY, value: 5 }]);
    rig.user.taken(1).unwrap();

    rig.ends(refused, REFUSED);
    rig.device().borrow_mut().is_drained = true;
    rig.user.look().unwrap();
    rig.user.tell(&mut rig.out);
    assert_eq!(rig.said(), [], "nobody hears of a write that was refused");
    assert!(rig.user.taken(2).is_err());
    // As many as ever find a place.
    for n in 0..=NOTIFY_WINDOW {
        rig.write(Some(n));
    }
    rig.open(2, Access::WRITE);
    (0..NOTIFY_WINDOW).for_each(|_| drop(rig.begin()));
    assert!(matches!(rig.next(), Next::Ended), "one too many");
}

#[test]
fn an_answer_of_another_round_is_none() {
    let mut rig = Rig::default();
    let tokens = [rig.write(None), rig.write(None)];
    rig.open(1, Access::WRITE);
    let (refused, flushed) = (rig.begin(), rig.begin());
    // Asked for in the first round, refused in it; but the answer comes in the second one.
    const OTHER: Key = [2; 16];
    rig.user.start(Some(OTHER), 0, RemoteOp::FetchAdd { add: 1 });
    assert!(matches!(rig.next(), Next::Wait));
    assert_eq!(rig.said(), [Record::Ask(OTHER)]);
    rig.ends(refused, REFUSED);
    rig.ends(flushed, FLUSHED);
    rig.device().borrow_mut().is_drained = true;
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(tokens[0], RemoteStatus::Revoked)]);
    rig.open(2, Access::WRITE);
    let work = rig.begin();
    rig.device().borrow_mut().finished.push(Finished { work, result: Ok(()) });
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(tokens[1], RemoteStatus::Done)]);
    assert!(matches!(rig.next(), Next::Wait));
    assert_eq!(rig.said(), [Record::Ask(OTHER)]);

    rig.user.refused(1, OTHER, true);
    assert!(matches!(rig.next(), Next::Wait));
    assert_eq!((rig.said(), rig.done()), (vec![], vec![]), "one question, which is open");
    rig.user.refused(2, OTHER, true);
    assert_eq!(rig.done().len(), 1);
}

#[test]
fn a_read_that_is_refused_after_a_part_of_it_may_have_looked() {
    let mut rig = Rig::default();
    let pool = BufPool::builder().max_bytes(1 << 20).build();
    for parts in [1, 2] {
        let into = pool.try_alloc(64).unwrap();
        rig.user.start(Some(KEY), 0, RemoteOp::Read { into, len: 64 });
        rig.open(parts, Access::READ);
        assert!(matches!(rig.next(), Next::Begun));
        for part in 1..=parts {
            let last = rig.user.flying.back_mut().unwrap();
            let What::Read { into, .. } = &mut last.operation.what else { panic!() };
            let read = verbs::Operation::Read { into: into.take().unwrap(), len: 32, from: last.place };
            (last.works, last.is_handed) = (1, part == parts);
            let work = Work::new(last.id, read);
            match part == parts {
                true => rig.ends(work, REFUSED),
                false => rig.device().borrow_mut().finished.push(Finished { work, result: Ok(()) }),
            }
            rig.device().borrow_mut().is_drained = part == parts;
            rig.user.look().unwrap();
        }
        let done = rig.user.next_done().unwrap();
        assert_eq!((done.status, done.in_part), (RemoteStatus::Revoked, parts > 1));
    }
}

#[test]
fn what_finds_no_room_is_handed_over_later() {
    let mut rig = Rig::default();
    let token = rig.write(None);
    rig.open(1, Access::WRITE);
    let work = rig.begin();
    rig.user.not_taken(work, Unsent::Full, 4).unwrap();
    assert!(rig.user.is_handing_over());
    rig.user.look().unwrap();
    assert_eq!(rig.done(), []);
    let last = rig.user.flying.back_mut().unwrap();
    assert_eq!((last.handed, last.works), (0, 0));
    (last.handed, last.is_handed) = (4, true);
    assert_eq!(rig.done(), [(token, RemoteStatus::Done)]);
}

/// Soft-RoCE waits for ever where a fenced write is sent again and reads or atomics behind it are under way.
#[test]
fn reads_and_atomics_wait_for_a_write_that_waits_for_others() {
    let mut rig = Rig::default();
    let add = |rig: &mut Rig| rig.user.start(Some(KEY), 8, RemoteOp::FetchAdd { add: 1 });
    let first = add(&mut rig);
    let second = rig.write(None);
    let third = add(&mut rig);
    rig.open(1, Access::WRITE | Access::ATOMIC);

    assert!(!rig.user.must_fence());
    assert!(matches!(rig.next(), Next::Begun));
    let last = rig.user.flying.back_mut().unwrap();
    (last.handed, last.is_handed, last.works) = (8, true, 1);
    let mut into = BufPool::builder().max_bytes(1 << 20).build().try_alloc(8).unwrap();
    into.put_slice(&41_u64.to_ne_bytes());
    let added = Work::new(last.id, verbs::Operation::FetchAdd { into, at: last.place, add: 1 });

    assert!(rig.user.must_fence());
    let written = rig.begin();
    rig.user.flying.back_mut().unwrap().is_fenced = true;
    assert!(matches!(rig.next(), Next::Wait));

    rig.device().borrow_mut().finished.push(Finished { work: added, result: Ok(()) });
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(first, RemoteStatus::Done)]);
    assert!(matches!(rig.next(), Next::Wait), "the write may still be sent again");

    rig.device().borrow_mut().finished.push(Finished { work: written, result: Ok(()) });
    rig.user.look().unwrap();
    assert_eq!(rig.done(), [(second, RemoteStatus::Done)]);
    assert!(matches!(rig.next(), Next::Begun));
    assert_eq!(rig.user.flying.back().unwrap().operation.token, third);
}
