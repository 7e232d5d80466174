//! `test`: everything that has to hold before a change is merged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::command::{follow, output};
use crate::report::{self, step, timed};
use crate::setup::{self, Ready};
use crate::space::{Need, TARGET_DIR};

/// Runs set-up, then the checks, quick ones first; stops at the first that fails.
pub(crate) fn test() -> anyhow::Result<()> {
    let start = Instant::now();
    let ready = setup::setup(|checkout| {
        let target = checkout.target()?;
        let built = target.join("debug/examples/transfer_learning").exists();
        let missing = || Need::new("building the tests", 3000, target, TARGET_DIR);
        Ok((!built).then(missing).into_iter().collect())
    })?;
    let checkout = &ready.checkout;
    step("format", &mut checkout.cargo("fmt --all --check"))?;
    let clippy = "clippy --quiet --workspace --all-targets --all-features -- -D warnings";
    step("lints", &mut checkout.cargo(clippy))?;
    let left_out = left_out(&ready)?;
    let mut tests = checkout.cargo("test --workspace -- --include-ignored");
    for (part, _) in &left_out {
        tests.args(["--skip", part]);
    }
    let python = ready.python.command("python")?;
    tests.env("TRANSFER_TEST_PYTHON", python.get_program());
    // As many tests as there are cores run at once; libtorch's threads would get in their way.
    tests.env("OMP_NUM_THREADS", "1");
    // What a GPU computes is compared with the CPU's in full 32-bit floats.
    step("tests", tests.env("NVIDIA_TF32_OVERRIDE", "0"))?;
    let mut doc = checkout.cargo("doc --quiet --workspace --no-deps");
    step("docs", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    let script = |path| ready.python.script(checkout, path);
    step("bench", &mut script("bench/test_bench.py")?)?;
    let mut bridge = script("kernel/tests/bridge.py")?;
    step("kernel", bridge.env_remove("TRANSFER_KERNEL_FOLDER"))?;
    // The tutorial as a program, which `cargo test` has built.
    let program = checkout.build("build", "--workspace --examples", "transfer_learning")?;
    let mut checks = script("xtask/checks.py")?;
    checks.env_remove("TRANSFER_KERNEL_FOLDER");
    timed(
        "notebooks",
        "how they fail, end and reach what is saved",
        || {
            let checks = checks.arg(program).arg(checkout.output());
            follow("notebooks", checks, true)
        },
    )?;
    println!("\nall checks passed in {:.1?}", start.elapsed());
    for (part, needs) in &left_out {
        let what = format!("the tests `{part}`, which need {needs}");
        report::done("left out", what);
    }
    Ok(())
}

/// Returns the kinds of tests for which something is not here that set-up does not bring: a part of
/// their names, and what they need. They are marked `#[ignore]`, so that `cargo test` lists them.
fn left_out(ready: &Ready) -> anyhow::Result<Vec<(&'static str, &'static str)>> {
    let photos = std::env::var_os("TRANSFER_TEST_PHOTOS").map(PathBuf::from);
    let photos = photos.unwrap_or_else(|| ready.checkout.join("../shared/data"));
    let photos = photos.join("cats_and_dogs_filtered").is_dir();
    let holds = |mut python: Command, code: &str| output(python.args(["-c", code])).is_ok();
    let cuda = "import torch; assert torch.cuda.is_available()";
    let gpu = holds(ready.python.command("python")?, cuda);
    let package =
        |name| format!("from importlib.util import find_spec; assert find_spec('{name}')");
    let tensorflow = holds(Command::new("python3"), &package("tensorflow"));
    let openvino = holds(ready.python.command("python")?, &package("openvino"));
    let triton = std::env::var_os("TRANSFER_TEST_TRITON").unwrap_or_else(|| "python3".into());
    let triton = holds(Command::new(triton), "import tritonclient.http");
    let mut node = Command::new("node");
    let browser = output(node.args(["-e", "require('playwright-core')"])).is_ok()
        && Path::new("/usr/bin/chromium").exists();
    let mut kinds = vec![
        (
            browser,
            (
                "in_a_browser",
                "/usr/bin/chromium and playwright-core in NODE_PATH",
            ),
        ),
        (
            triton,
            (
                "in_tritonclient",
                "a Python with `tritonclient[http]`, python3 or TRANSFER_TEST_TRITON",
            ),
        ),
        (photos, ("real_photos", "photos in TRANSFER_TEST_PHOTOS")),
        (gpu, ("on_the_gpu", "a GPU")),
        (tensorflow, ("in_tensorflow", "a python3 with TensorFlow")),
        (
            openvino,
            ("in_openvino", "`pip install openvino` in the environment"),
        ),
    ];
    kinds.retain(|(here, _)| !here);
    Ok(kinds.into_iter().map(|(_, kind)| kind).collect())
}
