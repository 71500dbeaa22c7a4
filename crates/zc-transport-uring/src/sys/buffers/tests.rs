//! The ring of buffers against a kernel that is played here, which does what the real one does in memory.

use super::*;
use proptest::prelude::*;
use std::task::Waker;

const COUNT: u16 = 4;
const LEN: usize = 64;

/// The kernel's side, as `io_uring/kbuf.c` has it: a head, and entries that it changes if it consumes bit by bit.
struct Kernel {
    head: u16,
    incremental: bool,
    /// The stream so far.
    written: Vec<u8>,
    /// Completions that were not delivered yet: buffer, length, more.
    due: VecDeque<(u16, usize, bool)>,
}

impl Kernel {
    fn entry(buffers: &Buffers, at: u16) -> *mut u8 {
        let index = usize::from(at) & (usize::from(COUNT) - 1);
        // SAFETY: within the region, which `buffers` keeps.
        unsafe { buffers.page.base_mut().add(index * ENTRY_BYTES).as_ptr() }
    }

    /// Address, length and number of an entry.
    fn read(buffers: &Buffers, at: u16) -> (*mut u8, usize, u16) {
        let entry = Self::entry(buffers, at);
        // SAFETY: an entry inside of the region, written by `provide` before.
        unsafe {
            let addr = entry.cast::<u64>().read_volatile() as *mut u8;
            let len = entry.add(LEN_AT).cast::<u32>().read_volatile() as usize;
            (addr, len, entry.add(BUFFER_AT).cast::<u16>().read_volatile())
        }
    }

    fn tail(buffers: &Buffers) -> u16 {
        // SAFETY: as above; the tail is in the first entry.
        unsafe { Self::entry(buffers, 0).add(TAIL_AT).cast::<u16>().read_volatile() }
    }

    /// Receives up to `len` bytes with one completion, into one buffer or a bundle of them.
    fn receive(&mut self, buffers: &Buffers, len: usize, bundle: bool) {
        let (mut left, mut first, mut done, mut more) = (len, None, 0, false);
        while left > 0 && self.head != Self::tail(buffers) && (bundle || first.is_none()) {
            let (addr, room, number) = Self::read(buffers, self.head);
            first.get_or_insert(number);
            let n = left.min(room);
            for at in 0..n {
                let byte = (self.written.len() * 31 % 251) as u8;
                self.written.push(byte);
                // SAFETY: memory of a buffer that the ring still has; the test of `take` is that it does.
                unsafe { addr.add(at).write_volatile(byte) };
            }
            (left, done) = (left - n, done + n);
            more = self.incremental && n < room;
            if more {
                let entry = Self::entry(buffers, self.head);
                // SAFETY: as in `read`.
                unsafe {
                    entry.cast::<u64>().write_volatile(addr as u64 + n as u64);
                    entry.add(LEN_AT).cast::<u32>().write_volatile((room - n) as u32);
                }
            } else {
                self.head = self.head.wrapping_add(1);
            }
        }
        if let Some(first) = first {
            self.due.push_back((first, done, more));
        }
    }

    /// The end of a stream names a buffer and fills nothing; some kernels are done with it then.
    fn end(&mut self, buffers: &Buffers, consumes: bool) {
        if self.head != Self::tail(buffers) {
            let (_, _, number) = Self::read(buffers, self.head);
            if consumes && !self.incremental {
                self.head = self.head.wrapping_add(1);
            }
            self.due.push_back((number, 0, self.incremental));
        }
    }

    /// Every buffer that the kernel may still choose must still be kept by the ring.
    fn check(&self, buffers: &Buffers) {
        let mut at = self.head;
        while at != Self::tail(buffers) {
            let (addr, len, number) = Self::read(buffers, at);
            let kept = buffers.provided[usize::from(number)].as_ref().map(|provided| {
                let base = provided.whole.slice(..1).as_ptr() as usize;
                base..=base + LEN
            });
            let kept = kept
                .is_some_and(|kept| kept.contains(&(addr as usize)) && kept.contains(&(addr as usize + len)));
            assert!(kept, "the kernel has a buffer that was let go of");
            at = at.wrapping_add(1);
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Receive(usize),
    End {
        consumes: bool,
    },
    Deliver,
    Provide,
    /// The application lets go of what it has.
    Drop,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1..3 * LEN).prop_map(Action::Receive),
        1 => any::<bool>().prop_map(|consumes| Action::End { consumes }),
        4 => Just(Action::Deliver),
        2 => Just(Action::Provide),
        1 => Just(Action::Drop),
    ]
}

fn play(incremental: bool, bundle: bool, actions: Vec<Action>) {
    // Room for what the kernel has and for a little that is kept.
    let pool = BufPool::builder().max_bytes(64 << 10).build();
    let page = Region::builder(usize::from(COUNT) * ENTRY_BYTES).build().unwrap();
    let mut buffers = Buffers::on(page, &pool, 0, COUNT, LEN, incremental);
    let mut kernel = Kernel { head: 0, incremental, written: Vec::new(), due: VecDeque::new() };
    let mut cx = Context::from_waker(Waker::noop());
    let (mut kept, mut seen) = (Vec::new(), 0);
    let mut deliver = |kernel: &mut Kernel, buffers: &mut Buffers, kept: &mut Vec<(usize, PinnedBuf)>| {
        let Some((number, len, more)) = kernel.due.pop_front() else { return false };
        let pieces = buffers.take(number, len, more).expect("a buffer of the ring");
        assert_eq!(pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(), len);
        for Piece { bytes: piece, .. } in pieces {
            let begin = seen;
            seen += piece.len();
            kept.push((begin, piece));
        }
        true
    };
    for action in actions {
        match action {
            Action::Receive(len) => kernel.receive(&buffers, len, bundle),
            Action::End { consumes } => kernel.end(&buffers, consumes),
            Action::Deliver => {
                deliver(&mut kernel, &mut buffers, &mut kept);
            }
            Action::Provide => {
                let _ = buffers.poll_provide(&mut cx);
            }
            Action::Drop => kept.clear(),
        }
        kernel.check(&buffers);
        // What is kept does not change, whatever is received behind it.
        for (begin, piece) in &kept {
            assert_eq!(piece[..], kernel.written[*begin..begin + piece.len()]);
        }
    }
    while deliver(&mut kernel, &mut buffers, &mut kept) {}
    // Receiving goes on, and in the end every buffer comes back that was in doubt.
    for _ in 0..2 * COUNT {
        let _ = buffers.poll_provide(&mut cx);
        kernel.receive(&buffers, LEN, false);
        assert!(deliver(&mut kernel, &mut buffers, &mut kept), "no buffer is left");
        kernel.check(&buffers);
    }
    let _ = buffers.poll_provide(&mut cx);
    assert!(buffers.counts().missing <= 1, "{:?}", buffers.counts());
    drop((kept, buffers));
    assert_eq!(pool.stats().in_use_bytes, 0);
}

proptest! {
    #[test]
    fn fuzz_no_buffer_is_let_go_of_too_early_or_never(
        incremental in any::<bool>(),
        bundle in any::<bool>(),
        actions in prop::collection::vec(action(), 0..80),
    ) {
        play(incremental, bundle, actions);
    }
}

#[test]
fn a_buffer_that_the_kernel_does_not_have_is_refused() {
    let pool = BufPool::builder().max_bytes(64 << 10).build();
    let page = Region::builder(usize::from(COUNT) * ENTRY_BYTES).build().unwrap();
    let mut buffers = Buffers::on(page, &pool, 0, COUNT, LEN, false);
    assert!(buffers.take(0, 1, false).is_none());
    let _ = buffers.poll_provide(&mut Context::from_waker(Waker::noop()));
    assert!(buffers.take(COUNT, 1, false).is_none());
    assert!(buffers.take(0, usize::from(COUNT) * LEN + 1, false).is_none(), "more than there is");
}
