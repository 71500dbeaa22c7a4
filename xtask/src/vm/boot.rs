//! One run of the machine: what goes in, qemu's arguments, and waiting for the end.
//!
//! ```text
//! base.cpio + modules.cpio + command, programs ──memfd──> kernel ──> /init ──> COMMAND
//! stdout <──pipe── vport0p1 <── its stdout     stderr <──pipe── vport0p2 <── its stderr
//! events <──pipe── vport0p3 <── /init          --out  <──pipe── vport0p4 <── /out, as cpio
//! a tail for messages <──pipe── ttyS0 <── the kernel and /init
//! ```
//!
//! Nothing of this lies in a file, so nothing is left whichever way it ends. Where there are two machines, a wire between
//! them ends in their network cards (`wire`), and `pair` does for one what the other asks for.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, PipeReader, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use super::cpio::Writer;
use super::error::Error;
use super::guest::BASE_FILE;
use super::kernel::{KERNEL_FILE, MODULES_FILE};
use super::ports::{self, Ask, Event, Inherited};
use super::wire::{End, Wire};
use super::{Kernel, Parts, quote};
use crate::{child, guard};

const INIT: &str = include_str!("init.sh");
/// Two processes that spin in turns need two.
const CORES: u32 = 2;
/// What the kernel and the programs need besides the files.
const MEMORY_MIB: u64 = 256;
/// At least so much where there are cards. Of the headers in front of what their driver (virtio_net of Linux 7.3, a module here) sends
/// without a copy it tells them addresses as if they lay in the kernel's image and not in a module: a little above 1 GiB. Nothing is
/// wrong with what is read there, for on a wire inside qemu the headers mean nothing. But where there is no memory qemu reads by way
/// of its one buffer, which belongs to the other card while that waits, and then counts the card as broken.
const CARDS_MEMORY_MIB: u64 = 1280;
/// So many times the files: they lie in memory twice while they are unpacked, and may take half of what is there beside the
/// archive (the kernel's Documentation/filesystems/tmpfs.rst: the default of `size`).
const MEMORY_PER_FILES: u64 = 4;
/// The processors' own counter as the clock, which is one and the same for all that are emulated. The kernel does not see that, and would
/// take a device, of which each reading is a system call and one of qemu's locks.
const CLOCK: &str = "tsc=reliable";
/// How often it is switched on: while a kernel changes its own code, qemu before 8.1 may run what was there before, and the
/// kernel gives up. Nothing of the command has happened then.
const STARTS_MAX: u32 = 4;
/// For a machine that has said how the command ended to switch itself off.
const OFF_GRACE: Duration = Duration::from_secs(2);
/// In front of what the machine at the other end says.
const PEER: &str = "peer: ";
/// Longer lines are written in parts.
const LINE_BYTES: usize = 8 << 10;
/// For our own output to be taken once the machine is gone.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// What to run.
pub(super) struct Job {
    pub(super) command: Vec<OsString>,
    /// Found on PATH in the machine under their names.
    pub(super) programs: Vec<PathBuf>,
    /// Where what the command leaves in /out goes.
    pub(super) out: Option<PathBuf>,
    pub(super) limit: Duration,
    pub(super) memory_mib: Option<u64>,
    /// Where it is plugged in, if there is another machine.
    pub(super) place: Option<(Arc<Wire>, End)>,
}

/// What those who wait for a machine hear of it.
#[derive(Debug)]
pub(super) enum Word {
    Said(Event),
    /// Its ports are closed: qemu is gone.
    Gone,
    /// Somebody here wants it to be ended.
    End,
}

/// The ways for such words to those who wait.
pub(super) struct Words {
    to: Sender<Word>,
    of: Receiver<Word>,
}

impl Words {
    pub(super) fn new() -> Self {
        let (to, of) = channel();
        Self { to, of }
    }

    /// To end the machine by.
    pub(super) fn sender(&self) -> Sender<Word> {
        self.to.clone()
    }
}

impl Job {
    /// Boots, runs the command and returns its exit status; 128 + N if signal N has killed it.
    pub(super) fn run(&self, parts: &Parts) -> Result<u8, Error> {
        // Nobody else is there to be asked for.
        self.run_with(parts, Words::new(), |_| 0)
    }

    /// The same, where others end it, or do what the command asks for and say how many frames were lost until then.
    pub(super) fn run_with(
        &self,
        parts: &Parts,
        words: Words,
        mut asked: impl FnMut(Ask) -> u64,
    ) -> Result<u8, Error> {
        let mut starts = 1;
        loop {
            match self.start(parts, &words, &mut asked) {
                Err(error @ Error::Crashed { .. }) if starts < STARTS_MAX => {
                    starts += 1;
                    eprintln!("xtask: {}once more, as {error}", self.prefix());
                }
                ended => return ended,
            }
        }
    }

    fn start(&self, parts: &Parts, words: &Words, asked: &mut impl FnMut(Ask) -> u64) -> Result<u8, Error> {
        let start = Instant::now();
        let machine = self.switch_on(parts, words)?;
        let ended = machine.wait(start, self.limit, &words.of, asked);
        if let Some((wire, end)) = &self.place {
            wire.unplug(*end);
        }
        ended
    }

    fn switch_on(&self, parts: &Parts, words: &Words) -> Result<Machine, Error> {
        /// While this is held a machine's descriptors are such that children inherit them. Another machine must not: it would
        /// keep the ends open of one that is gone.
        static HANDING_ON: Mutex<()> = Mutex::new(());
        let Parts { qemu, kernel, kernel_dir, userland_dir } = parts;
        let base = [userland_dir.join(BASE_FILE), kernel_dir.join(MODULES_FILE)];
        if let Some(dir) = &self.out {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let _handing_on = HANDING_ON.lock().unwrap_or_else(PoisonError::into_inner);
        let (initrd, bytes) = self.initrd(&base)?;
        let (ours, theirs) = wires()?;
        let plug = self.place.as_ref().map(|(wire, end)| wire.plug(*end)).transpose()?;
        let (answers, of_answers) = match &plug {
            Some(_) => ports::answers().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            None => (None, None),
        };
        let least = if kernel.cards().is_empty() { 0 } else { CARDS_MEMORY_MIB };
        let needed = (MEMORY_MIB + MEMORY_PER_FILES * (bytes >> 20)).max(least);
        let memory_mib = self.memory_mib.unwrap_or(needed);
        let mut command = Command::new(guard::SELF);
        // From here to qemu the kernel sees to it that it goes when we go.
        command.args([guard::EXEC, &std::process::id().to_string(), "--"]).args(&qemu.command);
        command.args(arguments(memory_mib, &kernel_dir.join(KERNEL_FILE), &initrd, &theirs));
        command.args(cards(*kernel));
        command.args(self.plugged(plug.as_ref().zip(of_answers.as_ref())));
        command.envs(qemu.env.iter().map(|(name, value)| (name, value)));
        let out = self.out.clone();
        let machine = Machine::start(command, ours, self.sinks(), out, words.to.clone(), self.prefix())?;
        Ok(Machine { answers, ..machine })
    }

    fn end(&self) -> Option<End> {
        self.place.as_ref().map(|(_, end)| *end)
    }

    /// The card at the wire, and the port by which what is asked for is answered: behind those that all machines have.
    fn plugged(&self, plug: Option<(&Inherited, &Inherited)>) -> Vec<OsString> {
        let (Some(end), Some((plug, answers))) = (self.end(), plug) else { return Vec::new() };
        let wire = format!("socket,id=wire,fd={}", plug.number());
        let card = format!("virtio-net-pci,netdev=wire,mac=02:00:00:00:01:{:02},romfile=", end.number());
        let socket = format!("socket,id=answers,fd={}", answers.number());
        let port = "virtserialport,chardev=answers,name=answers";
        let all = [("-netdev", wire), ("-device", card), ("-chardev", socket), ("-device", port.to_owned())];
        all.into_iter().flat_map(|(option, value)| [option.into(), value.into()]).collect()
    }

    /// What is ahead of our own words about it.
    fn prefix(&self) -> &'static str {
        if self.end() == Some(End::Peer) { PEER } else { "" }
    }

    /// Of a pair, only one has our stdout.
    fn sinks(&self) -> [Sink; 2] {
        match self.end() {
            Some(End::Peer) => [Box::new(Lines::new(io::stderr())), Box::new(Lines::new(io::stderr()))],
            _ => [Box::new(io::stdout()), Box::new(io::stderr())],
        }
    }

    /// The first file system, as a descriptor that qemu inherits, and its length.
    fn initrd(&self, base: &[PathBuf]) -> Result<(Inherited, u64), Error> {
        let failed =
            |error: io::Error| Error::Io { what: "put the machine's files together".to_owned(), error };
        let fd =
            rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let mut file = File::from(fd);
        for archive in base {
            let mut from = File::open(archive).map_err(Error::io("open", archive))?;
            io::copy(&mut from, &mut file).map_err(failed)?;
        }
        let mut archive = Writer::new(BufWriter::new(&file));
        archive.file("init", true, INIT.as_bytes()).map_err(failed)?;
        archive.file("zc/command", false, &quote::script(&self.command)).map_err(failed)?;
        if let Some(end) = self.end() {
            archive.file("zc/number", false, format!("{}\n", end.number()).as_bytes()).map_err(failed)?;
        }
        if self.out.is_some() {
            archive.file("zc/bring-back", false, b"").map_err(failed)?;
        }
        for program in &self.programs {
            let contents = fs::read(program).map_err(Error::io("read", program))?;
            let name = program.file_name().and_then(|name| name.to_str());
            let name =
                name.ok_or_else(|| Error::Build { how: format!("{} has no name", program.display()) })?;
            archive.file(&format!("usr/local/bin/{name}"), true, &contents).map_err(failed)?;
        }
        archive.finish().map_err(failed)?;
        let bytes = file.stream_position().map_err(failed)?;
        Ok((Inherited::new(file)?, bytes))
    }
}

/// Lines that say whose they are, each written at once.
struct Lines<W> {
    to: W,
    begun: Vec<u8>,
}

impl<W: Write> Lines<W> {
    fn new(to: W) -> Self {
        Self { to, begun: Vec::new() }
    }

    fn put(&mut self, len: usize) -> io::Result<()> {
        let line: Vec<u8> = PEER.bytes().chain(self.begun.drain(..len)).collect();
        self.to.write_all(&line)
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend(bytes);
        while let Some(at) = self.begun.iter().position(|&byte| byte == b'\n') {
            self.put(at + 1)?;
        }
        if self.begun.len() >= LINE_BYTES {
            self.put(self.begun.len())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W> Drop for Lines<W> {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            eprintln!("{PEER}{}", String::from_utf8_lossy(&self.begun));
        }
    }
}

/// What comes from the machine: our ends of the pipes, or qemu's.
struct Wires<T> {
    console: T,
    stdout: T,
    stderr: T,
    events: T,
    files: T,
}

fn wires() -> Result<(Wires<PipeReader>, Wires<Inherited>), Error> {
    let (console, c) = ports::pipe()?;
    let (stdout, o) = ports::pipe()?;
    let (stderr, e) = ports::pipe()?;
    let (events, v) = ports::pipe()?;
    let (files, f) = ports::pipe()?;
    let ours = Wires { console, stdout, stderr, events, files };
    Ok((ours, Wires { console: c, stdout: o, stderr: e, events: v, files: f }))
}

fn arguments(memory_mib: u64, kernel: &Path, initrd: &Inherited, wires: &Wires<Inherited>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        "-machine pc -accel tcg,thread=multi -cpu max -nodefaults -no-user-config \
         -no-reboot -display none -monitor none -device virtio-serial-pci"
            .split_whitespace()
            .map(OsString::from)
            .collect();
    let mut pair = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    pair("-smp", CORES.to_string().into());
    pair("-m", memory_mib.to_string().into());
    pair("-kernel", kernel.into());
    pair("-initrd", initrd.path().into());
    let quiet = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr";
    pair("-append", format!("{quiet} {CLOCK}").into());
    pair("-chardev", format!("file,id=console,path={}", wires.console.path()).into());
    pair("-serial", "chardev:console".into());
    // Their order is that of the ports' numbers, which init.sh knows.
    for (name, wire) in [
        ("stdout", &wires.stdout),
        ("stderr", &wires.stderr),
        ("events", &wires.events),
        ("files", &wires.files),
    ] {
        pair("-chardev", format!("file,id={name},path={}", wire.path()).into());
        pair("-device", format!("virtserialport,chardev={name},name={name}").into());
    }
    arguments
}

/// Network cards on one wire, which is in qemu: nothing of the host's network is used. Their addresses in memory are for
/// the card (`iommu_platform`), since the driver hands none of the application's frames to a card that takes the
/// processor's; and what a card would do for its driver is left out, since no program of ours sees whole packets else.
fn cards(kernel: Kernel) -> Vec<OsString> {
    const OFFLOADS: &str = "ctrl_guest_offloads=on,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,mq=off,ctrl_vlan=off";
    let mut arguments = Vec::new();
    for (number, mac) in kernel.cards().iter().enumerate() {
        let port = format!("hubport,id=wire{number},hubid=0");
        let card = format!(
            "virtio-net-pci,netdev=wire{number},mac={mac},iommu_platform=on,disable-legacy=on,romfile=,{OFFLOADS}"
        );
        arguments.extend(["-netdev".into(), port.into(), "-device".into(), card.into()]);
    }
    arguments
}

/// A machine that runs; it ends with this value.
struct Machine {
    child: Killed,
    prefix: &'static str,
    console: JoinHandle<String>,
    /// What qemu itself says.
    said: Option<JoinHandle<String>>,
    output: [JoinHandle<()>; 2],
    files: Option<JoinHandle<Result<(), Error>>>,
    /// Where what it asks for is answered.
    answers: Option<UnixStream>,
}

/// Where a command's output goes.
type Sink = Box<dyn Write + Send>;

impl Machine {
    fn start(
        mut command: Command,
        wires: Wires<PipeReader>,
        [stdout, stderr]: [Sink; 2],
        out: Option<PathBuf>,
        words: Sender<Word>,
        prefix: &'static str,
    ) -> Result<Self, Error> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = Killed(spawned.map_err(|error| Error::Qemu { how: error.to_string() })?);
        ports::events(wires.events, move |event| {
            // Once the command has ended nobody listens any more.
            let _ = words.send(event.map_or(Word::Gone, Word::Said));
        });
        Ok(Self {
            said: child.0.stderr.take().map(ports::tail),
            child,
            prefix,
            console: ports::tail(wires.console),
            output: [ports::hand_on(wires.stdout, stdout), ports::hand_on(wires.stderr, stderr)],
            files: out.map(|dir| ports::unpack(wires.files, dir)),
            answers: None,
        })
    }

    /// Waits for the command's end, for the deadline or until somebody wants its end, whichever comes first; the machine is gone then.
    fn wait(
        self,
        start: Instant,
        limit: Duration,
        words: &Receiver<Word>,
        mut asked: impl FnMut(Ask) -> u64,
    ) -> Result<u8, Error> {
        let deadline = start + limit;
        let mut up = false;
        loop {
            match words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Word::Said(Event::Up)) => {
                    up = true;
                    let took_s = start.elapsed().as_secs_f64();
                    eprintln!("xtask: {}the machine is up after {took_s:.1} s", self.prefix);
                }
                Ok(Word::Said(Event::Ask(ask))) => {
                    let lost = asked(ask);
                    if let Some(mut to) = self.answers.as_ref() {
                        // If it is gone, that is heard of as ever; if it reads none, it misses them.
                        let _ = writeln!(to, "{lost}");
                    }
                }
                Ok(Word::Said(Event::Garbled(line))) => {
                    return Err(self.failed(up, format!("it said {line:?}, which means nothing here")));
                }
                Ok(Word::Said(Event::Exit(code))) => return self.ended(code),
                Ok(Word::Said(Event::Fail(how))) => return Err(self.failed(up, how)),
                Ok(Word::End) => return Err(Error::Ended),
                Err(RecvTimeoutError::Timeout) if up => return Err(Error::Deadline { limit }),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failed(up, format!("its {} s are over", limit.as_secs_f64())));
                }
                Ok(Word::Gone) | Err(RecvTimeoutError::Disconnected) => return Err(self.gone(up)),
            }
        }
    }

    fn ended(mut self, code: u8) -> Result<u8, Error> {
        self.child.wait_until(Instant::now() + OFF_GRACE);
        drop(self.child);
        let deadline = Instant::now() + DRAIN_LIMIT;
        for thread in self.output {
            if ports::join_until(thread, deadline).is_none() {
                let what = "write the command's output".to_owned();
                return Err(Error::Io { what, error: io::ErrorKind::TimedOut.into() });
            }
        }
        let late = || Error::BroughtBack { how: "it takes too long".to_owned() };
        self.files.map_or(Ok(()), |thread| ports::join_until(thread, deadline).ok_or_else(late)?)?;
        Ok(code)
    }

    /// qemu ended without a word of the command's end.
    fn gone(mut self, up: bool) -> Error {
        let status = self.child.wait_until(Instant::now() + OFF_GRACE);
        let said = self.said.take().and_then(|said| ports::join_until(said, Instant::now() + OFF_GRACE));
        let said = said.unwrap_or_default();
        match status {
            Some(status) if !status.success() => Error::Qemu {
                how: format!("{status}: {}", if said.is_empty() { "no word" } else { said.trim() }),
            },
            _ if up => self.failed(up, "it switched itself off, or crashed".to_owned()),
            _ => Error::Crashed { console: self.console_said() },
        }
    }

    fn console_said(self) -> String {
        drop(self.child);
        ports::join_until(self.console, Instant::now() + OFF_GRACE).unwrap_or_default()
    }

    fn failed(self, up: bool, how: String) -> Error {
        let console = self.console_said();
        if up { Error::Died { how, console } } else { Error::NotUp { how, console } }
    }
}

/// A process that does not outlive this value.
struct Killed(Child);

impl Killed {
    fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        child::wait_until(&mut self.0, deadline)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// For what must end by itself long before.
    const HANG_GUARD: Duration = Duration::from_secs(60);

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A shell in qemu's place, which has the machine's ports as $stdout, $stderr, $events and $console.
    fn run(script: &str, limit: Duration) -> (Result<u8, Error>, [String; 2]) {
        let (ended, said, _) = run_and_answer(script, limit);
        (ended, said)
    }

    /// With what was answered when it had asked for something.
    fn run_and_answer(script: &str, limit: Duration) -> (Result<u8, Error>, [String; 2], String) {
        let (ours, theirs) = wires().unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        for (name, wire) in [
            ("stdout", &theirs.stdout),
            ("stderr", &theirs.stderr),
            ("events", &theirs.events),
            ("console", &theirs.console),
        ] {
            command.env(name, wire.path());
        }
        let kept = [Kept::default(), Kept::default()];
        let sinks = kept.clone().map(|kept| Box::new(kept) as Sink);
        let Words { to, of } = Words::new();
        let machine = Machine::start(command, ours, sinks, None, to, "").unwrap();
        let (answers, mut answered) = UnixStream::pair().unwrap();
        let machine = Machine { answers: Some(answers), ..machine };
        drop(theirs);
        let pid = machine.child.0.id();
        let mut asked = Vec::new();
        let ended = machine.wait(Instant::now(), limit, &of, |ask| {
            asked.push(ask);
            40 + asked.len() as u64
        });
        assert!(asked.iter().all(|ask| *ask == Ask::PeerOff), "{asked:?}");
        let mut answers = String::new();
        answered.read_to_string(&mut answers).unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is still there");
        (ended, kept.map(|kept| String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()), answers)
    }

    #[test]
    fn what_is_asked_for_is_done_before_it_is_answered() {
        let script = "echo up >$events; echo peer-off >$events; echo peer-off >$events; echo exit 0 >$events";
        let (ended, _, answers) = run_and_answer(script, HANG_GUARD);
        assert_eq!((ended.unwrap(), answers.as_str()), (0, "41\n42\n"));
    }

    #[test]
    fn a_word_that_means_nothing_is_an_error() {
        let (ended, _) = run("echo up >$events; echo lose x >$events; exec sleep 1000", HANG_GUARD);
        let Err(Error::Died { how, .. }) = ended else { panic!("{ended:?}") };
        assert!(how.contains("\"lose x\""), "{how}");
    }

    #[test]
    fn output_and_exit_status_come_out_apart() {
        let script = "echo out >$stdout; echo err >$stderr; echo boot >$console; echo up >$events; echo exit 7 >$events";
        let (ended, [stdout, stderr]) = run(script, HANG_GUARD);
        assert_eq!(ended.unwrap(), 7);
        assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_machine_that_does_not_switch_itself_off_is_ended() {
        let (ended, _) = run("echo up >$events; echo exit 0 >$events; exec sleep 1000", HANG_GUARD);
        assert_eq!(ended.unwrap(), 0);
    }

    #[test]
    fn at_the_deadline_the_machine_is_ended() {
        let limit = Duration::from_millis(300);
        let (ended, _) = run("echo up >$events; exec sleep 1000", limit);
        assert!(matches!(ended, Err(Error::Deadline { limit: of }) if of == limit), "{ended:?}");
    }

    #[test]
    fn before_it_was_up_the_deadline_tells_of_the_console() {
        let (ended, _) =
            run("echo waiting for a disk >$console; exec sleep 1000", Duration::from_millis(300));
        let Err(Error::NotUp { console, .. }) = ended else { panic!("{ended:?}") };
        assert_eq!(console, "waiting for a disk\n");
    }

    #[test]
    fn a_crash_is_told_from_an_exit_status() {
        let (ended, _) = run("echo up >$events; echo panic >$console", HANG_GUARD);
        assert!(matches!(ended, Err(Error::Died { console, .. }) if console == "panic\n"));
        let (ended, _) = run("echo panic >$console", HANG_GUARD);
        assert!(matches!(ended, Err(Error::Crashed { console }) if console == "panic\n"));
        let (ended, _) = run("echo fail no rxe device >$events; exec sleep 1000", HANG_GUARD);
        assert!(matches!(ended, Err(Error::NotUp { how, .. }) if how == "no rxe device"));
    }

    #[test]
    fn qemu_says_itself_what_it_lacks() {
        let (ended, _) = run("echo no such machine >&2; exit 1", HANG_GUARD);
        assert!(matches!(ended, Err(Error::Qemu { how }) if how.contains("no such machine")));
        let (ended, _) = run("kill -9 $$", HANG_GUARD);
        let killed = ExitStatus::from_raw(9).to_string();
        assert!(matches!(ended, Err(Error::Qemu { how }) if how.contains(&killed)));
    }
}
