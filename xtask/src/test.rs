//! `test`: everything that has to hold before a change is merged.

use std::time::Instant;

use crate::process::run;
use crate::{check, report, setup};

/// Runs set-up, then the checks, quick ones first; stops at the first that fails.
pub(crate) fn test() -> anyhow::Result<()> {
    let start = Instant::now();
    let ready = setup::setup()?;
    let cargo = |what: &str, arguments: &[&str]| {
        report::timed(what, format!("cargo {}", arguments.join(" ")), || {
            ready.checkout.run_cargo(arguments)
        })
    };
    cargo("format", &["fmt", "--all", "--check"])?;
    cargo(
        "lints",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    report::timed("tests", "cargo test --workspace", || {
        let mut tests = ready.checkout.cargo(&["test", "--workspace"]);
        // As many tests as there are cores run at once; libtorch's threads would get in their way.
        tests.env("OMP_NUM_THREADS", "1");
        // What a GPU computes is compared with the CPU's in full 32-bit floats.
        run(tests.env("NVIDIA_TF32_OVERRIDE", "0"))
    })?;
    report::timed("docs", "cargo doc", || {
        let mut doc = ready
            .checkout
            .cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
        run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    report::timed("kernel", "how failing cells are reported", || {
        check::failures_are_honest(&ready)
    })?;
    report::timed("kernel", "what it says, and how it stops", || {
        check::bridge(&ready)
    })?;
    report::timed("kernel", "what a killed run leaves behind", || {
        check::no_kernel_outlives_its_run(&ready)
    })?;
    report::timed("kernel", "two notebooks at once", || {
        check::two_at_once(&ready)
    })?;
    report::timed(
        "notebooks",
        "executing them and comparing their saved outputs",
        || check::notebooks(&ready),
    )?;
    println!(
        "\nall checks passed in {}",
        report::duration(start.elapsed())
    );
    Ok(())
}
