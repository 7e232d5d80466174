//! evcxr as it runs: its process, its sockets and log, and what the cells' code tells.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use jupyter_protocol::ConnectionInfo;
use jupyter_zmq_client::Connection;
use sysinfo::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader, Split};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use zeromq::{SocketRecv as _, ZmqMessage, ZmqResult};

use super::channels::{self, Back, Passing, received};
use super::compiler;
use super::events::{Event, Events, SOCKET};
use super::guard::Guard;
use crate::cargo::stand_in;

/// How many lines of evcxr's log are kept, to tell what it ended of.
const LAST_LINES: usize = 12;

/// How long the log of an evcxr that has ended is waited for.
const END_OF_LOG: Duration = Duration::from_millis(200);

pub(super) struct Evcxr {
    child: Child,
    guard: Guard,
    log: Log,
    pub(super) back: Back,
    pub(super) events: Events,
    /// Whether it has published anything: until then it has not come through its start.
    pub(super) works: bool,
}

/// What is heard from evcxr and the cells that it runs.
pub(super) enum Heard {
    Event(Event),
    /// Something that it publishes.
    Output(Passing),
    /// An answer on the shell channel.
    Reply(Passing),
    ControlReply(ZmqMessage),
    /// A request for a person's input.
    Input(ZmqMessage),
    /// How it has ended.
    Ended(String),
}

impl Evcxr {
    /// Starts evcxr, which takes a connection file as its last argument. It finds this program in
    /// place of `cargo`.
    pub(super) async fn start(
        mut command: process::Command,
        cargo: &Path,
        outer: &ConnectionInfo,
        session: &str,
    ) -> anyhow::Result<Self> {
        let events = Events::listen()?;
        let guard = Guard::start(events.folder())?;
        stand_in(&mut command, cargo, &events.folder().join("bin"))?;
        let mut command = Command::from(command);
        guard.keep(&mut command)?;
        let inner = channels::inner_connection(outer).await?;
        let inner_file = events.folder().join("connection.json");
        std::fs::write(&inner_file, serde_json::to_vec(&inner)?)
            .with_context(|| format!("cannot write {}", inner_file.display()))?;
        command
            .arg(&inner_file)
            .env(SOCKET, events.path())
            // It greets there, in the middle of a console's prompt.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let program = command.as_std().get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut log = Log::of(&mut child)?;
        let back = tokio::select! {
            back = Back::connect(&inner, session) => back?,
            ended = log.until_end(&mut child) => anyhow::bail!(ended),
        };
        // Where it listens, it has read the file. That holds the key that signs messages.
        std::fs::remove_file(&inner_file)?;
        Ok(Self {
            child,
            guard,
            log,
            back,
            events,
            works: false,
        })
    }

    /// Returns what is heard next.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.hear().await {
                return heard;
            }
        }
    }

    /// What a cell told comes before what it wrote, which refers to that, and what it wrote before
    /// what follows from its end. Returns `None` for a line of the log, or a message that was lost.
    async fn hear(&mut self) -> Option<Heard> {
        let back = &mut self.back;
        tokio::select! {
            biased;
            Some(event) = self.events.coming.recv() => Some(Heard::Event(event)),
            message = back.iopub.socket.recv() => {
                self.works = true;
                read(message, &back.iopub).await.map(Heard::Output)
            }
            message = back.shell.socket.recv() => read(message, &back.shell).await.map(Heard::Reply),
            message = back.control.socket.recv() => received(message).await.map(Heard::ControlReply),
            message = back.stdin.socket.recv() => received(message).await.map(Heard::Input),
            _line = self.log.next() => None,
            status = self.child.wait() => Some(Heard::Ended(told(status))),
        }
    }

    /// Ends what compiles for a cell; returns whether anything did.
    pub(super) fn stop_build(&self) -> bool {
        let process = self.child.id().map(Pid::from_u32);
        process.is_some_and(compiler::stop)
    }

    /// Returns what it said when it panicked, if it did.
    pub(super) fn panic(&self) -> Option<String> {
        (!self.log.panic.is_empty()).then(|| self.log.panic.join("\n"))
    }

    /// Returns what an evcxr that has ended like this said at last.
    pub(super) async fn last_words(&mut self, status: &str) -> String {
        self.log.end(status).await
    }

    /// Ends it, with all that it has started.
    pub(super) async fn end(mut self) {
        // Waited for: with evcxr goes its lock on the build folder, which a restart takes again.
        let _killed = self.child.kill().await;
        self.guard.end().await;
    }
}

/// Verifies and reads what has been received.
async fn read<S>(message: ZmqResult<ZmqMessage>, from: &Connection<S>) -> Option<Passing> {
    let read = Passing::read(received(message).await?, from);
    read.inspect_err(|error| eprintln!("evcxr's message: {error:#}"))
        .ok()
}

fn told(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// evcxr's stderr, which Jupyter shows in its own log. Not all that is written there is UTF-8.
struct Log {
    /// `None` where it has been closed.
    lines: Option<Split<BufReader<ChildStderr>>>,
    last: VecDeque<String>,
    /// The two lines in which a panic says where and why; a long trace follows.
    panic: Vec<String>,
}

impl Log {
    fn of(child: &mut Child) -> anyhow::Result<Self> {
        let stderr = child.stderr.take().context("evcxr's stderr")?;
        Ok(Self {
            lines: Some(BufReader::new(stderr).split(b'\n')),
            last: VecDeque::new(),
            panic: Vec::new(),
        })
    }

    /// Returns the next line, or `None` where the log has been closed.
    async fn line(&mut self) -> Option<String> {
        let line = self.lines.as_mut()?.next_segment().await;
        let Ok(Some(line)) = line else {
            self.lines = None;
            return None;
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        eprintln!("{line}");
        if line.contains("panicked at") {
            self.panic = vec![line.clone()];
        } else if self.panic.len() == 1 {
            self.panic.push(line.clone());
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.clone());
        Some(line)
    }

    /// Returns the next line, or never where there is none.
    async fn next(&mut self) -> String {
        match self.line().await {
            Some(line) => line,
            None => std::future::pending().await,
        }
    }

    /// Reads until evcxr ends; returns how it did and what it said at last.
    async fn until_end(&mut self, evcxr: &mut Child) -> String {
        loop {
            tokio::select! {
                _line = self.next() => {}
                status = evcxr.wait() => return self.end(&told(status)).await,
            }
        }
    }

    /// Returns how evcxr has ended and what it said at last.
    async fn end(&mut self, status: &str) -> String {
        // What it has started may still hold the other end.
        let _closed = timeout(END_OF_LOG, async { while self.line().await.is_some() {} }).await;
        let last = self.last.make_contiguous().join("\n");
        format!("evcxr ended ({status})\n{last}")
            .trim_end()
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(script: &str) -> (Child, Log) {
        let mut shell = Command::new("sh");
        let mut child = shell
            .args(["-c", script])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::of(&mut child).unwrap();
        (child, log)
    }

    #[tokio::test]
    async fn a_line_that_is_not_utf8_is_read_and_so_are_those_after_it() {
        let (_child, mut log) = log_of(r"printf 'one\n\377\nthree\n' >&2");
        assert_eq!(log.line().await.as_deref(), Some("one"));
        assert_eq!(log.line().await.as_deref(), Some("\u{fffd}"));
        assert_eq!(log.line().await.as_deref(), Some("three"));
        assert_eq!(log.line().await, None);
    }

    #[tokio::test]
    async fn an_end_is_told_with_the_last_lines_however_much_was_said_before() {
        let (mut child, mut log) = log_of("seq 99 >&2; echo no space left >&2; exit 3");
        let end = log.until_end(&mut child).await;
        let lines: Vec<_> = end.lines().collect();
        assert_eq!(lines[0], "evcxr ended (exit status: 3)");
        assert_eq!(lines[LAST_LINES], "no space left");
        assert_eq!(lines.len(), 1 + LAST_LINES);
    }

    #[tokio::test]
    async fn what_a_panic_says_is_found_before_a_long_trace() {
        let script = "echo 'thread a panicked at b.rs:1:2:' >&2; echo c >&2; seq 99 >&2";
        let (mut child, mut log) = log_of(script);
        log.until_end(&mut child).await;
        assert_eq!(log.panic, ["thread a panicked at b.rs:1:2:", "c"]);
    }
}
