//! What a checkpoint says about its run: all that, besides the weights and the optimizer's state,
//! decides how the run goes on.
//!
//! The names of the fields are those of its JSON, in users' files.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::loss::LossOptions;
use super::optimizer::OptimizerConfig;
use super::{Compiled, EarlyStopping, Fit, Loss, Schedule, WeightAverage};
use crate::Result;
use crate::assets::hash;
use crate::model::{HeadLayer, Sequential, Weights};
use crate::pipeline::{Augmentation, Batches, noise};
use crate::precision::Precision;

/// A run: a checkpoint goes on only with the run it is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunRecord {
    backbone: BackboneRecord,
    /// Absent where it is that of 32-bit floats.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    precision: Precision,
    head: Vec<HeadLayer>,
    /// The names of the variables that are trained.
    trainable_variables: Vec<String>,
    loss: Loss,
    /// Absent where there are none.
    #[serde(default, skip_serializing_if = "LossOptions::is_default")]
    loss_options: LossOptions,
    optimizer: OptimizerConfig,
    pub(super) initial_epoch: usize,
    early_stopping: Option<EarlyStopping>,
    #[serde(default, skip_serializing_if = "Schedule::is_constant")]
    schedule: Schedule,
    /// The number of epochs, where the schedule depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule_epochs: Option<usize>,
    /// Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight_average: Option<WeightAverage>,
    training: DataRecord,
    validation: Option<DataRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackboneRecord {
    name: String,
    weights: Weights,
    /// `[channels, height, width]` of the images.
    input_shape: [i64; 3],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataRecord {
    classes: Vec<String>,
    examples: usize,
    /// Of their ids and labels, in order.
    examples_digest: String,
    /// Of what the function given to `map` makes of an image of noise.
    map_digest: String,
    augmentation: Option<Augmentation>,
    batch_size: usize,
    seed: u64,
    shuffle_buffer: usize,
    /// Absent from files of before there were several.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    shards: usize,
    /// Absent where each example comes once in an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampler: Option<SamplerRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplerRecord {
    draws: usize,
    /// Of the weights as 64-bit floats, in the examples' order.
    weights_digest: String,
}

fn one() -> usize {
    1
}

fn is_one(shards: &usize) -> bool {
    *shards == 1
}

impl RunRecord {
    /// Describes the run of a `fit` on some batches.
    ///
    /// # Errors
    /// `Image` when the function given to `map` panics on an image of noise.
    pub(super) fn of(
        model: &Sequential<Compiled>,
        training: &Batches,
        fit: &Fit<'_>,
    ) -> Result<Self> {
        let base = model.base();
        let names = model.trainable_variables().into_iter();
        Ok(Self {
            backbone: BackboneRecord {
                name: base.name(),
                weights: base.weights(),
                input_shape: base.input_shape(),
            },
            precision: base.precision(),
            head: model.top().cloned().collect(),
            trainable_variables: names.map(|variable| variable.name().into()).collect(),
            loss: model.compiled.loss(),
            loss_options: model.compiled.objective.options().clone(),
            optimizer: model.compiled.optimizer.config(),
            initial_epoch: fit.initial_epoch,
            early_stopping: fit.early_stopping,
            schedule: fit.schedule.clone(),
            schedule_epochs: fit.schedule.depends_on_end().then_some(fit.epochs),
            weight_average: fit.weight_average,
            training: DataRecord::of(training)?,
            validation: fit.validation.map(DataRecord::of).transpose()?,
        })
    }

    /// Returns the first field in which a saved run is another one, and both values, in words; none
    /// where it is this one.
    pub(super) fn difference(&self, saved: &Self) -> Result<Option<String>, serde_json::Error> {
        let [now, then] = [self, saved].map(serde_json::to_value);
        let difference = difference(&now?, &then?);
        Ok(difference.map(|Difference { path, now, then }| {
            format!("{path} {then} where this one has {now}")
        }))
    }
}

/// A value that two have at the same place, each its own.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    /// The place, in words.
    pub(super) path: String,
    pub(super) now: String,
    pub(super) then: String,
}

/// Returns the first value in which two differ.
pub(super) fn difference(now: &Value, then: &Value) -> Option<Difference> {
    let within = |key: &str, now: Option<&Value>, then: Option<&Value>| {
        let [now, then] = [now, then].map(|value| value.unwrap_or(&Value::Null));
        let mut found = difference(now, then)?;
        let path = format!("{} {}", key.replace('_', " "), found.path);
        found.path = path.trim_end().to_owned();
        Some(found)
    };
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            let mut keys: Vec<_> = now.keys().chain(then.keys()).collect();
            // What changes a digest is better told by another field.
            keys.sort_by_key(|key| key.ends_with("_digest"));
            let mut keys = keys.into_iter();
            keys.find_map(|key| within(key, now.get(key), then.get(key)))
        }
        (Value::Array(now), Value::Array(then)) => {
            let mut places = 0..now.len().max(then.len());
            places.find_map(|at| within(&(at + 1).to_string(), now.get(at), then.get(at)))
        }
        _ if now == then => None,
        _ => {
            let [now, then] = [now, then].map(|value| match value {
                Value::Null => "none".into(),
                Value::Object(_) | Value::Array(_) => "some".into(),
                value => value.to_string(),
            });
            let path = String::new();
            Some(Difference { path, now, then })
        }
    }
}

impl DataRecord {
    fn of(batches: &Batches) -> Result<Self> {
        let made = batches.format(noise())?;
        let (width, height) = made.dimensions();
        let values = made.into_values().into_iter().flat_map(f32::to_le_bytes);
        let sides = [width, height].into_iter().flat_map(u32::to_le_bytes);
        Ok(Self {
            classes: batches.classes().to_vec(),
            examples: batches.examples(),
            examples_digest: batches.examples_digest(),
            map_digest: hash(&sides.chain(values).collect::<Vec<u8>>()),
            augmentation: batches.augmentation().cloned(),
            batch_size: batches.size(),
            seed: batches.seed(),
            shuffle_buffer: batches.shuffle_buffer(),
            shards: batches.shards(),
            sampler: batches.sampler().map(|sampler| SamplerRecord {
                draws: sampler.draws(),
                weights_digest: sampler.weights_digest(),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use serde_json::json;
    use tch::Device;

    use super::*;
    use crate::dataset::Example;
    use crate::model::{Backbone, Dense, Dropout, GlobalAveragePooling2d};
    use crate::pipeline::{Dataset, Pixels};
    use crate::settings::BrokenImages;
    use crate::training::{CosineDecay, Monitor, OneCycle, ReduceOnPlateau, RmsProp};

    /// What the checkpoint of a run with all kinds of parts says.
    fn record() -> RunRecord {
        let mut base = Backbone::untrained([3, 64, 96], Device::Cpu).unwrap();
        base.set_trainable(false);
        let model = Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.25).seed(3))
            .push(Dense::new(1280, 1))
            .compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)
            .unwrap();
        let examples = [("a", 0), ("b", 1)]
            .map(|(id, label)| Example::at_path(id.into(), label, std::path::Path::new(id)));
        let classes = ["cats", "dogs"].map(str::to_owned).to_vec();
        let dataset = Dataset::new(examples.into(), classes, 7, BrokenImages::Stop)
            .map(|_: &RgbImage| Pixels::from(&RgbImage::new(2, 1)));
        let augmentation = Augmentation::new()
            .random_flip_horizontal()
            .random_rotation(0.5)
            .color_jitter(0.1, 0.2, 0.3);
        let training = dataset.augment(augmentation).unwrap().shuffle(9).batch(2);
        let validation = dataset.take(1).batch(4);
        let rule = EarlyStopping::new()
            .monitor(Monitor::ValAccuracy)
            .patience(3)
            .min_delta(0.5);
        let fit = Fit::epochs(9)
            .initial_epoch(2)
            .validation(&validation)
            .early_stopping(rule);
        RunRecord::of(&model, &training, &fit).unwrap()
    }

    #[test]
    fn what_a_checkpoint_says_about_its_run_is_this_json() {
        // Users have files like this: what changes it needs another version.
        let expected = json!({
            "backbone": {
                "name": "mobilenetv2_1.00_64",
                "weights": "tfhub",
                "input_shape": [3, 64, 96],
            },
            "head": [
                {"class_name": "GlobalAveragePooling2D"},
                {"class_name": "Dropout", "rate": 0.25, "seed": 3},
                {"class_name": "Dense", "name": "dense", "inputs": 1280, "units": 1},
            ],
            "trainable_variables": ["dense/kernel", "dense/bias"],
            "loss": "binary_crossentropy",
            "optimizer": {
                "name": "RMSprop",
                "learning_rate": 1e-4,
                "rho": 0.9,
                "epsilon": 1e-7,
            },
            "initial_epoch": 2,
            "early_stopping": {
                "monitor": "val_accuracy",
                "patience": 3,
                "min_delta": 0.5,
                "restore_best_weights": false,
            },
            "training": {
                "classes": ["cats", "dogs"],
                "examples": 2,
                // Of `"a" 0` and `"b" 1`, each with a newline.
                "examples_digest": "e5990813ec41fb882515b98e89cf3477621341b1cde933c1b96fb079ccefec26",
                // Of 2 and 1, in four bytes each, and six zeros in four bytes each.
                "map_digest": "e19955f5a4db80dc8059babf280ab45fc5c7933e6d06838552c4d90d39a2c33d",
                "augmentation": [
                    "flip_horizontal",
                    {"rotation": 0.5},
                    {"color_jitter": [0.1, 0.2, 0.3]},
                ],
                "batch_size": 2,
                "seed": 7,
                "shuffle_buffer": 9,
            },
            "validation": {
                "classes": ["cats", "dogs"],
                "examples": 1,
                "examples_digest": "0586ca90e6782704b6c375329e68f1a8744d3813f16a836a5749f5a4f12a5861",
                "map_digest": "e19955f5a4db80dc8059babf280ab45fc5c7933e6d06838552c4d90d39a2c33d",
                "augmentation": null,
                "batch_size": 4,
                "seed": 7,
                "shuffle_buffer": 1,
            },
        });
        let record = record();
        assert_eq!(serde_json::to_value(&record).unwrap(), expected);
        let read: RunRecord = serde_json::from_value(expected).unwrap();
        assert_eq!(read, record);
    }

    #[test]
    fn a_schedule_stands_in_a_checkpoint_with_all_that_decides_the_rate() {
        let json = |schedule: Schedule| {
            let epochs = schedule.depends_on_end().then_some(9);
            let record = RunRecord {
                schedule,
                schedule_epochs: epochs,
                ..record()
            };
            let json = serde_json::to_value(&record).unwrap();
            let read: RunRecord = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(read, record);
            [&json["schedule"], &json["schedule_epochs"]].map(Value::clone)
        };
        assert_eq!(
            json(OneCycle::new().into()),
            [
                json!({"name": "one_cycle", "pct_start": 0.25, "div_start": 25., "div_final": 1e5}),
                json!(9)
            ]
        );
        assert_eq!(
            json(CosineDecay::new().warmup(0.1).into()),
            [
                json!({"name": "cosine_decay", "warmup": 0.1, "end": 0.}),
                json!(9)
            ]
        );
        let plateau = json!({
            "name": "reduce_on_plateau", "monitor": "val_loss", "factor": 0.1, "patience": 10,
            "min_delta": 1e-4, "cooldown": 0, "min_lr": 0.,
        });
        assert_eq!(json(ReduceOnPlateau::new().into()), [plateau, Value::Null]);
    }

    #[test]
    fn how_examples_are_drawn_is_a_part_of_the_run() {
        let dataset = |weights: [f64; 2]| {
            let example = |label: usize| Example::at_path(label.to_string(), label, "x".as_ref());
            let classes = ["cats", "dogs"].map(str::to_owned).to_vec();
            let examples = [0, 1].map(example).to_vec();
            Dataset::new(examples, classes, 7, BrokenImages::Stop)
                .map(|_: &RgbImage| Pixels::from(&RgbImage::new(2, 1)))
                .sample_weighted(&weights, 5)
                .unwrap()
        };
        let record = |weights| DataRecord::of(&dataset(weights).batch(2)).unwrap();
        let json = serde_json::to_value(record([1., 3.])).unwrap();
        // Python: sha256(struct.pack("<2d", 1, 3)).hexdigest()
        let digest = "df05c72cdcfe99ccd882da2c3bc3baa09f168f62109ccac2298e4a99a086828f";
        assert_eq!(
            json["sampler"],
            json!({"draws": 5, "weights_digest": digest})
        );
        let read: DataRecord = serde_json::from_value(json).unwrap();
        assert_eq!(read, record([1., 3.]));
        assert_ne!(read, record([1., 2.]));
    }

    #[test]
    fn options_that_are_not_there_by_default_are_told_and_come_back() {
        let mut with_options = record();
        let objective = Loss::BinaryCrossentropy.label_smoothing(0.1);
        let objective = objective.class_weights(&[0.5, 2.]);
        with_options.loss_options = objective.options().clone();
        with_options.weight_average = Some(WeightAverage::ema(0.75));
        let json = serde_json::to_value(&with_options).unwrap();
        let expected = json!({"label_smoothing": 0.1, "class_weights": [0.5, 2.]});
        assert_eq!(json["loss_options"], expected);
        assert_eq!(json["weight_average"], json!({"decay": 0.75}));
        let read: RunRecord = serde_json::from_value(json).unwrap();
        assert_eq!(read, with_options);
        let told = with_options.difference(&record()).unwrap().unwrap();
        assert_eq!(told, "loss options none where this one has some");
    }

    #[test]
    fn the_first_difference_between_two_runs_is_told_by_its_path() {
        let difference = |now, then| difference(&now, &then);
        assert_eq!(difference(json!({"a": [1, 2]}), json!({"a": [1, 2]})), None);
        for (now, then, [path, there, here]) in [
            (
                json!({"a": 1, "batch_size": 32}),
                json!({"a": 1, "batch_size": 8}),
                ["batch size", "8", "32"],
            ),
            (
                json!({"examples_digest": "x", "seed": 1}),
                json!({"examples_digest": "y", "seed": 2}),
                ["seed", "2", "1"],
            ),
            (
                json!({"a": ["x", {"b": true}]}),
                json!({"a": ["x", {"b": false}, 3]}),
                ["a 2 b", "false", "true"],
            ),
            (
                json!({"a": [1]}),
                json!({"a": [1, 2]}),
                ["a 2", "2", "none"],
            ),
            (
                json!({"a": {"b": 1}}),
                json!({"a": null}),
                ["a", "none", "some"],
            ),
        ] {
            let found = difference(now, then).unwrap();
            assert_eq!([found.path, found.then, found.now], [path, there, here]);
        }
    }
}
