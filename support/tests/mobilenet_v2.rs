//! The base model against Keras' with the same weights; the scripts that made the references
//! are in `tests/reference/`. Needs the default weights, which `cargo xtask setup` fetches.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{assert_close, data, pictures, settings, tensors};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use support::model::{Backbone, GlobalAveragePooling2d, MobileNetV2, SetTrainable};
use support::pipeline::{Pixels, decode};
use tch::{Device, Tensor};

const IMG_SHAPE: [i64; 3] = [3, 160, 160];

fn base() -> Backbone {
    MobileNetV2::pretrained(IMG_SHAPE, &settings(Device::Cpu)).unwrap()
}

#[test]
#[ignore = "needs weights"]
fn features_equal_those_of_keras() {
    let features = base().forward(&pictures()).unwrap();
    assert_close(
        "features",
        &features,
        &tensors("features.safetensors")["features"],
        1e-4,
    );
}

/// Decoders round differently, which moves features by more than arithmetic does: so these are
/// held to Keras' closely on the same pixels, and loosely on those that TensorFlow decodes.
#[test]
#[ignore = "needs photos and weights"]
fn features_of_real_photos_equal_those_of_keras() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let photos = std::env::var_os("TRANSFER_TEST_PHOTOS").unwrap_or_else(|| beside.into());
    let photos = std::path::PathBuf::from(photos).join("cats_and_dogs_filtered");
    let bytes = std::fs::read(data("photo_features.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let list = |key: &str| -> Vec<String> {
        serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
    };
    let mut images = Vec::new();
    for (name, digest) in list("files").iter().zip(list("pixels_sha256")) {
        let image = decode(name, &std::fs::read(photos.join(name)).unwrap()).unwrap();
        let hash = Sha256::digest(image.as_raw());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hash, digest,
            "{name} is decoded otherwise than for the reference"
        );
        let pixels = Pixels::from(&image)
            .scale(1. / 127.5)
            .offset(-1.)
            .resize(160, 160);
        images.push(Tensor::from_slice(&pixels.into_values()).reshape([160, 160, 3]));
    }
    let images = Tensor::stack(&images, 0).permute([0, 3, 1, 2]);
    let features = base().forward(&images).unwrap();
    let pooled = GlobalAveragePooling2d.forward(&features).unwrap();
    let reference = tensors("photo_features.safetensors");
    assert_close(
        "pooled features",
        &pooled,
        &reference["pooled_of_pixels"],
        1e-4,
    );
    for photo in 0..pooled.size()[0] {
        let expected = reference["pooled"].get(photo);
        let deviation = (pooled.get(photo) - &expected).norm() / expected.norm();
        assert!(
            deviation.double_value(&[]) < 0.04,
            "photo {photo}: {deviation}"
        );
    }
}

#[test]
#[ignore = "needs weights"]
fn layers_are_those_of_keras_in_order() {
    let base = base();
    let text = std::fs::read_to_string(data("layers.json")).unwrap();
    let reference: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(base.layers().len(), reference.len());
    for (layer, reference) in base.layers().iter().zip(&reference) {
        let inputs: Vec<&str> = layer
            .inputs()
            .iter()
            .map(|&input| base.layers()[input].name())
            .collect();
        let parameters: usize = layer
            .variables()
            .iter()
            .map(|variable| variable.count())
            .sum();
        let ours = serde_json::json!({
            "name": layer.name(),
            "class": layer.operation().class_name(),
            "shape": layer.output_shape(),
            "params": parameters,
            "inputs": inputs,
        });
        for key in ["name", "class", "shape", "params", "inputs"] {
            assert_eq!(ours[key], reference[key], "{key} of {}", layer.name());
        }
    }
}

#[test]
#[ignore = "needs weights"]
fn the_summary_has_the_tutorials_numbers() {
    let mut base = base();
    let summary = base.summary();
    assert_eq!(summary.total, 2_257_984);
    assert_eq!(summary.trainable, 2_223_872);
    let text = summary.to_string();
    assert!(text.contains("Total params: 2,257,984"), "{text}");
    assert!(text.contains("block_2_add (Add)"), "{text}");
    assert!(
        text.contains("block_1_project_BN, block_2_project_BN"),
        "{text}"
    );
    base.set_trainable(false);
    assert_eq!(base.summary().trainable, 0);
}

#[test]
#[ignore = "needs weights"]
fn freezing_a_slice_freezes_what_the_tutorial_freezes() {
    let mut base = base();
    base.layers_mut()[..100].set_trainable(false);
    assert_eq!(base.layers()[100].name(), "block_11_expand_BN");
    let trainable: Vec<_> = base
        .variables()
        .filter(|variable| variable.is_trainable())
        .collect();
    assert_eq!(trainable.len(), 56);
    assert_eq!(trainable[0].name(), "block_11_expand_BN/gamma");
    assert_eq!(base.summary().trainable, 1_862_592);
}

#[test]
#[ignore = "needs weights"]
fn forward_leaves_no_graph_behind() {
    assert!(!base().forward(&pictures()).unwrap().requires_grad());
}

#[test]
#[ignore = "needs weights"]
fn images_of_another_size_are_refused_with_both_shapes() {
    let images = Tensor::zeros([2, 3, 224, 224], (tch::Kind::Float, Device::Cpu));
    let error = base().forward(&images).unwrap_err().to_string();
    assert_eq!(
        error,
        "mobilenetv2_1.00_160: expected shape [N, 3, 160, 160], got [2, 3, 224, 224]"
    );
}

#[test]
#[ignore = "needs weights"]
fn an_image_shape_that_the_network_cannot_halve_is_refused() {
    for shape in [[3, 150, 150], [1, 160, 160], [3, 0, 160]] {
        let error = MobileNetV2::pretrained(shape, &settings(Device::Cpu))
            .unwrap_err()
            .to_string();
        assert!(error.contains("multiples of 32"), "{error}");
    }
}
