//! How Cargo runs the compiler for a cell.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// What evcxr calls the crate that it makes of a cell.
pub(super) const CELL: &str = "ctx";

/// What a cell is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// To have a library of it.
    Build,
    /// To know what is wrong with it.
    Check,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

impl Run {
    /// Returns how this process is to run the compiler, if that is to make a library of a cell.
    pub(super) fn of_a_cell(program: &OsStr, arguments: &[OsString]) -> Option<Self> {
        let text = |word: &OsStr| word.to_str().map(str::to_owned);
        let words = arguments.iter().map(|word| text(word));
        let variables = env::vars_os().filter_map(|(name, value)| text(&name).zip(text(&value)));
        let run = Self {
            program: program.into(),
            arguments: words.collect::<Option<_>>()?,
            environment: variables.collect(),
        };
        let links = run.arguments.iter().any(|word| emits_a_library(word));
        let is_cell = links && run.value("--crate-name") == Some(CELL);
        is_cell.then_some(run)
    }

    /// Returns the arguments: those of a build, or as many as are of use to a check.
    pub(super) fn arguments_for(&self, task: Task) -> Vec<String> {
        let words = self.arguments.iter();
        let adapted = words.map(|word| match task {
            Task::Check if emits_a_library(word) => "--emit=metadata".to_owned(),
            Task::Build | Task::Check => word.clone(),
        });
        adapted.collect()
    }

    /// Returns a command for the same compiler in the same environment.
    pub(super) fn compiler(&self) -> Command {
        let mut compiler = Command::new(&self.program);
        compiler.env_clear().envs(&self.environment);
        // Cargo's, which has ended.
        compiler.env_remove("CARGO_MAKEFLAGS").stdin(Stdio::null());
        compiler
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// Returns the value of an option that takes it from the next word.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.values(option).next()
    }

    pub(super) fn values(&self, option: &str) -> impl Iterator<Item = &str> {
        let pairs = self.arguments.windows(2);
        pairs.filter_map(move |pair| (pair[0] == option).then_some(&*pair[1]))
    }

    /// Returns the crates that the cell depends on, with their libraries.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = (&str, &Path)> {
        let pairs = self
            .values("--extern")
            .filter_map(|word| word.split_once('='));
        pairs.map(|(name, path)| (name, Path::new(path)))
    }
}

fn emits_a_library(word: &str) -> bool {
    word.starts_with("--emit=") && word.ends_with("link")
}
