//! Threads that wait for files: a bounded number for the whole process, which end when there is nothing to do. So no
//! runtime is needed for it, and none is held up by a slow device.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::channel::oneshot;
use parking_lot::{Condvar, Mutex};

/// Threads that read files at a time; more reads wait.
pub const MAX_FILE_THREADS: usize = 8;
/// Reads that wait for a thread; further ones are refused. A file that is sent has one at most.
pub const MAX_FILE_READS: usize = 16_384;
/// How long a thread waits for the next file.
const IDLE: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// The threads, and what they have to do.
struct Threads {
    jobs: Mutex<Jobs>,
    news: Condvar,
    idle: Duration,
}

struct Jobs {
    /// Oldest first, so their numbers rise.
    waiting: VecDeque<(u64, Job)>,
    next_number: u64,
    /// Those that will look for a job before they end.
    threads: usize,
    /// Those that wait for a job.
    idle: usize,
}

static THREADS: Threads = Threads::new(IDLE);

/// Runs `job` on one of the threads. If the future is dropped before its turn, the job is dropped with it.
pub(super) async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    THREADS.run(job).await
}

impl Threads {
    const fn new(idle: Duration) -> Self {
        let jobs = Jobs { waiting: VecDeque::new(), next_number: 0, threads: 0, idle: 0 };
        Self { jobs: Mutex::new(jobs), news: Condvar::new(), idle }
    }

    async fn run<T: Send + 'static>(
        &'static self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        let number = self.submit(Box::new(move || {
            if !done.is_canceled() {
                let _ = done.send(job());
            }
        }))?;
        let place = Place { threads: self, number };
        let answer = answer.await;
        // It is not in the queue any more.
        std::mem::forget(place);
        answer.map_err(|_| io::Error::other("what was to read a file has panicked"))
    }

    /// The number of the job.
    fn submit(&'static self, job: Job) -> io::Result<u64> {
        let mut jobs = self.jobs.lock();
        if jobs.waiting.len() >= MAX_FILE_READS {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "too many reads of files wait"));
        }
        let number = jobs.next_number;
        jobs.next_number += 1;
        jobs.waiting.push_back((number, job));
        if jobs.waiting.len() <= jobs.idle || jobs.threads >= MAX_FILE_THREADS {
            self.news.notify_one();
            return Ok(number);
        }
        match std::thread::Builder::new().name("zc-file".into()).spawn(|| self.work()) {
            Ok(_) => jobs.threads += 1,
            Err(error) if jobs.threads == 0 => {
                let job = jobs.waiting.pop_back();
                drop(jobs);
                // What it holds may wake somebody.
                drop(job);
                return Err(error);
            }
            // Those that run get to it.
            Err(_) => {}
        }
        Ok(number)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // Whoever waits for it sees that it has ended. The thread is counted, so it has to go on.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// The next job; none if the thread has to end. It is not counted any more then: between this look and that count
    /// somebody could rely on it.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some((_, job)) = jobs.waiting.pop_front() {
                return Some(job);
            }
            jobs.idle += 1;
            let timed_out = self.news.wait_for(&mut jobs, self.idle).timed_out();
            jobs.idle -= 1;
            if timed_out && jobs.waiting.is_empty() {
                jobs.threads -= 1;
                return None;
            }
        }
    }
}

/// A job's place in the queue, which it leaves when nobody waits for it any more: what it holds is memory of a
/// connection, or a pipe, and a device that hangs would keep those of everybody who has given up.
struct Place {
    threads: &'static Threads,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut jobs = self.threads.jobs.lock();
        let found = jobs.waiting.binary_search_by_key(&self.number, |(number, _)| *number);
        let job = found.ok().and_then(|at| jobs.waiting.remove(at));
        drop(jobs);
        drop(job);
    }
}

#[cfg(all(test, feature = "tokio"))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn jobs_run_beside_each_other_on_a_bounded_number_of_threads() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let job = |n: usize| {
            let (now, most) = (now.clone(), most.clone());
            run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                now.fetch_sub(1, Ordering::SeqCst);
                n
            })
        };
        let all = block_on(futures::future::join_all((0..40).map(job)));
        assert!(all.into_iter().map(Result::unwrap).eq(0..40));
        let most = most.load(Ordering::SeqCst);
        assert!((2..=MAX_FILE_THREADS).contains(&most), "{most} at a time");
    }

    #[test]
    fn a_job_that_panics_costs_its_own_caller_only() {
        let broken = block_on(run(|| std::panic::panic_any("on purpose")));
        assert!(broken.is_err());
        assert_eq!(block_on(run(|| 5)).unwrap(), 5);
    }

    /// Threads that all do what nobody else gets to: they wait until the senders are dropped.
    fn all_held(threads: &'static Threads) -> Vec<mpsc::Sender<()>> {
        let hold = |_| {
            let (go, wait) = mpsc::channel::<()>();
            threads.submit(Box::new(move || _ = wait.recv())).unwrap();
            go
        };
        let held = (0..MAX_FILE_THREADS).map(hold).collect();
        while !threads.jobs.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
        held
    }

    #[test]
    fn a_read_that_nobody_waits_for_any_more_leaves_the_queue_at_once() {
        static OWN: Threads = Threads::new(IDLE);
        let held = all_held(&OWN);
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let channels: Vec<_> = (0..3).map(|_| mpsc::channel::<()>()).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        let mut reads: Vec<_> =
            senders.into_iter().map(|sender| Box::pin(OWN.run(move || sender.send(())))).collect();
        assert!(reads.iter_mut().all(|read| read.as_mut().poll(cx).is_pending()));
        drop(reads.remove(1));
        assert_eq!(receivers[1].try_recv(), Err(mpsc::TryRecvError::Disconnected), "what it held is free");
        assert_eq!(receivers[0].try_recv(), Err(mpsc::TryRecvError::Empty));
        assert_eq!(OWN.jobs.lock().waiting.len(), 2);
        drop(held);
        for read in reads {
            block_on(read).unwrap().unwrap();
        }
        assert!(receivers[0].recv().is_ok() && receivers[2].recv().is_ok());
    }

    /// Else a read that comes while the last threads end would wait for one of them.
    #[test]
    fn a_thread_that_ends_is_not_counted_from_its_last_look_on() {
        static OWN: Threads = Threads::new(Duration::from_millis(1));
        OWN.jobs.lock().threads = MAX_FILE_THREADS;
        assert!(OWN.next().is_none());
        assert_eq!(OWN.jobs.lock().threads, MAX_FILE_THREADS - 1);
        assert_eq!(block_on(OWN.run(|| 5)).unwrap(), 5, "on a new thread");
    }

    #[test]
    fn jobs_that_panic_take_no_thread_from_those_that_wait() {
        static OWN: Threads = Threads::new(IDLE);
        let held = all_held(&OWN);
        let broken = (0..MAX_FILE_THREADS).map(|_| OWN.run(|| std::panic::panic_any("on purpose")));
        let all = futures::future::join(futures::future::join_all(broken), OWN.run(|| 5));
        let mut all = Box::pin(all);
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        assert!(all.as_mut().poll(cx).is_pending());
        drop(held);
        let (broken, last) = block_on(all);
        assert!(broken.iter().all(Result::is_err));
        assert_eq!(last.unwrap(), 5);
    }
}
