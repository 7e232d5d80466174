//! The Python environments: the notebooks' (JupyterLab, nbclient, the wheel that brings libtorch)
//! and that of `bench`'s peers.
//!
//! An active environment is used for the notebooks as it is, and completed; else one is made in the
//! cache folder and linked as `.venv`. A `requirements.txt` is the one list of what belongs in each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use kernel::home::Home;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::checkout::{Checkout, link_to};
use crate::command::{output, run, watch};
use crate::{report, setup};

/// The Python versions that torch 2.11 publishes wheels for.
const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 10..=14;

/// Space for an environment (4.8 GB, most of it libtorch with CUDA) and pip's downloads.
const SPACE: u64 = 8_000_000_000;

/// Environment variables whose value is a path from the folder that the user is in; a notebook's
/// kernel is in the notebook's.
const PATHS: [&str; 3] = ["TRANSFER_DATA", "TRANSFER_CHECKPOINTS", "TRANSFER_DATASET"];

/// A Python interpreter, and what it answers to `environment.py`.
#[derive(Debug, Deserialize)]
pub(crate) struct Python {
    #[serde(skip)]
    executable: PathBuf,
    minor: u32,
    version: String,
    /// The environment's folder, `sys.prefix`.
    pub(crate) prefix: PathBuf,
    /// The pins that it lacks, as in `torch==2.11.0`.
    unmet: Vec<String>,
    torch: Option<PathBuf>,
    pub(crate) torch_version: Option<String>,
    has_pip: bool,
    can_make_environments: bool,
}

impl Python {
    fn ask(executable: impl AsRef<Path>, requirements: &Path) -> anyhow::Result<Self> {
        Self::answer(&mut Command::new(executable.as_ref()), requirements)
    }

    fn answer(python: &mut Command, requirements: &Path) -> anyhow::Result<Self> {
        let ask = python.args(["-c", include_str!("environment.py")]);
        let mut answer: Self = serde_json::from_str(&output(ask.arg(requirements))?)?;
        answer.executable = python.get_program().into();
        Ok(answer)
    }

    /// Says why torch cannot be installed for this interpreter, if it cannot.
    fn unsupported(&self) -> Option<String> {
        let (first, last) = (PYTHON_MINORS.start(), PYTHON_MINORS.end());
        (!PYTHON_MINORS.contains(&self.minor))
            .then(|| format!("is {}, and torch needs 3.{first} to 3.{last}", self.version))
    }

    /// Returns the libtorch folder, the one with `lib` and `include` in it.
    pub(crate) fn libtorch(&self) -> anyhow::Result<&Path> {
        let torch = self.torch.as_deref();
        torch.context("torch holds no libtorch: install it with pip")
    }

    /// Returns a command for a program of the environment, run as if the environment were active.
    pub(crate) fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.prefix.join("bin").join(program));
        self.activate(&mut command)?;
        Ok(command)
    }

    /// Returns a command for a script of the checkout.
    pub(crate) fn script(&self, checkout: &Checkout, path: &str) -> anyhow::Result<Command> {
        let mut command = self.command("python")?;
        command.arg("-u").arg(checkout.join(path));
        Ok(command)
    }

    /// Makes the environment active for a command, and settings that are paths absolute.
    pub(crate) fn activate(&self, command: &mut Command) -> anyhow::Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = std::iter::once(self.prefix.join("bin"));
        let path = std::env::join_paths(bin.chain(std::env::split_paths(&path)))?;
        // The environment's kernelspec, not one of the same name in the home folder.
        command
            .env("PATH", path)
            .env("VIRTUAL_ENV", &self.prefix)
            .env("JUPYTER_PREFER_ENV_PATH", "1");
        command.env_remove("PYTHONHOME");
        for name in PATHS {
            if let Some(path) = std::env::var_os(name).and_then(|value| absolute(name, value)) {
                command.env(name, path);
            }
        }
        Ok(())
    }

    /// Installs what is missing, or has another version than the pinned one.
    fn install(self, home: &Home, requirements: &Path) -> anyhow::Result<Self> {
        let folder = self.prefix.display();
        if self.unmet.is_empty() {
            let present = format!("present: {folder}, Python {}", self.version);
            report::done("environment", present);
            return Ok(self);
        }
        if self.torch.is_none() {
            setup::ensure_space(home.root(), SPACE)?;
        }
        let what = format!("installing {} into {folder}", self.unmet.join(" "));
        report::timed("environment", what, || {
            let python = || Command::new(&self.executable);
            if !self.has_pip {
                run(python().args(["-m", "ensurepip", "--default-pip"]))?;
            }
            let mut pip = python();
            pip.args([
                "-m",
                "pip",
                "install",
                "--no-input",
                "--progress-bar",
                "off",
            ]);
            pip.arg("--disable-pip-version-check").args(&self.unmet);
            watch("environment", &mut pip)?;
            let installed = Self::ask(&self.executable, requirements)?;
            let missing = &installed.unmet;
            ensure!(missing.is_empty(), "pip left out {}", missing.join(" "));
            Ok(installed)
        })
    }
}

/// Returns the absolute path that a setting means, if it is one.
fn absolute(name: &str, value: OsString) -> Option<PathBuf> {
    let text = value.to_string_lossy().to_lowercase();
    // A dataset is a folder where its name has a slash in it.
    let is_path = name != "TRANSFER_DATASET" || text.contains('/') || text.ends_with(".csv");
    std::path::absolute(Some(value).filter(|_| is_path)?).ok()
}

/// Makes or completes the notebooks' environment, and points `.venv` and `.libtorch` at it.
pub(crate) fn notebooks(checkout: &Checkout, home: &Home) -> anyhow::Result<Python> {
    let requirements = checkout.join("requirements.txt");
    let active = active(|name| std::env::var_os(name).map(PathBuf::from));
    let is_own = |folder: PathBuf| folder.starts_with(home.root());
    let others = |folder: &PathBuf| !folder.canonicalize().is_ok_and(is_own);
    let python = match active.filter(others) {
        Some(folder) => {
            let place = format!("the active environment {}", folder.display());
            let python = Python::ask(folder.join("bin/python"), &requirements)
                .with_context(|| format!("{place} does not work"))?;
            refuse(&python).with_context(|| format!("{place} cannot be used"))?;
            python.install(home, &requirements)?
        }
        None => {
            let python = own(home, "env", &requirements)?;
            link_to(&checkout.join(".venv"), &python.prefix)?;
            python
        }
    };
    link_to(&checkout.libtorch_link(), python.libtorch()?)?;
    Ok(python)
}

/// Makes or completes the environment of `bench`'s peers.
pub(crate) fn peers(checkout: &Checkout, home: &Home) -> anyhow::Result<Python> {
    let requirements = checkout.join("bench/peers/requirements.txt");
    own(home, "bench", &requirements)
}

/// Makes or completes an environment in the cache folder.
fn own(home: &Home, name: &str, requirements: &Path) -> anyhow::Result<Python> {
    let base = base_python(requirements)?;
    let list = std::fs::read_to_string(requirements)?;
    let key = digest([list.as_str(), &base.minor.to_string()]);
    let folder = home.root().join(format!("{name}-{}", &key[..12]));
    let executable = folder.join("bin/python");
    let python = Python::ask(&executable, requirements).or_else(|_| {
        // None, one of an interrupted set-up, or one whose base interpreter is gone.
        let mut venv = Command::new(&base.executable);
        run(venv.args(["-m", "venv", "--clear"]).arg(&folder))?;
        Python::ask(&executable, requirements)
    })?;
    python.install(home, requirements)
}

/// Refuses somebody's environment that torch does not support, or that holds another torch: that
/// one is there for a reason and is not replaced.
fn refuse(python: &Python) -> anyhow::Result<()> {
    if let Some(reason) = python.unsupported() {
        bail!("its Python {reason}: deactivate it, or activate another");
    }
    let wanted = python.unmet.iter().find(|pin| pin.starts_with("torch=="));
    if let (Some(found), Some(wanted)) = (&python.torch_version, wanted) {
        bail!(
            "it has torch {found}, and tch takes exactly {wanted}, whose libtorch it is bound to: \
             deactivate it (a separate environment is then made), or run `pip install {wanted}` in it"
        );
    }
    Ok(())
}

/// Returns the folder of the active virtual or conda environment. Conda's `base`, which is active
/// in every shell, is nobody's choice for this project and is not used.
fn active(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let conda = || {
        let is_base = variable("CONDA_DEFAULT_ENV").is_some_and(|name| name == Path::new("base"));
        variable("CONDA_PREFIX").filter(|_| !is_base)
    };
    let folder = variable("VIRTUAL_ENV").or_else(conda);
    folder.filter(|folder| !folder.as_os_str().is_empty())
}

/// Finds an interpreter to make an environment with.
fn base_python(requirements: &Path) -> anyhow::Result<Python> {
    let (first, last) = (PYTHON_MINORS.start(), PYTHON_MINORS.end());
    let minors = PYTHON_MINORS.rev().map(|minor| format!("python3.{minor}"));
    let mut found = String::new();
    for name in std::iter::once("python3".to_owned()).chain(minors) {
        let Ok(python) = Python::ask(&name, requirements) else {
            continue;
        };
        let no_venv = || "has no `venv` (on Debian: apt install python3-venv)".to_owned();
        let makes = python.can_make_environments;
        match python.unsupported().or((!makes).then(no_venv)) {
            Some(reason) => found += &format!("; {name} {reason}"),
            None => return Ok(python),
        }
    }
    bail!(
        "no usable Python: 3.{first} to 3.{last} with `venv` is needed{found}. \
         Get one from your package manager or https://www.python.org/downloads/"
    )
}

/// Returns the sha256 of several texts, in hexadecimal.
pub(crate) fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text.len().to_le_bytes());
        hasher.update(text);
    }
    let hash = hasher.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTEBOOKS: &str = include_str!("../../requirements.txt");
    const PEERS: &str = include_str!("../../bench/peers/requirements.txt");

    fn pins(list: &str) -> impl Iterator<Item = &str> {
        list.lines().filter(|line| !line.starts_with('#'))
    }

    #[test]
    fn everything_is_pinned_and_the_peers_compute_on_the_projects_own_libtorch() {
        for pin in pins(NOTEBOOKS).chain(pins(PEERS)) {
            let (_, version) = pin.split_once("==").unwrap_or_default();
            assert!(!version.is_empty(), "{pin}: expected NAME==VERSION");
        }
        let torch = |list| pins(list).find(|pin| pin.starts_with("torch==")).unwrap();
        assert_eq!(torch(NOTEBOOKS), torch(PEERS));
        // What conda needs, in the one list that is not read here.
        let conda = include_str!("../../environment.yml");
        let lines = [
            "  - nodefaults\n",
            "- python=3.12\n",
            "- pip\n",
            "      - -r requirements.txt\n",
        ];
        assert!(lines.iter().all(|line| conda.contains(line)), "{conda}");
    }

    /// Asks this machine's Python, with a torch 2.11.0+cpu in it, about some pins.
    fn ask(pins: &str) -> Python {
        let folder = tempfile::tempdir().unwrap();
        let torch = folder.path().join("torch-2.11.0+cpu.dist-info");
        std::fs::create_dir(&torch).unwrap();
        let metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cpu\n";
        std::fs::write(torch.join("METADATA"), metadata).unwrap();
        let path = folder.path().join("requirements.txt");
        std::fs::write(&path, pins).unwrap();
        let mut python = Command::new("python3");
        Python::answer(python.env("PYTHONPATH", folder.path()), &path).unwrap()
    }

    #[test]
    fn what_an_interpreter_lacks_is_found_and_a_build_of_a_version_counts_as_it() {
        let lacks = |pins: &str| ask(pins).unmet;
        let pins = "# a comment\n\nno-such-package==1.0\ntorch==2.11.0\n";
        assert_eq!(lacks(pins), ["no-such-package==1.0"]);
        assert_eq!(lacks("torch==2.11.1\n"), ["torch==2.11.1"]);
        assert_eq!(lacks("torch==2.1\n"), ["torch==2.1"]);
    }

    #[test]
    fn another_torch_in_an_active_environment_is_refused_and_a_missing_one_is_not() {
        let refusal = |python: &Python| refuse(python).map_err(|error| error.to_string());
        let mut python = ask("torch==2.11.0\n");
        python.minor = *PYTHON_MINORS.start();
        assert_eq!(refusal(&python), Ok(()));
        python.unmet = vec!["torch==0.0.0".into()];
        let error = refusal(&python).unwrap_err();
        assert!(error.contains("torch 2.11.0+cpu") && error.contains("pip install torch==0.0.0"));
        python.torch_version = None;
        assert_eq!(refusal(&python), Ok(()));
        python.minor = 9;
        assert!(refusal(&python).unwrap_err().contains("3.10 to 3.14"));
    }

    #[test]
    fn folders_become_absolute_and_names_of_datasets_stay() {
        let here = |name: &str| Some(std::env::current_dir().unwrap().join(name));
        for (name, value, path) in [
            ("TRANSFER_DATA", "downloads", here("downloads")),
            ("TRANSFER_DATA", "", None),
            ("TRANSFER_DATASET", "./pets", here("pets")),
            ("TRANSFER_DATASET", "/pets", Some("/pets".into())),
            ("TRANSFER_DATASET", "cifar10", None),
        ] {
            assert_eq!(absolute(name, value.into()), path, "{name}={value}");
        }
    }

    #[test]
    fn a_virtual_environment_wins_and_condas_base_does_not_count() {
        let find = |set: &[(&str, &str)]| {
            active(|name| Some(set.iter().find(|(known, _)| *known == name)?.1.into()))
        };
        let base = [("CONDA_PREFIX", "/conda"), ("CONDA_DEFAULT_ENV", "base")];
        assert_eq!(find(&base), None);
        let mine = [("CONDA_PREFIX", "/mine"), ("CONDA_DEFAULT_ENV", "mine")];
        assert_eq!(find(&mine), Some("/mine".into()));
        let both = [base[0], base[1], ("VIRTUAL_ENV", "/v")];
        assert_eq!(find(&both), Some("/v".into()));
        assert_eq!(find(&[]), None);
    }
}
