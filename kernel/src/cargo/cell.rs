//! The build of a cell: how Cargo ran the compiler, and what has to be as it was then for Cargo to
//! run it in the same way again.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::read_json;
use super::run::{CELL, Run, Task};
use crate::unless_missing;

/// What evcxr has Cargo do: make a cell's library, or tell what is wrong with a cell.
pub(super) const BUILD: &str = "build";
const CHECK: &str = "check";

/// What Cargo's exit code is where something does not compile.
const FAILED: u8 = 101;

/// The last build of a cell by Cargo.
#[derive(Serialize, Deserialize)]
pub(super) struct CellBuild {
    run: Run,
    bundle: Option<Bundle>,
    /// The line in which Cargo told of the library.
    artifact: String,
    folder: PathBuf,
    arguments: Vec<OsString>,
    /// A hash of Cargo's environment.
    environment: u64,
    /// What Cargo looks at, with its date and size, or that it was not there.
    files: BTreeMap<PathBuf, Option<Stamp>>,
}

type Stamp = (SystemTime, u64);

impl CellBuild {
    /// Notes a build that succeeded, with Cargo's `arguments` in `folder`. Returns `None` if a source
    /// of a dependency was changed after it had `begun`, or it cannot be told which belong to it.
    pub(super) fn new(
        run: Run,
        artifact: String,
        arguments: &[OsString],
        folder: &Path,
        begun: SystemTime,
    ) -> Option<Self> {
        let sources = fs::read_to_string(library(&artifact)?.with_extension("d")).ok()?;
        let mut sources = files(&sources);
        sources.retain(|path| !path.starts_with(folder.join("src")));
        let is_older = |path: &PathBuf| stamp(path).is_some_and(|(changed, _)| changed < begun);
        if !sources.iter().all(is_older) {
            return None;
        }
        let manifests = sources.iter().flat_map(|path| path.ancestors().skip(1));
        let manifests = manifests.map(|folder| folder.join("Cargo.toml"));
        let settings = folder.ancestors().map(|folder| folder.join(".cargo"));
        let settings = settings.chain(cargo_home());
        let settings =
            settings.flat_map(|folder| ["config.toml", "config"].map(|name| folder.join(name)));
        let libraries = run.dependencies().map(|(_, path)| path.to_owned());
        let all = (sources.iter().cloned())
            .chain(manifests)
            .chain(settings)
            .chain(libraries)
            .chain(["Cargo.toml", "Cargo.lock"].map(|name| folder.join(name)))
            .chain([run.program.clone()]);
        let files = all.map(|path| (path.clone(), stamp(&path))).collect();
        let bundle = Bundle::of(&run).unwrap_or_else(|error| {
            eprintln!("cells are linked with each library: {error:#}");
            None
        });
        Some(Self {
            run,
            bundle,
            artifact,
            folder: folder.to_owned(),
            arguments: arguments.to_vec(),
            environment: environment(),
            files,
        })
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        read_json(path)
    }

    /// Returns what Cargo, called with these arguments in `folder`, would do of the same kind with
    /// nothing changed but the cell.
    pub(super) fn task(&self, arguments: &[OsString], folder: &Path) -> Option<Task> {
        let build = |word: &OsString| {
            if word == CHECK {
                BUILD.into()
            } else {
                word.clone()
            }
        };
        let mut files = self.files.iter();
        let is_as_before = self.folder == folder
            && arguments
                .iter()
                .map(build)
                .eq(self.arguments.iter().cloned())
            && self.environment == environment()
            && files.all(|(path, before)| stamp(path) == *before);
        let checks = arguments.iter().any(|word| word == CHECK);
        is_as_before.then_some(if checks { Task::Check } else { Task::Build })
    }

    /// Compiles the cell as Cargo did, and says of it what Cargo would say. Returns Cargo's exit code.
    pub(super) fn compile(&self, task: Task) -> anyhow::Result<u8> {
        let mut compiled = None;
        if let Some(bundle) = &self.bundle
            && task == Task::Build
        {
            compiled = bundle.link(&self.run, &self.folder, |arguments| {
                self.try_with(arguments)
            })?;
        }
        let (succeeded, messages) = match compiled {
            Some(compiled) => compiled,
            None => self.try_with(&self.run.arguments_for(task))?,
        };
        for message in messages {
            println!(
                "{}",
                json!({"reason": "compiler-message", "message": message})
            );
        }
        if !succeeded {
            return Ok(FAILED);
        }
        if task == Task::Build {
            self.put_in_place()
                .context("cannot put the cell's library in its place")?;
            println!("{}", self.artifact);
        }
        Ok(0)
    }

    /// Runs the compiler; returns whether it succeeded, and what it said of the code.
    fn try_with(&self, arguments: &[String]) -> anyhow::Result<Compiled> {
        let mut compiler = self.run.compiler();
        let mut compiler = compiler
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.run.program.display()))?;
        let said = BufReader::new(compiler.stderr.take().context("the compiler's stderr")?);
        let mut messages = Vec::new();
        for line in said.lines() {
            let line = line?;
            match serde_json::from_str::<Value>(&line) {
                Ok(message) if message["$message_type"] == "diagnostic" => messages.push(message),
                Ok(_) => {}
                Err(_) => eprintln!("{line}"),
            }
        }
        Ok((compiler.wait()?.success(), messages))
    }

    /// Makes the library a link to what the compiler has written, as Cargo does.
    fn put_in_place(&self) -> anyhow::Result<()> {
        let library = library(&self.artifact).context("no library")?;
        let written = Path::new(self.run.value("--out-dir").context("no folder")?);
        unless_missing(fs::remove_file(&library))?;
        Ok(fs::hard_link(
            written.join(library.file_name().context("no name")?),
            library,
        )?)
    }
}

/// Whether the compiler succeeded, and what it said of the code.
pub(super) type Compiled = (bool, Vec<Value>);

/// Returns whether a line of Cargo's messages tells of the library that it made of a cell.
pub(super) fn is_artifact(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|message| {
        message["reason"] == "compiler-artifact" && message["target"]["name"] == CELL
    })
}

/// Returns where the library is that Cargo tells of.
fn library(artifact: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(artifact).ok()?;
    Some(PathBuf::from(message["filenames"][0].as_str()?))
}

/// Returns the files in what Cargo writes beside a library: `LIBRARY: FILE FILE ...`, with `\ ` for
/// a space in a name.
fn files(text: &str) -> Vec<PathBuf> {
    const SPACE: &str = "\0";
    let (_, files) = text.split_once(": ").unwrap_or_default();
    let files = files.replace("\\ ", SPACE);
    let files = files
        .split_whitespace()
        .map(|file| file.replace(SPACE, " "));
    files.map(PathBuf::from).collect()
}

/// Returns the folder of the user's own settings for Cargo.
fn cargo_home() -> Option<PathBuf> {
    let chosen = env::var_os("CARGO_HOME").map(PathBuf::from);
    chosen.or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// Returns a file's date and size, by which Cargo tells whether it has changed.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn environment() -> u64 {
    let mut variables: Vec<_> = env::vars_os().collect();
    variables.sort();
    let mut hasher = DefaultHasher::new();
    variables.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_found_whatever_is_in_their_names() {
        let text = "/t/libctx.so: /a/lib.rs /with\\ a\\ space/lib.rs\n";
        assert_eq!(
            files(text),
            ["/a/lib.rs", "/with a space/lib.rs"].map(PathBuf::from)
        );
        assert!(files("").is_empty());
    }

    /// A cell that was built with a dependency in `folder`, and what Cargo was called with.
    fn built(folder: &Path) -> Option<(CellBuild, Vec<OsString>)> {
        let cell = folder.join("cell");
        let source = folder.join("dependency/src/lib.rs");
        let library = cell.join("target/libctx.so");
        for file in [
            &source,
            &library,
            &cell.join("Cargo.toml"),
            &cell.join("src/lib.rs"),
        ] {
            fs::create_dir_all(file.parent()?).ok()?;
            fs::write(file, "").ok()?;
        }
        let list = format!(
            "libctx.so: {} {}\n",
            cell.join("src/lib.rs").display(),
            source.display()
        );
        fs::write(library.with_extension("d"), list).ok()?;
        let words = ["--crate-name", CELL, "--emit=dep-info,link"].map(OsString::from);
        let run = Run::of_a_cell("rustc".as_ref(), &words)?;
        let artifact = json!({"filenames": [library]}).to_string();
        let arguments = vec![OsString::from(BUILD)];
        let begun = SystemTime::now() + Duration::from_secs(1);
        Some((
            CellBuild::new(run, artifact, &arguments, &cell, begun)?,
            arguments,
        ))
    }

    #[test]
    fn a_build_is_as_before_until_anything_but_the_cell_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (build, arguments) = built(folder.path()).unwrap();
        let cell = folder.path().join("cell");
        assert_eq!(build.task(&arguments, &cell), Some(Task::Build));
        fs::write(cell.join("src/lib.rs"), "another cell").unwrap();
        assert_eq!(build.task(&arguments, &cell), Some(Task::Build));
        assert_eq!(build.task(&[CHECK.into()], &cell), Some(Task::Check));
        assert_eq!(build.task(&[BUILD.into(), "--offline".into()], &cell), None);
        assert_eq!(build.task(&arguments, folder.path()), None);
        for changed in [
            "dependency/src/lib.rs",
            "dependency/Cargo.toml",
            "cell/Cargo.toml",
            "cell/.cargo/config.toml",
            ".cargo/config.toml",
        ] {
            let (build, arguments) = built(folder.path()).unwrap();
            let path = folder.path().join(changed);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "changed").unwrap();
            assert_eq!(build.task(&arguments, &cell), None, "{changed}");
        }
    }

    #[test]
    fn only_the_compilers_run_that_makes_a_library_of_a_cell_is_noted() {
        let run = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            Run::of_a_cell("rustc".as_ref(), &words).is_some()
        };
        assert!(run(&["--crate-name", CELL, "--emit=dep-info,link"]));
        assert!(!run(&["--crate-name", CELL, "--emit=dep-info,metadata"]));
        assert!(!run(&["--crate-name", "support", "--emit=dep-info,link"]));
        assert!(!run(&["-vV"]));
    }
}
