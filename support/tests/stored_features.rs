//! What is made of features that are computed once: linear probes, doubtful labels, the choice of a backbone. On
//! images made here, without weights, and on photos.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod small_set;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{keras_file, shapes};
use small_set::{augmented_batches, pictures};
use support::Error;
use support::analysis::{DoubtfulLabels, LinearProbe, compare_backbones};
use support::dataset::ImageDataset;
use support::model::{
    Backbone, Dense, Dropout, EfficientNetLite, GlobalAveragePooling2d, MobileNetV2, Sequential,
};
use support::pipeline::Augmentation;
use support::settings::{BrokenImages, Limit, Settings};
use support::training::{Loss, RmsProp};
use tch::{Device, Tensor};

/// A backbone of alpha 0.35 with the formula's weights.
fn base() -> Backbone {
    let folder = tempfile::tempdir().unwrap();
    let file = keras_file(&folder, &shapes("model_file.safetensors", "shapes"));
    Backbone::from_file(file, [3, 96, 96], Device::Cpu).unwrap()
}

fn model() -> Sequential {
    Sequential::new(base())
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.2))
        .push(Dense::new(1280, 1).seed(4))
}

#[test]
fn features_are_what_the_last_dense_sees_of_each_image_as_it_is() {
    let folder = pictures(&["cats", "dogs"], 6);
    fs::write(folder.path().join("train/cats/5.png"), b"not a picture").unwrap();
    let flip = Augmentation::new().random_flip_horizontal();
    let (train, _) = augmented_batches(folder.path(), BrokenImages::Skip, flip);
    let model = model();
    let features = model.features(&train).unwrap();
    assert_eq!(
        (features.len(), features.values().size()),
        (11, vec![11, 1280])
    );
    let (without_dense, base) = (Sequential::new(base()).push(GlobalAveragePooling2d), base());
    let pooled = without_dense.features(&train).unwrap();
    assert_eq!(pooled.values(), features.values());
    let examples = train.dataset().examples();
    assert!(features.indices().is_sorted());
    for (row, &index) in (0..).zip(features.indices()) {
        assert_eq!(
            features.labels().int64_value(&[row]),
            examples[index].label.class().unwrap() as i64
        );
        let image = image::open(folder.path().join(&examples[index].id)).unwrap();
        let values = small_set::format(&image.to_rgb8()).into_values();
        let image = Tensor::from_slice(&values).reshape([1, 96, 96, 3]);
        let expected = base.forward(&image.permute([0, 3, 1, 2])).unwrap();
        let expected = GlobalAveragePooling2d.forward(&expected).unwrap();
        common::assert_close(
            "features",
            &features.values().narrow(0, row, 1),
            &expected,
            1e-4,
        );
    }
    let unpooled = Sequential::new(self::base()).features(&train).unwrap_err();
    assert!(matches!(unpooled, Error::Shape { .. }), "{unpooled}");
}

#[test]
fn a_probe_becomes_the_models_head() {
    let folder = pictures(&["cats", "dogs"], 10);
    let (train, validation) =
        augmented_batches(folder.path(), BrokenImages::Stop, Augmentation::new());
    let mut model = model()
        .compile(RmsProp::new(1e-3), Loss::BinaryCrossentropy)
        .unwrap();
    let (features, held_out) = (
        model.features(&train).unwrap(),
        model.features(&validation).unwrap(),
    );
    let probe = LinearProbe::fit(&features, Loss::BinaryCrossentropy, LinearProbe::C).unwrap();
    let before = model.evaluate(&train).unwrap();
    probe.initialize(&mut model).unwrap();
    let after = model.evaluate(&train).unwrap();
    assert!(after.loss < before.loss, "{after} after {before}");
    assert_eq!(after.accuracy, probe.accuracy(&features).unwrap());
    let evaluation = model.evaluate(&validation).unwrap();
    assert_eq!(evaluation.accuracy, probe.accuracy(&held_out).unwrap());

    let two_logits = Sequential::new(base())
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 2));
    for mut other in [
        two_logits,
        Sequential::new(base()).push(GlobalAveragePooling2d),
    ] {
        probe.initialize(&mut other).unwrap_err();
    }
    let error = LinearProbe::fit(&features, Loss::SparseCategoricalCrossentropy, 0.);
    assert!(error.is_err());
}

/// Gives every so-manieth example of a folder's training part the other of two classes' labels, in a CSV file of its own.
/// Returns the dataset, and the ids whose labels were turned.
fn turned(root: &Path, csv: &Path, every: usize) -> (ImageDataset, BTreeSet<String>) {
    let (mut rows, mut turned) = ("path,label\n".to_owned(), BTreeSet::new());
    for (own, other) in [("cats", "dogs"), ("dogs", "cats")] {
        let folder = root.join("train").join(own);
        let mut paths: Vec<PathBuf> = support::dataset::images_in(&folder).unwrap();
        paths.sort();
        for (number, path) in paths.iter().enumerate() {
            let is_turned = number % every == every / 2;
            let label = if is_turned { other } else { own };
            let id = path.display().to_string();
            rows += &format!("{id},{label}\n");
            turned.extend(is_turned.then_some(id));
        }
    }
    fs::write(csv, rows).unwrap();
    let mut settings = Settings::from_env().unwrap();
    settings.limit = Limit::All;
    (ImageDataset::from_csv(csv, &settings).unwrap(), turned)
}

/// Returns how many of the turned labels are within the first 8 % of the list.
fn found_within_8_percent(doubtful: &DoubtfulLabels, turned: &BTreeSet<String>) -> usize {
    let first = doubtful.ranked().len() * 8 / 100;
    let first = doubtful.ranked().iter().take(first);
    first.filter(|label| turned.contains(&label.id)).count()
}

#[test]
fn turned_labels_are_found_shown_and_corrected_by_a_file() {
    let (folder, files) = (
        pictures(&["cats", "dogs"], 40),
        tempfile::tempdir().unwrap(),
    );
    let (dataset, turned) = turned(folder.path(), &files.path().join("list.csv"), 20);
    assert_eq!(turned.len(), 4);
    let [all, ..] = dataset.split([1, 0, 0]).unwrap();
    let model = Sequential::new(base()).push(GlobalAveragePooling2d);
    let features = model
        .features(&all.map(small_set::format).batch(8))
        .unwrap();
    let doubtful = features.doubtful_labels().unwrap();
    assert_eq!(doubtful.ranked().len(), 80);
    assert_eq!(found_within_8_percent(&doubtful, &turned), 4, "{doubtful}");
    let text = doubtful.to_string();
    let expected = format!("{} of 80 labels are doubtful\n", doubtful.len());
    assert!(text.starts_with(&expected), "{text}");
    assert!(doubtful.show().unwrap().dimensions().0 > 100);

    let csv = files.path().join("relabel.csv");
    doubtful.save_csv(&csv).unwrap();
    let again = dataset.relabel(&csv).unwrap();
    let [all, ..] = again.split_examples([1, 0, 0]).unwrap();
    let doubted: BTreeSet<&str> = doubtful
        .examples()
        .iter()
        .map(|label| label.id.as_str())
        .collect();
    for example in &all {
        let is_of_folder = example
            .id
            .contains(&format!("/{}/", example.label.names(again.classes())));
        let was_wrong = turned.contains(&example.id);
        assert_eq!(
            is_of_folder,
            was_wrong == doubted.contains(example.id.as_str()),
            "{example:?}"
        );
    }

    let [all, ..] = again.split([1, 0, 0]).unwrap();
    let corrected = all.map(small_set::format).batch(8);
    let doubtful = model.features(&corrected).unwrap().doubtful_labels();
    let doubtful = doubtful.unwrap();
    assert_eq!(doubtful.to_string(), "0 of 80 labels are doubtful");
    doubtful.show().unwrap();
}

#[test]
fn the_label_of_an_example_that_is_listed_twice_is_corrected_once() {
    let (folder, files) = (
        pictures(&["cats", "dogs"], 40),
        tempfile::tempdir().unwrap(),
    );
    let list = files.path().join("list.csv");
    let (_, turned) = turned(folder.path(), &list, 20);
    let rows = fs::read_to_string(&list).unwrap();
    let twice: String = rows
        .lines()
        .filter(|row| turned.iter().any(|id| row.starts_with(id)))
        .map(|row| format!("{row}\n"))
        .collect();
    fs::write(&list, rows + &twice).unwrap();
    let dataset = ImageDataset::from_csv(&list, &Settings::from_env().unwrap()).unwrap();
    let [all, ..] = dataset.split([1, 0, 0]).unwrap();
    let model = Sequential::new(base()).push(GlobalAveragePooling2d);
    let features = model.features(&all.map(small_set::format).batch(8));
    let doubtful = features.unwrap().doubtful_labels().unwrap();
    let doubted = doubtful.examples().iter();
    let twice = doubted.filter(|label| turned.contains(&label.id)).count();
    assert!(twice > turned.len(), "{doubtful}");
    let csv = files.path().join("relabel.csv");
    doubtful.save_csv(&csv).unwrap();
    dataset.relabel(&csv).unwrap();
}

#[test]
fn a_class_of_one_example_cannot_be_judged_by_others() {
    let folder = pictures(&["cats", "dogs"], 3);
    for number in [1, 2] {
        fs::remove_file(folder.path().join(format!("train/dogs/{number}.png"))).unwrap();
    }
    let (train, _) = augmented_batches(folder.path(), BrokenImages::Stop, Augmentation::new());
    let error = model()
        .features(&train)
        .unwrap()
        .doubtful_labels()
        .unwrap_err();
    assert!(error.to_string().ends_with("got one of dogs"), "{error}");
}

/// The photos of `cats_and_dogs_filtered`.
fn photos() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let photos = std::env::var_os("TRANSFER_TEST_PHOTOS").unwrap_or_else(|| beside.into());
    Path::new(&photos).join("cats_and_dogs_filtered")
}

/// The targets are those of scikit-learn on features of images that were resized by PIL, less .002.
#[test]
#[ignore = "needs photos and weights"]
fn a_probe_reaches_what_scikit_learn_does_on_real_photos() {
    let mut settings = Settings::from_env().unwrap();
    settings.dataset = Some(photos().to_str().unwrap().into());
    settings.limit = Limit::All;
    let [train, validation, _] = ImageDataset::load(&settings)
        .unwrap()
        .split([8, 1, 1])
        .unwrap();
    let weights = [
        MobileNetV2::TF_HUB,
        EfficientNetLite::LITE0,
        EfficientNetLite::LITE2,
    ];
    let compared = compare_backbones(&weights, &train, &validation, &settings).unwrap();
    println!("{compared}");
    for ((row, weights), least) in compared
        .backbones
        .iter()
        .zip(weights)
        .zip([0.973, 0.988, 0.994])
    {
        assert_eq!(
            (row.weights, row.image_size),
            (weights, weights.image_size())
        );
        assert!(row.accuracy >= least, "{compared}");
    }
    let parameters = compared.backbones.iter().map(|row| row.parameters);
    assert!(
        parameters.eq([2_257_984, 3_413_024, 4_869_168]),
        "{compared}"
    );
}

#[test]
#[ignore = "needs photos and weights"]
fn turned_labels_of_real_photos_are_first_in_the_list() {
    let files = tempfile::tempdir().unwrap();
    let (dataset, turned) = turned(&photos(), &files.path().join("list.csv"), 20);
    assert_eq!(turned.len(), 100);
    let [all, ..] = dataset.split([1, 0, 0]).unwrap();
    let weights = EfficientNetLite::LITE0;
    let base =
        Backbone::pretrained(weights, [3, 224, 224], &Settings::from_env().unwrap()).unwrap();
    let model = Sequential::new(base).push(GlobalAveragePooling2d);
    let batches = all.map(move |image| weights.format(image, 224)).batch(32);
    let doubtful = model.features(&batches).unwrap().doubtful_labels().unwrap();
    let found = found_within_8_percent(&doubtful, &turned);
    println!(
        "{found} of {} within 8 %, {} doubtful",
        turned.len(),
        doubtful.len()
    );
    assert!(found >= 80, "{found}");
}
