//! Model files: what is saved comes back, as Keras and ONNX too, and what is no model file is
//! refused. The reference is `tests/reference/model_file.py`'s. Needs no weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod small_set;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{assert_close, formula, keras_file, picture, shapes, tensors};
use image::RgbImage;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use small_set::{batches, pictures};
use support::analysis::Calibration;
use support::classifier::{Classification, Classifier, TrainingRecord};
use support::dataset::images_in;
use support::model::{
    Architecture, Backbone, Dense, Dropout, GlobalAveragePooling2d, HeadLayer, MobileNetV2,
    Sequential,
};
use support::pipeline::{Batches, Pixels};
use support::settings::BrokenImages;
use support::training::{Compiled, EpochLog, Evaluation, Fit, History, Loss, RmsProp};
use support::{Error, Result};
use tch::{Device, Tensor};
use tempfile::TempDir;

const CLASSES: [&str; 3] = ["cats", "dogs", "owls"];
const SIZE: u32 = 96;

/// A backbone of alpha 0.35 with the formula's weights.
fn base(image_shape: [i64; 3]) -> Backbone {
    let folder = tempfile::tempdir().unwrap();
    let file = keras_file(&folder, &shapes("model_file.safetensors", "shapes"));
    Backbone::from_file(file, image_shape, Device::Cpu).unwrap()
}

/// The model of `tests/reference/model_file.py`.
fn model() -> Sequential<Compiled> {
    let model = Sequential::new(base([3, 96, 96]))
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.2).seed(5))
        .push(Dense::new(1280, 3));
    for variable in model.variables() {
        let values = match variable.name() {
            "dense/kernel" => Tensor::from_slice(&formula("dense/kernel", &[1280, 3], 1280))
                .reshape([1280, 3])
                .tr(),
            "dense/bias" => Tensor::from_slice(&formula("dense/bias", &[3], 0)),
            _ => continue,
        };
        tch::no_grad(|| variable.value().shallow_clone().copy_(&values));
    }
    model
        .compile(RmsProp::new(1e-4), Loss::SparseCategoricalCrossentropy)
        .unwrap()
}

/// A folder of images of three classes, and batches of those to train on.
fn set() -> (TempDir, Batches) {
    let folder = pictures(&CLASSES, 3);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    (folder, train)
}

fn history(losses: &[f64]) -> History {
    let epochs = losses.iter().map(|&loss| EpochLog {
        loss,
        accuracy: 0.5,
        seconds: 1.5,
        ..EpochLog::default()
    });
    History {
        epochs: epochs.collect(),
    }
}

/// Saves a model; returns a folder with `model.safetensors`.
fn saved(model: &Sequential<Compiled>, batches: &Batches) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save(&path, &TrainingRecord::new(batches)).unwrap();
    (folder, path)
}

fn load(path: &Path) -> Result<Classifier> {
    Classifier::load_on(path, Device::Cpu)
}

fn logits(found: &[Classification]) -> Tensor {
    let logits: Vec<f32> = found
        .iter()
        .flat_map(|found| found.logits.clone())
        .collect();
    Tensor::from_slice(&logits).reshape([found.len() as i64, -1])
}

/// The inputs of `tests/reference/model_file.py`, `[3, 3, 96, 96]`.
fn images() -> Tensor {
    let images = (0..3).map(|n| {
        let pixels = Pixels::from(&picture(n, SIZE))
            .scale(1. / 127.5)
            .offset(-1.);
        Tensor::from_slice(&pixels.into_values()).reshape([96, 96, 3])
    });
    Tensor::stack(&images.collect::<Vec<_>>(), 0).permute([0, 3, 1, 2])
}

#[test]
fn a_saved_model_has_the_logits_of_keras() {
    let (_images, train) = set();
    let (_folder, path) = saved(&model(), &train);
    let classifier = load(&path).unwrap();
    let pictures = (0..3).map(|n| picture(n, SIZE));
    let found: Result<Vec<_>> = classifier.predict_all(pictures).collect();
    let found = found.unwrap();
    let expected = &tensors("model_file.safetensors")["logits"];
    assert_close("logits", &logits(&found), expected, 1e-4);
    let probabilities = expected.softmax(1, None);
    for (n, found) in found.iter().enumerate() {
        assert_eq!((found.class.as_str(), found.index), ("cats", 0));
        assert_eq!(found.probability, found.probabilities[0]);
        let of = Tensor::from_slice(&found.probabilities);
        assert_close("probabilities", &of, &probabilities.get(n as i64), 1e-4);
    }
    assert_eq!(
        found[0].to_string(),
        format!("cats, {:.1} %", 100. * found[0].probability)
    );
}

#[test]
fn all_that_is_saved_comes_back() {
    let (_images, train) = set();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let evaluation = Evaluation {
        loss: f64::NAN,
        accuracy: 0.75,
        metrics: [("auc".into(), 0.875)].into(),
    };
    let record = TrainingRecord::new(&train)
        .history(&history(&[0.7, 0.5]))
        .history(&history(&[0.25]))
        .evaluation(&evaluation);
    model().save(&path, &record).unwrap();
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "a temporary file was left: {files:?}");

    let classifier = load(&path).unwrap();
    assert_eq!(classifier.classes(), CLASSES);
    assert_eq!(classifier.input_size(), SIZE);
    assert_eq!(classifier.history(), &history(&[0.7, 0.5, 0.25]));
    assert_eq!(classifier.evaluation().unwrap().accuracy, 0.75);
    assert_eq!(classifier.evaluation().unwrap().metrics, evaluation.metrics);
    assert!(classifier.evaluation().unwrap().loss.is_nan());
    let info = classifier.info();
    let architecture = Architecture::MobileNetV2(MobileNetV2 { alpha: 0.35 });
    assert_eq!(info.backbone.architecture, architecture);
    assert_eq!(info.backbone.weights, MobileNetV2::KERAS);
    assert_eq!((info.input.mean, info.input.std), ([0.5; 3], [0.5; 3]));
    let head: [HeadLayer; 3] = [
        GlobalAveragePooling2d.into(),
        Dropout::new(0.2).seed(5).into(),
        Dense::new(1280, 3).into(),
    ];
    assert_eq!(info.head, head);
    assert_eq!(info.loss, Loss::SparseCategoricalCrossentropy);
    let training = &info.training;
    assert_eq!(training.optimizer.name, "RMSprop");
    assert_eq!(training.optimizer.hyperparameters["learning_rate"], 1e-4);
    assert_eq!(
        (training.batch_size, training.seed, training.augmented),
        (5, 3, false)
    );
    assert_eq!(training.examples, train.examples());

    let error = Backbone::from_file(&path, [3, 96, 96], Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("dense/bias does not belong to this network"),
        "{error}"
    );
    // The model itself can be trained again, and its weights go where `save_weights`' go.
    let mut other = self::model();
    let _changed = tch::no_grad(|| {
        other
            .variables()
            .last()
            .unwrap()
            .value()
            .shallow_clone()
            .fill_(9.)
    });
    other.load_weights(&path).unwrap();
    let again = classifier.into_model();
    assert_eq!(
        again.trainable_variables().len(),
        other.trainable_variables().len()
    );
    let expected = model().forward(&images()).unwrap();
    assert_close("logits", &other.forward(&images()).unwrap(), &expected, 0.);
    assert_close("logits", &again.forward(&images()).unwrap(), &expected, 0.);
}

#[test]
fn a_classifier_predicts_what_the_model_predicts() {
    let (folder, train) = set();
    let model = Sequential::new(base([3, 96, 96]))
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 2).seed(2))
        .push(Dense::new(2, 3).seed(3))
        .compile(RmsProp::new(1e-3), Loss::SparseCategoricalCrossentropy)
        .unwrap();
    let (_saved, path) = saved(&model, &train);
    let classifier = load(&path).unwrap();
    let expected = model.predictions(&train).unwrap();
    let root = folder.path().join("train");
    let paths: Vec<PathBuf> = images_in(folder.path()).unwrap();
    assert_eq!(paths.len(), 18);
    assert!(paths.is_sorted());
    for example in expected.examples() {
        let path = root.join(example.id.strip_prefix("train/").unwrap_or(&example.id));
        let found = classifier.predict(&path).unwrap();
        assert_eq!(example.predicted, found.index);
        let (found, expected) = (&found.probabilities, &example.probabilities);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }
    let explanations = model.explain(&expected.take(3)).unwrap();
    let maps = explanations.maps().unwrap();
    for (at, example) in (0..).zip(explanations.predictions().examples()) {
        let path = root.join(example.id.strip_prefix("train/").unwrap_or(&example.id));
        let explained = classifier.explain(&path).unwrap();
        let map = Tensor::from_slice(explained.map()).reshape([96, 96]);
        assert_close("map", &map, &maps.get(at), 1e-3);
    }
}

#[test]
fn several_threads_use_one_classifier_at_the_same_time() {
    let (model, (_folder, batches)) = (model(), set());
    let (_folder, path) = saved(&model, &batches);
    let classifier = load(&path).unwrap();
    let picture = |number| common::picture(number, 64);
    let predict = |number| classifier.predict(picture(number)).unwrap();
    let expected: Vec<_> = (0..8).map(predict).collect();
    std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3].map(|_| scope.spawn(|| (0..8).map(predict).collect::<Vec<_>>()));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_model_of_one_logit_tells_two_classes_apart() {
    let folder = pictures(&["cats", "dogs"], 2);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    let model = Sequential::new(base([3, 96, 96]))
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1))
        .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)
        .unwrap();
    let (_saved, path) = saved(&model, &train);
    let found = load(&path).unwrap().predict(picture(0, SIZE)).unwrap();
    let dog = 1. / (1. + f64::from(-found.logits[0]).exp());
    assert_eq!(found.logits.len(), 1);
    assert!((found.probabilities[1] - dog).abs() < 1e-12);
    assert_eq!(
        found.class,
        if found.logits[0] > 0. { "dogs" } else { "cats" }
    );
}

#[test]
fn images_come_from_anywhere_and_a_broken_one_is_an_error_in_its_place() {
    let (folder, train) = set();
    let (_saved, path) = saved(&model(), &train);
    let classifier = load(&path).unwrap();
    let good = folder.path().join("train/dogs/0.png");
    let broken = folder.path().join("broken.jpg");
    fs::write(&broken, b"not a picture").unwrap();
    let expected = classifier.predict(good.as_path()).unwrap();
    assert_eq!(
        classifier.predict(fs::read(&good).unwrap()).unwrap(),
        expected
    );
    assert_eq!(
        classifier
            .predict(image::open(&good).unwrap().into_rgb8())
            .unwrap(),
        expected
    );

    // More than a batch, and whole batches of which nothing can be read.
    let missing = folder.path().join("none.png");
    let paths: Vec<&Path> = (0..101)
        .map(|n| match n {
            0..40 | 77 => broken.as_path(),
            50 => missing.as_path(),
            _ => good.as_path(),
        })
        .collect();
    let found: Vec<_> = classifier.predict_all(paths.iter().copied()).collect();
    assert_eq!(found.len(), paths.len());
    for (path, found) in paths.iter().zip(&found) {
        match found {
            Ok(found) => {
                assert_eq!((*path, found.index), (good.as_path(), expected.index));
                assert!((found.probability - expected.probability).abs() < 1e-6);
            }
            Err(Error::Image { name, .. }) => {
                assert_eq!(
                    (*path, name.as_str()),
                    (broken.as_path(), broken.to_str().unwrap())
                );
            }
            Err(Error::Io { path: of, .. }) => {
                assert_eq!((*path, of), (missing.as_path(), &missing))
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(classifier.predict_all(Vec::<PathBuf>::new()).count(), 0);

    let error = classifier.predict(&broken).unwrap_err().to_string();
    assert!(error.contains("broken.jpg: not a JPEG"), "{error}");
    let error = classifier
        .predict(RgbImage::new(0, 7))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no pixels"), "{error}");
    let dot = classifier
        .predict(RgbImage::from_pixel(1, 1, image::Rgb([9, 99, 199])))
        .unwrap();
    assert!((dot.probabilities.iter().sum::<f64>() - 1.).abs() < 1e-12);
    let error = classifier.predict(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;
type Texts = HashMap<String, String>;

/// Returns the reason for which a file is refused after it was changed.
fn refusal(path: &Path, change: impl FnOnce(&mut Tensors, &mut Texts)) -> String {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut texts = header.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    let tensors =
        tensors.map(|(name, view)| (name.into(), view.shape().to_vec(), view.data().to_vec()));
    let mut tensors: Tensors = tensors.collect();
    change(&mut tensors, &mut texts);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    let changed = path.with_file_name("changed.safetensors");
    fs::write(
        &changed,
        safetensors::serialize(views, Some(texts)).unwrap(),
    )
    .unwrap();
    refused(&changed)
}

fn refused(path: &Path) -> String {
    match load(path).unwrap_err() {
        Error::ModelFile {
            path: named,
            reason,
        } => {
            assert_eq!(named, path);
            reason
        }
        error => panic!("{error}"),
    }
}

/// A field of the JSON, another value for it, and what the refusal says.
const REFUSED: &str = r#"
/version | 3 | version 3, and 1 or 2 is expected
/classes | ["cats", "dogs"] | names of the 3 classes that the head tells apart, got 2
/classes | [] | names of the 3 classes that the head tells apart, got 0
/classes | ["cats", "dogs", "cats"] | two classes are named cats
/classes | "cats" | expected a sequence
/loss | "binary_crossentropy" | shape [1] for BinaryCrossentropy
/loss | "hinge" | unknown variant `hinge`
/backbone/architecture | "ResNet50" | unknown variant `ResNet50`
/backbone/weights | "mine" | weights: expected tfhub, keras,
/backbone/weights | "resnet18" | an origin of mobilenetv2_0.35, got resnet18
/backbone | {"architecture": "EfficientNetLite", "variant": 3, "weights": "efficientnet_lite0"} | expected 0, 1 or 2, got 3
/backbone | {"architecture": "ResNet", "depth": 18, "weights": "resnet18"} | dense: expected shape [1280], got [512]
/backbone/alpha | 0.36 | MobileNetV2 alpha: expected one of
/backbone/alpha | 1.0 | Conv1/kernel: expected shape [32, 3, 3, 3], got [16, 3, 3, 3]
/input/size | 100 | multiples of 32
/input/size | 0 | multiples of 32
/input/size | 4000000000 | at most 4096 pixels to a side
/input/resize | "bicubic" | unknown variant `bicubic`
/input/resize | {"center_crop": {"shorter_side": 95, "filter": "bilinear"}} | a shorter side of 96 to 4096 pixels, got 95
/input/resize | {"center_crop": {"shorter_side": 128, "filter": "box"}} | unknown variant `box`
/input/std | [0, 1, 1] | are no scaling
/head/1/rate | 1.5 | Dropout, the rate
/head/2/inputs | 640 | dense: expected shape [640], got [1280]
/head/2/name | "other" | other/kernel is missing
/head/0/class_name | "Flatten" | unknown variant `Flatten`
/head | [] | SparseCategoricalCrossentropy, got [1280, 3, 3]
"#;

#[test]
fn a_file_that_does_not_fit_is_refused_with_what_was_expected() {
    let (_images, train) = set();
    let (_folder, path) = &saved(&model(), &train);
    let edited = |pointer: &str, value: &str| {
        refusal(path, |_, texts| {
            let mut info: Value = serde_json::from_str(&texts["model"]).unwrap();
            *info.pointer_mut(pointer).unwrap() = serde_json::from_str(value).unwrap();
            texts.insert("model".into(), info.to_string());
        })
    };
    for line in REFUSED.trim().lines() {
        let [pointer, value, reason] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let found = edited(pointer, value);
        assert!(found.contains(reason), "{line}: {found}");
    }
    let text = |text: &str| {
        refusal(path, |_, texts| {
            texts.insert("model".into(), text.into());
        })
    };
    for (json, reason) in [
        ("", "its text \"model\": EOF"),
        ("{", "its text \"model\": EOF"),
        ("{}", "missing field `version`"),
        (r#"{"version":1}"#, "missing field `classes`"),
        (r#"{"version":1,"classes":[]}"#, "missing field `input`"),
    ] {
        let found = text(json);
        assert!(found.contains(reason), "{json}: {found}");
    }
    let tensor = |change: fn(&mut Tensors)| refusal(path, |tensors, _| change(tensors));
    let missing = tensor(|tensors| tensors.retain(|(name, ..)| name != "bn_Conv1/beta"));
    assert_eq!(missing, "bn_Conv1/beta is missing");
    let other = tensor(|tensors| {
        let kernel = tensors.iter_mut().find(|(name, ..)| name == "dense/kernel");
        kernel.unwrap().1 = vec![1280, 3];
    });
    assert_eq!(
        other,
        "dense/kernel: expected shape [3, 1280], got [1280, 3]"
    );
    let more = tensor(|tensors| tensors.push(("dense_1/bias".into(), vec![1], vec![0; 4])));
    assert_eq!(more, "dense_1/bias does not belong to this network");
}

/// What the project's first release wrote for the model of `model`, all fields that a reader needs.
const FIRST_RELEASE: &str = r#"{"version":1,"classes":["cats","dogs","owls"],
"input":{"size":96,"resize":"bilinear","mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]},
"backbone":{"architecture":"MobileNetV2","alpha":0.35,"weights":"keras"},
"head":[{"class_name":"GlobalAveragePooling2D"},{"class_name":"Dropout","rate":0.2,"seed":5},
{"class_name":"Dense","name":"dense","inputs":1280,"units":3}],
"loss":"sparse_categorical_crossentropy",
"training":{"optimizer":{"name":"RMSprop","hyperparameters":{"learning_rate":0.0001}},
"examples":9,"batch_size":5,"seed":3,"augmented":false},"history":[]}"#;

#[test]
fn a_file_of_the_first_release_is_still_read_and_written_alike() {
    let (_images, train) = set();
    let (_folder, path) = saved(&model(), &train);
    let bytes = fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let written = &header.metadata().as_ref().unwrap()["model"];
    let [written, first]: [Value; 2] =
        [written, FIRST_RELEASE].map(|json| serde_json::from_str(json).unwrap());
    for field in ["version", "classes", "input", "backbone", "head", "loss"] {
        assert_eq!(written[field], first[field], "{field}");
    }
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let old = path.with_file_name("old.safetensors");
    let texts = HashMap::from([
        ("model".to_owned(), FIRST_RELEASE.to_owned()),
        ("pretrained weights".to_owned(), "keras".to_owned()),
    ]);
    fs::write(
        &old,
        safetensors::serialize(tensors.iter(), Some(texts)).unwrap(),
    )
    .unwrap();
    let expected = load(&path).unwrap().predict(picture(0, SIZE)).unwrap();
    let found = load(&old).unwrap().predict(picture(0, SIZE)).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn a_file_that_is_no_model_file_is_refused() {
    let (_images, train) = set();
    let (folder, path) = saved(&model(), &train);
    let other = folder.path().join("other");
    model().save_weights(&other).unwrap();
    let reason = refused(&other);
    assert!(
        reason.contains("it holds tensors, and not what they are the weights of"),
        "{reason}"
    );
    let whole = fs::read(&path).unwrap();
    for bytes in [
        b"".as_slice(),
        b"hello",
        &whole[..7],
        &whole[..5000],
        &whole[..whole.len() - 1],
    ] {
        fs::write(&other, bytes).unwrap();
        let reason = refused(&other);
        assert!(
            reason.contains("damaged safetensors file"),
            "{}: {reason}",
            bytes.len()
        );
    }
    let error = load(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_model_that_the_file_cannot_describe_is_not_saved() {
    let (pictures, train) = set();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let refusal = |model: &Sequential<Compiled>, batches: &Batches| {
        let error = model
            .save(&path, &TrainingRecord::new(batches))
            .unwrap_err();
        assert!(!path.exists());
        error.to_string()
    };
    let two_classes = small_set::pictures(&["cats", "dogs"], 2);
    let (two_classes, _) = batches(two_classes.path(), BrokenImages::Stop);
    let error = refusal(&model(), &two_classes);
    assert!(
        error.contains("examples of 3 classes, got 4 examples of 2"),
        "{error}"
    );

    let mut settings = support::settings::Settings::from_env().unwrap();
    settings.dataset = Some(pictures.path().to_str().unwrap().into());
    let dataset = support::dataset::ImageDataset::load(&settings).unwrap();
    let [raw, ..] = dataset.split([1, 0, 0]).unwrap();
    let none = raw.take(0).map(|image| Pixels::from(image)).batch(1);
    assert!(refusal(&model(), &none).contains("got 0 examples of 3 classes"));
    let scaled = |pixels: Pixels| pixels.scale(1. / 127.5).offset(-1.).resize(SIZE, SIZE);
    let unscaled = raw.map(|image| Pixels::from(image).resize(SIZE, SIZE));
    let larger = raw.map(|image| {
        Pixels::from(image)
            .scale(1. / 127.5)
            .offset(-1.)
            .resize(128, 128)
    });
    let filtered = raw.map(move |image| {
        let filter = image::imageops::FilterType::Triangle;
        scaled(Pixels::from(&image::imageops::resize(
            image, 128, 128, filter,
        )))
    });
    let panicking = raw.map(|_| -> Pixels { panic!("cropped away") });
    for (batches, reason) in [
        (unscaled, "made otherwise"),
        (larger, "made otherwise"),
        (filtered, "made otherwise"),
        (panicking, "cropped away"),
    ] {
        let error = refusal(&model(), &batches.batch(4));
        assert!(error.contains(reason), "{error}");
    }

    let oblong = Sequential::new(base([3, 96, 128]))
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 3))
        .compile(RmsProp::new(1e-4), Loss::SparseCategoricalCrossentropy)
        .unwrap();
    let error = refusal(&oblong, &train);
    assert!(error.contains("as high as wide, got 96 x 128"), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_behind() {
    let (_images, train) = set();
    let (folder, path) = saved(&model(), &train);
    let before = fs::read(&path).unwrap();
    let record = TrainingRecord::new(&train);
    let error = model()
        .save(folder.path().join("none/model"), &record)
        .unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
    // A folder stands where the file should.
    let error = model().save(folder.path(), &record).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["model.safetensors"]);
    assert!(fs::read(&path).unwrap() == before);
    assert!(
        !folder
            .path()
            .parent()
            .unwrap()
            .join("model.safetensors")
            .exists()
    );
}

#[test]
fn a_network_is_written_as_onnx_whole_or_not_at_all() {
    let (_images, train) = set();
    let (folder, path) = saved(&model(), &train);
    let onnx = folder.path().join("model.onnx");
    let classifier = load(&path).unwrap();
    classifier.save_onnx(&onnx).unwrap();
    let written = fs::read(&onnx).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let error = classifier.save_onnx(folder.path().join("none/model.onnx"));
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("cannot create "), "{error}");

    let to_onnx = |words: &[&Path]| example("to_onnx", words);
    let again = folder.path().join("again.onnx");
    let (code, out, err) = to_onnx(&[&path, &again]);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""));
    assert!(fs::read(&again).unwrap() == written);
    let (code, _, err) = to_onnx(&[&onnx, &again]);
    assert_eq!(code, Some(1));
    assert!(err.starts_with("model file "), "{err}");
    let (code, _, err) = to_onnx(&[&path]);
    assert_eq!(code, Some(2));
    assert!(err.contains("usage: to_onnx MODEL ONNX"), "{err}");
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn an_exported_model_has_the_logits_of_keras_and_tells_classes_and_input_in_onnx_runtime() {
    let (folder, model) = (pictures(&CLASSES, 6), model());
    let (train, calibration) = calibrated(&model, &folder);
    let saved = tempfile::tempdir().unwrap();
    let path = |extension: &str| saved.path().join("model").with_extension(extension);
    let record = TrainingRecord::new(&train).calibration(&calibration);
    model.save(path("safetensors"), &record).unwrap();
    let classifier = load(&path("safetensors")).unwrap();
    classifier.save_onnx(path("onnx")).unwrap();
    images().contiguous().write_npy(path("npy")).unwrap();

    let python = std::env::var_os("TRANSFER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/reference/onnx_logits.py"
    );
    let mut command = Command::new(python);
    command.args([script, "onnxruntime"]).arg(saved.path());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let read = &read["model"];
    let expected = &tensors("model_file.safetensors")["logits"];
    for (key, count) in [("of_one", 1), ("of_all", 3)] {
        let logits: Vec<[f32; 3]> = serde_json::from_value(read[key].clone()).unwrap();
        let logits = Tensor::from_slice2(&logits);
        assert_close(key, &logits, &expected.narrow(0, 0, count), 1e-4);
    }
    assert_eq!(read["inputs"], json!({"image": ["batch", 3, 96, 96]}));
    assert_eq!(read["outputs"], json!({"logits": ["batch", 3]}));
    let info: Value = serde_json::from_str(read["metadata"]["model"].as_str().unwrap()).unwrap();
    assert_eq!(info["classes"], json!(CLASSES));
    let scaling =
        json!({"size": 96, "resize": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]});
    assert_eq!(info["input"], scaling);
    assert_eq!(info["loss"], "sparse_categorical_crossentropy");
    let temperature = &info["calibration"]["temperature"];
    assert_eq!(temperature, &json!(calibration.temperature()));
}

/// Runs an example; returns its exit code, and what it prints on both channels.
fn example(name: &str, words: &[&Path]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "-p", "support", "--example", name]);
    let output = command.arg("--").args(words).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code(), out, err)
}

#[test]
fn the_command_line_prints_a_table_or_json_and_names_what_it_cannot_read() {
    let (folder, train) = set();
    let (_saved, path) = saved(&model(), &train);
    let broken = folder.path().join("broken.jpg");
    fs::write(&broken, b"not a picture").unwrap();
    let classify = |words: &[&Path]| example("classify", words);
    let dogs = folder.path().join("train/dogs");
    let cat = folder.path().join("train/cats/1.png");
    let (model, cat) = (path.as_path(), cat.as_path());
    let (code, out, err) = classify(&[model, cat, &dogs]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(
        lines[0].starts_with(cat.to_str().unwrap()) && lines[3].contains("dogs/2.png"),
        "{out}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line.ends_with(" %") && line.len() == lines[0].len()),
        "{out}"
    );

    let (code, out, err) = classify(&["--json".as_ref(), model, &broken, cat]);
    assert_eq!(code, Some(1));
    assert!(
        err.starts_with(&format!("{}: not a JPEG", broken.display())),
        "{err}"
    );
    let found: Value = serde_json::from_str(&out).unwrap();
    let expected = load(&path).unwrap().predict(cat).unwrap();
    assert_eq!(found["path"], cat.to_str().unwrap());
    assert_eq!(found["class"], expected.class);
    let close = |found: &Value, expected: f64| (found.as_f64().unwrap() - expected).abs() < 1e-6;
    assert!(close(&found["probability"], expected.probability), "{out}");
    assert!(
        close(&found["probabilities"]["owls"], expected.probabilities[2]),
        "{out}"
    );

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let (code, out, err) = classify(&[model, &empty]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        err,
        format!("{}: there is no image in it\n", empty.display())
    );

    for (words, code) in [
        (&[][..], 2),
        (&[model], 2),
        (&["--x".as_ref(), model, cat], 2),
        (&[cat, cat], 1),
    ] {
        let (found, out, err) = classify(words);
        assert_eq!((found, out.as_str()), (Some(code), ""), "{err}");
        assert_eq!(err.contains("usage: classify"), code == 2, "{err}");
    }
}

#[test]
#[ignore = "needs TensorFlow"]
fn the_script_makes_a_keras_model_of_the_same_logits_in_tensorflow() {
    let (_images, train) = set();
    let (folder, path) = saved(&model(), &train);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/to_keras.py");
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args([&path, &folder.path().join("model.keras")]);
    let classifier = load(&path).unwrap();
    let mut expected = Vec::new();
    for n in 0..3 {
        // Pixels as they are, and one to be resized.
        let file = folder.path().join(format!("{n}.png"));
        picture(n, if n == 2 { 131 } else { SIZE })
            .save(&file)
            .unwrap();
        expected.push(classifier.predict(&file).unwrap());
        command.arg(file);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = text.lines().filter(|line| line.starts_with('['));
    let found: Vec<f32> = lines
        .flat_map(|line| serde_json::from_str::<Vec<f32>>(line).unwrap())
        .collect();
    let found = Tensor::from_slice(&found).reshape([3, 3]);
    assert_close("logits", &found, &logits(&expected), 1e-4);
}

/// A model's calibration on the set's images, all of which are accepted.
fn calibrated(model: &Sequential<Compiled>, folder: &TempDir) -> (Batches, Calibration) {
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let calibration = model.calibrate(&train, &validation).unwrap();
    (train, calibration.accept(1.).unwrap())
}

#[test]
fn a_calibrated_model_divides_its_logits_and_knows_images_unlike_its_own() {
    let (folder, model) = (pictures(&CLASSES, 6), model());
    let (train, calibration) = calibrated(&model, &folder);
    let temperature = calibration.temperature();
    assert!((temperature - 1.).abs() > 0.05, "{temperature}");
    assert!(calibration.after().loss < calibration.before().loss);
    assert_eq!(calibration.show().unwrap().dimensions(), (600, 600));
    let saved = tempfile::tempdir().unwrap();
    let path = saved.path().join("model.safetensors");
    let record = TrainingRecord::new(&train).calibration(&calibration);
    model.save(&path, &record).unwrap();

    let classifier = load(&path).unwrap();
    let validation = images_in(&folder.path().join("validation")).unwrap();
    let found: Vec<Classification> = classifier
        .predict_all(&validation)
        .collect::<Result<_>>()
        .unwrap();
    let scaled = logits(&found) / temperature;
    let expected = scaled.softmax(1, None);
    for (row, found) in (0..).zip(&found) {
        let probabilities = Tensor::from_slice(&found.probabilities);
        assert_close("probabilities", &probabilities, &expected.get(row), 1e-5);
        // Batches of another size round otherwise.
        assert!(found.novelty.unwrap() < 1. + 1e-3, "{found:?}");
    }
    for color in [[0; 3], [255; 3], [255, 0, 255]] {
        let stranger = RgbImage::from_pixel(SIZE, SIZE, image::Rgb(color));
        let stranger = classifier.predict(stranger).unwrap();
        assert!(stranger.is_unlike(), "{stranger:?}");
        let class = &stranger.class;
        let expected = format!("unlike anything it was trained on (most like {class})");
        assert_eq!(stranger.to_string(), expected);
    }

    let mut other = self::model();
    other.load_weights(&path).unwrap();
    let expected = model.forward(&images()).unwrap();
    assert_close("logits", &other.forward(&images()).unwrap(), &expected, 0.);
}

#[test]
fn a_calibration_that_does_not_fit_is_refused() {
    let (folder, mut model) = (pictures(&CLASSES, 3), model());
    let (train, calibration) = calibrated(&model, &folder);
    let saved = tempfile::tempdir().unwrap();
    let path = &saved.path().join("model.safetensors");
    let record = TrainingRecord::new(&train).calibration(&calibration);
    model.save(path, &record).unwrap();
    let tensor = |change: fn(&mut Tensors)| refusal(path, |tensors, _| change(tensors));
    let missing = tensor(|tensors| tensors.retain(|(name, ..)| name != "novelty/means"));
    assert_eq!(missing, "novelty/means is missing");
    let other = tensor(|tensors| {
        let means = tensors
            .iter_mut()
            .find(|(name, ..)| name == "novelty/means");
        means.unwrap().1 = vec![1280, 3];
    });
    assert_eq!(
        other,
        "novelty/means: expected shape [1280, 1280], got [1280, 3]"
    );
    for (field, value, expected) in [
        (
            "/calibration/temperature",
            "0",
            "expected a temperature above 0, got 0",
        ),
        (
            "/calibration/novelty/threshold",
            "-1",
            "expected a novelty threshold above 0, got -1",
        ),
        ("/version", "3", "it has version 3, and 1 or 2 is expected"),
    ] {
        let found = refusal(path, |_, texts| {
            let mut info: Value = serde_json::from_str(&texts["model"]).unwrap();
            assert_eq!(info["version"], 2);
            *info.pointer_mut(field).unwrap() = serde_json::from_str(value).unwrap();
            texts.insert("model".into(), info.to_string());
        });
        assert!(found.contains(expected), "{found}");
    }
    model.fit(&train, Fit::epochs(1)).unwrap();
    let error = model.save(path, &record).unwrap_err().to_string();
    assert!(error.contains("calibrate after the training"), "{error}");
    for share in [0., 1.5, f64::NAN] {
        let error = calibration.clone().accept(share).unwrap_err().to_string();
        assert!(error.contains("above 0 and at most 1"), "{error}");
    }
}
