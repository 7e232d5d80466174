//! `distributed`: the tutorial as a program on several processes, which PyTorch's torchrun starts.

use std::num::NonZero;
use std::os::unix::process::CommandExt as _;
use std::thread::available_parallelism;

use anyhow::Context as _;
use kernel::environment::ALLOCATOR;
use kernel::home::Home;

use crate::checkout::Checkout;
use crate::command::output;
use crate::environment::Python;
use crate::{report, setup};

/// How many processes are started where there is no GPU.
const WITHOUT_GPU: usize = 2;

/// Says how many GPUs a process would see.
const COUNT_GPUS: &str = "import torch; print(torch.cuda.device_count())";

/// torchrun's options that say where several machines find each other, or choose a rendezvous.
const RENDEZVOUS: [&str; 5] = ["nnodes", "node-rank", "rdzv-", "master-", "standalone"];

/// Prepares the program, and has torchrun start it.
pub(crate) fn distributed(arguments: &[&str]) -> anyhow::Result<()> {
    let (processes, options) = parse(arguments)?;
    let (checkout, home) = (Checkout::locate()?, Home::from_env()?);
    let words = "-p support --example transfer_learning";
    let place = "debug/examples/transfer_learning";
    let (ready, program) = setup::program(checkout, home, words, place)?;

    let processes = match processes {
        Some(processes) => processes.get(),
        None => by_default(&ready.python)?,
    };
    let cores = available_parallelism()?.get();
    let mut torchrun = ready.python.command("torchrun")?;
    torchrun.args(torchrun_arguments(processes, options));
    torchrun.arg(program).current_dir(ready.checkout.join(""));
    for (name, value) in defaults(processes, cores, |name| std::env::var_os(name).is_some()) {
        torchrun.env(name, value);
    }
    let what = format!("{processes} processes on {cores} cores");
    report::done("torchrun", what);
    // In place of this program: Ctrl-C is torchrun's, which ends all processes.
    Err(torchrun.exec()).context("cannot run torchrun")
}

/// Returns the number of processes, if it is given, and torchrun's options.
fn parse<'a>(arguments: &'a [&'a str]) -> anyhow::Result<(Option<NonZero<usize>>, &'a [&'a str])> {
    let is_option = |word: &str| {
        let name = word.strip_prefix('-');
        name.is_some_and(|name| !name.starts_with(|first: char| first.is_ascii_digit()))
    };
    match arguments {
        [number, options @ ..] if !is_option(number) => {
            let processes = number.parse().with_context(|| {
                format!(
                    "`{number}` is not a number of processes: expected one from 1 on, \
                     then options of torchrun, as in `cargo xtask distributed 4 --max-restarts 3`"
                )
            })?;
            Ok((Some(processes), options))
        }
        options => Ok((None, options)),
    }
}

/// Returns how many processes this machine is for: one per GPU.
fn by_default(python: &Python) -> anyhow::Result<usize> {
    let counted = output(python.command("python")?.args(["-c", COUNT_GPUS]))?;
    let gpus: usize = counted.trim().parse().context("counting the GPUs")?;
    Ok(if gpus == 0 { WITHOUT_GPU } else { gpus })
}

/// Returns the arguments of torchrun before the program.
fn torchrun_arguments(processes: usize, options: &[&str]) -> Vec<String> {
    let names_rendezvous = |option: &&str| {
        let name = option.trim_start_matches('-').replace('_', "-");
        RENDEZVOUS.iter().any(|start| name.starts_with(start))
    };
    let mut arguments = vec![
        format!("--nproc-per-node={processes}"),
        "--no-python".into(),
    ];
    if !options.iter().any(names_rendezvous) {
        arguments.push("--standalone".into());
    }
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    arguments
}

/// Returns the variables that each process is started with, as far as the user has not set them:
/// its share of the cores, of which torchrun would give it one, and the notebooks' allocator.
fn defaults(
    processes: usize,
    cores: usize,
    is_set: impl Fn(&str) -> bool,
) -> Vec<(&'static str, String)> {
    let threads = ("OMP_NUM_THREADS", (cores / processes).max(1).to_string());
    let allocator = ALLOCATOR
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let mut variables: Vec<_> = std::iter::once(threads).chain(allocator).collect();
    variables.retain(|(name, _)| !is_set(name));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_processes_comes_first_and_the_rest_is_torchruns() {
        let (processes, options) = parse(&["4", "--max-restarts", "3"]).unwrap();
        assert_eq!(processes.map(NonZero::get), Some(4));
        assert_eq!(options, ["--max-restarts", "3"]);
        for options in [&["--max-restarts", "3"][..], &["-t", "3"], &[]] {
            assert_eq!(parse(options).unwrap(), (None, options));
        }
    }

    #[test]
    fn what_is_no_number_of_processes_is_refused_with_an_example() {
        for wrong in ["0", "-1", "two", "2.5"] {
            let error = parse(&[wrong, "--max-restarts", "3"])
                .unwrap_err()
                .to_string();
            let says = |part: &str| error.contains(part);
            assert!(
                says(&format!("`{wrong}`")) && says("distributed 4"),
                "{error}"
            );
        }
    }

    #[test]
    fn one_machine_needs_no_rendezvous_and_several_keep_theirs() {
        assert_eq!(
            torchrun_arguments(2, &["--max-restarts", "3"]),
            [
                "--nproc-per-node=2",
                "--no-python",
                "--standalone",
                "--max-restarts",
                "3"
            ]
        );
        for options in [
            &["--nnodes=4", "--rdzv-backend=c10d"][..],
            &["--rdzv_endpoint", "node0:29400"],
            &["--node_rank", "1", "--master-addr", "node0"],
        ] {
            let arguments = torchrun_arguments(2, options);
            assert!(!arguments.contains(&"--standalone".into()), "{arguments:?}");
        }
        let given = torchrun_arguments(2, &["--standalone"]);
        assert_eq!(
            given.iter().filter(|word| *word == "--standalone").count(),
            1
        );
    }

    #[test]
    fn processes_share_the_cores_unless_the_user_has_set_their_threads() {
        let threads = |processes, cores| defaults(processes, cores, |_| false)[0].clone();
        assert_eq!(threads(2, 16), ("OMP_NUM_THREADS", "8".into()));
        assert_eq!(threads(3, 2), ("OMP_NUM_THREADS", "1".into()));
        let others = defaults(2, 16, |name| name == "OMP_NUM_THREADS");
        let names = others.iter().map(|(name, _)| *name);
        assert!(names.eq(ALLOCATOR.iter().map(|(name, _)| *name)));
    }
}
