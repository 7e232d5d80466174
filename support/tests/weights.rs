//! Weight files: every dialect is read, everything else is refused before a weight changes.
//! Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{assert_close, pictures, settings};
use hdf5_writer::{AttributeBuilder, DatasetBuilder, Hdf5Builder, WriteOptions};
use support::model::{Backbone, Dense, GlobalAveragePooling2d, MobileNetV2, Sequential, Variable};
use tch::{Device, Tensor};

const IMG_SHAPE: [i64; 3] = [3, 160, 160];

fn base() -> Backbone {
    MobileNetV2::pretrained(IMG_SHAPE, &settings(Device::Cpu)).unwrap()
}

fn model(seed: u64) -> Sequential {
    let head = Dense::new(1280, 1).seed(seed);
    Sequential::new(base())
        .push(GlobalAveragePooling2d)
        .push(head)
}

fn from_file(path: &Path) -> Result<Backbone, String> {
    Backbone::from_file(path, IMG_SHAPE, Device::Cpu).map_err(|error| error.to_string())
}

/// Returns a variable's data set in Keras' order of dimensions.
fn keras_dataset(path: String, variable: &Variable) -> DatasetBuilder {
    let value = match variable.value().dim() {
        4 if variable.name().ends_with("depthwise/kernel") => {
            variable.value().permute([2, 3, 0, 1])
        }
        4 => variable.value().permute([2, 3, 1, 0]),
        _ => variable.value().shallow_clone(),
    };
    let shape: Vec<u64> = value.size().iter().map(|&size| size as u64).collect();
    let values = Vec::<f32>::try_from(value.detach().reshape([-1])).unwrap();
    DatasetBuilder::typed_data(path, shape, &values).unwrap()
}

/// The layer names in Keras Applications' published files.
fn published_name(layer: &str) -> String {
    let (block, part) = match layer.strip_prefix("expanded_conv_") {
        Some(part) => ("0", part),
        None => match layer.strip_prefix("block_") {
            Some(rest) => rest.split_once('_').unwrap(),
            None => return layer.into(),
        },
    };
    match part.strip_suffix("_BN") {
        Some(part) => format!("bn{block}_conv_{block}_bn_{part}"),
        None => format!("mobl{block}_conv_{block}_{part}"),
    }
}

/// Asserts that the HDF5 file loads, with the variables of `expected`.
fn assert_loads_as(expected: &Backbone, file: Hdf5Builder) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.h5");
    let bytes = file
        .into_plan()
        .unwrap()
        .encode(WriteOptions::default())
        .unwrap();
    fs::write(&path, bytes).unwrap();
    let loaded = from_file(&path).unwrap();
    for (loaded, expected) in loaded.variables().zip(expected.variables()) {
        assert_eq!(loaded.name(), expected.name());
        assert_eq!(loaded.value(), expected.value(), "{}", loaded.name());
    }
}

#[test]
#[ignore = "needs weights"]
fn keras_applications_published_names_are_read_and_a_top_is_passed_over() {
    let base = base();
    let mut file = Hdf5Builder::new()
        .dataset(DatasetBuilder::typed_data("Logits/Logits/bias:0", vec![3], &[0f32; 3]).unwrap());
    for variable in base.variables() {
        let (layer, kind) = variable.name().split_once('/').unwrap();
        let name = published_name(layer);
        let depthwise = layer.ends_with("depthwise") && kind == "kernel";
        let kind = if depthwise { "depthwise_kernel" } else { kind };
        file = file.dataset(keras_dataset(format!("{name}/{name}/{kind}:0"), variable));
    }
    assert_loads_as(&base, file);
}

#[test]
#[ignore = "needs weights"]
fn keras_3_numbered_variables_are_read_by_the_layers_name() {
    let base = base();
    let mut file = Hdf5Builder::new();
    for (number, layer) in base.layers().iter().enumerate() {
        let group = format!("layers/layer_{number}/vars");
        for (index, variable) in layer.variables().iter().enumerate() {
            file = file.dataset(keras_dataset(format!("{group}/{index}"), variable));
        }
        if !layer.variables().is_empty() {
            let name = AttributeBuilder::fixed_string("name", layer.name());
            file = file.group_attribute(group, name);
        }
    }
    assert_loads_as(&base, file);
}

#[test]
#[ignore = "needs weights"]
fn saved_weights_come_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = model(1);
    saved.save_weights(&path).unwrap();
    let mut loaded = model(2);
    loaded.load_weights(&path).unwrap();
    let logits = loaded.forward(&pictures()).unwrap();
    assert_close("logits", &logits, &saved.forward(&pictures()).unwrap(), 0.);
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "a temporary file was left: {files:?}");
}

#[test]
#[ignore = "needs weights"]
fn saving_into_a_missing_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = model(0)
        .save_weights(folder.path().join("none/model.safetensors"))
        .unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
}

#[test]
fn safetensors_of_another_network_are_refused_by_the_first_tensor_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let tensor = Tensor::zeros([3, 3], (tch::Kind::Float, Device::Cpu));
    Tensor::write_safetensors(&[("features.0.weight", tensor)], &path).unwrap();
    let error = from_file(&path).unwrap_err();
    assert!(
        error.ends_with("other.safetensors: Conv1/kernel is missing"),
        "{error}"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_tensor_that_the_network_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model(0).save_weights(&path).unwrap();
    let error = from_file(&path).unwrap_err();
    assert!(
        error.ends_with("dense/bias does not belong to this network"),
        "{error}"
    );
}

#[test]
#[ignore = "needs weights"]
fn a_tensor_of_another_shape_is_refused_and_no_weight_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let wide = Sequential::new(base())
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 2));
    wide.save_weights(&path).unwrap();
    let mut narrow = model(7);
    let before = narrow.forward(&pictures()).unwrap();
    let error = narrow.load_weights(&path).unwrap_err().to_string();
    assert!(
        error.contains("dense/kernel: expected shape [1, 1280], got [2, 1280]"),
        "{error}"
    );
    assert_close("logits", &narrow.forward(&pictures()).unwrap(), &before, 0.);
}

#[test]
#[ignore = "needs weights"]
fn weights_that_are_not_finite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = model(0);
    let bias = model.variables().last().unwrap();
    let _nan = tch::no_grad(|| bias.value().shallow_clone().fill_(f64::NAN));
    model.save_weights(&path).unwrap();
    let mut other = self::model(0);
    let error = other.load_weights(&path).unwrap_err().to_string();
    assert!(error.ends_with("dense/bias holds the value NaN"), "{error}");
}

#[test]
fn a_damaged_h5_file_is_refused_wherever_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.h5");
    let dataset = |path: &str| DatasetBuilder::typed_data(path, vec![8], &[1f32; 8]).unwrap();
    let file = Hdf5Builder::new()
        .dataset(dataset("a/Conv_1_bn/gamma:0"))
        .dataset(dataset("b"));
    let whole = file
        .into_plan()
        .unwrap()
        .encode(WriteOptions::default())
        .unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = from_file(&path).unwrap_err();
        assert!(error.starts_with("weights "), "cut at {length}: {error}");
    }
}

#[test]
fn a_missing_weights_file_is_named() {
    let error = from_file(Path::new("no/such.h5")).unwrap_err();
    assert!(error.starts_with("cannot read no/such.h5: "), "{error}");
}
