//! Packages of this machine's distribution, through an apt state of our own: no root, nothing of the host is changed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use crate::child::{Cmd, Runner};

/// What it takes, besides a network.
pub(super) const TOOLS: &[&str] = &["apt-get", "apt-cache", "dpkg"];
/// Debian's keys, where a Debian has them; elsewhere the keys that apt trusts anyway have to do.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What apt says of a source of packages.
const ORIGIN_LABEL_ADDRESS: &str = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
/// How it says it of Debian itself, and not of its security updates.
const DEBIAN: &str = "Debian|Debian|";
/// For everything that apt does for one set of packages.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// The hooks of the host's configuration tidy up the host's own state; whatever else it says (proxies, keys) holds.
const CONFIG: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture \"amd64\";
APT::Architectures { \"amd64\"; };
APT::Install-Recommends \"false\";
APT::Install-Suggests \"false\";
APT::Sandbox::User \"root\";
Debug::NoLocking \"true\";
Acquire::Languages \"none\";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
Acquire::ForceHash \"SHA256\";
Acquire::Retries \"2\";
Acquire::http::Timeout \"30\";
Acquire::https::Timeout \"30\";
Dpkg::Use-Pty \"false\";
";

/// One package in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
}

/// An apt that believes that nothing is installed.
pub(super) struct Apt {
    what: &'static str,
    dir: PathBuf,
    /// Sources of our own instead of the host's.
    sources: Option<PathBuf>,
}

impl Apt {
    /// Fetches the lists of the package sources that this machine is configured with; or of another suite, from where it
    /// has Debian from.
    pub(super) fn open(what: &'static str, dir: &Path, suite: Option<&str>) -> Result<Self, Error> {
        for &tool in TOOLS {
            if super::on_path(tool).is_none() {
                return Err(Error::NoApt { what, tool });
            }
        }
        let hosts = Self::update(what, dir, None)?;
        let Some(suite) = suite else { return Ok(hosts) };
        let sources = dir.join("sources");
        fs::create_dir_all(&sources).map_err(Error::io("create", &sources))?;
        let list = sources.join("suite.list");
        fs::write(&list, source(&hosts.debian()?, suite)).map_err(Error::io("write", &list))?;
        Self::update(what, &dir.join("suite"), Some(sources))
    }

    fn update(what: &'static str, dir: &Path, sources: Option<PathBuf>) -> Result<Self, Error> {
        for below in ["lists/partial", "cache/archives/partial"] {
            let below = dir.join(below);
            fs::create_dir_all(&below).map_err(Error::io("create", &below))?;
        }
        for (name, text) in [("apt.conf", CONFIG), ("status", "")] {
            let file = dir.join(name);
            fs::write(&file, text).map_err(Error::io("write", &file))?;
        }
        let apt = Self { what, dir: dir.to_owned(), sources };
        // A source of somebody else's may be out of order; whether Debian's packages are known shows next. apt itself
        // says on stderr what it could not get.
        if let Err(error) = apt.ask(dir, "apt-get", &["-qq", "update"]) {
            eprintln!("xtask: going on with the package lists that came: {error}");
        }
        Ok(apt)
    }

    /// Where this machine has Debian from.
    fn debian(&self) -> Result<String, Error> {
        let args = ["indextargets", "--format", ORIGIN_LABEL_ADDRESS, "Created-By: Packages"];
        let said = self.ask(&self.dir, "apt-get", &args)?;
        let address = said.lines().find_map(|line| line.strip_prefix(DEBIAN));
        let how = || "none of the package sources of this machine is Debian".to_owned();
        address.map(str::to_owned).ok_or_else(|| Error::Fetch { what: self.what, how: how() })
    }

    /// These packages and all that they depend on.
    pub(super) fn closure(&self, names: &[&str]) -> Result<Vec<Package>, Error> {
        self.addresses(&[&["install"], names].concat())
    }

    /// Of what the package depends on, directly or not, that whose names are chosen. What is lacking among the others, in a
    /// suite that builds upon another one, does not matter.
    pub(super) fn chosen_of(&self, name: &str, chosen: fn(&str) -> bool) -> Result<Vec<Package>, Error> {
        let args =
            ["depends", "--recurse", "--important", "--no-conflicts", "--no-breaks", "--no-replaces", name];
        let said = self.ask(&self.dir, "apt-cache", &args)?;
        let names: BTreeSet<_> = said.lines().filter(|line| chosen(line)).collect();
        if names.is_empty() {
            return Err(Error::Package { what: format!("nothing of what {name} depends on is wanted") });
        }
        self.addresses(&["download"].into_iter().chain(names).collect::<Vec<_>>())
    }

    /// What apt would fetch for a command.
    fn addresses(&self, names: &[&str]) -> Result<Vec<Package>, Error> {
        let args = [&["-qq", "--print-uris"], names].concat();
        let said = self.ask(&self.dir, "apt-get", &args)?;
        let found: Option<Vec<_>> = said.lines().map(package).collect();
        let found = found.filter(|found| !found.is_empty());
        found.ok_or_else(|| Error::Package { what: format!("apt-get says of {names:?}:\n{said}") })
    }

    /// Downloads the packages into `dir`, checked by apt against their hashes, and unpacks them into `tree`.
    pub(super) fn unpack(&self, packages: &[Package], dir: &Path, tree: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let named: Vec<_> = packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
        let args: Vec<_> = ["-qq", "download"].into_iter().chain(named.iter().map(String::as_str)).collect();
        self.ask(dir, "apt-get", &args)?;
        let mut archives = 0;
        for archive in super::entries(dir)? {
            let cmd = Cmd::new("dpkg", "-x").arg(&archive).arg(tree);
            Runner::new(dir, LIMIT).output(&cmd).map_err(|how| self.failed(&cmd, &how))?;
            archives += 1;
        }
        if archives == packages.len() {
            return Ok(());
        }
        Err(Error::Package { what: format!("{archives} archives for {} packages", packages.len()) })
    }

    fn ask(&self, cwd: &Path, tool: &str, args: &[&str]) -> Result<String, Error> {
        let mut cmd = Cmd::new(tool, "").arg("-c").arg(self.dir.join("apt.conf")).env("LC_ALL", "C");
        for (option, below) in [
            ("Dir::State", ""),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let mut value = OsString::from(format!("{option}="));
            value.push(self.dir.join(below));
            cmd = cmd.arg("-o").arg(value);
        }
        if let Some(sources) = &self.sources {
            let mut parts = OsString::from("Dir::Etc::sourceparts=");
            parts.push(sources);
            cmd = cmd.args("-o Dir::Etc::sourcelist=/dev/null -o").arg(parts);
        }
        for arg in args {
            cmd = cmd.arg(*arg);
        }
        let named = Cmd::new(tool, "").args(&args.iter().take(3).copied().collect::<Vec<_>>().join(" "));
        Runner::new(cwd, LIMIT).output(&cmd).map_err(|how| self.failed(&named, &how))
    }

    fn failed(&self, cmd: &Cmd, how: &str) -> Error {
        Error::Fetch { what: self.what, how: format!("{cmd}: {how}") }
    }
}

/// A line of a list of sources.
fn source(address: &str, suite: &str) -> String {
    let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    format!("deb {signed}{address} {suite} main\n")
}

/// Reads `'address' name_version_architecture.deb size SHA256:…`.
fn package(line: &str) -> Option<Package> {
    let mut words = line.rsplit(' ');
    let sha256 = words.next()?.strip_prefix("SHA256:")?;
    let file = words.nth(1)?;
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A colon, of an epoch, is all that is escaped in the names of files.
    let version = version.replace("%3a", ":");
    hex(sha256).then(|| Package { name: name.into(), version, sha256: sha256.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_names_a_package() {
        let line = "'http://x/main/q/qemu_1%3a7.2%2bdfsg-7_amd64.deb' qemu-x_1%3a7.2+dfsg-7_amd64.deb 123 SHA256:0aff";
        let package = package(line).unwrap();
        assert_eq!(package.name, "qemu-x");
        assert_eq!(package.version, "1:7.2+dfsg-7");
        assert_eq!(package.sha256, "0aff");
    }

    #[test]
    fn another_suite_comes_from_the_same_place() {
        let line = source("http://mirror/debian/", "newer");
        assert!(line.starts_with("deb ") && line.ends_with("http://mirror/debian/ newer main\n"), "{line}");
    }

    #[test]
    fn other_lines_do_not() {
        for line in
            ["", "E: Unable to locate package", "'x' a_1_all.deb 1 MD5Sum:00", "'x' a_1_all.deb 1 SHA256:"]
        {
            assert_eq!(package(line), None, "{line}");
        }
    }
}
