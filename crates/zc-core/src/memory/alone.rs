//! Tests that change their whole process, or fork it, run in one of their own.

use std::process::Command;

const ALONE: &str = "ZC_CORE_TEST_ALONE";

/// Runs `body` in a new process, in which nothing else runs. `test` is the path of the calling test.
pub(super) fn alone(test: &str, body: impl FnOnce() + Send + 'static) {
    if std::env::var(ALONE).is_ok_and(|running| running == test) {
        // A thread of its own has a heap of its own, with address space to grow.
        return std::thread::spawn(body).join().unwrap();
    }
    let program = std::env::current_exe().unwrap();
    let child =
        Command::new(program).args([test, "--exact", "--nocapture"]).env(ALONE, test).output().unwrap();
    let [out, err] = [&child.stdout, &child.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(child.status.success() && out.contains("1 passed"), "{test}: {}\n{out}{err}", child.status);
}
