//! qemu: the one on PATH, else Debian's, which then runs through its own loader with its own libraries. It is not
//! installed: that would bring libibverbs to this machine, where its absence is tested.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::apt::{Apt, Package};
use super::cache::{Cache, Kind};
use super::error::Error;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// What it takes at run time, of all that its packages hold.
const KEPT: &[&str] =
    &["lib", "lib64", "usr/bin", "usr/lib", "usr/lib64", "usr/share/qemu", "usr/share/seabios"];
const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARY_DIRS: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LAYOUT: u32 = 1;

/// How to start it.
pub(super) struct Qemu {
    /// The program and its first arguments.
    pub(super) command: Vec<OsString>,
    pub(super) env: Vec<(&'static str, OsString)>,
}

impl Qemu {
    pub(super) fn find(cache: &Cache, newest: bool) -> Result<Self, Error> {
        match super::on_path(PROGRAM) {
            Some(path) => Ok(Self { command: vec![path.into()], env: Vec::new() }),
            None => Self::in_tree(&cache.tree(&kind(), newest)?),
        }
    }

    /// Whether it need not be fetched.
    pub(super) fn is_here(cache: &Cache) -> bool {
        super::on_path(PROGRAM).is_some() || cache.has(&kind())
    }

    fn in_tree(tree: &Path) -> Result<Self, Error> {
        let libraries: Vec<PathBuf> = LIBRARY_DIRS.iter().map(|dir| tree.join(dir)).collect();
        let loader = libraries.iter().map(|dir| dir.join(LOADER)).find(|path| path.is_file());
        let loader = loader.ok_or_else(|| Error::Package { what: format!("no {LOADER}") })?;
        let paths = std::env::join_paths(&libraries)
            .map_err(|error| Error::Qemu { how: format!("the cache folder can't be in a list: {error}") })?;
        let mut command = vec![loader.into(), "--library-path".into(), paths];
        command.push(tree.join("usr/bin").join(PROGRAM).into());
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.push("-L".into());
            command.push(tree.join(firmware).into());
        }
        let modules = tree.join("usr/lib/x86_64-linux-gnu/qemu").into();
        Ok(Self { command, env: vec![("QEMU_MODULE_DIR", modules)] })
    }
}

fn kind() -> Kind {
    let recipe = format!("{LAYOUT} {PACKAGE} {KEPT:?}");
    Kind { what: "qemu", recipe, suite: None, packages, make }
}

/// The one that names the version comes first.
fn packages(apt: &Apt) -> Result<Vec<Package>, Error> {
    let mut packages = apt.closure(&[PACKAGE])?;
    packages.sort_by_key(|package| package.name != PACKAGE);
    Ok(packages)
}

fn make(unpacked: &Path, made: &Path) -> Result<(), Error> {
    for dir in KEPT.iter().map(Path::new) {
        let (from, to) = (unpacked.join(dir), made.join(dir));
        if from.symlink_metadata().is_err() {
            continue;
        }
        let parent = to.parent().unwrap_or(made);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        fs::rename(&from, &to).map_err(Error::io("move", &from))?;
    }
    match made.join("usr/bin").join(PROGRAM).is_file() {
        true => Ok(()),
        false => Err(Error::Package { what: format!("{PACKAGE} holds no {PROGRAM}") }),
    }
}
