//! What was fetched once is kept in the user's cache folder, so that it is there without a network afterwards.
//!
//! ```text
//! ~/.cache/zc/vm/guest-RECIPE          -> guest-6.1.1-2-0123456789abcdef
//!                guest-VERSION-HASH/      what was made of the packages; `packages` lists them, with their hashes
//!                making/                  while something is fetched
//! ```

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hmac_sha256::Hash;

use super::apt::{Apt, Package};
use super::error::Error;

/// The file of a tree that says what it was made of. It is the last one that is written.
const LIST: &str = "packages";
/// Another process may be fetching, unpacking and building.
const LOCK_LIMIT: Duration = Duration::from_secs(20 * 60);
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// Something that is made of packages.
pub(super) struct Kind {
    pub(super) what: &'static str,
    /// Changes whenever the same packages are made into something else.
    pub(super) recipe: String,
    /// Where its packages come from, if not from the host's own release.
    pub(super) suite: Option<&'static str>,
    /// What it takes; the first one's version names it.
    pub(super) packages: fn(&Apt) -> Result<Vec<Package>, Error>,
    /// Makes it of the unpacked packages.
    pub(super) make: fn(unpacked: &Path, made: &Path) -> Result<(), Error>,
}

/// The folder.
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn of_the_user() -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        Ok(Self { dir: base.ok_or(Error::NoCacheDir)?.join("zc/vm") })
    }

    /// Where it is kept; fetched and made if it is not there, or if the newest is wanted and differs.
    pub(super) fn tree(&self, kind: &Kind, newest: bool) -> Result<PathBuf, Error> {
        if let Some(tree) = self.kept(kind).filter(|_| !newest) {
            return Ok(tree);
        }
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let _lock = self.lock()?;
        // It may have been that process that fetched it.
        if let Some(tree) = self.kept(kind).filter(|_| !newest) {
            return Ok(tree);
        }
        let tree = self.fetch(kind)?;
        let pointer = self.pointer(kind);
        // The pointer changes at once or not at all.
        let new = self.dir.join("new");
        let _ = fs::remove_file(&new);
        symlink(&tree, &new).map_err(Error::io("create", &new))?;
        fs::rename(&new, &pointer).map_err(Error::io("replace", &pointer))?;
        self.forget(kind)?;
        Ok(self.dir.join(tree))
    }

    pub(super) fn has(&self, kind: &Kind) -> bool {
        self.kept(kind).is_some()
    }

    fn kept(&self, kind: &Kind) -> Option<PathBuf> {
        fs::canonicalize(self.pointer(kind)).ok().filter(|tree| tree.join(LIST).is_file())
    }

    fn pointer(&self, kind: &Kind) -> PathBuf {
        self.dir.join(format!("{}-{}", kind.what, hash(&kind.recipe, 8)))
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(Error::CacheBusy { lock: path });
                }
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut said, true) {
                        eprintln!("xtask: waiting for another process that fills {}", self.dir.display());
                    }
                    thread::sleep(LOCK_INTERVAL);
                }
            }
        }
    }

    /// The name of the finished tree.
    fn fetch(&self, kind: &Kind) -> Result<String, Error> {
        eprintln!("xtask: looking for packages: {}", kind.what);
        let making = Scratch::new(self.dir.join("making"))?;
        let apt = Apt::open(kind.what, &making.0.join("apt"), kind.suite)?;
        let packages = (kind.packages)(&apt)?;
        let list = list(&kind.recipe, &packages);
        let version = packages.first().map_or("", |first| &first.version).replace([':', '/'], "_");
        let name = format!("{}-{version}-{}", kind.what, hash(&list, 16));
        let tree = self.dir.join(&name);
        if !tree.join(LIST).is_file() {
            eprintln!("xtask: fetching {} packages into {}", packages.len(), tree.display());
            remove(&tree)?;
            let (unpacked, made) = (making.0.join("unpacked"), making.0.join("made"));
            for dir in [&unpacked, &made] {
                fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            }
            apt.unpack(&packages, &making.0.join("archives"), &unpacked)?;
            (kind.make)(&unpacked, &made)?;
            fs::write(made.join(LIST), &list).map_err(Error::io("write", &made))?;
            fs::rename(&made, &tree).map_err(Error::io("create", &tree))?;
        }
        Ok(name)
    }

    /// Removes what no pointer names any more.
    fn forget(&self, kind: &Kind) -> Result<(), Error> {
        let all: Vec<_> = super::entries(&self.dir)?.into_iter().filter(|path| of_kind(path, kind)).collect();
        let named: Vec<_> = all.iter().filter_map(|path| fs::read_link(path).ok()).collect();
        let stale = |path: &&PathBuf| {
            !path.is_symlink() && path.is_dir() && !named.iter().any(|name| path.ends_with(name))
        };
        all.iter().filter(stale).try_for_each(|tree| remove(tree))
    }
}

/// A directory for the time that something is made. The lock is ours: what is there is of a run that was killed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: PathBuf) -> Result<Self, Error> {
        remove(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next one.
        let _ = remove(&self.0);
    }
}

fn of_kind(path: &Path, kind: &Kind) -> bool {
    let rest = path.file_name().and_then(|name| name.to_str()?.strip_prefix(kind.what));
    rest.is_some_and(|rest| rest.starts_with('-'))
}

fn list(recipe: &str, packages: &[Package]) -> String {
    let line = |package: &Package| format!("{} {} {}\n", package.name, package.version, package.sha256);
    format!("recipe {}\n{}", hash(recipe, 16), packages.iter().map(line).collect::<String>())
}

fn hash(text: &str, digits: usize) -> String {
    let hex: String = Hash::hash(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..digits].to_owned()
}

fn remove(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}
