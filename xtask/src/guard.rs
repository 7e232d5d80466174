//! Ending what set-up has started where set-up itself is ended, and letting the next one wait for it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// Waits for the other program to go, or for a line that says that all went well. Ends its process
/// group: in order, for which a notebook's kernel needs some seconds, then by force.
const WATCH: &str = "trap '' HUP INT TERM; read _ || { kill -TERM 0; sleep 5; }; kill -KILL 0";

/// A process that waits for this one to go and then ends its process group: pip, Cargo and the
/// compilers below it, the guard itself. A pipe tells it, which the system closes even where this
/// program is killed.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts one that holds the lock on a file until all have ended.
    pub(crate) fn start(lock: File) -> anyhow::Result<Self> {
        let guard = Command::new("sh")
            .args(["-c", WATCH])
            .stdin(Stdio::piped())
            .stdout(lock)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        guard.map(Self).context("cannot start sh")
    }

    /// Puts a program that is to be started into the guard's group.
    pub(crate) fn keep(&self, program: &mut Command) -> anyhow::Result<()> {
        program.process_group(self.0.id().try_into()?);
        Ok(())
    }
}

impl Drop for Guard {
    /// Ends what is left of the group, and the lock.
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // If it is gone, so is the lock.
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::time::Instant;

    /// Starts a program that leaves another behind, in the group of a guard. Returns what both
    /// print to, and the lock as the next set-up finds it.
    fn guarded() -> (Guard, impl FnOnce() -> String, File) {
        let lock = tempfile::NamedTempFile::new().unwrap();
        let held = File::create(lock.path()).unwrap();
        held.lock().unwrap();
        let guard = Guard::start(held).unwrap();
        let mut program = Command::new("sh");
        let script = "sleep 600 & echo started; exec sleep 600";
        program.args(["-c", script]).stdout(Stdio::piped());
        guard.keep(&mut program).unwrap();
        let mut program = program.spawn().unwrap();
        let mut output = program.stdout.take().unwrap();
        let mut start = [0; 8];
        output.read_exact(&mut start).unwrap();
        // Its output ends when both have ended.
        let rest = move || {
            let mut rest = String::new();
            output.read_to_string(&mut rest).unwrap();
            program.wait().unwrap();
            rest
        };
        (guard, rest, lock.reopen().unwrap())
    }

    #[test]
    fn all_ends_with_set_up_and_the_next_one_waits_until_it_has() {
        let (mut guard, ends, next) = guarded();
        assert!(next.try_lock().is_err());
        // As where this process is killed.
        drop(guard.0.stdin.take());
        next.lock().unwrap();
        ends();
    }

    #[test]
    fn after_a_set_up_that_ended_well_nothing_is_waited_for() {
        let (guard, ends, next) = guarded();
        let begun = Instant::now();
        drop(guard);
        next.try_lock().unwrap();
        ends();
        assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
    }
}
