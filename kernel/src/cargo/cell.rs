//! The build of a cell: how Cargo ran the compiler, and what has to be as it was then for Cargo to
//! run it in the same way again.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What evcxr calls the crate that it makes of a cell.
pub(super) const CRATE: &str = "ctx";

/// How the compiler is run for a cell.
#[derive(Serialize, Deserialize)]
pub(super) struct Run {
    program: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// The last build of a cell by Cargo.
#[derive(Serialize, Deserialize)]
pub(super) struct CellBuild {
    run: Run,
    /// The line in which Cargo told of the library.
    artifact: String,
    arguments: Vec<OsString>,
    /// A hash of Cargo's environment.
    environment: u64,
    /// What Cargo looks at, with its date and size, or that it was not there.
    files: BTreeMap<PathBuf, Option<Stamp>>,
}

type Stamp = (SystemTime, u64);

impl Run {
    /// Returns how this process is to run the compiler, if that is to make a library of a cell.
    pub(super) fn of_a_cell(program: &OsStr, arguments: &[OsString]) -> Option<Self> {
        let text = |word: &OsStr| word.to_str().map(str::to_owned);
        let arguments: Vec<_> = arguments
            .iter()
            .map(|word| text(word))
            .collect::<Option<_>>()?;
        let is_cell = value_of(&arguments, "--crate-name").any(|name| name == CRATE);
        let links = arguments
            .iter()
            .any(|word| word.starts_with("--emit=") && word.ends_with("link"));
        let environment =
            env::vars_os().filter_map(|(name, value)| Some((text(&name)?, text(&value)?)));
        (is_cell && links).then_some(Self {
            program: text(program)?,
            arguments,
            environment: environment.collect(),
        })
    }
}

/// Returns the values of an option that takes its value from the next word.
fn value_of<'a>(arguments: &'a [String], option: &str) -> impl Iterator<Item = &'a str> {
    let pairs = arguments.windows(2);
    pairs.filter_map(move |pair| (pair[0] == option).then_some(&*pair[1]))
}

impl CellBuild {
    /// Notes a build that succeeded, with Cargo's `arguments` in `folder`; `None` if a file was
    /// changed after it had `begun`, or it cannot be told which belong to it.
    pub(super) fn new(
        run: Run,
        artifact: String,
        arguments: &[OsString],
        folder: &Path,
        begun: SystemTime,
    ) -> Option<Self> {
        let sources = fs::read_to_string(library(&artifact)?.with_extension("d")).ok()?;
        let sources: Vec<_> = dependencies(&sources)
            .filter(|path| !path.starts_with(folder.join("src")))
            .collect();
        let manifests = sources.iter().flat_map(|path| path.ancestors().skip(1));
        let settings = folder
            .ancestors()
            .map(|folder| folder.join(".cargo"))
            .chain(cargo_home());
        let libraries = value_of(&run.arguments, "--extern")
            .filter_map(|word| Some(word.split_once('=')?.1.into()));
        let files = sources
            .iter()
            .cloned()
            .chain(manifests.map(|folder| folder.join("Cargo.toml")))
            .chain(
                settings.flat_map(|folder| ["config.toml", "config"].map(|name| folder.join(name))),
            )
            .chain(["Cargo.toml", "Cargo.lock"].map(|name| folder.join(name)))
            .chain(libraries)
            .chain([PathBuf::from(&run.program)])
            .map(|path| (stamp(&path), path));
        let files: BTreeMap<_, _> = files.map(|(stamp, path)| (path, stamp)).collect();
        let is_older = |path: &PathBuf| stamp(path).is_some_and(|(changed, _)| changed < begun);
        sources.iter().all(is_older).then(|| Self {
            run,
            artifact,
            arguments: arguments.to_vec(),
            environment: environment(),
            files,
        })
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        read(path)
    }

    /// Returns whether Cargo, called with these arguments, would find nothing changed but the cell.
    pub(super) fn is_as_before(&self, arguments: &[OsString]) -> bool {
        self.arguments == arguments
            && self.environment == environment()
            && self
                .files
                .iter()
                .all(|(path, before)| stamp(path) == *before)
    }

    /// Compiles the cell as Cargo did, and says of it what Cargo would say. Returns Cargo's exit code.
    pub(super) fn compile(&self) -> anyhow::Result<u8> {
        let Run {
            program,
            arguments,
            environment,
        } = &self.run;
        let mut compiler = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let said = BufReader::new(compiler.stderr.take().context("the compiler's stderr")?);
        for line in said.lines() {
            let line = line?;
            match serde_json::from_str::<Value>(&line) {
                Ok(message) if message["$message_type"] == "diagnostic" => {
                    println!(
                        "{}",
                        json!({"reason": "compiler-message", "message": message})
                    );
                }
                Ok(_) => {}
                Err(_) => eprintln!("{line}"),
            }
        }
        if !compiler.wait()?.success() {
            return Ok(101);
        }
        self.put_in_place()
            .context("cannot put the cell's library in its place")?;
        println!("{}", self.artifact);
        Ok(0)
    }

    /// Makes the library a link to what the compiler has written, as Cargo does.
    fn put_in_place(&self) -> anyhow::Result<()> {
        let library = library(&self.artifact).context("no library")?;
        let written = value_of(&self.run.arguments, "--out-dir")
            .next()
            .context("no folder")?;
        let written = Path::new(written).join(library.file_name().context("no name")?);
        match fs::remove_file(&library) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(fs::hard_link(written, library)?),
        }
    }
}

/// Returns whether a line of Cargo's messages tells of the library that it made of a cell.
pub(super) fn is_artifact(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|message| {
        message["reason"] == "compiler-artifact" && message["target"]["name"] == CRATE
    })
}

/// Returns where the library is that Cargo tells of.
fn library(artifact: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(artifact).ok()?;
    Some(PathBuf::from(message["filenames"][0].as_str()?))
}

/// Returns the files in what Cargo writes beside a library: `LIBRARY: FILE FILE ...`, with `\ ` for
/// a space in a name.
fn dependencies(text: &str) -> impl Iterator<Item = PathBuf> {
    const SPACE: &str = "\0";
    let (_, files) = text.split_once(": ").unwrap_or_default();
    let files = files.replace("\\ ", SPACE);
    let files: Vec<_> = files
        .split_whitespace()
        .map(|file| PathBuf::from(file.replace(SPACE, " ")))
        .collect();
    files.into_iter()
}

/// Returns the folder of the user's own settings for Cargo.
fn cargo_home() -> Option<PathBuf> {
    let chosen = env::var_os("CARGO_HOME").map(PathBuf::from);
    chosen.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn environment() -> u64 {
    let mut all: Vec<_> = env::vars_os().collect();
    all.sort();
    let mut hasher = DefaultHasher::new();
    all.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
