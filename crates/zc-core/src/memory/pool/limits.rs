//! The default bound of a pool.

use std::path::Path;

/// The default bound is the memory limit divided by this.
pub const DEFAULT_POOL_DIVISOR: u64 = 4;
/// The default bound is never below this.
pub const DEFAULT_POOL_MIN_BYTES: usize = 64 << 20;
/// The default bound is never above this.
pub const DEFAULT_POOL_MAX_BYTES: usize = 16 << 30;

/// The default bound: a share of the cgroup's memory limit, or of the machine's memory.
pub(super) fn default_max_bytes() -> usize {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = cgroup_limit(&cgroups, Path::new("/sys/fs/cgroup"));
    let limit = limit.into_iter().chain(mem_total()).min().unwrap_or(0);
    usize::try_from(limit / DEFAULT_POOL_DIVISOR)
        .unwrap_or(usize::MAX)
        .clamp(DEFAULT_POOL_MIN_BYTES, DEFAULT_POOL_MAX_BYTES)
}

/// The lowest limit of all cgroups that hold us, of version 2 or 1, or of both side by side.
///
/// In a container the paths may name cgroups that the container does not see; what is mounted at
/// the root is then its own.
fn cgroup_limit(cgroups: &str, root: &Path) -> Option<u64> {
    cgroups.lines().filter_map(|line| hierarchy_limit(line, root)).min()
}

/// The lowest limit between one of our cgroups and its root; `line` is `id:controllers:/path`.
fn hierarchy_limit(line: &str, root: &Path) -> Option<u64> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let (mounts, file): (&[&str], _) = match controllers {
        "" => (&["", "unified"], "memory.max"),
        names if names.split(',').any(|c| c == "memory") => (&["memory", names], "memory.limit_in_bytes"),
        _ => return None,
    };
    let limits = mounts.iter().filter_map(|mount| {
        let base = root.join(mount);
        let own = base.join(path.trim_start_matches('/'));
        let up = own.ancestors().take_while(|dir| dir.starts_with(&base));
        up.filter_map(|dir| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).min()
    });
    limits.min()
}

fn mem_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn version_2_nested() {
        let root = tree(&[
            ("a/memory.max", "3000\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/memory.max", "5000\n"),
            ("other/memory.max", "1\n"),
        ]);
        assert_eq!(cgroup_limit("0::/a/b/c\n", root.path()), Some(3000));
        assert_eq!(cgroup_limit("0::/a/b\n", root.path()), Some(3000));
        assert_eq!(cgroup_limit("0::/\n", root.path()), None);
    }

    #[test]
    fn version_1_nested_and_hybrid() {
        let root = tree(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/x/memory.limit_in_bytes", "700\n"),
            ("memory/x/y/memory.limit_in_bytes", "800\n"),
            ("unified/x/memory.max", "600\n"),
        ]);
        let v1 = "4:memory:/x/y\n3:cpu,cpuacct:/x\n";
        assert_eq!(cgroup_limit(v1, root.path()), Some(700));
        assert_eq!(cgroup_limit(&format!("{v1}0::/x\n"), root.path()), Some(600));
        // The container sees its own cgroup at the root only.
        assert_eq!(cgroup_limit("4:memory:/docker/1\n", root.path()), Some(9_223_372_036_854_771_712));
    }

    #[test]
    fn outside_of_the_root_and_nonsense() {
        let root = tree(&[("memory.max", "900\n")]);
        assert_eq!(cgroup_limit("0::/../../elsewhere\n", root.path()), Some(900));
        assert_eq!(cgroup_limit("nonsense\n0:\n", root.path()), None);
        let bound = default_max_bytes();
        assert!((DEFAULT_POOL_MIN_BYTES..=DEFAULT_POOL_MAX_BYTES).contains(&bound));
    }
}
