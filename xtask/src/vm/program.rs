//! Test programs and benchmarks of the workspace, built to be taken along.

use std::path::{Path, PathBuf};

use crate::child::{Cmd, Runner};

const ONLY_BUILD: &str = "--no-run --message-format json-render-diagnostics";

/// What to build.
pub(super) struct Program<'a> {
    /// What cargo is told, up to what names the target.
    pub(super) build: &'a str,
    /// As cargo calls it: `test`, `bench`.
    pub(super) kind: &'a str,
    /// No other crate has one of this kind and name.
    pub(super) target: &'a str,
}

/// What has come of it.
pub(super) struct Built {
    pub(super) path: PathBuf,
    /// What the machine knows it by.
    pub(super) name: String,
}

impl Program<'_> {
    pub(super) fn built(&self, root: &Path, runner: &Runner) -> Result<Built, String> {
        let Self { build, kind, target } = self;
        let said = runner.capture(&Cmd::cargo(build).args(ONLY_BUILD))?;
        let path =
            executable(&said, kind, target).ok_or_else(|| format!("cargo named no {kind} {target}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Built { path: root.join(path), name })
    }
}

/// The program of a target, among what cargo says in JSON.
fn executable(said: &str, kind: &str, target: &str) -> Option<PathBuf> {
    const KEY: &str = "\"executable\":\"";
    let is_of = |line: &&str| {
        line.contains(&format!("\"name\":\"{target}\"")) && line.contains(&format!("\"kind\":[\"{kind}\"]"))
    };
    let line = said.lines().filter(is_of).find(|line| line.contains(KEY))?;
    let rest = &line[line.find(KEY)? + KEY.len()..];
    Some(PathBuf::from(&rest[..rest.find('"')?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_what_cargo_says() {
        let said = "{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"lib\"],\"name\":\"device\"},\"executable\":null}\n\
                    {\"target\":{\"kind\":[\"test\"],\"name\":\"other\"},\"executable\":\"/t/other-1\"}\n\
                    {\"target\":{\"kind\":[\"bench\"],\"name\":\"device\"},\"executable\":\"/t/device-1\"}\n\
                    {\"target\":{\"kind\":[\"test\"],\"name\":\"device\"},\"executable\":\"/t/device-0f\",\"fresh\":true}\n";
        assert_eq!(executable(said, "test", "device"), Some(PathBuf::from("/t/device-0f")));
        assert_eq!(executable(said, "bench", "device"), Some(PathBuf::from("/t/device-1")));
        assert_eq!(executable(said, "test", "devices"), None);
        assert_eq!(executable("", "test", "device"), None);
    }
}
