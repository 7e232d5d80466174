//! `cargo xtask`: set-up and everything the README's commands do.
//!
//! A thin layer around Cargo, pip and Python: notebooks are run by `notebooks.py`, the benchmark's
//! programs by `bench/bench.py`.

mod bench;
mod checkout;
mod clean;
mod command;
mod distributed;
mod environment;
mod guard;
mod kernelspec;
mod notebooks;
mod report;
mod serve;
mod setup;
mod space;
mod test;
mod tools;

use std::process::ExitCode;

const COMMANDS: &str = "\
cargo xtask COMMAND

  setup         prepares everything: Python environment, evcxr, kernel, weights, images
  run [NAME]    set-up, then runs notebooks/NAME.ipynb, or transfer_learning.ipynb, and saves it with a
                web page
  lab [ARGS]    set-up, then opens JupyterLab; ARGS go to `jupyter lab`
  distributed [N] [ARGS]
                trains on N processes, by default one per GPU, or two: the tutorial as a program; ARGS go
                to `torchrun`
  serve [MODEL] [ARGS]
                opens a page on which pictures are classified, by default with the model that a notebook
                saved last; `serve --help` lists ARGS
  test          set-up, then formatting, lints, tests, docs and the notebook checks
  bench [ARGS]  times the tutorial beside Keras, PyTorch and others; `bench --help` lists ARGS
  clean [--all] removes what was built for this checkout; --all: the shared cache folder as well

Settings (TRANSFER_DATASET, TRANSFER_LIMIT, TRANSFER_EPOCHS, ...) are in the README.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] | ["help" | "--help" | "-h", ..] => {
            print!("{COMMANDS}");
            Ok(())
        }
        ["setup"] => setup::setup(|_| Ok(Vec::new())).map(drop),
        ["run"] => notebooks::run("transfer_learning"),
        ["run", name] => notebooks::run(name),
        ["lab", rest @ ..] => notebooks::lab(rest),
        ["distributed", rest @ ..] => distributed::distributed(rest),
        ["serve", rest @ ..] => serve::serve(rest),
        ["test"] => test::test(),
        ["bench", rest @ ..] => bench::bench(rest),
        ["clean"] => clean::clean(false),
        ["clean", "--all"] => clean::clean(true),
        _ => {
            let words = words.join(" ");
            eprint!("`cargo xtask {words}` is not a command\n\n{COMMANDS}");
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

#[cfg(test)]
mod tests {
    /// Returns what follows `key` in each line that starts with it.
    fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
        let lines = text.lines().map(|line| line.trim_start_matches([' ', '-']));
        lines.filter_map(|line| line.strip_prefix(key)).collect()
    }

    #[test]
    fn ci_and_the_devcontainer_use_the_projects_versions_of_rust_and_python() {
        let rust = values(include_str!("../../Cargo.toml"), "rust-version = ")[0];
        let python = values(include_str!("../../environment.yml"), "python=")[0];
        for workflow in [
            include_str!("../../.github/workflows/ci.yml"),
            include_str!("../../.github/workflows/weekly.yml"),
        ] {
            assert_eq!(values(workflow, "RUSTUP_TOOLCHAIN: "), [rust]);
            let quoted = format!("\"{python}\"");
            assert_eq!(values(workflow, "python-version: "), [quoted]);
        }
        let container = include_str!("../../.devcontainer/devcontainer.json");
        assert_eq!(values(container, "\"version\": "), [format!("{rust},")]);
        let image = values(container, "\"image\": ")[0];
        assert!(image.contains(&format!(":{python}-")), "{image}");
    }
}
