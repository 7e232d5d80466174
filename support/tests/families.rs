//! Every family of networks: its features against a reference's (`tests/reference/torch_families.py`), and all that
//! a model can do, on small images. Needs no weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod small_set;

use std::path::Path;

use common::{assert_close, picture, settings, shapes, state_file, tensors};
use support::classifier::{Classifier, TrainingRecord};
use support::model::{
    Architecture, Backbone, Dense, Dropout, EfficientNetLite, GlobalAveragePooling2d, ResNet,
    Sequential, SetTrainable, Weights,
};
use support::pipeline::Batches;
use support::settings::BrokenImages;
use support::training::{Compiled, Fit, Loss, RmsProp};
use tch::{Device, Tensor};

/// Returns an image of `tests/reference/pictures.py` as the weights want it, `[1, 3, size, size]`.
fn image(weights: Weights, n: i64, size: u32) -> Tensor {
    let values = weights.format(&picture(n, size), size).into_values();
    let side = i64::from(size);
    Tensor::from_slice(&values)
        .reshape([1, side, side, 3])
        .permute([0, 3, 1, 2])
}

fn shape(size: u32) -> [i64; 3] {
    [3, i64::from(size), i64::from(size)]
}

/// Returns a network with the formula's weights.
fn network(reference: &str, name: &str, size: u32) -> Backbone {
    let folder = tempfile::tempdir().unwrap();
    let file = state_file(&folder, &shapes(reference, name));
    Backbone::from_file(file, shape(size), Device::Cpu).unwrap()
}

fn pooled(base: &Backbone, image: &Tensor) -> Tensor {
    let features = base.forward(image).unwrap();
    GlobalAveragePooling2d.forward(&features).unwrap()
}

#[test]
fn features_equal_those_of_the_reference_code() {
    let reference = tensors("torch_families.safetensors");
    let lite = |variant| Architecture::EfficientNetLite(EfficientNetLite { variant });
    let resnet = |depth| Architecture::ResNet(ResNet { depth });
    for (name, size, architecture, layers) in [
        ("efficientnet-lite0", 64, lite(0), 146),
        ("efficientnet-lite1", 240, lite(1), 191),
        ("efficientnet-lite2", 260, lite(2), 191),
        ("resnet18", 75, resnet(18), 67),
        ("resnet50", 64, resnet(50), 173),
    ] {
        let base = network("torch_families.safetensors", name, size);
        assert_eq!(base.architecture(), architecture);
        assert_eq!(base.weights().architecture(), architecture, "{name}");
        assert_eq!(base.layers().len(), layers, "{name}");
        let image = image(base.weights(), 2, size);
        let expected = &reference[&format!("{name} {size}")];
        assert_close(name, &pooled(&base, &image), expected, 1e-4);
    }
}

#[test]
#[ignore = "fetches EfficientNet-Lite's weights"]
fn features_of_efficientnet_lites_own_weights_equal_those_of_the_reference_code() {
    let reference = tensors("torch_families.safetensors");
    let weights = [
        EfficientNetLite::LITE0,
        EfficientNetLite::LITE1,
        EfficientNetLite::LITE2,
    ];
    for (variant, weights) in weights.into_iter().enumerate() {
        let size = weights.image_size();
        let base = Backbone::pretrained(weights, shape(size), &settings(Device::Cpu)).unwrap();
        let name = format!("efficientnet-lite{variant} real {size}");
        let image = image(weights, 2, size);
        assert_close(&name, &pooled(&base, &image), &reference[&name], 1e-4);
    }
}

/// A family's network for the tests of what a model can do, and how many layers of it to freeze.
struct Case {
    name: &'static str,
    base: fn() -> Backbone,
    frozen: usize,
}

const CASES: [Case; 3] = [
    Case {
        name: "MobileNetV2",
        base: || network("torch_backbones.safetensors", "mobilenetv2_050", 64),
        frozen: 100,
    },
    Case {
        name: "EfficientNet-Lite",
        // No multiple of 32.
        base: || network("torch_families.safetensors", "efficientnet-lite0", 70),
        frozen: 110,
    },
    Case {
        name: "ResNet",
        base: || network("torch_families.safetensors", "resnet18", 70),
        frozen: 45,
    },
];

impl Case {
    fn model(&self) -> Sequential<Compiled> {
        let mut base = (self.base)();
        base.layers_mut()[..self.frozen].set_trainable(false);
        let features = base.output_shape()[0] as usize;
        Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.2))
            .push(Dense::new(features, 3).seed(1))
            .compile(RmsProp::new(1e-5), Loss::SparseCategoricalCrossentropy)
            .unwrap()
    }
}

/// Returns batches of images as the model takes them, to train and to validate on.
fn batches(model: &Sequential<Compiled>, folder: &Path) -> [Batches; 2] {
    let (weights, size) = (model.base().weights(), model.base().input_shape()[1] as u32);
    let dataset = small_set::dataset(folder, BrokenImages::Stop);
    let [train, validation, _] = dataset.split([8, 1, 1]).unwrap();
    let format = move |image: &image::RgbImage| weights.format(image, size);
    [
        train.map(format).shuffle(8).batch(4),
        validation.map(format).batch(4),
    ]
}

#[test]
fn every_family_trains_from_stored_activations_as_without_them() {
    let folder = small_set::pictures(&["cats", "dogs", "owls"], 3);
    for case in &CASES {
        let run = |stored: bool| {
            let mut model = case.model();
            let [train, validation] = batches(&model, folder.path());
            let fit = Fit::epochs(2).validation(&validation);
            let history = model.fit(&train, fit.cache_activations(stored)).unwrap();
            let losses = history.epochs.into_iter();
            losses
                .flat_map(|epoch| [epoch.loss, epoch.val_loss.unwrap()])
                .collect::<Vec<_>>()
        };
        let (stored, computed) = (run(true), run(false));
        assert_ne!(stored[0], stored[2], "{}: nothing was learned", case.name);
        for (stored, computed) in stored.iter().zip(&computed) {
            let difference = (stored - computed).abs() / computed;
            assert!(difference < 1e-3, "{}: {stored} {computed}", case.name);
        }
    }
}

#[test]
fn every_family_is_explained_all_over_its_images() {
    let folder = small_set::pictures(&["cats", "dogs", "owls"], 2);
    for case in &CASES {
        let model = case.model();
        let [train, _] = batches(&model, folder.path());
        let predictions = model.predictions(&train).unwrap();
        let maps = model.explain(&predictions).unwrap().maps().unwrap();
        let [_, height, width] = model.base().input_shape();
        assert_eq!(maps.size(), [6, height, width], "{}", case.name);
        // Of each image the largest value is 1, or all are 0.
        let largest = maps.amax([1i64, 2].as_slice(), false);
        let largest = Vec::<f32>::try_from(&largest).unwrap();
        let is_one = |value: &f32| (value - 1.).abs() < 1e-6;
        assert!(largest.iter().all(|value| is_one(value) || *value == 0.));
        assert!(largest.iter().any(is_one), "{}: {largest:?}", case.name);
        assert!(maps.min().double_value(&[]) >= 0.);
    }
}

#[test]
fn every_family_comes_back_from_its_files() {
    let pictures = small_set::pictures(&["cats", "dogs", "owls"], 2);
    for case in &CASES {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let model = case.model();
        let [train, validation] = batches(&model, pictures.path());
        let (images, _) = train.first().unwrap();
        let logits = model.forward(&images).unwrap();

        model.save_weights(path("weights.safetensors")).unwrap();
        let mut loaded = case.model();
        tch::no_grad(|| {
            let values = loaded.variables().map(|variable| variable.value());
            values.for_each(|value| drop(value.shallow_clone().zero_()));
        });
        loaded.load_weights(path("weights.safetensors")).unwrap();
        assert_close(case.name, &loaded.forward(&images).unwrap(), &logits, 0.);

        let base = Sequential::new((case.base)());
        base.save_weights(path("base.safetensors")).unwrap();
        let shape = base.base().input_shape();
        let from_file = Backbone::from_file(path("base.safetensors"), shape, Device::Cpu).unwrap();
        assert_eq!(from_file.architecture(), base.base().architecture());
        assert_eq!(from_file.weights(), base.base().weights());

        let record = TrainingRecord::new(&train);
        model.save(path("model.safetensors"), &record).unwrap();
        let classifier = Classifier::load_on(path("model.safetensors"), Device::Cpu).unwrap();
        let backbone = classifier.info().backbone;
        assert_eq!(backbone.architecture, model.base().architecture());
        assert_eq!(backbone.weights, model.base().weights());
        let again = classifier.model().forward(&images).unwrap();
        assert_close(case.name, &again, &logits, 0.);
        let evaluation = model.evaluate(&validation).unwrap();
        assert!(evaluation.loss.is_finite(), "{}", case.name);
    }
}
