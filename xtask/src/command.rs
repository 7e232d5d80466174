//! Running other programs: none of them may wait for input, a failure names the command, and what
//! takes minutes says every few seconds how far it is.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal as _, Read as _};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::guard::Guard;
use crate::report;

/// How long a program may print nothing before a line says that it is at work.
const SILENCE: Duration = Duration::from_secs(8);

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How many of a program's last lines are shown when it fails.
const LAST_LINES: usize = 200;

/// Returns a command for the Cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command whose output the user sees.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = wait(&mut start(command.stdin(Stdio::null()))?)?;
    check(command, status)
}

/// Runs a command that ends when its stdin does: it does not outlive this program.
pub(crate) fn run_held(command: &mut Command) -> anyhow::Result<()> {
    let mut child = start(command.stdin(Stdio::piped()))?;
    let status = wait(&mut child)?;
    check(command, status)
}

/// Runs a command whose output the user sees, as the step `name`; where that is not on a terminal,
/// and nothing comes for a while, a line says that it is still running. With `held` it ends when
/// its stdin does.
pub(crate) fn follow(name: &str, command: &mut Command, held: bool) -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        return if held {
            run_held(command)
        } else {
            run(command)
        };
    }
    command.stdin(if held { Stdio::piped() } else { Stdio::null() });
    let (begun, mut last, mut whole_line) = (Instant::now(), Instant::now(), true);
    let status = attend(command, |chunk| {
        if let Some(end) = chunk.last() {
            report::pass_on(chunk);
            (last, whole_line) = (Instant::now(), *end == b'\n');
        } else if whole_line && last.elapsed() >= SILENCE {
            report::done(name, format!("still running: {}", report::time(begun)));
            last = Instant::now();
        }
    })?;
    check(command, status)
}

/// Runs a command that prints much, as the step `name`: a line every few seconds says what it is
/// at. What it printed last is shown where it fails.
pub(crate) fn watch(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let (begun, mut last, mut lines) = (Instant::now(), Instant::now(), Lines::default());
    let status = attend(command.stdin(Stdio::null()), |chunk| {
        lines.push(chunk);
        if last.elapsed() >= SILENCE {
            report::done(name, format!("{}: {}", report::time(begun), lines.news()));
            last = Instant::now();
        }
    })?;
    if !status.success() {
        report::pass_on(lines.all().as_bytes());
    }
    check(command, status)
}

/// Runs Cargo as the step `name`: with its own progress on a terminal, else as [`watch`] does.
pub(crate) fn watch_cargo(name: &str, command: &mut Command) -> anyhow::Result<()> {
    if io::stderr().is_terminal() {
        return run(command);
    }
    // What it draws on a terminal says how many crates there are, and which are being compiled.
    command.env("CARGO_TERM_PROGRESS_WHEN", "always");
    watch(name, command.env("CARGO_TERM_PROGRESS_WIDTH", "120"))
}

/// Does two pieces of work at once. Where one fails, the program that the other is running is
/// ended, and the error is that of the one that failed.
pub(crate) fn both<A: Send, B>(
    one: impl FnOnce() -> anyhow::Result<A> + Send,
    other: impl FnOnce() -> anyhow::Result<B>,
) -> anyhow::Result<(A, B)> {
    let mut stops = STOPS.with_borrow(Clone::clone);
    stops.push(Arc::default());
    thread::scope(|scope| {
        let one = scope.spawn(|| stopping(&stops, one));
        let other = stopping(&stops, other);
        let one = one.join().unwrap_or_else(|panic| resume_unwind(panic));
        match (one, other) {
            (Ok(one), Ok(other)) => Ok((one, other)),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(one), Err(other)) => Err(if one.is::<Stopped>() { other } else { one }),
        }
    })
}

thread_local! {
    /// One is set where this thread's work is to end because that beside it, or that beside the
    /// work of which it is a part, has failed.
    static STOPS: RefCell<Vec<Arc<AtomicBool>>> = RefCell::default();
}

/// Does this thread's part of the work that shares the last of `stops`.
fn stopping<T>(
    stops: &[Arc<AtomicBool>],
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let before = STOPS.replace(stops.to_vec());
    let result = work();
    STOPS.set(before);
    if let (Err(_), Some(stop)) = (&result, stops.last()) {
        stop.store(true, Ordering::Relaxed);
    }
    result
}

/// Why a program was ended.
#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ended, because what ran beside it failed")
    }
}

impl std::error::Error for Stopped {}

/// What ends the programs that are started from now on, where this one is ended.
static GUARD: Mutex<Option<Guard>> = Mutex::new(None);

/// Sets the guard, or ends that which was set.
pub(crate) fn set_guard(guard: Option<Guard>) {
    *GUARD.lock().unwrap_or_else(PoisonError::into_inner) = guard;
}

fn guarded(command: &mut Command) -> anyhow::Result<&mut Command> {
    let guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(guard) = guard.as_ref() {
        guard.keep(command)?;
    }
    Ok(command)
}

fn start(command: &mut Command) -> anyhow::Result<Child> {
    let child = guarded(command)?.spawn();
    child.with_context(|| format!("cannot run {}", words(command)))
}

/// Returns how a program ended, if it has; ends it where this thread's work is to stop.
fn ended(child: &mut Child) -> anyhow::Result<Option<ExitStatus>> {
    let is_set = |stop: &Arc<AtomicBool>| stop.load(Ordering::Relaxed);
    if STOPS.with_borrow(|stops| stops.iter().any(is_set)) {
        child.kill()?;
        child.wait()?;
        return Err(Stopped.into());
    }
    Ok(child.try_wait()?)
}

fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    loop {
        if let Some(status) = ended(child)? {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
}

/// Runs a command, and gives what it prints to `tick` as it comes; nothing, where nothing does.
fn attend(command: &mut Command, mut tick: impl FnMut(&[u8])) -> anyhow::Result<ExitStatus> {
    let (mut output, end) = io::pipe()?;
    let mut child = start(command.stdout(end.try_clone()?).stderr(end))?;
    // The command holds ends of the pipe, too.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = output.read(&mut buffer)
            && send.send(buffer[..length].to_vec()).is_ok()
        {}
    });
    let mut take = || match chunks.recv_timeout(POLL) {
        Ok(chunk) => {
            tick(&chunk);
            true
        }
        Err(reason) => {
            // Its output may end before it does.
            if reason == RecvTimeoutError::Disconnected {
                thread::sleep(POLL);
            }
            tick(&[]);
            false
        }
    };
    loop {
        take();
        if let Some(status) = ended(&mut child)? {
            // A program that it left behind may keep the pipe open.
            while take() {}
            return Ok(status);
        }
    }
}

fn check(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    ensure!(status.success(), "{} failed ({status})", words(command));
    Ok(())
}

/// The last lines that a program printed.
#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<String>,
    begun: Vec<u8>,
    /// What Cargo's progress, drawn over and over in one line, says.
    progress: Option<String>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) {
        for byte in chunk {
            match byte {
                b'\r' | b'\n' => self.end_line(*byte == b'\n'),
                byte => self.begun.push(*byte),
            }
        }
    }

    fn end_line(&mut self, keep: bool) {
        let line = String::from_utf8_lossy(&self.begun).trim_end().to_owned();
        self.begun.clear();
        if line.trim_start().starts_with("Building [") {
            self.progress = line.split_once("] ").map(|(_, state)| state.to_owned());
        } else if keep && !line.is_empty() {
            if self.whole.len() == LAST_LINES {
                self.whole.pop_front();
            }
            self.whole.push_back(line);
        }
    }

    /// Returns what the program is at, in a line that is not too long.
    fn news(&self) -> String {
        let last = self.progress.as_ref().or(self.whole.back());
        let text = last.map_or("at work", |line| line.trim());
        text.chars().take(100).collect()
    }

    fn all(&self) -> String {
        let lines = self.whole.iter();
        lines.map(|line| format!("{line}\n")).collect()
    }
}

/// Runs a command and returns what it prints; an error carries what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = guarded(command.stdin(Stdio::null()))?
        .output()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let (words, status) = (words(command), output.status);
        bail!("{words} failed ({status}): {}", stderr.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed what is not UTF-8", words(command)))
}

/// Returns whether a program of this name is in `PATH`.
pub(crate) fn is_installed(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(name).is_file())
}

/// Returns a command's words, for messages.
pub(crate) fn words(command: &Command) -> String {
    let program = command.get_program();
    let program = Path::new(program).file_name().unwrap_or(program);
    let words: Vec<_> = std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(&mut shell("echo broken >&2; exit 3"));
        let error = error.unwrap_err().to_string();
        for part in ["`sh -c", "exit status: 3", "broken"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run `no-such-program`");
    }

    #[test]
    fn a_held_command_finds_the_end_of_its_stdin_only_after_this_programs() {
        let script = "timeout 0.2 cat; [ $? = 124 ]";
        run_held(&mut shell(script)).unwrap();
        follow("held", &mut shell(script), true).unwrap();
        follow("not held", &mut shell(script), false).unwrap_err();
    }

    #[test]
    fn all_that_a_program_prints_arrives_and_there_are_ticks_while_it_prints_nothing() {
        let (mut printed, mut silent) = (Vec::new(), 0);
        // What it leaves behind keeps its output open, and is not waited for.
        let script = "echo one; sleep 0.3; echo two >&2; sleep 60 & exit 7";
        let begun = Instant::now();
        let status = attend(&mut shell(script), |chunk| {
            printed.extend_from_slice(chunk);
            silent += usize::from(chunk.is_empty());
        });
        assert_eq!(status.unwrap().code(), Some(7));
        assert_eq!(printed, b"one\ntwo\n");
        assert!(silent >= 2 && begun.elapsed().as_secs() < 30, "{silent}");
    }

    #[test]
    fn cargos_progress_is_news_and_else_the_last_line_is() {
        let mut lines = Lines::default();
        assert_eq!(lines.news(), "at work");
        lines.push(b"Collecting torch\n  Downloading torch (530.6 MB)\n\nInst");
        assert_eq!(lines.news(), "Downloading torch (530.6 MB)");
        lines.push(b"alling\n    Building [=>    ] 7/350: syn, serde   \r   Compiling rand v1\n");
        assert_eq!(lines.news(), "7/350: syn, serde");
        let kept =
            "Collecting torch\n  Downloading torch (530.6 MB)\nInstalling\n   Compiling rand v1\n";
        assert_eq!(lines.all(), kept);
        for number in 0..1000 {
            lines.push(format!("{number}\n").as_bytes());
        }
        assert!(lines.all().starts_with("800\n") && lines.all().ends_with("\n999\n"));
    }

    #[test]
    fn of_two_at_once_a_failure_ends_the_other_and_is_the_one_that_is_told() {
        let long = || run(&mut shell("sleep 60"));
        let fails = || follow("fails", &mut shell("exit 5"), false);
        let begun = Instant::now();
        for error in [
            both(long, fails).map(drop).unwrap_err(),
            both(fails, long).map(drop).unwrap_err(),
            both(fails, || both(long, long)).map(drop).unwrap_err(),
            both(long, || both(fails, long)).map(drop).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "`sh -c exit 5` failed (exit status: 5)");
        }
        assert!(begun.elapsed().as_secs() < 30);
        // Neither is a thing of later work.
        assert_eq!(
            both(|| Ok(1), || output(&mut shell("echo 2"))).unwrap(),
            (1, "2\n".into())
        );
    }
}
