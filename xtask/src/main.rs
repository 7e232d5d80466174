//! `cargo xtask`: set-up and everything the README's commands do.

mod bench;
mod check;
mod clean;
mod environment;
mod execute;
mod kernelspec;
mod notebook;
mod preflight;
mod process;
mod report;
mod run;
mod settings;
mod setup;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

const COMMANDS: &str = "\
cargo xtask COMMAND

  setup         prepares everything: Python environment, evcxr, kernel, weights, pictures
  run [NAME]    set-up, then runs notebooks/NAME.ipynb, or transfer_learning.ipynb, and saves it with a
                web page
  lab [ARGS]    set-up, then opens JupyterLab; ARGS go to `jupyter lab`
  test          set-up, then formatting, lints, tests, docs and the notebook checks
  bench [ARGS]  times the tutorial beside Keras and PyTorch; `bench --help` lists ARGS
  clean [--all] removes what was built for this checkout; --all: the shared cache folder as well

Settings (TRANSFER_DATASET, TRANSFER_LIMIT, TRANSFER_EPOCHS, ...) are in the README.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let result = match (command, rest) {
        ("" | "help" | "--help" | "-h", _) => {
            print!("{COMMANDS}");
            return ExitCode::SUCCESS;
        }
        ("setup", []) => setup::setup().map(drop),
        ("run", []) => run::run("transfer_learning"),
        ("run", [name]) => run::run(name),
        ("lab", rest) => run::lab(rest),
        ("test", []) => test::test(),
        ("bench", rest) => bench::bench(rest),
        ("clean", []) => clean::clean(false),
        ("clean", [all]) if all == "--all" => clean::clean(true),
        _ => {
            eprint!(
                "`cargo xtask {}` is not a command\n\n{COMMANDS}",
                arguments.join(" ")
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
