//! The machine's kernels, and the modules that are loaded into each.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::apt::{Apt, Package};
use super::cache::Kind;
use super::cpio::Writer;
use super::error::Error;
use super::one;
use crate::child::{Cmd, Runner};

/// Which kernel, and which devices come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// That of the host's Debian, with Soft-RoCE.
    Stable,
    /// The newest one of Debian's backports, with two network cards on one wire.
    Backports,
}

/// What one of them is made of.
struct Recipe {
    what: &'static str,
    /// If not the host's own release.
    suite: Option<&'static str>,
    /// Depends on the kernel of today.
    package: &'static str,
    /// In the order in which they are loaded, each after what it depends on.
    modules: &'static [&'static str],
    packages: fn(&Apt) -> Result<Vec<Package>, Error>,
    make: fn(&Path, &Path) -> Result<(), Error>,
}

/// That for clouds has no rdma_rxe. rdma_rxe looks for the crc by name.
const STABLE: Recipe = Recipe {
    what: "kernel",
    suite: None,
    package: "linux-image-amd64",
    modules: &[
        "virtio_pci",
        "virtio_console",
        "virtio_net",
        "crc32_generic",
        "veth",
        "ib_uverbs",
        "rdma_rxe",
    ],
    packages: |apt| packages(apt, &STABLE),
    make: |unpacked, made| make(unpacked, made, &STABLE),
};
/// virtio_net without copies takes Linux 6.13. That for clouds is small; the console's driver is built in.
const BACKPORTS: Recipe = Recipe {
    what: "backports-kernel",
    suite: Some("trixie-backports"),
    package: "linux-image-cloud-amd64",
    modules: &["veth", "bridge", "virtio_net"],
    packages: |apt| packages(apt, &BACKPORTS),
    make: |unpacked, made| make(unpacked, made, &BACKPORTS),
};
/// Which of the packages hold it, followed by its version: it is in one of old, and in several today.
const PACKAGES: &[&str] = &["linux-image-", "linux-binary-", "linux-modules-"];
const MODULE_DIRS: &[&str] = &["lib/modules", "usr/lib/modules"];
/// Changes when the same packages are put together differently.
const LAYOUT: u32 = 1;
const LIMIT: Duration = Duration::from_secs(60);

/// Files of a finished tree.
pub(super) const KERNEL_FILE: &str = "vmlinuz";
pub(super) const MODULES_FILE: &str = "modules.cpio";

impl Kernel {
    pub(super) fn kind(self) -> Kind {
        let Recipe { what, suite, package, modules, packages, make } = match self {
            Self::Stable => STABLE,
            Self::Backports => BACKPORTS,
        };
        let recipe = format!("{LAYOUT} {suite:?} {package} {modules:?}");
        Kind { what, recipe, suite, packages, make }
    }

    /// Ethernet addresses of its network cards.
    pub(super) fn cards(self) -> &'static [&'static str] {
        match self {
            Self::Stable => &[],
            Self::Backports => &["02:00:00:00:00:01", "02:00:00:00:00:02"],
        }
    }
}

/// The kernel without the tools that would install it.
fn packages(apt: &Apt, recipe: &Recipe) -> Result<Vec<Package>, Error> {
    apt.chosen_of(recipe.package, |name| {
        let versions = PACKAGES.iter().filter_map(|package| name.strip_prefix(package));
        versions.into_iter().any(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    })
}

fn make(unpacked: &Path, made: &Path, recipe: &Recipe) -> Result<(), Error> {
    let modules = MODULE_DIRS.iter().find_map(|dir| one(unpacked, dir, "").ok());
    let modules = modules.ok_or_else(|| Error::Package { what: "the kernel has no modules".to_owned() })?;
    let kernel = one(unpacked, "boot", "vmlinuz-").unwrap_or_else(|_| modules.join("vmlinuz"));
    fs::copy(&kernel, made.join(KERNEL_FILE)).map_err(Error::io("copy", &kernel))?;
    let archive = made.join(MODULES_FILE);
    let file = File::create(&archive).map_err(Error::io("create", &archive))?;
    let mut out = Writer::new(BufWriter::new(file));
    write_modules(&mut out, recipe.modules, &all_modules(&modules)?, &archive)?;
    out.finish().map_err(Error::io("write", &archive))?;
    Ok(())
}

fn write_modules(
    out: &mut Writer<impl Write>,
    wanted: &[&str],
    all: &[PathBuf],
    archive: &Path,
) -> Result<(), Error> {
    let mut order = Vec::new();
    for module in wanted {
        load_order(module, all, &mut order)?;
    }
    for dir in ["zc", "zc/modules"] {
        out.directory(dir).map_err(Error::io("write", archive))?;
    }
    let mut list = String::new();
    for Module { name, contents } in &order {
        out.file(&format!("zc/modules/{name}.ko"), false, contents).map_err(Error::io("write", archive))?;
        list.push_str(name);
        list.push('\n');
    }
    out.file("zc/modules/order", false, list.as_bytes()).map_err(Error::io("write", archive))
}

struct Module {
    name: String,
    contents: Vec<u8>,
}

/// Appends the module after all that it needs, each once.
fn load_order(module: &str, all: &[PathBuf], order: &mut Vec<Module>) -> Result<(), Error> {
    if order.iter().any(|loaded| loaded.name == module) {
        return Ok(());
    }
    let path = all.iter().find(|path| module_name(path).as_deref() == Some(module));
    // What is built into the kernel is nobody's dependency.
    let path = path.ok_or_else(|| Error::Package { what: format!("the kernel has no module {module}") })?;
    let contents = module_contents(path)?;
    for needed in depends(&contents) {
        load_order(&needed, all, order)?;
    }
    order.push(Module { name: module.to_owned(), contents });
    Ok(())
}

/// Newer kernels have theirs compressed.
fn module_contents(path: &Path) -> Result<Vec<u8>, Error> {
    if path.extension() == Some(OsStr::new("ko")) {
        return fs::read(path).map_err(Error::io("read", path));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let unpacked = Runner::new(dir, LIMIT).output(&Cmd::new("xz", "-d -k -f").arg(path));
    unpacked.map_err(|how| Error::Package { what: format!("xz -d {}: {how}", path.display()) })?;
    let path = path.with_extension("");
    fs::read(&path).map_err(Error::io("read", &path))
}

/// `ib_core` of `…/ib-core.ko` or `…/ib_core.ko.xz`: files and dependencies spell the same name differently.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// What the module's own `depends=` says: modules.dep is only made when a kernel is installed.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn all_modules(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for path in super::entries(&dir)? {
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            } else if module_name(&path).is_some() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let module = b"\x7fELF..\0license=GPL\0depends=ib_uverbs,ib-core\0retpoline=Y\0";
        assert_eq!(depends(module), ["ib_uverbs", "ib_core"]);
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
        assert!(depends(b"").is_empty());
    }

    #[test]
    fn a_module_has_one_name_however_its_file_is_spelt() {
        assert_eq!(module_name(Path::new("/x/ib-core.ko")).as_deref(), Some("ib_core"));
        assert_eq!(module_name(Path::new("ib_core.ko.xz")).as_deref(), Some("ib_core"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
