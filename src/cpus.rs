//! Whether there is a processor to spare for looking instead of sleeping.

use std::fs;
use std::sync::OnceLock;
use std::thread::available_parallelism;

/// Whether a receiver that looks can be overtaken by its peer: there is more than one processor, and no quota takes away
/// later what is spent on looking. A process that is pinned to one processor may well look: the peer is on another.
pub(crate) fn looking_pays() -> bool {
    static PAYS: OnceLock<bool> = OnceLock::new();
    *PAYS.get_or_init(|| has_several(&fs::read_to_string(ONLINE).unwrap_or_default()) && !has_quota())
}

/// Ranges of processors (Documentation/ABI/testing/sysfs-devices-system-cpu).
const ONLINE: &str = "/sys/devices/system/cpu/online";

fn has_several(online: &str) -> bool {
    if online.trim().is_empty() {
        return available_parallelism().is_ok_and(|n| n.get() > 1);
    }
    online.contains(['-', ','])
}

/// The standard library counts the processors that this thread may use, and takes the control group's quota into account.
fn has_quota() -> bool {
    let Ok(mine) = rustix::thread::sched_getaffinity(None) else { return false };
    available_parallelism().is_ok_and(|n| n.get() < mine.count() as usize)
}

#[cfg(test)]
mod tests {
    use super::has_several;

    #[test]
    fn the_kernel_names_processors_in_ranges() {
        assert!(has_several("0-1\n") && has_several("0,2\n") && has_several("0-3,8-11\n"));
        assert!(!has_several("0\n"));
    }
}
