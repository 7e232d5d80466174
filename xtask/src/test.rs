//! `test`: everything that has to hold before a change is merged.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Instant;

use crate::command::{output, run, run_held};
use crate::report;
use crate::setup::{self, Ready};

/// A kind of test that needs what not every machine has.
struct Kind {
    /// A part of their names. They are marked `#[ignore]`, so that a plain `cargo test` lists them as not run.
    part: &'static str,
    needs: &'static str,
    /// Whether it is here.
    here: bool,
}

/// Runs set-up, then the checks, quick ones first; stops at the first that fails.
pub(crate) fn test() -> anyhow::Result<()> {
    let start = Instant::now();
    let ready = setup::setup()?;
    let checkout = &ready.checkout;
    let step = |name: &str, command: &mut Command| {
        let words = command.get_args().map(OsStr::to_string_lossy);
        let what = words.collect::<Vec<_>>().join(" ");
        report::timed(name, what, || run(command))
    };
    step("format", &mut checkout.cargo(&["fmt", "--all", "--check"]))?;
    let mut clippy = checkout.cargo(&["clippy", "--quiet", "--workspace", "--all-targets"]);
    step("lints", clippy.args(["--", "-D", "warnings"]))?;
    let kinds = kinds(&ready)?;
    let mut tests = checkout.cargo(&["test", "--workspace", "--", "--include-ignored"]);
    for kind in kinds.iter().filter(|kind| !kind.here) {
        tests.args(["--skip", kind.part]);
    }
    // As many tests as there are cores run at once; libtorch's threads would get in their way.
    tests.env("OMP_NUM_THREADS", "1");
    // What a GPU computes is compared with the CPU's in full 32-bit floats.
    step("tests", tests.env("NVIDIA_TF32_OVERRIDE", "0"))?;
    let mut doc = checkout.cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    step("docs", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    step(
        "bench",
        &mut ready.python.script(checkout, "bench/test_bench.py")?,
    )?;
    let mut bridge = ready.python.script(checkout, "kernel/tests/bridge.py")?;
    step("kernel", bridge.env_remove("TRANSFER_KERNEL_FOLDER"))?;
    let example = [
        "build",
        "--quiet",
        "-p",
        "support",
        "--example",
        "transfer_learning",
    ];
    let program = report::timed("example", "building the tutorial as a program", || {
        checkout.build(&example, "transfer_learning")
    })?;
    let mut notebooks = ready.python.script(checkout, "xtask/checks.py")?;
    notebooks.arg(program).arg(checkout.output());
    report::timed("notebooks", "checks.py", || {
        run_held(notebooks.env_remove("TRANSFER_KERNEL_FOLDER"))
    })?;
    println!("\nall checks passed in {:.1?}", start.elapsed());
    for kind in kinds.iter().filter(|kind| !kind.here) {
        report::done(
            "left out",
            format!("tests that need {} (`{}`)", kind.needs, kind.part),
        );
    }
    Ok(())
}

/// Returns the kinds of tests that set-up does not bring everything for.
fn kinds(ready: &Ready) -> anyhow::Result<[Kind; 3]> {
    let photos = std::env::var_os("TRANSFER_TEST_PHOTOS");
    let photos = photos.map_or_else(|| ready.checkout.join("../shared/data"), Into::into);
    let mut gpu = ready.python.command("python")?;
    gpu.args(["-c", "import torch; assert torch.cuda.is_available()"]);
    let mut tensorflow = Command::new("python3");
    tensorflow.args([
        "-c",
        "import importlib.util as u; assert u.find_spec('tensorflow')",
    ]);
    Ok([
        Kind {
            part: "real_photos",
            needs: "photos in TRANSFER_TEST_PHOTOS",
            here: photos.join("cats_and_dogs_filtered").is_dir(),
        },
        Kind {
            part: "on_the_gpu",
            needs: "a GPU",
            here: output(&mut gpu).is_ok(),
        },
        Kind {
            part: "in_tensorflow",
            needs: "a python3 with TensorFlow",
            here: output(&mut tensorflow).is_ok(),
        },
    ])
}
