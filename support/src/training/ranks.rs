//! What the ranks of a process group have in common before they train together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;

use super::callbacks::BestEpoch;
use super::record::{RunRecord, difference};
use super::state::TrainedWeights;
use super::{Compiled, Fit, History, Metric};
use crate::distributed::ProcessGroup;
use crate::model::Sequential;
use crate::{Error, Result};

/// What rank 0 knows of the run, besides tensors.
#[derive(Serialize, Deserialize)]
struct State {
    history: History,
    /// What the optimizer has a state of, as `slot/variable`.
    optimizer: Vec<String>,
    optimizer_steps: u64,
    /// The best epoch, if its weights are to be restored.
    best: Option<usize>,
    /// Whether the model has an average of the weights that training goes on from.
    is_average: bool,
}

/// Checks that all ranks were asked for the same run.
///
/// # Errors
/// `Distributed` tells the first difference.
pub(super) fn agree(
    group: &ProcessGroup,
    run: &RunRecord,
    fit: &Fit<'_>,
    metrics: &[Metric],
) -> Result<()> {
    let no_json = |error: serde_json::Error| group.mismatch("fit", error.to_string());
    let mut own = serde_json::to_value(run).map_err(no_json)?;
    own["epochs"] = fit.epochs.into();
    own["stored activations"] = fit.cache_activations.into();
    own["callbacks"] = fit.callbacks.len().into();
    own["metrics"] = metrics.iter().map(Metric::to_string).collect();
    let runs = group.gather_texts(&own.to_string())?;
    let runs: Result<Vec<Value>, _> = runs.iter().map(|run| serde_json::from_str(run)).collect();
    let runs = runs.map_err(no_json)?;
    let mut ranks = runs.iter().enumerate().skip(1);
    let found = ranks.find_map(|(rank, run)| Some((rank, difference(&runs[0], run)?)));
    found.map_or(Ok(()), |(rank, found)| {
        let (path, first, other) = (found.path, found.now, found.then);
        let reason = match path.strip_suffix(" digest") {
            Some(what) => format!("not the same {what} on rank {rank} as on rank 0"),
            None => format!("{path}: {other} on rank {rank}, {first} on rank 0"),
        };
        Err(group.mismatch("fit", reason))
    })
}

impl Sequential<Compiled> {
    /// Gives all ranks rank 0's weights, optimizer's state and history, and returns its best epoch.
    pub(super) fn take_over(
        &mut self,
        group: &ProcessGroup,
        best: Option<BestEpoch>,
    ) -> Result<Option<BestEpoch>> {
        if group.size() == 1 {
            return Ok(best);
        }
        let optimizer = &self.compiled.optimizer;
        let state = State {
            history: self.history().clone(),
            optimizer: optimizer.state().map(|(name, _)| name.into()).collect(),
            optimizer_steps: optimizer.steps(),
            best: best.as_ref().map(|(epoch, _)| *epoch),
            is_average: self.compiled.trained.is_some(),
        };
        let no_json = |error: serde_json::Error| group.mismatch("fit", error.to_string());
        let state = serde_json::to_string(&state).map_err(no_json)?;
        let states = group.gather_texts(&state)?;
        let first = states.first().map_or("", String::as_str);
        let state: State = serde_json::from_str(first).map_err(no_json)?;
        for variable in self.variables_mut() {
            let value = group.broadcast(variable.value())?;
            variable.assign(&value)?;
        }
        let mut optimizer = BTreeMap::new();
        for name in state.optimizer {
            let mut known = self.compiled.optimizer.state();
            let value = match known.find(|(known, _)| *known == name) {
                Some((_, value)) => value.shallow_clone(),
                None => self.zeros_like(&name)?,
            };
            optimizer.insert(name, group.broadcast(&value)?);
        }
        let steps = state.optimizer_steps;
        self.compiled.optimizer.set_state(optimizer, steps);
        self.compiled.history = state.history;
        if state.is_average {
            let trained = match self.compiled.trained.take() {
                Some(trained) => trained,
                None => TrainedWeights::of(self)?,
            };
            self.compiled.trained = Some(trained.broadcast(group)?);
        }
        let Some(epoch) = state.best else {
            return Ok(None);
        };
        let weights = match best {
            Some((_, weights)) => weights,
            None => TrainedWeights::of(self)?,
        };
        Ok(Some((epoch, weights.broadcast(group)?)))
    }

    /// Returns zeros in the shape of the variable in `slot/variable`.
    fn zeros_like(&self, name: &str) -> Result<Tensor> {
        let name = name.split_once('/').map_or(name, |(_, variable)| variable);
        let variable = self.variables().find(|variable| variable.name() == name);
        let variable = variable.ok_or_else(|| Error::Argument {
            name: "fit, the model",
            expected: "the same variables on all ranks".into(),
            got: format!("none named {name} here"),
        })?;
        let zeros = variable.value().detach().f_zeros_like();
        zeros.map_err(Error::torch("the optimizer's state"))
    }
}

#[cfg(test)]
pub(in crate::training) mod tests {
    use std::path::Path;
    use std::sync::OnceLock;

    use image::RgbImage;
    use tch::Device;

    use crate::dataset::ImageDataset;
    use crate::distributed::tests::on_ranks;
    use crate::model::tests::network;
    use crate::model::{
        Architecture, Backbone, Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, SetTrainable,
        Weights,
    };
    use crate::pipeline::{Augmentation, Batches, Pixels};
    use crate::settings::{BrokenImages, Limit, Settings};
    use crate::training::{
        AdamW, EarlyStopping, Evaluation, LearningRateFinder, Loss, OneCycle,
        OptimizerOptions as _, RmsProp, Sgd, TestTimeAugmentation, WeightAverage,
    };

    use super::*;

    /// So many shards have the same order for 1, 2 and 4 ranks.
    const SHARDS: usize = 4;
    pub(in crate::training) const EPOCHS: usize = 3;

    /// A folder of 37 images for training and 11 for validation, of which some are broken.
    pub(in crate::training) fn images() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (part, count) in [("train", 37), ("validation", 11)] {
            for number in 0..count {
                let class = ["cats", "dogs"][number % 2];
                let place = folder.path().join(part).join(class);
                std::fs::create_dir_all(&place).unwrap();
                let path = place.join(format!("{number}.png"));
                if number % 9 == 4 {
                    std::fs::write(path, b"broken").unwrap();
                    continue;
                }
                let image = RgbImage::from_fn(32, 32, |x, y| {
                    let value = (x * 7 + y * 13 + number as u32 * 29) % 256;
                    image::Rgb([value as u8, (200 * (number % 2)) as u8, 99])
                });
                image.save(path).unwrap();
            }
        }
        folder
    }

    fn settings(folder: &Path, group: &ProcessGroup) -> Settings {
        let mut settings = Settings::from_lookup(|_| None).unwrap();
        settings.dataset = Some(folder.to_str().unwrap().into());
        settings.limit = Limit::All;
        // Has parts of 1 and 2 of the four shards.
        settings.batch_size = 6;
        settings.group = group.clone();
        settings
    }

    fn batches_of(settings: &Settings, augmentation: Augmentation) -> Result<[Batches; 2]> {
        let dataset = ImageDataset::load(settings)?;
        let [train, validation, _] = dataset.split([8, 1, 1])?;
        let format = |image: &RgbImage| Pixels::from(image).scale(1. / 127.5).offset(-1.);
        let train = train.map(format).augment(augmentation)?;
        let size = settings.batch_size;
        Ok([
            train.shuffle(16).batch(size).sharded(SHARDS),
            validation.map(format).batch(size).sharded(SHARDS),
        ])
    }

    pub(in crate::training) fn batches(
        folder: &Path,
        group: &ProcessGroup,
        augmentation: Augmentation,
    ) -> [Batches; 2] {
        batches_of(&settings(folder, group), augmentation).unwrap()
    }

    /// A small network whose features tell the images apart.
    const NETWORK: (Architecture, Weights, [i64; 3]) = (
        Architecture::MobileNetV2(MobileNetV2 { alpha: 0.35 }),
        MobileNetV2::KERAS,
        [3, 32, 32],
    );

    /// The values of its variables.
    fn values() -> &'static [Vec<f32>] {
        static VALUES: OnceLock<Vec<Vec<f32>>> = OnceLock::new();
        VALUES.get_or_init(|| {
            let network = network(NETWORK);
            let values = network
                .variables()
                .map(|variable| variable.value().reshape([-1]));
            values
                .map(|values| Vec::try_from(values).unwrap())
                .collect()
        })
    }

    /// A model with something frozen and something random.
    pub(in crate::training) fn model(seed: u64, rate: f64) -> Sequential<Compiled> {
        let (architecture, weights, shape) = NETWORK;
        let mut base = Backbone::frame(architecture, weights, shape, Device::Cpu).unwrap();
        for (variable, values) in base.variables_mut().zip(values()) {
            let shape = variable.value().size();
            variable
                .assign(&Tensor::from_slice(values).view(&shape[..]))
                .unwrap();
        }
        base.layers_mut()[..140].set_trainable(false);
        Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.2))
            .push(Dense::new(1280, 1).seed(seed))
            .compile(RmsProp::new(rate), Loss::BinaryCrossentropy)
            .unwrap()
    }

    fn numbers(history: &History) -> Vec<f64> {
        let epochs = history.epochs.iter();
        epochs
            .flat_map(|epoch| {
                let validation = [epoch.val_loss.unwrap(), epoch.val_accuracy.unwrap()];
                let measured = [epoch.loss, epoch.accuracy].into_iter().chain(validation);
                measured.chain(epoch.metrics.values().copied())
            })
            .collect()
    }

    #[track_caller]
    fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (actual, expected) in actual.iter().zip(expected) {
            let off = (actual - expected).abs() / expected.abs().max(1.);
            assert!(off < 1e-4, "{what}: {actual} for {expected}");
        }
    }

    #[test]
    fn any_number_of_ranks_has_the_history_of_one_process() {
        let folder = images();
        let augmentation = || {
            Augmentation::new()
                .random_flip_horizontal()
                .random_rotation(0.1)
        };
        for (what, augmentation, stored) in [
            ("stored activations", Augmentation::new(), true),
            ("computed anew", Augmentation::new(), false),
            ("augmented", augmentation(), true),
            ("mixed", augmentation().mix_up(0.4).cut_mix(1.), true),
        ] {
            let run = |ranks| {
                on_ranks(ranks, |group| {
                    let [train, validation] = batches(folder.path(), &group, augmentation.clone());
                    // The others' initial weights are not used.
                    let model = model(group.rank() as u64, 1e-4);
                    let mut model = model.metrics([Metric::Auc, Metric::F1]).unwrap();
                    let mut calls = 0;
                    let fit = Fit::epochs(EPOCHS).validation(&validation);
                    let fit = fit.on_epoch_end(|_| {
                        calls += 1;
                        Ok(())
                    });
                    let fit = fit.cache_activations(stored).early_stopping(
                        EarlyStopping::new().patience(2).restore_best_weights(true),
                    );
                    let history = model.fit(&train, fit).unwrap();
                    assert_eq!(calls, if group.is_main() { EPOCHS } else { 0 });
                    let evaluation = model.evaluate(&train).unwrap();
                    let skipped = train.skipped();
                    // The updates would hardly tell gradients that are too large by a factor.
                    let squares = model.compiled.optimizer.state();
                    let squares = squares.map(|(_, value)| value.sum(None).double_value(&[]));
                    let squares = squares.sum::<f64>();
                    (numbers(&history), evaluation, skipped, squares)
                })
            };
            let [(alone, evaluation, skipped, squares)] = &run(1)[..] else {
                unreachable!();
            };
            assert_eq!(skipped.len(), 4);
            assert_eq!(alone.len(), (4 + 4) * EPOCHS);
            for ranks in [2, 4] {
                let found = run(ranks);
                for (numbers, of_rank, of_rank_skipped, of_rank_squares) in &found {
                    let what = format!("{what} on {ranks} ranks");
                    assert_close(&what, numbers, alone);
                    let numbers_of = |of: &Evaluation| [of.loss, of.metrics["auc"]];
                    assert_close(&what, &numbers_of(of_rank), &numbers_of(evaluation));
                    assert_eq!(of_rank_skipped, skipped);
                    let off = (of_rank_squares / squares - 1.).abs();
                    assert!(off < 1e-3, "{what}: {of_rank_squares} for {squares}");
                    // All ranks have the same, to the bit.
                    assert_eq!((numbers, of_rank), (&found[0].0, &found[0].1));
                }
            }
        }
    }

    #[test]
    fn every_rank_has_the_learning_rates_and_clips_the_gradient_of_one_process() {
        let folder = images();
        let run = |ranks| {
            on_ranks(ranks, |group| {
                let [train, validation] = batches(folder.path(), &group, Augmentation::new());
                let model = model(group.rank() as u64, 1e-4);
                let sgd = Sgd::new(1e-2).momentum(0.9).discriminative(0.01);
                let model = model.compile(sgd.clip_norm(0.1), Loss::BinaryCrossentropy);
                let fit = Fit::epochs(EPOCHS).validation(&validation);
                let fit = fit.schedule(OneCycle::new());
                let history = model.unwrap().fit(&train, fit).unwrap();
                (history.learning_rate(), numbers(&history))
            })
        };
        let (rates, alone) = run(1).remove(0);
        assert_eq!(rates.len(), EPOCHS);
        for (of_rank, numbers) in run(2) {
            assert_eq!(of_rank, rates);
            assert_close("clipped", &numbers, &alone);
        }
    }

    #[test]
    fn the_learning_rate_finder_sees_the_whole_batch() {
        let folder = images();
        let run = |ranks| {
            on_ranks(ranks, |group| {
                let [train, _] = batches(folder.path(), &group, Augmentation::new());
                let mut model = model(group.rank() as u64, 1e-4);
                let finder = LearningRateFinder::new().range(1e-6, 1e-4).steps(12);
                let found = model.find_learning_rate(&train, finder).unwrap();
                found.losses().to_vec()
            })
        };
        let alone = run(1).remove(0);
        for losses in run(2) {
            assert_close("losses", &losses, &alone);
        }
    }

    #[test]
    fn ranks_with_other_settings_or_images_are_told_the_first_difference() {
        let [folder, other] = [(); 2].map(|()| images());
        let cats = other.path().join("train/cats");
        std::fs::rename(cats.join("0.png"), cats.join("99.png")).unwrap();
        type Change = fn(&mut Settings, &mut f64, &Path);
        let changes: [(Change, _); 4] = [
            (
                |_, rate, _| *rate = 2e-4,
                "optimizer learning rate: 0.0002 on rank 1, 0.0001 on rank 0",
            ),
            (
                |settings, _, _| settings.seed = 1,
                "training seed: 1 on rank 1, 0 on rank 0",
            ),
            (
                |settings, _, _| settings.batch_size = 4,
                "training batch size: 4 on rank 1, 6 on rank 0",
            ),
            (
                |settings, _, other| settings.dataset = Some(other.to_str().unwrap().into()),
                "not the same training examples on rank 1 as on rank 0",
            ),
        ];
        for (change, expected) in changes {
            let errors = on_ranks(2, |group| {
                let (mut settings, mut rate) = (settings(folder.path(), &group), 1e-4);
                if group.rank() == 1 {
                    change(&mut settings, &mut rate, other.path());
                }
                let [train, _] = batches_of(&settings, Augmentation::new()).unwrap();
                let fit = Fit::epochs(1);
                model(0, rate).fit(&train, fit).unwrap_err().to_string()
            });
            for (rank, error) in errors.iter().enumerate() {
                assert_eq!(*error, format!("rank {rank} of 2, fit: {expected}"));
            }
        }
    }

    #[test]
    fn what_ends_one_rank_is_told_to_the_others() {
        let folder = images();
        let file = folder.path().join("train/cats/0.png");
        type Change<'a> = &'a (dyn Fn(&mut Settings) + Sync);
        let missing: Change<'_> = &|settings| settings.dataset = Some("/nowhere".into());
        let stop: Change<'_> = &|settings| settings.broken = BrokenImages::Stop;
        let no_folder: Change<'_> = &|settings| settings.checkpoints = file.clone();
        for (failing, change, expected) in [
            (0, missing, "dataset /nowhere: there is no such folder"),
            (1, missing, "dataset /nowhere: there is no such folder"),
            (1, stop, "image train/"),
            (0, no_folder, "cannot create "),
        ] {
            let errors = on_ranks(2, |group| {
                let mut settings = settings(folder.path(), &group);
                settings.checkpoints = folder.path().join("checkpoints");
                if group.rank() == failing {
                    change(&mut settings);
                }
                let fit = || {
                    let [train, _] = batches_of(&settings, Augmentation::new())?;
                    let fit = Fit::epochs(1).checkpoints(&settings.checkpoints);
                    model(0, 1e-4).fit(&train, fit)
                };
                fit().unwrap_err().to_string()
            });
            assert!(errors[failing].contains(expected), "{errors:?}");
            let told = format!("rank {failing} ended with an error: {expected}");
            assert!(errors[1 - failing].contains(&told), "{errors:?}");
        }
    }

    #[test]
    fn ranks_without_images_take_part() {
        let folder = images();
        let run = |ranks| {
            on_ranks(ranks, |group| {
                let [train, validation] = batches(folder.path(), &group, Augmentation::new());
                let dataset = train.dataset().take(3);
                let train = dataset.shuffle(16).batch(6).sharded(SHARDS);
                let validation = validation.dataset().take(1).batch(6).sharded(SHARDS);
                let fit = Fit::epochs(EPOCHS).validation(&validation);
                numbers(&model(0, 1e-4).fit(&train, fit).unwrap())
            })
        };
        let alone = run(1).remove(0);
        for numbers in run(SHARDS) {
            assert_close("3 images on 4 ranks", &numbers, &alone);
        }
    }

    #[test]
    fn any_number_of_ranks_averages_the_same_variants() {
        let folder = images();
        let augmentation = Augmentation::new().random_translation(0.3, 0.3);
        for with in [
            TestTimeAugmentation::flip(),
            TestTimeAugmentation::new(augmentation, 2),
        ] {
            let run = |ranks| {
                on_ranks(ranks, |group| {
                    let [train, _] = batches(folder.path(), &group, Augmentation::new());
                    let model = model(0, 1e-4);
                    let found = model.evaluate_with(&train, &with).unwrap();
                    let predictions = model.predictions_with(&train, &with).unwrap();
                    assert_close("loss", &[predictions.loss()], &[found.loss]);
                    assert_close("accuracy", &[predictions.accuracy()], &[found.accuracy]);
                    let plain = model.evaluate(&train).unwrap();
                    assert!((plain.loss - found.loss).abs() > 1e-5, "{plain} {found}");
                    found.loss
                })
            };
            let alone = run(1);
            for loss in run(2) {
                assert_close("two ranks", &[loss], &alone);
            }
        }
    }

    #[test]
    fn shards_that_cannot_be_dealt_out_are_refused() {
        let folder = images();
        let errors = on_ranks(2, |group| {
            let [train, _] = batches(folder.path(), &group, Augmentation::new());
            let refusal = |n| {
                let error = model(0, 1e-4).evaluate(&train.sharded(n)).unwrap_err();
                error.to_string()
            };
            refusal(if group.rank() == 0 { 3 } else { 8 })
        });
        let [three, eight] = &errors[..] else {
            unreachable!();
        };
        assert!(
            three.contains("a multiple of 2") && three.ends_with("got 3"),
            "{three}"
        );
        let expected =
            "expected batches of at least 8 images, one for each shard or process, got 6";
        assert!(eight.ends_with(expected), "{eight}");
    }

    #[test]
    fn a_run_of_ranks_is_resumed_to_the_bit_also_by_another_number_of_them() {
        let folder = images();
        let run = |ranks, checkpoints: &Path, epochs, resume| {
            let found = on_ranks(ranks, |group| {
                let [train, validation] = batches(folder.path(), &group, Augmentation::new());
                // Its steps are counted, and its state has two slots.
                let model = model(group.rank() as u64, 1e-4);
                let mut model = model
                    .compile(AdamW::new(1e-4), Loss::BinaryCrossentropy)
                    .unwrap();
                let fit = Fit::epochs(epochs).validation(&validation);
                let fit = fit.weight_average(WeightAverage::ema(0.5));
                let fit = match resume {
                    true => fit.resume(checkpoints),
                    false => fit.checkpoints(checkpoints),
                };
                numbers(&model.fit(&train, fit).unwrap())
            });
            found.into_iter().next().unwrap()
        };
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [whole, parts, other] = folders.each_ref().map(|folder| folder.path().join("c"));
        let undisturbed = run(2, &whole, EPOCHS, false);
        run(2, &parts, 1, false);
        assert_eq!(run(2, &parts, EPOCHS, true), undisturbed);
        let saved = |folder: &Path| std::fs::read(folder.join("epoch-0003.safetensors")).unwrap();
        // All but the seconds in the history.
        let tensors = |bytes: &[u8]| {
            let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
            let mut all: Vec<_> = tensors
                .iter()
                .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
                .collect();
            all.sort();
            all
        };
        assert!(
            tensors(&saved(&whole)) == tensors(&saved(&parts)),
            "other weights"
        );
        run(4, &other, 1, false);
        assert_close(
            "1 after 4 ranks",
            &run(1, &other, EPOCHS, true),
            &undisturbed,
        );
    }
}
