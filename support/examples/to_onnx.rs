//! Writes the network of a model file as ONNX.
//!
//! ```text
//! cargo run -p support --example to_onnx -- MODEL ONNX
//! ```

use std::process::ExitCode;

use support::prelude::*;

const USAGE: &str = "usage: to_onnx MODEL ONNX

Writes the network of MODEL, a file that a notebook's `model.save` wrote, as the file ONNX, which
ONNX Runtime, OpenVINO and others run. docs/model_file.md tells what is in it. The exit code is 1
if the model cannot be read or the file not be written, 2 for other arguments than these.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, onnx] = words.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let written = Classifier::load_on(model, Device::Cpu).and_then(|it| it.save_onnx(onnx));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
