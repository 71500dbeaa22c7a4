//! Two machines at one wire: one whose command the run is about, and its peer, which it may switch off and on.
//!
//! ```text
//! thread of the caller ──> qemu: main ──asks──> peer-off, peer-on, lose N, lose-longer N
//!                                     <──────── done: so many frames were lost until now
//! a thread for each time ──> qemu: peer
//! ```

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{Scope, ScopedJoinHandle, scope};

use super::Parts;
use super::boot::{Job, Word, Words};
use super::error::Error;
use super::ports::Ask;
use super::wire::Wire;

/// What runs where.
pub(super) struct Pair {
    pub(super) main: Job,
    pub(super) peer: Job,
    pub(super) wire: Arc<Wire>,
    /// The run ends when both commands have ended, and not already with the main one.
    pub(super) both: bool,
}

impl Pair {
    /// The exit status of the main command, unless the peer has failed: then it ends the run, and the exit status is the peer's.
    pub(super) fn run(&self, parts: &Parts) -> Result<u8, Error> {
        scope(|scope| {
            let words = Words::new();
            let main = words.sender();
            let mut peer = Some(Peer::start(scope, &self.peer, parts, main.clone()));
            let mut failed = None;
            let ended = self.main.run_with(parts, words, |ask| {
                match ask {
                    Ask::Lose(one_of) => self.wire.lose(one_of),
                    Ask::LoseLonger(longest) => self.wire.lose_longer(longest),
                    Ask::PeerOff => failed = failed.take().or(peer.take().and_then(|peer| peer.end().err())),
                    Ask::PeerOn if peer.is_none() => {
                        peer = Some(Peer::start(scope, &self.peer, parts, main.clone()));
                    }
                    Ask::PeerOn => {}
                }
                self.wire.lost()
            });
            let of_peer = match peer {
                None => Ok(()),
                Some(peer) if self.both && matches!(ended, Ok(0)) => peer.wait(),
                Some(peer) => peer.end(),
            };
            match failed.map_or(of_peer, Err) {
                Ok(()) => ended,
                Err(Failure::Status(code)) => {
                    eprintln!("xtask: the peer's command has ended with {code}");
                    Ok(code)
                }
                Err(Failure::Machine(error)) => Err(Error::OfPeer(Box::new(error))),
            }
        })
    }
}

/// The other machine, from one time that it is switched on until it is off.
struct Peer<'scope> {
    words: Sender<Word>,
    thread: ScopedJoinHandle<'scope, Result<(), Failure>>,
}

enum Failure {
    Status(u8),
    Machine(Error),
}

impl<'scope> Peer<'scope> {
    fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        job: &'env Job,
        parts: &'env Parts,
        main: Sender<Word>,
    ) -> Self {
        let words = Words::new();
        let sender = words.sender();
        let thread = scope.spawn(move || {
            let ended = match job.run_with(parts, words, |_| 0) {
                Ok(0) | Err(Error::Ended) => Ok(()),
                Ok(code) => Err(Failure::Status(code)),
                Err(error) => Err(Failure::Machine(error)),
            };
            if ended.is_err() {
                // If it has ended by now, that is the end of the run anyway.
                let _ = main.send(Word::End);
            }
            ended
        });
        Self { words: sender, thread }
    }

    /// Kills it.
    fn end(self) -> Result<(), Failure> {
        // It may have ended by itself.
        let _ = self.words.send(Word::End);
        self.wait()
    }

    fn wait(self) -> Result<(), Failure> {
        match self.thread.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
