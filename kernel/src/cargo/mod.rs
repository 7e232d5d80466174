//! Cargo as evcxr calls it: this program under other names, in a folder that is first in evcxr's
//! `PATH`.
//!
//! evcxr has Cargo build each cell. Cargo then reads every manifest and looks at every dependency,
//! though nothing but the cell has changed. So it is noted how Cargo ran the compiler (`run`) and what
//! that depends on (`cell`), and as long as all of it stays the same, the compiler is run from here,
//! with all dependencies in one library (`bundle`).
//! Everything else is the real Cargo's, with two additions: what a crate of a workspace depends on
//! has the versions of that workspace's `Cargo.lock`, and the bridge learns what is being compiled.

mod bundle;
mod cell;
mod run;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::SystemTime;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::bridge::{SOCKET, VERSION};
use cell::{BUILD, CellBuild};
use run::{CELL, Run};

/// What this program is called in place of. evcxr asks rustup, where there is one, for Cargo.
const CARGO: &str = "cargo";
const RUSTUP: &str = "rustup";
/// Stands between Cargo and the compiler, as `RUSTC_WRAPPER`, and notes how that is run.
const RECORDER: &str = "record-rustc";

const WRAPPER: &str = "RUSTC_WRAPPER";
/// Names the folder in which evcxr builds cells.
const FOLDER: &str = "EVCXR_TMPDIR";
/// Names the real Cargo.
const REAL: &str = "TRANSFER_CARGO";
/// Names the file that the recorder writes.
const RECORD: &str = "TRANSFER_RECORD";

/// Has `evcxr` find this program in place of Cargo, which is at `cargo`: by links in `folder`.
///
/// # Errors
///
/// The links cannot be made.
pub fn stand_in(evcxr: &mut Command, cargo: &Path, folder: &Path) -> anyhow::Result<()> {
    let own = env::current_exe()?;
    fs::create_dir(folder)
        .and_then(|()| {
            let links = [CARGO, RUSTUP, RECORDER].into_iter();
            let mut made = links.map(|name| std::os::unix::fs::symlink(&own, folder.join(name)));
            made.try_for_each(|link| link)
        })
        .with_context(|| format!("cannot make links in {}", folder.display()))?;
    let given = evcxr.get_envs().find(|(name, _)| *name == "PATH");
    let path = given.and_then(|(_, path)| path).map(OsStr::to_owned);
    let path = path.or_else(|| env::var_os("PATH")).unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(env::split_paths(&path));
    let path = env::join_paths(folders).context("a folder in PATH has a `:` in its name")?;
    evcxr.env("PATH", path).env(REAL, cargo);
    Ok(())
}

/// Does what a program that is called `called` is asked for. Returns its exit code, or `None` where
/// that is this program's own name.
///
/// # Errors
///
/// The program in whose place it was called cannot be run.
pub fn run_as(called: &OsStr, arguments: &[OsString]) -> anyhow::Result<Option<u8>> {
    let called = Path::new(called);
    match called.file_name().and_then(OsStr::to_str) {
        Some(CARGO) => cargo(called, arguments).map(Some),
        Some(RUSTUP) => rustup(called, arguments).map(Some),
        Some(RECORDER) => record(arguments).map(Some),
        _ => Ok(None),
    }
}

/// Answers where Cargo is, and that other tools are beside the real one. All else is rustup's.
fn rustup(called: &Path, arguments: &[OsString]) -> anyhow::Result<u8> {
    if let [command, tool] = arguments
        && command == "which"
    {
        let path = if tool == CARGO {
            called.with_file_name(CARGO)
        } else {
            real()?.with_file_name(tool)
        };
        println!("{}", path.display());
        return Ok(u8::from(!path.exists()));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&path).filter(|folder| Some(&**folder) != called.parent());
    let mut programs = others.map(|folder| folder.join(RUSTUP));
    let rustup = programs.find(|program| program.is_file());
    exec(Command::new(rustup.context("rustup is not installed")?).args(arguments))
}

fn real() -> anyhow::Result<PathBuf> {
    let path = env::var_os(REAL).with_context(|| format!("{REAL} is not set"))?;
    Ok(path.into())
}

/// Becomes another program; returns if that fails.
fn exec<T>(command: &mut Command) -> anyhow::Result<T> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// Does what Cargo is asked for. Only evcxr's own folder is meddled with: a cell can run Cargo, too.
fn cargo(called: &Path, arguments: &[OsString]) -> anyhow::Result<u8> {
    let folder = env::current_dir()?;
    let mut cargo = Command::new(real()?);
    cargo.args(arguments);
    if env::var_os(FOLDER).is_none_or(|cells| folder != cells) {
        return exec(&mut cargo);
    }
    let noted = called.with_file_name("cell.json");
    if let Some(cell) = CellBuild::read(&noted)
        && let Some(task) = cell.task(arguments, &folder)
    {
        return cell.compile(task);
    }
    if let Err(error) = take_over_lock(&folder) {
        eprintln!("the dependencies' newest versions are taken: {error:#}");
    }
    if !arguments.iter().any(|word| word == BUILD) {
        return exec(&mut cargo);
    }
    let (begun, record) = (SystemTime::now(), called.with_file_name("rustc.json"));
    if env::var_os(WRAPPER).is_none() {
        let recorder = called.with_file_name(RECORDER);
        cargo.env(WRAPPER, recorder).env(RECORD, &record);
    }
    let (status, artifact) = follow(&mut cargo)?;
    if let Some(cell) = artifact
        .zip(read_json(&record))
        .and_then(|(artifact, run)| CellBuild::new(run, artifact, arguments, &folder, begun))
    {
        fs::write(noted, serde_json::to_vec(&cell)?)?;
    }
    Ok(exit_code(status))
}

/// Runs the compiler as Cargo wants it to be run, after a note of how where it makes a cell.
fn record(arguments: &[OsString]) -> anyhow::Result<u8> {
    let (program, arguments) = arguments.split_first().context("no compiler is given")?;
    if let Some(record) = env::var_os(RECORD)
        && let Some(run) = Run::of_a_cell(program, arguments)
    {
        fs::write(record, serde_json::to_vec(&run)?)?;
    }
    exec(Command::new(program).args(arguments))
}

/// Runs Cargo, passes on what it prints, and tells the bridge what it compiles. Returns how it
/// ended, and what it said of the library that it made of the cell.
fn follow(cargo: &mut Command) -> anyhow::Result<(ExitStatus, Option<String>)> {
    // What it draws on a terminal says how many crates there are, and which are being compiled.
    let mut child = cargo
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "160")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    let messages = BufReader::new(child.stdout.take().context("Cargo's stdout")?);
    let artifact = thread::spawn(move || pass_on_messages(messages));
    pass_on_log(child.stderr.take().context("Cargo's stderr")?);
    let artifact = artifact.join().ok().flatten();
    Ok((child.wait()?, artifact))
}

fn pass_on_messages(messages: impl io::BufRead) -> Option<String> {
    let mut artifact = None;
    for line in messages.lines().map_while(Result::ok) {
        println!("{line}");
        if cell::is_artifact(&line) {
            artifact = Some(line);
        }
    }
    artifact
}

/// Passes on Cargo's log, but for its progress, which is drawn over and over in one line.
fn pass_on_log(mut log: impl Read) {
    let (mut bridge, mut line, mut buffer) = (Bridge::connect(), Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = log.read(&mut buffer) {
        for &byte in &buffer[..length] {
            if byte != b'\r' && byte != b'\n' {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if let Some(state) = progress(&text) {
                if let Some(state) = state
                    && let Some(bridge) = &mut bridge
                {
                    bridge.tell(state);
                }
            } else if byte == b'\n' {
                eprintln!("{text}");
            }
            line.clear();
        }
    }
    // What has no end is the last progress.
}

/// Returns what a line of Cargo's progress says, as in `7/350: syn, serde(build)`, if it is one, and if
/// it is of more than the cell itself.
fn progress(line: &str) -> Option<Option<&str>> {
    let bar = line.trim_start().strip_prefix("Building [")?;
    let state = bar.split_once("] ")?.1.trim_end();
    let crates = state.split_once(": ").map_or("", |(_, crates)| crates);
    Some(Some(state).filter(|_| !["", CELL].contains(&crates)))
}

/// The bridge, which shows what is being compiled.
struct Bridge(BufReader<UnixStream>);

impl Bridge {
    fn connect() -> Option<Self> {
        let stream = UnixStream::connect(env::var_os(SOCKET)?).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    fn tell(&mut self, state: &str) {
        let event = json!({"version": VERSION, "event": "build", "text": state});
        // It answers each event, or is gone.
        let told = writeln!(self.0.get_mut(), "{event}");
        let _ = told.and_then(|()| self.0.read_line(&mut String::new()));
    }
}

/// Gives the cell in `folder` the lock file of the workspace that one of its dependencies lies in,
/// where its own does not know that dependency yet. Cargo drops what is not needed of it.
fn take_over_lock(folder: &Path) -> io::Result<()> {
    let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
    let own = folder.join("Cargo.lock");
    let locked = fs::read_to_string(&own).unwrap_or_default();
    for (name, path) in manifest.lines().filter_map(path_dependency) {
        let lock = path.ancestors().map(|folder| folder.join("Cargo.lock"));
        let is_locked = locked.contains(&format!("name = \"{name}\"\n"));
        if !is_locked && let Some(lock) = { lock }.find(|lock| lock.is_file()) {
            fs::copy(lock, own)?;
            break;
        }
    }
    Ok(())
}

/// Returns name and path of the dependency in a line of a manifest, if it is one with a path.
fn path_dependency(line: &str) -> Option<(&str, &Path)> {
    let (name, value) = line.split_once('=')?;
    let (_, path) = value.split_once("path")?;
    let path = path.trim_start().strip_prefix('=')?.trim_start();
    let (path, _) = path.strip_prefix('"')?.split_once('"')?;
    Some((name.trim(), Path::new(path)))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Returns a program's exit code as a shell does: 128 and the number where a signal has ended it.
fn exit_code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal);
    code.and_then(|code| code.try_into().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_the_log_and_that_of_the_cell_alone_is_not_told() {
        let bar = "    Building [===>       ] 7/350: torch-sys(build), syn    ";
        assert_eq!(progress(bar), Some(Some("7/350: torch-sys(build), syn")));
        assert_eq!(progress("    Building [====> ] 349/350: ctx"), Some(None));
        assert_eq!(progress("    Building [     ] 0/350"), Some(None));
        assert_eq!(progress("   Compiling syn v2.0.0"), None);
    }

    #[test]
    fn a_cell_takes_over_the_versions_of_its_dependencys_workspace_once() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("a workspace");
        let member = workspace.join("crates/member");
        let cell = folder.path().join("cell");
        for folder in [&member, &cell] {
            fs::create_dir_all(folder).unwrap();
        }
        let lock = "[[package]]\nname = \"member\"\nversion = \"1.0.0\"\n";
        fs::write(workspace.join("Cargo.lock"), lock).unwrap();
        let depend = |text: String| fs::write(cell.join("Cargo.toml"), text).unwrap();
        let own = || fs::read_to_string(cell.join("Cargo.lock")).ok();

        depend("[dependencies]\nserde = \"1\"\n".into());
        take_over_lock(&cell).unwrap();
        assert_eq!(own(), None);
        depend(format!(
            "[dependencies]\nmember = {{ features = [], path = \"{}\" }}\n",
            member.display()
        ));
        take_over_lock(&cell).unwrap();
        assert_eq!(own().as_deref(), Some(lock));
        let resolved = format!("{lock}version = 4\n");
        fs::write(cell.join("Cargo.lock"), &resolved).unwrap();
        take_over_lock(&cell).unwrap();
        assert_eq!(own(), Some(resolved));
    }
}
