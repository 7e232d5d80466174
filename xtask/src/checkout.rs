//! The checkout: where its files are, and how its crates are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use kernel::environment::{OTHER_LIBTORCH, is_left_by_cargo};
use serde_json::Value;

use crate::command::{cargo, output, watch_cargo};

/// The checkout's root folder.
#[derive(Debug, Clone)]
pub(crate) struct Checkout(PathBuf);

impl Checkout {
    /// Returns the checkout that this program was built from.
    pub(crate) fn locate() -> anyhow::Result<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let gone = || format!("the checkout {} is gone", root.display());
        Ok(Self(root.canonicalize().with_context(gone)?))
    }

    /// Returns a path below the root.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Reads a file below the root.
    pub(crate) fn read(&self, path: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.join(path)).with_context(|| format!("cannot read {path}"))
    }

    /// Returns where Cargo builds, and built this program.
    pub(crate) fn target(&self) -> anyhow::Result<PathBuf> {
        let program = std::env::current_exe()?;
        let target = program.ancestors().nth(2);
        Ok(target.unwrap_or(&self.0).to_owned())
    }

    /// Returns where executed notebooks and what belongs to them are written.
    pub(crate) fn output(&self) -> PathBuf {
        self.join("target/notebooks")
    }

    /// Returns where the figures of `bench` are written.
    pub(crate) fn bench_output(&self) -> PathBuf {
        self.join("target/bench")
    }

    /// Returns the link to the environment's libtorch that `.cargo/config.toml` names, so that
    /// plain `cargo` builds the workspace as well.
    pub(crate) fn libtorch_link(&self) -> PathBuf {
        self.join(".libtorch")
    }

    /// Returns the link to the environment, where editors expect it.
    pub(crate) fn venv(&self) -> PathBuf {
        self.join(".venv")
    }

    /// Returns the folder in which Jupyter finds this checkout's kernel, for `JUPYTER_PATH`.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.join("target/jupyter")
    }

    /// Returns a Cargo command in this checkout that builds with the environment's libtorch.
    pub(crate) fn cargo(&self, words: &str) -> Command {
        let mut command = cargo();
        command.args(words.split(' ')).current_dir(&self.0);
        for (name, _) in std::env::vars_os() {
            if is_left_by_cargo(&name) || OTHER_LIBTORCH.iter().any(|other| name == *other) {
                command.env_remove(name);
            }
        }
        command.env("LIBTORCH", self.libtorch_link());
        command
    }

    /// Builds what `words` select, the program `name` among it, as the step `step`, and returns
    /// where the program is.
    pub(crate) fn build(&self, step: &str, words: &str, name: &str) -> anyhow::Result<PathBuf> {
        let words = || words.split(' ');
        watch_cargo(step, self.cargo("build").args(words()))?;
        // Cargo says where it is or how far it is, in messages for a program or for a person.
        let mut ask = self.cargo("build --quiet --message-format=json-render-diagnostics");
        let messages = output(ask.args(words()))?;
        executable(&messages, name)
            .with_context(|| format!("Cargo built {name} without saying where"))
    }
}

/// Finds a program among Cargo's messages, which tell of every program that was built on the way.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

/// Refuses a place for a link where there is something else.
pub(crate) fn ensure_linkable(link: &Path) -> anyhow::Result<()> {
    ensure!(
        link.is_symlink() || !link.exists(),
        "{} is in the way of a link that set-up makes: move it away",
        link.display()
    );
    Ok(())
}

/// Makes `link` a symbolic link to `target`, whatever `link` pointed to before.
pub(crate) fn link_to(link: &Path, target: &Path) -> anyhow::Result<()> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    let (from, to) = (link.display(), target.display());
    std::os::unix::fs::symlink(target, link)
        .with_context(|| format!("cannot make {from} a link to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_from_others_that_cargo_built_with_it() {
        let messages = r#"{"reason": "compiler-artifact", "target": {"name": "assets"}, "executable": "/t/assets"}
{"reason": "compiler-artifact", "target": {"name": "tutorial"}, "executable": null}
{"reason": "compiler-artifact", "target": {"name": "tutorial"}, "executable": "/t/tutorial-1f"}
{"reason": "build-finished", "success": true}"#;
        let found = executable(messages, "tutorial");
        assert_eq!(found, Some("/t/tutorial-1f".into()));
        assert_eq!(executable(messages, "kernel"), None);
    }

    #[test]
    fn a_link_is_turned_to_its_new_target_and_a_real_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        for target in ["first", "second", "second"] {
            link_to(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        let real = folder.path().join("real");
        fs::create_dir(&real).unwrap();
        link_to(&real, Path::new("first")).unwrap_err();
        assert!(real.is_dir());
        let error = ensure_linkable(&real).unwrap_err().to_string();
        assert!(error.contains("move it away"), "{error}");
        ensure_linkable(&link).unwrap();
        ensure_linkable(&folder.path().join("nothing")).unwrap();
    }
}
