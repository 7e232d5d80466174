//! Classifies images with a model file that `model.save` wrote in a notebook.
//!
//! ```text
//! cargo run -p support --example classify -- [--json] MODEL PICTURE|FOLDER...
//! ```

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, json};
use support::Error;
use support::classifier::Classification;
use support::dataset::images_in;
use support::prelude::*;

const USAGE: &str = "usage: classify [--json] MODEL PICTURE|FOLDER...

Prints which class the model takes each image for, and how sure it is: a table, or with --json
one object a line with path, class, probability and the probabilities of all classes. A model of
several labels per image prints all classes that it takes an image for; their names are `classes`
in its JSON, and `class` is the most probable one in any case. A calibrated model also tells if an
image is unlike those that it was trained on (`novelty` above 1). MODEL is a
file that a notebook's `model.save` wrote. A folder stands for the images in it and below.
The exit code is 1 if an image or the model cannot be read, 2 for other arguments than these.";

/// From so many images on a GPU is used if there is one.
const WORTH_A_GPU: usize = 500;

fn main() -> ExitCode {
    let (flags, names): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with("--"));
    let json = flags.iter().any(|flag| flag == "--json");
    if flags.iter().any(|flag| flag == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let known = flags.iter().all(|flag| flag == "--json");
    let (Some((model, pictures)), true) = (names.split_first(), known) else {
        return misused();
    };
    if pictures.is_empty() {
        return misused();
    }
    match classify(model, pictures, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn misused() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Returns what is wrong with an image whose path is printed already.
fn reason(error: &Error) -> String {
    match error {
        Error::Image { reason, .. } => reason.clone(),
        error => error
            .source()
            .map_or(error.to_string(), ToString::to_string),
    }
}

/// Prints what each image is; returns whether all could be read.
fn classify(model: &str, names: &[String], json: bool) -> support::Result<bool> {
    let mut all_read = true;
    let mut failed = |path: &Path, reason: &str| {
        eprintln!("{}: {reason}", path.display());
        all_read = false;
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in names.iter().map(PathBuf::from) {
        if !path.is_dir() {
            paths.push(path);
            continue;
        }
        match images_in(&path) {
            Ok(pictures) if pictures.is_empty() => {
                failed(&path, "there is no image in it");
            }
            Ok(pictures) => paths.extend(pictures),
            Err(error) => failed(&path, &reason(&error)),
        }
    }
    // A GPU takes seconds to start.
    let classifier = if paths.len() < WORTH_A_GPU {
        Classifier::load_on(model, Device::Cpu)?
    } else {
        Classifier::load(model)?
    };
    let width = |texts: &mut dyn Iterator<Item = String>| {
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths = (
        width(&mut paths.iter().map(|path| path.display().to_string())),
        width(&mut classifier.classes().iter().cloned()),
    );
    let multi_label = classifier.info().loss.is_multi_label();
    let mut out = io::stdout().lock();
    for (path, found) in paths.iter().zip(classifier.predict_all(&paths)) {
        let line = match found {
            Ok(found) if json => object(path, &classifier, &found),
            Ok(found) if multi_label || found.is_unlike() => {
                format!("{:1$}  {found}", path.display().to_string(), widths.0)
            }
            Ok(found) => {
                let (path, percent) = (path.display().to_string(), 100. * found.probability);
                format!(
                    "{path:0$}  {1:2$}  {percent:5.1} %",
                    widths.0, found.class, widths.1
                )
            }
            Err(error) => {
                failed(path, &reason(&error));
                continue;
            }
        };
        // Nobody reads on, as in `classify ... | head`.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    Ok(all_read)
}

/// Returns an image's line of JSON.
fn object(path: &Path, classifier: &Classifier, found: &Classification) -> String {
    let classes = classifier.classes().iter().cloned();
    let probabilities = classes.zip(found.probabilities.iter().map(|&value| json!(value)));
    let mut object = json!({
        "path": path.display().to_string(),
        "class": found.class,
        "probability": found.probability,
        "probabilities": probabilities.collect::<Map<_, _>>(),
    });
    if classifier.info().loss.is_multi_label() {
        let names: Vec<&str> = found
            .classes
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        object["classes"] = json!(names);
    }
    if let Some(novelty) = found.novelty {
        object["novelty"] = json!(novelty);
    }
    object.to_string()
}
