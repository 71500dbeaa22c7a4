//! The programs and libraries of the machine, whatever its kernel is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::apt::{Apt, Package};
use super::cache::Kind;
use super::cpio::Writer;
use super::error::Error;
use super::{existing, name, one};
use crate::child::{Cmd, Runner};

const USERLAND: &[&str] = &[
    "busybox-static",
    "dash",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "libc6",
    "libgcc-s1",
    "libibverbs1",
    "perftest",
    "sockperf",
];
const PROGRAMS: &[&str] = &["busybox", "dash", "ip", "rdma", "sockperf", "ss"];
/// ... and all that begin like this: Debian's verbs examples and perftest.
const PROGRAM_FAMILIES: &[&str] = &["ibv_", "ib_"];
/// The provider of Soft-RoCE; the others are for devices that the machine has not.
const PROVIDER: &str = "rxe";
const PROGRAM_DIRS: &[&str] = &["bin", "sbin", "usr/bin", "usr/sbin"];
const LIBRARY_DIRS: &[&str] = &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
const USERS: &str = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n";
/// Changes when the same packages are put together differently.
const LAYOUT: u32 = 1;
const LIMIT: Duration = Duration::from_secs(60);

/// The file of a finished tree.
pub(super) const BASE_FILE: &str = "base.cpio";

pub(super) fn kind() -> Kind {
    let recipe = format!("{LAYOUT} {USERLAND:?} {PROGRAMS:?} {PROGRAM_FAMILIES:?}");
    Kind { what: "userland", recipe, suite: None, packages, make }
}

/// busybox, which names the version, and all the others with what they need.
fn packages(apt: &Apt) -> Result<Vec<Package>, Error> {
    let mut packages = apt.closure(USERLAND)?;
    packages.sort_by_key(|package| package.name != USERLAND[0]);
    Ok(packages)
}

fn make(unpacked: &Path, made: &Path) -> Result<(), Error> {
    let base = made.join(BASE_FILE);
    let file = File::create(&base).map_err(Error::io("create", &base))?;
    let mut image =
        Image { root: unpacked, out: Writer::new(BufWriter::new(file)), programs: BTreeSet::new() };
    image.skeleton().map_err(Error::io("write", &base))?;
    image.userland()?;
    image.out.finish().map_err(Error::io("write", &base))?;
    Ok(())
}

/// The archive that is the same for all commands, while it is written.
struct Image<'a, W> {
    root: &'a Path,
    out: Writer<W>,
    programs: BTreeSet<String>,
}

impl<W: Write> Image<'_, W> {
    /// Directories, with those of old below /usr, and what every system has.
    fn skeleton(&mut self) -> io::Result<()> {
        for dir in
            "dev etc etc/libibverbs.d out proc root run sys tmp usr usr/bin usr/lib usr/lib64 usr/local \
                    usr/local/bin usr/sbin"
                .split_whitespace()
                .chain([LIBRARIES, &format!("{LIBRARIES}/libibverbs")])
        {
            self.out.directory(dir)?;
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            self.out.symlink(name, &format!("usr/{name}"))?;
        }
        self.out.symlink("usr/bin/sh", "dash")?;
        self.out.symlink(&format!("usr/lib64/{LOADER}"), &format!("../../{LIBRARIES}/{LOADER}"))?;
        self.out.file("etc/passwd", false, USERS.as_bytes())?;
        self.out.file("etc/group", false, b"root:x:0:\nuser:x:1000:\n")?;
        self.out.file("etc/hosts", false, b"127.0.0.1 localhost\n10.0.0.1 rxe0\n")
    }

    fn userland(&mut self) -> Result<(), Error> {
        let root = self.root;
        for from in existing(root, PROGRAM_DIRS)? {
            let name = name(&from);
            let family = PROGRAM_FAMILIES.iter().any(|family| name.starts_with(family));
            if (family || PROGRAMS.contains(&name.as_str())) && self.programs.insert(name.clone()) {
                self.add(&from, &format!("usr/bin/{name}"))?;
            }
        }
        for program in PROGRAMS.iter().chain(&["ibv_devinfo", "ib_send_lat"]) {
            if !self.programs.contains(*program) {
                return Err(Error::Package { what: format!("no program {program}") });
            }
        }
        self.applets()?;
        for from in existing(root, LIBRARY_DIRS)? {
            let name = name(&from);
            if name.contains(".so") && (from.is_symlink() || from.is_file()) {
                self.add(&from, &format!("{LIBRARIES}/{name}"))?;
            }
        }
        let library = one(root, &format!("{LIBRARIES}/libibverbs"), &format!("lib{PROVIDER}-"))?;
        self.add(&library, &format!("{LIBRARIES}/libibverbs/{}", name(&library)))?;
        let driver = root.join("etc/libibverbs.d").join(format!("{PROVIDER}.driver"));
        self.add(&driver, &format!("etc/libibverbs.d/{PROVIDER}.driver"))
    }

    /// The small programs of busybox, where there is no other. It is linked statically, so it runs here to name them.
    fn applets(&mut self) -> Result<(), Error> {
        let candidates = PROGRAM_DIRS.iter().map(|dir| self.root.join(dir).join("busybox"));
        let busybox = candidates.into_iter().find(|path| path.is_file());
        let busybox = busybox.ok_or_else(|| Error::Package { what: "no busybox".to_owned() })?;
        let list = Runner::new(self.root, LIMIT).output(&Cmd::new(busybox, "--list"));
        let list = list.map_err(|how| Error::Package { what: format!("busybox --list: {how}") })?;
        for applet in list.lines().filter(|applet| *applet != "sh") {
            if self.programs.insert(applet.to_owned()) {
                let path = format!("usr/bin/{applet}");
                self.out.symlink(&path, "busybox").map_err(Error::io("add", Path::new(&path)))?;
            }
        }
        Ok(())
    }

    /// Adds a file or a link as it is.
    fn add(&mut self, from: &Path, to: &str) -> Result<(), Error> {
        let done = if from.is_symlink() {
            fs::read_link(from).and_then(|target| self.out.symlink(to, &target.to_string_lossy()))
        } else {
            let executable = fs::metadata(from).map(|file| file.permissions().mode() & 0o111 != 0);
            executable.and_then(|executable| self.out.file(to, executable, &fs::read(from)?))
        };
        done.map_err(Error::io("add", from))
    }
}
