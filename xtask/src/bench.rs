//! `bench`: prepares what `bench/bench.py` runs beside each other, and runs it.

use std::process::Command;

use anyhow::Context as _;
use kernel::environment::ALLOCATOR;
use kernel::home::Home;

use crate::checkout::Checkout;
use crate::command::{output, run};
use crate::environment::Environment;
use crate::space::{Need, TARGET_DIR};
use crate::{report, setup};

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
    let script = "bench/bench.py";
    // It needs nothing but the standard library to tell of a wrong option, before gigabytes come.
    let mut check = Command::new("python3");
    check.arg(checkout.join(script)).args(arguments);
    run(&mut check)?;
    if arguments.iter().any(|word| ["-h", "--help"].contains(word)) {
        return Ok(());
    }

    let home = Home::from_env()?;
    let turn = setup::take_turn(&checkout, &home)?;
    let peers = Environment::peers(&checkout, &home)?;
    let mut needs = peers.needs();
    let target = checkout.target()?;
    if !target.join("debug/assets").exists() {
        needs.push(Need::new("building the program", 1000, target, TARGET_DIR));
    }
    let ready = setup::libtorch(checkout, home, needs)?;
    let peers = peers.fill()?;
    let build = |words: &str| {
        let build = || ready.checkout.build("build", words, "tutorial");
        report::timed("build", format!("cargo build {words}"), build)
    };
    let mut programs = Vec::new();
    if arguments.contains(&"--forward") {
        let in_openvino = build("-p support --features openvino --bench tutorial")?;
        programs.push(("--ours-openvino", in_openvino));
    }
    programs.push(("--ours", build("-p support --bin assets --bench tutorial")?));
    let mut fetch = setup::assets(&ready, "-- fetch")?;
    let named = |name: &&str| arguments.iter().any(|word| word.ends_with(name));
    let names: Vec<&str> = match BACKBONES.into_iter().find(named) {
        Some(backbone) => vec![backbone],
        None => WEIGHTS.to_vec(),
    };
    let printed = report::timed("assets", names.join(", "), || output(fetch.args(&names)))?;
    drop(turn);

    let mut bench = peers.script(&ready.checkout, script)?;
    bench.args(arguments);
    for (option, program) in programs {
        bench.arg(option).arg(program);
    }
    for name in names {
        let path = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        let found = printed.lines().find_map(path);
        let path =
            found.with_context(|| format!("fetching {name} did not say where it is: {printed}"))?;
        bench.args(["--weights", &format!("{name}={path}")]);
    }
    bench.arg("--libtorch").args(&ready.python.torch_version);
    bench.arg("--output").arg(ready.checkout.bench_output());
    for (name, value) in ALLOCATOR {
        bench.args(["--allocator", &format!("{name}={value}")]);
    }
    run(&mut bench)
}
