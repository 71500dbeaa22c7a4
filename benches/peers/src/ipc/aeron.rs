//! Aeron over shared memory, with a media driver of its own in the server's process.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::hint::spin_loop;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusteron_client::*;
use rusteron_media_driver::bindings::aeron_threading_mode_t;
use rusteron_media_driver::{AeronDriver, AeronDriverContext};
use rustix::process::{Pid, getpid, getppid};

use super::ready::say_ready;
use crate::Result;
use crate::child::{Running, serve_by_name};
use crate::contender::{End, Link, read};
use crate::job::Job;
use crate::machine::{self, Cores};
use crate::sys;

const THERE: i32 = 1;
const BACK: i32 = 2;
const SET_UP: Duration = Duration::from_secs(10);
/// Fragments that are taken at a time.
const FRAGMENTS: usize = 64;
/// A log holds messages of up to an eighth of a term: the default, and what 10 MiB need.
const TERM_BYTES: usize = 64 << 20;
const LARGE_TERM_BYTES: usize = 128 << 20;
/// The largest frame that Aeron takes, so that large messages are cut into as few as can be.
const MTU_BYTES: usize = 65504;
const FRAME_HEADER_BYTES: usize = 32;
/// Between two turns of the driver: it moves the sender's limit, which is megabytes away.
const DRIVER_SLEEP: &CStr = c"1ms";

pub(super) struct Aeron;

pub(super) struct Log {
    publication: AeronExclusivePublication,
    subscription: AeronSubscription,
    assembler: Handler<AeronFragmentAssembler>,
    inbox: Handler<Inbox>,
    /// A message too large to be written where it is sent from.
    outgoing: Vec<u8>,
    _client: rusteron_client::Aeron,
    /// Goes last.
    _keeper: Keeper,
}

/// What has to outlive the client.
enum Keeper {
    Driver(#[expect(dead_code, reason = "kept")] AeronDriver),
    Files(#[expect(dead_code, reason = "kept")] Scratch),
}

/// What has been read and not yet asked for.
struct Inbox {
    size: usize,
    marks: RefCell<VecDeque<Result<u8>>>,
}

impl AeronFragmentHandlerCallback for Inbox {
    fn handle_aeron_fragment_handler(&mut self, buffer: &[u8], _header: AeronHeader) {
        self.marks.borrow_mut().push_back(read(buffer, self.size));
    }
}

impl Log {
    fn new(job: &Job, [out, back]: [i32; 2], core: usize, directory: &Path, keeper: Keeper) -> Result<Self> {
        let directory = CString::new(directory.as_os_str().as_encoded_bytes())?;
        let context = AeronContext::new()?;
        context.set_dir(&directory)?;
        context.set_pre_touch_mapped_memory(true)?;
        let client = rusteron_client::Aeron::new(&context)?;
        beside_spinners(core, || client.start())??;
        let subscription =
            client.async_add_subscription(AERON_IPC_STREAM, back, Handlers::NONE, Handlers::NONE)?;
        let subscription = subscription.poll_blocking(SET_UP)?;
        let publication =
            client.async_add_exclusive_publication(AERON_IPC_STREAM, out)?.poll_blocking(SET_UP)?;
        let inbox = Inbox { size: job.size, marks: RefCell::default() };
        let (assembler, inbox) = Handler::with_fragment_assembler(inbox)?;
        let outgoing = vec![0; job.size];
        Ok(Self { publication, subscription, assembler, inbox, outgoing, _client: client, _keeper: keeper })
    }
}

impl Link for Aeron {
    const NAME: &'static str = super::AERON;
    type End = Log;

    fn client(job: &Job) -> Result<(Running, Log)> {
        let directory = directory(job, Some(getpid()));
        let files = Keeper::Files(Scratch(directory.clone()));
        let server = serve_by_name(job)?;
        Ok((server, Log::new(job, [THERE, BACK], Cores::TWO.client, &directory, files)?))
    }

    fn server(job: &Job) -> Result<Log> {
        let directory = directory(job, getppid());
        let driver = Keeper::Driver(driver(&directory, job.size)?);
        let log = Log::new(job, [BACK, THERE], Cores::TWO.server, &directory, driver)?;
        say_ready()?;
        Ok(log)
    }
}

impl End for Log {
    async fn send(&mut self, mark: u8, size: usize) -> Result<()> {
        let in_place = size <= MTU_BYTES - FRAME_HEADER_BYTES;
        if !in_place {
            self.outgoing[..size].fill(mark);
        }
        loop {
            let sent = if in_place {
                self.publication.try_claim_owned(size).map(|mut claim| {
                    claim.data().fill(mark);
                    claim.commit().is_ok()
                })
            } else {
                self.publication.offer(&self.outgoing[..size]).map(|_| true)
            };
            match sent {
                Ok(true) => return Ok(()),
                Ok(false) => return Err("a claim could not be committed".into()),
                Err(error) if error.is_retryable() => spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn recv(&mut self, _size: usize) -> Result<u8> {
        loop {
            if let Some(mark) = self.inbox.marks.borrow_mut().pop_front() {
                return mark;
            }
            self.subscription.poll(Some(&self.assembler), FRAGMENTS)?;
        }
    }
}

/// In shared memory, under a name that is removed with the run, and that no earlier driver had.
fn directory(job: &Job, client: Option<Pid>) -> PathBuf {
    let client = client.map_or(0, |pid| pid.as_raw_nonzero().get());
    format!("/dev/shm/{}-aeron-{client}", job.tag).into()
}

/// Removes the logs, which are large, also if the driver is killed before it could.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a thread of Aeron's on any core, and before the two that spin: the media driver moves the sender's limit,
/// and a client's conductor keeps the client alive.
fn beside_spinners<T>(core: usize, start: impl FnOnce() -> T) -> Result<T> {
    machine::pin_to_any();
    sys::raise_priority(1);
    let started = start();
    sys::raise_priority(-1);
    machine::pin(core)?;
    Ok(started)
}

/// With threads of its own: the crate's ready-made driver yields in a loop, which at a real-time priority keeps a core.
fn driver(directory: &Path, size: usize) -> Result<AeronDriver> {
    let directory = CString::new(directory.as_os_str().as_encoded_bytes())?;
    let context = AeronDriverContext::new()?;
    context.set_dir(&directory)?;
    context.set_dir_delete_on_shutdown(true)?;
    context.set_threading_mode(aeron_threading_mode_t::AERON_THREADING_MODE_SHARED)?;
    context.set_shared_idle_strategy(c"sleep-ns")?;
    context.set_shared_idle_strategy_init_args(DRIVER_SLEEP)?;
    let large = size > TERM_BYTES / 8;
    context.set_ipc_term_buffer_length(if large { LARGE_TERM_BYTES } else { TERM_BYTES })?;
    context.set_ipc_mtu_length(MTU_BYTES)?;
    context.set_term_buffer_sparse_file(false)?;
    let driver = AeronDriver::new(&context)?;
    beside_spinners(Cores::TWO.server, || driver.start(false))??;
    Ok(driver)
}
