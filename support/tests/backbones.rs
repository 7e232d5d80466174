//! The base with other origins' weights and of other widths, against torchvision, timm and Keras; the
//! scripts that made the references are in `tests/reference/`. Needs torchvision's weights, which are
//! fetched.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{assert_close, keras_file, picture, settings, shapes, state_file, tensors};
use support::model::{
    Architecture, Backbone, Dense, GlobalAveragePooling2d, MobileNetV2, Sequential, Weights,
};
use tch::{Device, Tensor};

/// Returns images of `tests/reference/pictures.py` as the weights want them, `[N, 3, size, size]`.
fn images(weights: Weights, pictures: std::ops::Range<i64>, size: u32) -> Tensor {
    let images = pictures.map(|n| {
        let values = weights.format(&picture(n, size), size).into_values();
        Tensor::from_slice(&values).reshape([i64::from(size), i64::from(size), 3])
    });
    Tensor::stack(&images.collect::<Vec<_>>(), 0).permute([0, 3, 1, 2])
}

fn shape(size: u32) -> [i64; 3] {
    [3, i64::from(size), i64::from(size)]
}

/// Asserts that the pooled features are those of the reference.
#[track_caller]
fn assert_features(what: &str, base: Backbone, images: &Tensor, expected: &Tensor) {
    assert_eq!(base.layers().len(), 155, "{what}");
    let pooled = GlobalAveragePooling2d
        .forward(&base.forward(images).unwrap())
        .unwrap();
    assert_close(what, &pooled, expected, 1e-4);
}

fn from_file(path: &Path, size: u32) -> Result<Backbone, String> {
    Backbone::from_file(path, shape(size), Device::Cpu).map_err(|error| error.to_string())
}

#[test]
#[ignore = "needs weights"]
fn features_equal_those_of_torchvision() {
    let reference = tensors("torch_backbones.safetensors");
    for size in [96, 160] {
        let base = Backbone::pretrained(
            MobileNetV2::TORCHVISION,
            shape(size),
            &settings(Device::Cpu),
        )
        .unwrap();
        assert_eq!(base.weights(), MobileNetV2::TORCHVISION);
        let name = format!("torchvision {size}");
        let images = images(MobileNetV2::TORCHVISION, 0..2, size);
        assert_features(&name, base, &images, &reference[&name]);
    }
}

#[test]
fn features_equal_those_of_timm_at_three_widths() {
    let reference = tensors("torch_backbones.safetensors");
    for (model, alpha, size) in [
        ("mobilenetv2_050", 0.5, 96),
        ("mobilenetv2_100", 1.0, 128),
        ("mobilenetv2_140", 1.4, 224),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = state_file(&folder, &shapes("torch_backbones.safetensors", model));
        let base = from_file(&file, size).unwrap();
        assert_eq!(base.weights(), MobileNetV2::TIMM);
        let architecture = Architecture::MobileNetV2(MobileNetV2 { alpha });
        assert_eq!(base.architecture(), architecture);
        let images = images(MobileNetV2::TIMM, 2..3, size);
        let expected = &reference[&format!("{model} {size}")];
        assert_features(model, base, &images, expected);
    }
}

#[test]
fn features_equal_those_of_keras_at_other_widths() {
    let reference = tensors("keras_widths.safetensors");
    for (alpha, name, size) in [(0.35, "0.35", 96), (1.4, "1.4", 192)] {
        let folder = tempfile::tempdir().unwrap();
        let file = keras_file(&folder, &shapes("keras_widths.safetensors", name));
        let base = from_file(&file, size).unwrap();
        assert_eq!(base.weights(), MobileNetV2::KERAS);
        let architecture = Architecture::MobileNetV2(MobileNetV2 { alpha });
        assert_eq!(base.architecture(), architecture);
        assert_eq!(base.name(), format!("mobilenetv2_{alpha:.2}_{size}"));
        let images = images(MobileNetV2::KERAS, 2..3, size);
        let expected = &reference[&format!("{name} {size}")];
        assert_features(name, base, &images, expected);
    }
}

#[test]
fn the_data_folder_that_is_set_in_code_is_the_one_used() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut settings = settings(Device::Cpu);
    settings.data_dir = file.path().join("data");
    let error = MobileNetV2::pretrained(shape(96), &settings).unwrap_err();
    let expected = format!("cannot create {}", settings.data_dir.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[test]
#[ignore = "needs weights"]
fn a_saved_model_keeps_the_origin_of_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = |weights| {
        let base = Backbone::pretrained(weights, shape(96), &settings(Device::Cpu)).unwrap();
        Sequential::new(base)
    };
    let saved = model(MobileNetV2::TORCHVISION);
    saved.save_weights(&path).unwrap();
    let images = images(MobileNetV2::TORCHVISION, 0..1, 96);
    let expected = saved.forward(&images).unwrap();

    let base = from_file(&path, 96).unwrap();
    assert_eq!(base.weights(), MobileNetV2::TORCHVISION);
    assert_close("features", &base.forward(&images).unwrap(), &expected, 0.);

    let mut other = model(MobileNetV2::TF_HUB);
    let before = other.forward(&images).unwrap();
    let error = other.load_weights(&path).unwrap_err().to_string();
    assert!(
        error.contains("expected weights that go with tfhub's conventions, got torchvision's"),
        "{error}"
    );
    assert_close("features", &other.forward(&images).unwrap(), &before, 0.);
}

#[test]
fn a_model_of_another_width_has_its_own_number_of_features() {
    let folder = tempfile::tempdir().unwrap();
    let file = state_file(
        &folder,
        &shapes("torch_backbones.safetensors", "mobilenetv2_140"),
    );
    let base = from_file(&file, 32).unwrap();
    assert_eq!(base.output_shape(), [1792, 1, 1]);
    let model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1792, 1));
    let logits = model.forward(&images(MobileNetV2::TIMM, 0..1, 32)).unwrap();
    assert_eq!(logits.size(), [1, 1]);
}

#[test]
fn a_network_with_more_blocks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut shapes = shapes("torch_backbones.safetensors", "mobilenetv2_100");
    shapes.insert("blocks.1.2.conv_pw.weight".into(), vec![144, 24, 1, 1]);
    let error = from_file(&state_file(&folder, &shapes), 32).unwrap_err();
    assert!(
        error.ends_with("blocks.1.2.conv_pw.weight does not belong to this network"),
        "{error}"
    );
}

#[test]
fn an_unknown_width_is_refused_with_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut shapes = shapes("torch_backbones.safetensors", "mobilenetv2_100");
    shapes.insert("conv_head.weight".into(), vec![1280, 352, 1, 1]);
    let error = from_file(&state_file(&folder, &shapes), 32).unwrap_err();
    assert!(
        error.contains("320 (1), 112 (0.35)") && error.ends_with("got 352"),
        "{error}"
    );
}
