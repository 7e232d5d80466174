//! The Python environments: the notebooks' (JupyterLab, nbclient, the wheel that brings libtorch)
//! and that of `bench`'s peers.
//!
//! An active environment is used for the notebooks as it is, and completed, and so is one that
//! somebody has made as `.venv`; else one is made in the cache folder and linked as `.venv`. A
//! `requirements.txt` is the one list of what belongs in each.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use kernel::environment::OTHER_PYTHON;
use kernel::home::{Home, VARIABLE as HOME};
use kernel::kept;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::checkout::{Checkout, ensure_linkable, link_to};
use crate::command::{output, run, watch};
use crate::report;
use crate::space::Need;

/// What belongs in an environment.
#[derive(Debug)]
struct Pins {
    /// As in `torch==2.11.0`.
    list: Vec<String>,
    /// The minor versions of Python 3 that all of them are published for.
    minors: RangeInclusive<u32>,
}

/// pip's settings that would put packages elsewhere, or leave some out. Those that say where they
/// come from are the user's to choose.
const PIP_ELSEWHERE: [&str; 8] = [
    "PIP_DRY_RUN",
    "PIP_NO_DEPS",
    "PIP_PREFIX",
    "PIP_PYTHON",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
];

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
    /// Where Jupyter finds the checkout's kernel.
    #[serde(skip)]
    kernels: PathBuf,
}

impl Python {
    fn ask(executable: impl AsRef<Path>, pins: &Pins) -> anyhow::Result<Self> {
        let executable = executable.as_ref();
        let mut ask = python(executable);
        ask.args(["-c", include_str!("environment.py")]);
        let mut answer: Self = serde_json::from_str(&output(ask.args(&pins.list))?)?;
        answer.executable = executable.into();
        Ok(answer)
    }

    /// Says why not all can be installed for this interpreter, if that is so.
    fn unsupported(&self, pins: &Pins) -> Option<String> {
        let (first, last) = (pins.minors.start(), pins.minors.end());
        (!pins.minors.contains(&self.minor)).then(|| {
            let version = &self.version;
            format!("is {version}, and what is installed needs 3.{first} to 3.{last}")
        })
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
        // The checkout's kernelspec and then the environment's, not those in the home folder.
        let kernels = std::env::var_os("JUPYTER_PATH").unwrap_or_default();
        let kernels = std::iter::once(self.kernels.clone()).chain(std::env::split_paths(&kernels));
        command
            .env("PATH", path)
            .env("VIRTUAL_ENV", &self.prefix)
            .env("JUPYTER_PATH", std::env::join_paths(kernels)?)
            .env("JUPYTER_PREFER_ENV_PATH", "1");
        isolate(command);
        for name in PATHS {
            if let Some(path) = std::env::var_os(name).and_then(|value| absolute(name, value)) {
                command.env(name, path);
            }
        }
        Ok(())
    }

    /// Points the checkout's links at the notebooks' environment, and its commands at its kernel.
    pub(crate) fn link(mut self, checkout: &Checkout, home: &Home) -> anyhow::Result<Self> {
        if self.prefix.starts_with(home.root()) {
            link_to(&checkout.venv(), &self.prefix)?;
        }
        link_to(&checkout.libtorch_link(), self.libtorch()?)?;
        self.kernels = checkout.kernels();
        Ok(self)
    }

    /// Installs what is missing, or has another version than the pinned one.
    fn install(self, pins: &Pins) -> anyhow::Result<Self> {
        let folder = self.prefix.display();
        if self.unmet.is_empty() {
            let present = format!("present: {folder}, Python {}", self.version);
            report::done("environment", present);
            return Ok(self);
        }
        let what = format!("installing {} into {folder}", self.unmet.join(" "));
        report::timed("environment", what, || {
            if !self.has_pip {
                run(python(&self.executable).args(["-m", "ensurepip", "--default-pip"]))?;
            }
            let mut pip = python(&self.executable);
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
            let installed = Self::ask(&self.executable, pins)?;
            let missing = &installed.unmet;
            ensure!(missing.is_empty(), "pip left out {}", missing.join(" "));
            Ok(installed)
        })
    }
}

/// Returns a command for an interpreter that finds no packages but its own.
fn python(executable: &Path) -> Command {
    let mut command = Command::new(executable);
    isolate(&mut command);
    command
}

/// Removes what would have a Python find packages, or put them, outside of its environment.
fn isolate(command: &mut Command) {
    for name in OTHER_PYTHON.iter().chain(&PIP_ELSEWHERE) {
        command.env_remove(name);
    }
    command.env("PYTHONNOUSERSITE", "1");
}

/// Returns the absolute path that a setting means, if it is one.
fn absolute(name: &str, value: OsString) -> Option<PathBuf> {
    let text = value.to_string_lossy().to_lowercase();
    // A dataset is a folder where its name has a slash in it.
    let is_path = name != "TRANSFER_DATASET" || text.contains('/') || text.ends_with(".csv");
    std::path::absolute(Some(value).filter(|_| is_path)?).ok()
}

/// An environment that is wanted, and what there is of it.
#[derive(Debug)]
pub(crate) struct Environment {
    folder: PathBuf,
    /// Whether it is one of the cache folder's, or somebody's.
    is_own: bool,
    pins: Pins,
    interpreter: Interpreter,
}

#[derive(Debug)]
enum Interpreter {
    /// The environment's.
    There(Python),
    /// The one to make the environment with.
    Base(Python),
}

impl Environment {
    /// Finds the one for the notebooks. Refuses, before anything is fetched, what cannot be used.
    pub(crate) fn notebooks(checkout: &Checkout, home: &Home) -> anyhow::Result<Self> {
        let pins = Pins {
            list: pins(&checkout.read("requirements.txt")?),
            // onnxruntime begins at 3.11, torch ends at 3.14.
            minors: 11..=14,
        };
        ensure_linkable(&checkout.libtorch_link())?;
        let Some((folder, place)) = users_environment(checkout, home) else {
            ensure_linkable(&checkout.venv())?;
            return Self::own(home, "env", pins);
        };
        let python = Python::ask(folder.join("bin/python"), &pins)
            .with_context(|| format!("{place} does not work"))?;
        refuse(&python, &pins).with_context(|| format!("{place} cannot be used"))?;
        Ok(Self {
            folder,
            is_own: false,
            pins,
            interpreter: Interpreter::There(python),
        })
    }

    /// Finds the one for those of `bench`'s peers that need what is in `list`.
    pub(crate) fn peers(checkout: &Checkout, home: &Home, list: &str) -> anyhow::Result<Self> {
        let pins = Pins {
            list: pins(&checkout.read(&format!("bench/peers/{list}"))?),
            // keras and scikit-learn begin after torch, TensorFlow ends before it.
            minors: 11..=13,
        };
        Self::own(home, "bench", pins)
    }

    /// Finds one in the cache folder. Its name tells what belongs in it, so that all checkouts that
    /// want the same share one.
    fn own(home: &Home, kind: &str, pins: Pins) -> anyhow::Result<Self> {
        let base = base_python(&pins)?;
        let folder = home.root().join(format!("{kind}-{}", pins.key(base.minor)));
        // There may be none, one of an interrupted set-up, or one whose base interpreter is gone.
        let interpreter = Python::ask(folder.join("bin/python"), &pins)
            .map_or(Interpreter::Base(base), Interpreter::There);
        Ok(Self {
            folder,
            is_own: true,
            pins,
            interpreter,
        })
    }

    /// Returns what is still missing.
    pub(crate) fn needs(&self) -> Vec<Need> {
        let missing = match &self.interpreter {
            Interpreter::There(python) => &python.unmet,
            Interpreter::Base(_) => &self.pins.list,
        };
        let lacks = |name: &str| missing.iter().any(|pin| pin.starts_with(name));
        let with_cuda = brings_cuda(|name| std::env::var(name).ok());
        let [installed, downloads] = match (lacks("torch=="), lacks("")) {
            (true, _) if with_cuda => [5200, 2800],
            (true, _) => [1300, 500],
            (false, true) => [500, 300],
            (false, false) => return Vec::new(),
        };
        let folder = self.folder.clone();
        let chosen_by = if self.is_own { HOME } else { "VIRTUAL_ENV" };
        let temporary = std::env::temp_dir();
        let mut needs = vec![
            Need::new("the Python environment", installed, folder, chosen_by),
            Need::new("pip's downloads", downloads, temporary, "TMPDIR"),
        ];
        // Where pip's cache is by default is on the same disk.
        let cache = std::env::var_os("PIP_CACHE_DIR").map(PathBuf::from);
        if let Some(cache) = cache.or_else(std::env::home_dir) {
            let what = "pip's cache";
            needs.push(Need::new(what, downloads, cache, "PIP_CACHE_DIR"));
        }
        needs
    }

    /// Returns the libtorch folder, if it is there.
    pub(crate) fn libtorch(&self) -> Option<&Path> {
        match &self.interpreter {
            Interpreter::There(python) => python.torch.as_deref(),
            Interpreter::Base(_) => None,
        }
    }

    /// Makes or completes it, and removes those of its kind that nobody has used for long.
    pub(crate) fn fill(self) -> anyhow::Result<Python> {
        if self.is_own {
            kept::hold(&self.folder)?;
        }
        let there = match self.interpreter {
            Interpreter::There(there) => there,
            Interpreter::Base(base) => {
                let mut venv = python(&base.executable);
                run(venv.args(["-m", "venv", "--clear"]).arg(&self.folder))?;
                Python::ask(self.folder.join("bin/python"), &self.pins)?
            }
        };
        let filled = there.install(&self.pins)?;
        if self.is_own {
            report::pruned(kept::prune_siblings(&self.folder)?);
        }
        Ok(filled)
    }
}

/// Returns whether the torch that pip finds brings CUDA, which is four fifths of an environment.
fn brings_cuda(variable: impl Fn(&str) -> Option<String>) -> bool {
    let of_cpu = |name| variable(name).is_some_and(|index| index.contains("/whl/cpu"));
    cfg!(target_os = "linux")
        && !["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"]
            .into_iter()
            .any(of_cpu)
}

/// Returns the pins of a `requirements.txt`.
fn pins(list: &str) -> Vec<String> {
    let lines = list.lines().filter_map(|line| line.split('#').next());
    let pins = lines.map(|line| line.trim().to_owned());
    pins.filter(|pin| !pin.is_empty()).collect()
}

impl Pins {
    /// Returns a digest of what an environment of this minor version of Python 3 holds.
    fn key(&self, minor: u32) -> String {
        let mut list = self.list.clone();
        list.sort();
        let all = list.into_iter().chain([minor.to_string()]);
        digest(all)[..12].to_owned()
    }
}

/// Refuses somebody's environment that torch does not support, or that holds another torch: that
/// one is there for a reason and is not replaced.
fn refuse(python: &Python, pins: &Pins) -> anyhow::Result<()> {
    if let Some(reason) = python.unsupported(pins) {
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

/// Returns the environment that somebody has made for the notebooks, if there is one, and what to
/// call it: the active one, or else a folder `.venv` in the checkout, where editors and uv expect
/// it. One that set-up made is nobody's, even where it is active.
pub(crate) fn users_environment(checkout: &Checkout, home: &Home) -> Option<(PathBuf, String)> {
    let is_own = |folder: PathBuf| folder.starts_with(home.root());
    let active = active(|name| std::env::var_os(name).map(PathBuf::from))
        .filter(|folder| !folder.canonicalize().is_ok_and(is_own))
        .map(|folder| ("the active environment", folder));
    let made = || Some(("the environment", users_environment_in(&checkout.venv())?));
    let (what, folder) = active.or_else(made)?;
    let place = format!("{what} {}", folder.display());
    Some((folder, place))
}

/// Returns the folder where it is an environment and not a link to one.
fn users_environment_in(folder: &Path) -> Option<PathBuf> {
    let is_one = !folder.is_symlink() && folder.join("bin/python").exists();
    is_one.then(|| folder.to_owned())
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
fn base_python(pins: &Pins) -> anyhow::Result<Python> {
    let (first, last) = (pins.minors.start(), pins.minors.end());
    let minors = pins.minors.clone().rev();
    let names = minors.map(|minor| format!("python3.{minor}"));
    let mut found = String::new();
    for name in std::iter::once("python3".to_owned()).chain(names) {
        let Ok(python) = Python::ask(&name, pins) else {
            continue;
        };
        let no_venv = || "has no `venv` (on Debian: apt install python3-venv)".to_owned();
        let makes = python.can_make_environments;
        match python.unsupported(pins).or((!makes).then(no_venv)) {
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
pub(crate) fn digest(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        let text = text.as_ref();
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
    const SERVERS: &str = include_str!("../../bench/peers/servers.txt");

    #[test]
    fn everything_is_pinned_and_the_peers_compute_on_the_projects_own_libtorch() {
        for pin in [NOTEBOOKS, PEERS, SERVERS].into_iter().flat_map(pins) {
            let (_, version) = pin.split_once("==").unwrap_or_default();
            assert!(!version.is_empty(), "{pin}: expected NAME==VERSION");
        }
        let torch = |list| {
            pins(list)
                .into_iter()
                .find(|pin| pin.starts_with("torch=="))
        };
        assert!(torch(NOTEBOOKS).is_some());
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

    fn given(list: &str) -> Pins {
        Pins {
            list: pins(list),
            minors: 10..=14,
        }
    }

    #[test]
    fn an_environments_name_changes_with_its_pins_and_python_and_not_with_a_comment() {
        let key = |list, minor| given(list).key(minor);
        let first = key("# why\n\na==1\nb==2 # for c\n", 12);
        assert_eq!(first.len(), 12);
        assert_eq!(first, key("b==2\na==1", 12));
        assert_ne!(first, key("b==2\na==1", 13));
        assert_ne!(first, key("b==3\na==1", 12));
    }

    /// Asks a new environment, with a torch 2.11.0+cpu in it, about some pins.
    fn ask(list: &str) -> Python {
        let folder = tempfile::tempdir().unwrap();
        let mut venv = python(Path::new("python3"));
        venv.args(["-m", "venv", "--without-pip"])
            .arg(folder.path());
        run(&mut venv).unwrap();
        let executable = folder.path().join("bin/python");
        let site = "import sysconfig; print(sysconfig.get_path('purelib'), end='')";
        let site = output(python(&executable).args(["-c", site])).unwrap();
        let torch = Path::new(&site).join("torch-2.11.0+cpu.dist-info");
        std::fs::create_dir(&torch).unwrap();
        let metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cpu\n";
        std::fs::write(torch.join("METADATA"), metadata).unwrap();
        Python::ask(executable, &given(list)).unwrap()
    }

    #[test]
    fn what_an_interpreter_lacks_is_found_and_a_build_of_a_version_counts_as_it() {
        let lacks = |pins: &str| ask(pins).unmet;
        assert_eq!(
            lacks("no-such-package==1.0\ntorch==2.11.0\n"),
            ["no-such-package==1.0"]
        );
        assert_eq!(lacks("torch==2.11.1\n"), ["torch==2.11.1"]);
        assert_eq!(lacks("torch==2.1\n"), ["torch==2.1"]);
    }

    #[test]
    fn no_setting_of_the_user_leads_pip_or_python_out_of_the_environment() {
        let mut command = Command::new("env");
        for name in [
            "PYTHONPATH",
            "PYTHONHOME",
            "PIP_TARGET",
            "PIP_USER",
            "PIP_CERT",
        ] {
            command.env(name, "/elsewhere");
        }
        isolate(&mut command);
        let left = output(&mut command).unwrap();
        let left = left.lines().filter(|line| line.ends_with("=/elsewhere"));
        assert_eq!(left.collect::<Vec<_>>(), ["PIP_CERT=/elsewhere"]);
    }

    #[test]
    fn a_python_that_not_all_is_published_for_is_not_used() {
        let mut wanted = given("");
        wanted.minors = 0..=1;
        let error = base_python(&wanted).unwrap_err().to_string();
        assert!(
            error.contains("3.0 to 3.1 with `venv` is needed; python3 is 3."),
            "{error}"
        );
        wanted.minors = 10..=14;
        assert!(wanted.minors.contains(&base_python(&wanted).unwrap().minor));
    }

    #[test]
    fn only_what_is_missing_needs_space() {
        let needs_of = |list, interpreter| {
            let environment = Environment {
                folder: "/home/env".into(),
                is_own: true,
                pins: given(list),
                interpreter,
            };
            environment.needs().iter().map(Need::megabytes).sum::<u64>()
        };
        let needs = |list| needs_of(list, Interpreter::There(ask(list)));
        // What the interpreter that makes an environment has, the environment has not.
        let new = |list| needs_of(list, Interpreter::Base(ask(list)));
        assert!(new("torch==2.11.0") > new(SERVERS) && new(SERVERS) > 0);
        assert_eq!(needs("torch==2.11.0"), 0);
        assert!((1..2000).contains(&needs("torch==2.11.0\nnbclient==0.11.0")));
        assert!(needs("torch==2.11.1") > needs("torch==2.11.0\nnbclient==0.11.0"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_torch_without_cuda_is_known_by_where_pip_is_told_to_look() {
        let brings = |index: Option<&str>| brings_cuda(|_| Some(index?.to_owned()));
        assert!(brings(None) && brings(Some("https://mirror.example/whl/cu126")));
        assert!(!brings(Some("https://mirror.example/whl/cpu")));
    }

    #[test]
    fn another_torch_in_an_active_environment_is_refused_and_a_missing_one_is_not() {
        let pins = given("");
        let refusal = |python: &Python| refuse(python, &pins).map_err(|error| error.to_string());
        let mut python = ask("torch==2.11.0\n");
        python.minor = 10;
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
    fn a_virtual_environment_that_somebody_made_in_the_checkout_is_used_and_a_link_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let venv = folder.path().join(".venv");
        let found = || users_environment_in(&venv);
        assert_eq!(found(), None);
        std::fs::create_dir_all(venv.join("bin")).unwrap();
        assert_eq!(found(), None);
        std::fs::write(venv.join("bin/python"), "").unwrap();
        assert_eq!(found(), Some(venv.clone()));
        let elsewhere = folder.path().join("env");
        std::fs::rename(&venv, &elsewhere).unwrap();
        link_to(&venv, &elsewhere).unwrap();
        assert_eq!(found(), None);
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
