//! Why the machine did not run a command to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

/// What stood between a command and its exit status.
#[derive(Debug)]
pub(crate) enum Error {
    /// The machine's programs are built for x86-64 only.
    Architecture,
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where to keep what was fetched.
    NoCacheDir,
    /// Nothing is in the cache, and there is no apt to fetch it with.
    NoApt { what: &'static str, tool: &'static str },
    /// Nothing is in the cache, and the packages could not be fetched.
    Fetch { what: &'static str, how: String },
    /// A package did not hold what it should.
    Package { what: String },
    /// Another process has been at the cache for too long.
    CacheBusy { lock: PathBuf },
    /// What goes into the machine could not be built.
    Build { how: String },
    /// qemu is there and did not start.
    Qemu { how: String },
    /// The machine ended, or its time was up, before it could run anything.
    NotUp { how: String, console: String },
    /// The machine ended before it could run anything: its kernel has given up.
    Crashed { console: String },
    /// The command had not ended in time.
    Deadline { limit: Duration },
    /// Somebody here wanted the machine's end.
    Ended,
    /// That of the machine at the other end of the wire.
    OfPeer(Box<Self>),
    /// There is one of the two machines' kernels only.
    NoPair,
    /// The machine ended while the command ran.
    Died { how: String, console: String },
    /// What the command left in /out is not an archive that we would unpack.
    BroughtBack { how: String },
    /// A file, or a pipe.
    Io { what: String, error: io::Error },
}

impl Error {
    /// Names the file with which something went wrong: `.map_err(Error::io("read", path))`.
    pub(crate) fn io(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{verb} {}", path.display());
        move |error| Self::Io { what, error }
    }

    /// Whether the machine can't be had here, as opposed to having failed; and if so, whether it never can.
    pub(crate) fn unobtainable(&self) -> Option<Unobtainable> {
        match self {
            Self::Architecture | Self::NoApt { .. } => Some(Unobtainable { ever: true }),
            Self::NoCacheDir | Self::Fetch { .. } => Some(Unobtainable { ever: false }),
            Self::OfPeer(error) => error.unobtainable(),
            _ => None,
        }
    }
}

/// The machine is not there to be run.
pub(crate) struct Unobtainable {
    /// No network and no setting would change that.
    pub(crate) ever: bool,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture => write!(f, "the test machine runs on x86-64 hosts only"),
            Self::NoCacheDir => {
                write!(f, "neither XDG_CACHE_HOME nor HOME is set: nowhere to keep the machine")
            }
            Self::NoApt { what, tool } => {
                write!(f, "no {what} in the cache, and no {tool} to fetch it with (Debian has it)")
            }
            Self::Fetch { what, how } => {
                write!(f, "no {what} in the cache, and it could not be fetched (is there a network?): {how}")
            }
            Self::Package { what } => write!(f, "the packages are not as expected: {what}"),
            Self::CacheBusy { lock } => write!(f, "another process holds {} for too long", lock.display()),
            Self::Build { how } => write!(f, "could not build what goes into the machine: {how}"),
            Self::Qemu { how } => write!(f, "qemu: {how}"),
            Self::NotUp { how, console } => write!(f, "the machine did not come up: {how}{}", Tail(console)),
            Self::Crashed { console } => write!(f, "the machine's kernel did not come up{}", Tail(console)),
            Self::Deadline { limit } => {
                write!(f, "the command had not ended after {} s", limit.as_secs_f64())
            }
            Self::Ended => write!(f, "the machine was switched off"),
            Self::OfPeer(error) => write!(f, "peer: {error}"),
            Self::NoPair => write!(f, "two machines (--peer) have the stable kernel"),
            Self::Died { how, console } => {
                write!(f, "the machine ended before the command did: {how}{}", Tail(console))
            }
            Self::BroughtBack { how } => write!(f, "what the machine hands out can't be unpacked: {how}"),
            Self::Io { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

/// The last lines of the console, below the message.
struct Tail<'a>(&'a str);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LINES_MAX: usize = 30;
        let lines: Vec<_> = self.0.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return write!(f, "; its console is empty");
        }
        lines[lines.len().saturating_sub(LINES_MAX)..].iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_had_elsewhere_is_told_from_what_went_wrong() {
        let ever = |error: Error| error.unobtainable().map(|why| why.ever);
        assert_eq!(ever(Error::Architecture), Some(true));
        assert_eq!(ever(Error::NoApt { what: "guest", tool: "dpkg" }), Some(true));
        assert_eq!(ever(Error::Fetch { what: "guest", how: "exit code 100".to_owned() }), Some(false));
        assert_eq!(ever(Error::Deadline { limit: Duration::from_secs(1) }), None);
        assert_eq!(ever(Error::Package { what: "no busybox".to_owned() }), None);
    }

    #[test]
    fn of_the_console_the_last_lines_are_shown() {
        let console: String = (1..=100).map(|line| format!("line {line}\r\n\r\n")).collect();
        let shown = Error::NotUp { how: "its time is over".to_owned(), console }.to_string();
        assert!(shown.starts_with("the machine did not come up: its time is over\n  | line 71\n"), "{shown}");
        assert!(shown.ends_with("\n  | line 100"), "{shown}");
        let shown = Error::Died { how: "crashed".to_owned(), console: "\n".to_owned() }.to_string();
        assert_eq!(shown, "the machine ended before the command did: crashed; its console is empty");
    }
}
