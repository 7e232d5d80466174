//! `bench`: this project, Keras and PyTorch on the same pictures, in turn.
//!
//! Each is a program that measures itself and ends with one JSON object, whose keys are in
//! `bench/README.md`. A round runs all of them, so that whatever else the machine does meets all
//! alike.

mod table;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use kernel::environment::ALLOCATOR;
use serde_json::{Value, json};

use crate::process::{output, run_lines};
use crate::setup::BenchReady;
use crate::{report, settings, setup};
use table::{Figures, Report};

const USAGE: &str = "\
cargo xtask bench [PICTURES] [--rounds N] [--epochs N] [--limit N] [--pieces] [--all]

  PICTURES    a folder with train/ and validation/, two class folders in each (or TRANSFER_DATASET)
  --rounds N  how often the pieces are measured (3)
  --epochs N  of each of the tutorial's two phases (10)
  --limit N   pictures of each split, at most
  --pieces    without the tutorial as a whole
  --all       the peers' tutorials with this project's allocator settings as well";

#[derive(Debug, Clone, Copy)]
enum Program {
    Ours,
    Keras,
    PyTorch,
}

/// A column of the table: a program, and the allocator settings that it runs with.
#[derive(Debug)]
struct Column {
    title: &'static str,
    program: Program,
    /// Whether it gets the settings that a notebook's kernel gets from this project.
    our_allocator: bool,
    /// Whether its tutorial is only run when asked for.
    extra: bool,
}

const COLUMNS: [Column; 5] = [
    column("ours", Program::Ours, true, false),
    column("Keras", Program::Keras, false, false),
    column("PyTorch", Program::PyTorch, false, false),
    column("PyTorch, our allocator", Program::PyTorch, true, true),
    column("Keras, our allocator", Program::Keras, true, true),
];

const fn column(title: &'static str, program: Program, our_allocator: bool, extra: bool) -> Column {
    Column {
        title,
        program,
        our_allocator,
        extra,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    pictures: Option<PathBuf>,
    rounds: usize,
    epochs: usize,
    limit: Option<usize>,
    pieces_only: bool,
    all: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self {
            pictures: None,
            rounds: 3,
            epochs: 10,
            limit: None,
            pieces_only: false,
            all: false,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = |least: usize| {
                let value = arguments.next().and_then(|value| value.parse().ok());
                value.filter(|number| *number >= least).with_context(|| {
                    format!("{argument} takes a number from {least} on\n\n{USAGE}")
                })
            };
            match argument.as_str() {
                "--rounds" => options.rounds = number(1)?,
                "--epochs" => options.epochs = number(1)?,
                // One of each class.
                "--limit" => options.limit = Some(number(2)?),
                "--pieces" => options.pieces_only = true,
                "--all" => options.all = true,
                path if !path.starts_with('-') && options.pictures.is_none() => {
                    options.pictures = Some(path.into());
                }
                other => bail!("`{other}` means nothing to `bench`\n\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

/// Runs the programs in turn and writes a table and the raw figures to `target/bench/`.
pub(crate) fn bench(arguments: &[String]) -> anyhow::Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(arguments)?;
    let chosen = std::env::var_os("TRANSFER_DATASET").map(PathBuf::from);
    let pictures = pictures(options.pictures.clone().or(chosen))?;
    let ready = setup::setup_bench()?;
    let bench = Bench {
        ours: build(&ready)?,
        ready: &ready,
        pictures: &pictures,
        options: &options,
        rustc: rustc_version()?,
    };

    let folder = ready.checkout.bench_output();
    fs::create_dir_all(&folder)?;
    let raw = folder.join("results.jsonl");
    let mut file = File::create(&raw).with_context(|| format!("cannot write {}", raw.display()))?;
    let mut reports: [Vec<Report>; COLUMNS.len()] = Default::default();
    let mut measure = |column: usize, mode: &str, round: usize| {
        let title = COLUMNS[column].title;
        let figures = report::timed(
            &format!("round {round}"),
            format!("{mode}: {title}"),
            || bench.measure(&COLUMNS[column], mode),
        )?;
        let mut line = json!({"column": title, "round": round});
        merge(&mut line, &figures);
        writeln!(file, "{line}")?;
        let report = serde_json::from_value(figures)
            .with_context(|| format!("{title} printed figures of another kind: {line}"))?;
        reports[column].push(report);
        anyhow::Ok(())
    };
    for round in 1..=options.rounds {
        for column in 0..COLUMNS.len() {
            measure(column, "pieces", round)?;
        }
    }
    if !options.pieces_only {
        for (index, column) in COLUMNS.iter().enumerate() {
            if options.all || !column.extra {
                measure(index, "tutorial", 1)?;
            }
        }
    }

    let name = pictures.file_name().unwrap_or_default().to_string_lossy();
    let figures = Figures {
        machine: machine(),
        pictures: name.into_owned(),
        rounds: options.rounds,
        columns: COLUMNS
            .iter()
            .map(|column| column.title)
            .zip(reports)
            .collect(),
    };
    let text = figures.markdown();
    let table = folder.join("results.md");
    fs::write(&table, &text).with_context(|| format!("cannot write {}", table.display()))?;
    println!("\n{text}");
    report::done("table", table.display());
    report::done("figures", raw.display());
    Ok(())
}

/// What all runs have in common.
struct Bench<'a> {
    ours: PathBuf,
    ready: &'a BenchReady,
    pictures: &'a Path,
    options: &'a Options,
    rustc: String,
}

impl Bench<'_> {
    /// Runs one program and returns its figures; its other lines are shown.
    fn measure(&self, column: &Column, mode: &str) -> anyhow::Result<Value> {
        let mut command = match column.program {
            Program::Ours => {
                let mut command = Command::new(&self.ours);
                command.envs(settings::absolute_paths()?);
                command
            }
            Program::Keras => self.peer("keras_tutorial.py", &self.ready.keras_weights)?,
            Program::PyTorch => {
                self.peer("pytorch_tutorial.py", &self.ready.torchvision_weights)?
            }
        };
        command.arg(mode).arg(self.pictures);
        command.args(["--epochs", &self.options.epochs.to_string()]);
        if let Some(limit) = self.options.limit {
            command.args(["--limit", &limit.to_string()]);
        }
        for (name, value) in ALLOCATOR {
            if column.our_allocator {
                command.env(name, value);
            } else {
                command.env_remove(name);
            }
        }
        let mut figures = None;
        run_lines(&mut command, |line| match serde_json::from_str(&line) {
            Ok(object @ Value::Object(_)) => figures = Some(object),
            _ => println!("  {line}"),
        })?;
        let mut figures =
            figures.with_context(|| format!("{} printed no figures", column.title))?;
        if let Program::Ours = column.program {
            let torch = self.ready.python.package("torch").unwrap_or("unknown");
            merge(
                &mut figures["versions"],
                &json!({"libtorch": torch, "rustc": self.rustc}),
            );
        }
        Ok(figures)
    }

    fn peer(&self, script: &str, weights: &Path) -> anyhow::Result<Command> {
        let mut command = self.ready.peers.command("python")?;
        command
            .arg(self.ready.checkout.join("bench/peers").join(script))
            .arg("--weights")
            .arg(weights);
        Ok(command)
    }
}

/// Builds this project's side and returns where it is.
fn build(ready: &BenchReady) -> anyhow::Result<PathBuf> {
    let arguments = ["build", "--quiet", "--release", "--package", "support"];
    let arguments = [&arguments[..], &["--bench", "tutorial"]].concat();
    report::timed("build", format!("cargo {}", arguments.join(" ")), || {
        ready.checkout.build(&arguments, "tutorial")
    })
}

/// Returns the folder of pictures as an absolute path.
fn pictures(chosen: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let folder = chosen
        .filter(|folder| !folder.as_os_str().is_empty())
        .with_context(|| format!("`bench` needs pictures\n\n{USAGE}"))?;
    for split in ["train", "validation"] {
        ensure!(
            folder.join(split).is_dir(),
            "{} has no folder {split}: `bench` needs train/ and validation/, two class folders in each",
            folder.display()
        );
    }
    std::path::absolute(&folder).with_context(|| format!("cannot find {}", folder.display()))
}

/// Adds the fields of an object to another.
fn merge(object: &mut Value, more: &Value) {
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
}

fn rustc_version() -> anyhow::Result<String> {
    let line = output(Command::new("rustc").arg("--version"))?;
    let version = line.split_whitespace().nth(1).unwrap_or("unknown");
    Ok(version.to_owned())
}

/// Returns processor, cores and memory, as far as Linux tells.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut parts = vec![
        field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        format!("{cores} cores"),
    ];
    let kilobytes = |memory: String| memory.split_whitespace().next()?.parse::<u64>().ok();
    if let Some(kilobytes) = field("/proc/meminfo", "MemTotal").and_then(kilobytes) {
        parts.push(format!("{} of memory", report::size(kilobytes * 1024)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Options> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&arguments)
    }

    #[test]
    fn options_and_the_folder_come_in_any_order() {
        let options = parse("--rounds 1 pets --limit 64 --pieces").unwrap();
        let expected = Options {
            pictures: Some("pets".into()),
            rounds: 1,
            epochs: 10,
            limit: Some(64),
            pieces_only: true,
            all: false,
        };
        assert_eq!(options, expected);
        assert!(parse("--all --epochs 2").unwrap().all);
    }

    #[test]
    fn what_is_not_an_option_or_a_number_is_refused_with_what_is() {
        for (line, reason) in [
            ("--round 1", "`--round` means nothing"),
            ("pets more", "`more` means nothing"),
            ("--rounds", "--rounds takes a number from 1"),
            ("--epochs 0", "--epochs takes a number from 1"),
            ("--limit 1", "--limit takes a number from 2"),
            ("--limit all", "--limit takes a number from 2"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(
                error.contains(reason) && error.contains("PICTURES"),
                "{error}"
            );
        }
    }

    #[test]
    fn pictures_without_a_validation_part_are_refused() {
        assert!(pictures(None).unwrap_err().to_string().contains("PICTURES"));
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("train")).unwrap();
        let error = pictures(Some(folder.path().into())).unwrap_err();
        assert!(
            error.to_string().contains("no folder validation"),
            "{error}"
        );
        fs::create_dir(folder.path().join("validation")).unwrap();
        assert_eq!(pictures(Some(folder.path().into())).unwrap(), folder.path());
    }

    #[test]
    fn a_programs_figures_go_behind_the_column_and_the_round() {
        let mut line = json!({"column": "ours", "versions": {"tch": "0.24"}});
        merge(&mut line, &json!({"threads": 2}));
        merge(&mut line["versions"], &json!({"rustc": "1.95"}));
        let expected =
            json!({"column": "ours", "versions": {"tch": "0.24", "rustc": "1.95"}, "threads": 2});
        assert_eq!(line, expected);
    }
}
