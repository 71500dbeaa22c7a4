//! The machine's serial ports: pipes from qemu to threads of ours that hand on, keep or parse what comes.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;

use super::cpio::{Entry, Reader};
use super::error::Error;

const CHUNK_BYTES: usize = 64 << 10;
/// What is kept of a console for a message.
const TAIL_BYTES: usize = 16 << 10;
/// Longer lines are none that the machine's first process writes.
const LINE_BYTES_MAX: u64 = 4096;
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The end of a pipe that qemu inherits.
pub(super) struct Inherited(OwnedFd);

impl Inherited {
    pub(super) fn new(fd: impl Into<OwnedFd>) -> Result<Self, Error> {
        let fd = fd.into();
        rustix::io::fcntl_setfd(&fd, FdFlags::empty())
            .map_err(|error| Error::Io { what: "hand a descriptor on".to_owned(), error: error.into() })?;
        Ok(Self(fd))
    }

    /// A name that opens it in a child.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.number())
    }

    /// Its number in a child.
    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<Inherited> for OwnedFd {
    fn from(inherited: Inherited) -> Self {
        inherited.0
    }
}

/// A pipe into the machine's port, and our end.
pub(super) fn pipe() -> Result<(PipeReader, Inherited), Error> {
    let (reader, writer): (PipeReader, PipeWriter) =
        io::pipe().map_err(|error| Error::Io { what: "make a pipe".to_owned(), error })?;
    Ok((reader, Inherited::new(writer)?))
}

/// Our end of the port by which what the machine asks for is answered, and qemu's.
pub(super) fn answers() -> Result<(UnixStream, Inherited), Error> {
    let failed = |error| Error::Io { what: "make a socket".to_owned(), error };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // Who asks and never reads must not keep us from looking at the clock.
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((ours, Inherited::new(theirs)?))
}

/// Copies until the end. If nobody takes it any more, the rest is dropped: the command must not wait for us.
pub(super) fn hand_on(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut taken = true;
        loop {
            match from.read(&mut chunk) {
                Ok(0) => return,
                Ok(len) => taken = taken && to.write_all(&chunk[..len]).and_then(|()| to.flush()).is_ok(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// Keeps the last of what comes.
pub(super) fn tail(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = VecDeque::with_capacity(2 * TAIL_BYTES);
        let mut chunk = vec![0; TAIL_BYTES];
        while let Ok(len @ 1..) = from.read(&mut chunk) {
            kept.extend(&chunk[..len]);
            kept.drain(..kept.len().saturating_sub(TAIL_BYTES));
        }
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    })
}

/// What the machine's first process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The command starts.
    Up,
    /// The machine can't go on.
    Fail(String),
    /// The command has ended, and its output is out.
    Exit(u8),
    /// The command asks for something of the machine at the other end of the wire, or of the wire.
    Ask(Ask),
    /// A line that means nothing here.
    Garbled(String),
}

/// What the command of one machine may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// To kill the other machine, which may be switched on again.
    PeerOff,
    /// To switch it on.
    PeerOn,
    /// To lose one of so many frames from here on; 0: none.
    Lose(u32),
    /// To lose frames of more bytes from here on; 0: none.
    LoseLonger(u32),
}

impl Ask {
    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "peer-off" => Some(Self::PeerOff),
            None if line == "peer-on" => Some(Self::PeerOn),
            Some(("lose", one_of)) => one_of.parse().ok().map(Self::Lose),
            Some(("lose-longer", longest)) => longest.parse().ok().map(Self::LoseLonger),
            _ => None,
        }
    }
}

impl Event {
    /// A shell says 128 + N of a command that signal N has killed.
    fn parse(line: &str) -> Option<Self> {
        match line.trim_end().split_once(' ') {
            None if line.trim_end() == "up" => Some(Self::Up),
            Some(("exit", code)) => code.parse().ok().map(Self::Exit),
            Some(("fail", why)) => Some(Self::Fail(why.to_owned())),
            _ => Ask::parse(line.trim_end()).map(Self::Ask),
        }
    }
}

/// Calls `on` for each thing that is said, and with None when nothing more will be.
pub(super) fn events(
    from: impl Read + Send + 'static,
    on: impl Fn(Option<Event>) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        loop {
            let mut line = String::new();
            match (&mut from).take(LINE_BYTES_MAX).read_line(&mut line) {
                Ok(1..) => on(Some(
                    Event::parse(&line).unwrap_or_else(|| Event::Garbled(line.trim_end().to_owned())),
                )),
                _ => return on(None),
            }
        }
    })
}

/// Unpacks the archive that comes into `dir`. Only directories and files are made.
pub(super) fn unpack(from: impl Read + Send + 'static, dir: PathBuf) -> JoinHandle<Result<(), Error>> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let done = unpack_into(&mut from, &dir);
        // Whatever is left in the pipe must not hold the machine up.
        let _ = io::copy(&mut from, &mut io::sink());
        done.map_err(|error| Error::BroughtBack { how: error.to_string() })
    })
}

fn unpack_into(from: &mut impl BufRead, dir: &Path) -> io::Result<()> {
    let mut archive = Reader::new(from);
    while let Some(entry) = archive.next()? {
        match entry {
            Entry::Directory { path } => fs::create_dir_all(dir.join(path))?,
            Entry::File { path, executable, .. } => {
                let mut file = File::create(dir.join(path))?;
                archive.contents(&mut file)?;
                file.set_permissions(Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
            }
            Entry::Other { path } => {
                eprintln!("xtask: left in the machine, as it is no file: {}", path.display())
            }
        }
    }
    Ok(())
}

/// What the thread returns, unless it takes too long.
pub(super) fn join_until<T>(thread: JoinHandle<T>, deadline: Instant) -> Option<T> {
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
    thread.join().ok()
}

#[cfg(test)]
mod tests {
    use super::super::cpio::Writer;
    use super::*;

    #[test]
    fn events_are_what_the_first_process_says() {
        assert_eq!(Event::parse("up\n"), Some(Event::Up));
        assert_eq!(Event::parse("exit 0\n"), Some(Event::Exit(0)));
        assert_eq!(Event::parse("exit 137\r\n"), Some(Event::Exit(137)));
        assert_eq!(Event::parse("fail no veth pair\n"), Some(Event::Fail("no veth pair".to_owned())));
        assert_eq!(Event::parse("peer-off\n"), Some(Event::Ask(Ask::PeerOff)));
        assert_eq!(Event::parse("lose 50\n"), Some(Event::Ask(Ask::Lose(50))));
        for line in [
            "",
            "\n",
            "lose\n",
            "lose x\n",
            "peer-off now\n",
            "exit\n",
            "exit 256\n",
            "exit -1\n",
            "exit x\n",
            "upper\n",
            "down 1\n",
        ] {
            assert_eq!(Event::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn of_a_console_the_end_is_kept() {
        let long = [vec![b'a'; 3 * TAIL_BYTES], Vec::from(b"end")].concat();
        let kept = tail(io::Cursor::new(long)).join().unwrap();
        assert_eq!(kept.len(), TAIL_BYTES);
        assert!(kept.ends_with("aend"));
    }

    #[test]
    fn files_come_back_with_their_directories() {
        let mut writer = Writer::new(Vec::new());
        writer.directory("a").unwrap();
        writer.file("a/program", true, b"1").unwrap();
        writer.symlink("a/link", "/etc/passwd").unwrap();
        writer.file("text", false, b"").unwrap();
        let archive = writer.finish().unwrap();
        let dir = std::env::temp_dir().join(format!("zc-unpack-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let done = unpack(io::Cursor::new(archive), dir.clone()).join().unwrap();
        let program = dir.join("a/program");
        let found =
            (fs::read(&program).ok(), fs::metadata(&program).map(|file| file.permissions().mode() & 0o777));
        let others = (dir.join("a/link").symlink_metadata().is_err(), fs::read(dir.join("text")).ok());
        fs::remove_dir_all(&dir).unwrap();
        done.unwrap();
        assert_eq!((found.0, found.1.unwrap()), (Some(Vec::from(b"1")), 0o755));
        assert_eq!(others, (true, Some(Vec::new())));
    }

    #[test]
    fn half_an_archive_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        writer.directory(".").unwrap();
        let mut half = writer.finish().unwrap();
        half.truncate(half.len() / 2);
        let done = unpack(io::Cursor::new(half), std::env::temp_dir()).join().unwrap();
        assert!(matches!(done, Err(Error::BroughtBack { .. })), "{done:?}");
    }
}
