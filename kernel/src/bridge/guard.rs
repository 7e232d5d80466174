//! Ending all that evcxr has started, whatever this program ends of.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::{Child, Command};

/// A process that waits for this one to go and then removes the folder of the socket and ends its
/// own process group: evcxr, the process in which cells run, cargo and the compilers below it, the
/// guard itself. A pipe tells it, which the system closes even where this program is killed.
pub(super) struct Guard(Child);

impl Guard {
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let guard = Command::new("sh")
            .args(["-c", "read _; rm -rf -- \"$0\"; kill -KILL 0"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        guard.map(Self).context("cannot start sh")
    }

    /// Puts a program that is to be started into the guard's group.
    pub(super) fn keep(&self, program: &mut Command) -> anyhow::Result<()> {
        let group = self.0.id().context("the guard has ended")?;
        program.process_group(group.try_into()?);
        Ok(())
    }

    /// Ends the group.
    pub(super) async fn end(mut self) {
        // This closes the pipe; the guard ends by the signal that it sends to all.
        let _killed = self.0.wait().await;
    }
}
