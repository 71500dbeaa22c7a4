//! The stage `vm`: the machine boots, and has what tests in it need.

use std::fs;
use std::path::Path;

use super::Kernel;
use super::error::Error;
use crate::child::{Cmd, Runner};
use crate::guard::SELF;
use crate::report::{Outcome, Skip};
use crate::stage::Context;
use crate::target_dir;

/// A hang guard: switching on has taken 80 s where four builds shared two cores.
const LIMIT_S: &str = "400";
/// Two processes of perftest on the one device, with GID 1: that of the IPv4 address.
const SCRIPT: &str = "\
set -e
ibv_devinfo -v
ib_send_lat -d rxe0 -x 1 -n 200 -F >/dev/null &
until ss -ltn | grep -q :18515; do sleep 0.1; done
ib_send_lat -d rxe0 -x 1 -n 200 -F 10.0.0.1
wait $!
zc info
echo words for stderr >&2
echo kept >/out/kept";
const ON_STDERR: &str = "words for stderr";
const DEVICE: &str = "rxe0";
const PORT: &str = "PORT_ACTIVE";
const GID: &str = "::ffff:10.0.0.1";
/// A line of `zc info`.
const TRANSPORT: &str = "\ntcp ";

pub(crate) fn vm(context: &Context, runner: &Runner) -> Outcome {
    if let Err(error) = super::obtain(Kernel::Stable, false) {
        return unobtainable(&error);
    }
    match works(&context.root, runner).and_then(|()| says_how_it_ended(runner)) {
        Ok(()) => Outcome::Passed,
        Err(how) => Outcome::Failed(how),
    }
}

/// How a stage ends that can't have its machine.
pub(super) fn unobtainable(error: &Error) -> Outcome {
    match error.unobtainable() {
        Some(why) => {
            Outcome::Skipped(Skip { reason: error.to_string(), remedy: None, beyond_this_machine: why.ever })
        }
        None => Outcome::Failed(error.to_string()),
    }
}

/// A device that is up, two processes that talk over it, our own program, and each output where it belongs.
fn works(root: &Path, runner: &Runner) -> Result<(), String> {
    let out = target_dir(root).join("vm-out");
    let cmd =
        Cmd::new(SELF, "vm --timeout").arg(LIMIT_S).args("--out").arg(&out).args("-- sh -c").arg(SCRIPT);
    let said = runner.capture(&cmd);
    let kept = fs::read_to_string(out.join("kept"));
    let _ = fs::remove_dir_all(&out);
    let said = said?;
    print!("{said}");
    for expected in [DEVICE, PORT, GID, TRANSPORT] {
        if !said.contains(expected) {
            return Err(format!("the output lacks {expected:?}"));
        }
    }
    if said.contains(ON_STDERR) || said.contains("Linux version") {
        return Err("stdout holds what belongs elsewhere".to_owned());
    }
    let typical_us = typical_us(&said).ok_or("ib_send_lat printed no row of figures")?;
    println!("ib_send_lat: typically {typical_us} us one way");
    match kept.as_deref() {
        Ok("kept\n") => Ok(()),
        found => Err(format!("--out brought back {found:?}")),
    }
}

/// Through all layers: a status of one's own, and a signal's.
fn says_how_it_ended(runner: &Runner) -> Result<(), String> {
    for (script, expected) in [("exit 7", "exit code 7"), ("kill -9 $$", "exit code 137")] {
        let cmd = Cmd::new(SELF, "vm --bare --timeout").arg(LIMIT_S).args("-- sh -c").arg(script);
        match runner.run(&cmd) {
            Err(how) if how == expected => {}
            other => return Err(format!("{cmd}: {other:?}, expected: {expected}")),
        }
    }
    Ok(())
}

/// The column of a row `#bytes #iterations t_min t_max t_typical …`.
fn typical_us(text: &str) -> Option<f64> {
    let rows = text.lines().skip_while(|line| !line.trim_start().starts_with("#bytes")).skip(1);
    let typical = rows.filter_map(|row| row.split_whitespace().nth(4)?.parse::<f64>().ok()).next()?;
    (typical > 0.0).then_some(typical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_typical_latency_is_in_the_row_below_the_heading() {
        let text = " 1 2 3 4 5\n #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\n \
                    2       200          8.10           96.00        9.42 	       9.99\n----\n";
        assert_eq!(typical_us(text), Some(9.42));
        assert_eq!(typical_us("#bytes #iterations\n"), None);
        assert_eq!(typical_us(""), None);
    }
}
