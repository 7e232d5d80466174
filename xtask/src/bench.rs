//! `bench`: prepares what `bench/bench.py`, or with `--serve` `bench/serving.py`, runs beside each
//! other, and runs it.

use std::process::Command;

use anyhow::Context as _;
use kernel::environment::ALLOCATOR;
use kernel::home::Home;

use crate::checkout::Checkout;
use crate::command::{output, run};
use crate::environment::Environment;
use crate::setup::{self, Ready};
use crate::space::{Need, TARGET_DIR};
use crate::{report, serve};

/// The weights of this project and of the Keras peer, and those of the PyTorch peer, by their names
/// in `data/assets.toml`.
const WEIGHTS: [&str; 2] = ["mobilenet_v2_tfhub", "mobilenet_v2_torchvision"];

/// What `--fine-tune` names.
const BACKBONES: [&str; 3] = [
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
];

/// Prepares the peers' environment (no notebook, hence no kernel), weights and this project's
/// program, and times all.
pub(crate) fn bench(arguments: &[&str]) -> anyhow::Result<()> {
    let checkout = Checkout::locate()?;
    let (chosen, arguments): (Vec<&str>, Vec<&str>) =
        arguments.iter().partition(|word| **word == "--serve");
    let serves = !chosen.is_empty();
    let (script, list, built) = match serves {
        false => ("bench/bench.py", "requirements.txt", "debug/assets"),
        true => ("bench/serving.py", "servers.txt", "debug/serve"),
    };
    // It needs nothing but the standard library to tell of a wrong option, before gigabytes come.
    let mut check = Command::new("python3");
    check.arg(checkout.join(script)).args(&arguments);
    run(&mut check)?;
    if arguments.iter().any(|word| ["-h", "--help"].contains(word)) {
        return Ok(());
    }
    let names_model = arguments.iter().any(|word| word.starts_with("--model"));
    let model = (serves && !names_model).then(|| serve::newest(&serve::saved_models(&checkout)));
    let model = model.transpose()?;

    let home = Home::from_env()?;
    let turn = setup::take_turn(&checkout, &home)?;
    let peers = Environment::peers(&checkout, &home, list)?;
    let mut needs = peers.needs();
    let target = checkout.target()?;
    if !target.join(built).exists() {
        needs.push(Need::new("building the program", 1000, target, TARGET_DIR));
    }
    let ready = setup::libtorch(checkout, home, needs)?;
    let peers = peers.fill()?;
    let mut bench = peers.script(&ready.checkout, script)?;
    bench.args(&arguments);
    match serves {
        true => serving(&ready, &mut bench)?,
        false => training(&ready, &arguments, &mut bench)?,
    }
    drop(turn);

    if let Some(model) = model {
        bench.arg("--model").arg(model);
    }
    bench.arg("--libtorch").args(&ready.python.torch_version);
    bench.arg("--output").arg(ready.checkout.bench_output());
    for (name, value) in ALLOCATOR {
        bench.args(["--allocator", &format!("{name}={value}")]);
    }
    run(&mut bench)
}

/// Prepares what `serving.py` runs.
fn serving(ready: &Ready, bench: &mut Command) -> anyhow::Result<()> {
    let words = "-p support -p serve --bin serve --bench load --example classify --example to_onnx";
    report::timed("build", format!("cargo build {words}"), || {
        for name in ["serve", "load", "classify", "to_onnx"] {
            let program = ready.checkout.build("build", words, name)?;
            bench.args(["--program", &format!("{name}={}", program.display())]);
        }
        Ok(())
    })
}

/// Prepares what `bench.py` runs.
fn training(ready: &Ready, arguments: &[&str], bench: &mut Command) -> anyhow::Result<()> {
    let build = |words: &str| {
        let build = || ready.checkout.build("build", words, "tutorial");
        report::timed("build", format!("cargo build {words}"), build)
    };
    if arguments.contains(&"--forward") {
        let in_openvino = build("-p support --features openvino --bench tutorial")?;
        bench.arg("--ours-openvino").arg(in_openvino);
    }
    let ours = build("-p support --bin assets --bench tutorial")?;
    bench.arg("--ours").arg(ours);
    let mut fetch = setup::assets(ready, "-- fetch")?;
    let named = |name: &&str| arguments.iter().any(|word| word.ends_with(name));
    let names: Vec<&str> = match BACKBONES.into_iter().find(named) {
        Some(backbone) => vec![backbone],
        None => WEIGHTS.to_vec(),
    };
    let printed = report::timed("assets", names.join(", "), || output(fetch.args(&names)))?;
    for name in names {
        let path = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        let found = printed.lines().find_map(path);
        let path =
            found.with_context(|| format!("fetching {name} did not say where it is: {printed}"))?;
        bench.args(["--weights", &format!("{name}={path}")]);
    }
    Ok(())
}
