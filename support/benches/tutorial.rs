//! The tutorial, its pieces one by one, and `fine_tune` on a backbone, timed: this project's side of
//! `cargo xtask bench`, which also sets the allocator as a notebook's kernel does.
//!
//! ```text
//! cargo bench -p support --bench tutorial -- pieces|forward|tutorial|fine_tune DIR [--backbone NAME] [--batch N]
//!     [--epochs N] [--limit N] [--seed N]
//! ```
//!
//! `DIR` holds `train/` and `validation/`. The last line is a JSON object; `bench/README.md` says
//! what is measured and lists its keys. Started by torchrun, the ranks share each piece of work, which ends
//! when the last of them is done.

mod program;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use program::Result;
use serde_json::{Value, json};
use support::dataset::{Example, ImageDataset, Label};
use support::distributed::ProcessGroup;
use support::prelude::*;
use support::settings::Limit;
use support::tch::{self, Kind};

const IMG_SIZE: u32 = 160;
const IMG_SHAPE: [i64; 3] = [3, IMG_SIZE as i64, IMG_SIZE as i64];
const SHUFFLE_BUFFER_SIZE: usize = 1000;
const BASE_LEARNING_RATE: f64 = 0.0001;
const FINE_TUNE_AT: usize = 100;
const FINE_TUNED_VARIABLES: usize = 58;

// As in the peers' `common.py`; one more of each goes before, uncounted.
const PASSES: usize = 3;
const FORWARDS: usize = 10;
const SINGLES: usize = 50;
const PRODUCTS: usize = 20;
const PRODUCT_SIZE: i64 = 1024;
/// Batches of the fine-tuning epochs, each of which is one repetition: half of the tutorial's.
const STEPS: usize = 32;

struct Arguments {
    mode: Mode,
    pictures: PathBuf,
    /// What `fine_tune` starts from.
    backbone: Weights,
    batch: usize,
    epochs: usize,
    limit: Option<usize>,
    seed: u64,
}

#[derive(Clone, Copy)]
enum Mode {
    Pieces,
    Forward,
    Tutorial,
    FineTune,
}

fn main() -> ExitCode {
    program::run("`cargo xtask bench` names a mode and pictures", |words| {
        let arguments = Arguments::parse(words)?;
        let settings = arguments.settings()?;
        let figures = match arguments.mode {
            Mode::Pieces => pieces(&arguments, &settings),
            Mode::Forward => forward(&arguments, &settings),
            Mode::Tutorial => tutorial(&arguments, &settings),
            Mode::FineTune => fine_tune(&arguments, &settings),
        };
        Ok(settings.group.is_main().then_some(figures?))
    })
}

impl Arguments {
    fn parse(words: &[String]) -> Result<Self> {
        let [mode, pictures, options @ ..] = words else {
            return Err("expected: pieces|forward|tutorial|fine_tune DIR".into());
        };
        let mut arguments = Self {
            mode: match mode.as_str() {
                "pieces" => Mode::Pieces,
                "forward" => Mode::Forward,
                "tutorial" => Mode::Tutorial,
                "fine_tune" => Mode::FineTune,
                _ => {
                    return Err(
                        format!("{mode}: expected pieces, forward, tutorial or fine_tune").into(),
                    );
                }
            },
            pictures: pictures.into(),
            backbone: Weights::default(),
            batch: 32,
            epochs: 10,
            limit: None,
            seed: 0,
        };
        let known = "--backbone, --batch, --epochs, --limit or --seed";
        program::options(options, known, |name, value| {
            match name {
                "--backbone" => arguments.backbone = value.parse()?,
                "--batch" => arguments.batch = value.parse()?,
                "--epochs" => arguments.epochs = value.parse()?,
                "--limit" => arguments.limit = Some(value.parse()?),
                "--seed" => arguments.seed = value.parse()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(arguments)
    }

    /// Finds the other ranks, where there are several.
    fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::from_env()?;
        settings.dataset = Some(self.pictures.display().to_string());
        settings.limit = Limit::All;
        settings.seed = self.seed;
        Ok(settings)
    }

    /// Returns the training and the validation images, as the network wants them.
    fn images(
        &self,
        settings: &Settings,
        format_example: impl Fn(&RgbImage) -> Pixels + Copy + Send + Sync + 'static,
    ) -> Result<[Dataset<Pixels>; 2]> {
        let dataset = ImageDataset::load(settings)?;
        let [train, validation, _] = dataset.split_examples([8, 1, 1])?;
        let format = |examples| {
            let (examples, classes) = (limited(examples, self.limit), dataset.classes().to_vec());
            Dataset::new(examples, classes, settings.seed, settings.broken)
                .among(&settings.group)
                .map(format_example)
        };
        Ok([
            format(train).shuffle(SHUFFLE_BUFFER_SIZE),
            format(validation),
        ])
    }
}

fn format_example(image: &RgbImage) -> Pixels {
    Pixels::from(image)
        .scale(1.0 / 127.5)
        .offset(-1.0)
        .resize(IMG_SIZE, IMG_SIZE)
}

/// Keeps the first `limit / 2` of each class by name, which are those that the peers take, in
/// the order that they are in.
fn limited(mut examples: Vec<Example>, limit: Option<usize>) -> Vec<Example> {
    let Some(limit) = limit else { return examples };
    let names: BTreeSet<(Label, String)> = examples
        .iter()
        .map(|example| (example.label.clone(), example.id.clone()))
        .collect();
    let names: Vec<_> = names.into_iter().collect();
    let kept: BTreeSet<&(Label, String)> = names
        .chunk_by(|one, next| one.0 == next.0)
        .flat_map(|class| class.iter().take(limit / 2))
        .collect();
    examples.retain(|example| kept.contains(&(example.label.clone(), example.id.clone())));
    examples
}

/// Measures the input pipeline, the base and fine-tuning steps, each alone.
fn pieces(arguments: &Arguments, settings: &Settings) -> Result<Value> {
    let group = &settings.group;
    let [train, _] = arguments.images(settings, format_example)?;
    let count = train.len();
    let (first, next) = part(count, group);
    let own = train.skip(first).take(next - first);
    // One shard: what is not this rank's has been left out.
    let own = own.batch(arguments.batch / group.size()).sharded(1);
    let mut epoch = 0;
    let decode = median_rate(count as f64, PASSES, || {
        epoch += 1;
        own.epoch(epoch).try_for_each(|batch| batch.map(drop))?;
        group.barrier()
    })?;

    let (images, _) = own.first()?;
    let mut base = MobileNetV2::pretrained(IMG_SHAPE, settings)?;
    let mut told = forward_passes(&mut base, &images, settings)?;

    base.set_trainable(true);
    base.layers_mut()[..FINE_TUNE_AT].set_trainable(false);
    let mut model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(arguments.seed))
        .compile(
            RmsProp::new(BASE_LEARNING_RATE / 10.0),
            Loss::BinaryCrossentropy,
        )?;
    assert_eq!(model.trainable_variables().len(), FINE_TUNED_VARIABLES);
    // Each epoch starts from the stored activations, as every one of the tutorial's does.
    let steps = train.batch(arguments.batch).take(STEPS);
    let history = model.fit(&steps, Fit::epochs(1 + PASSES))?;
    let seconds = history.epochs.iter().skip(1).map(|epoch| epoch.seconds);
    let fine_tuning = steps.examples() as f64 / median(seconds.collect());

    told["pictures"] = json!(count);
    told["decode"] = json!({"threads": decode});
    told["fine_tuning"] = json!({"stored_activations": fine_tuning});
    Ok(figures(arguments, settings, told))
}

/// Measures the base's forward pass only.
fn forward(arguments: &Arguments, settings: &Settings) -> Result<Value> {
    let [train, _] = arguments.images(settings, format_example)?;
    let (images, _) = train.batch(arguments.batch).first()?;
    let mut base = MobileNetV2::pretrained(IMG_SHAPE, settings)?;
    let told = forward_passes(&mut base, &images, settings)?;
    Ok(figures(arguments, settings, told))
}

/// Measures the base on each rank's `images` and on one of them, and a matrix product.
fn forward_passes(base: &mut Backbone, images: &Tensor, settings: &Settings) -> Result<Value> {
    base.set_trainable(false);
    let images = images.to_device(settings.device);
    let pass = |images: &Tensor| {
        tch::no_grad(|| base.forward(images)).map(|_features| wait_for(settings.device))?;
        settings.group.barrier()
    };
    let all = images.size()[0] as usize * settings.group.size();
    let base_forward = median_rate(all as f64, FORWARDS, || pass(&images))?;
    let single = images.narrow(0, 0, 1);
    let singles = median_rate(1., SINGLES, || pass(&single))?;

    let kind = match settings.precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::F32 | Precision::Auto => Kind::Float,
    };
    let matrix = || Tensor::randn([PRODUCT_SIZE; 2], (kind, settings.device));
    let (a, b) = (matrix(), matrix());
    let gigaflop = 2e-9 * (PRODUCT_SIZE as f64).powi(3);
    let gemm = median_rate(gigaflop, PRODUCTS, || {
        a.f_matmul(&b).map(|_product| wait_for(settings.device))
    })?;
    Ok(json!({
        "base_forward": {"default": base_forward},
        "one_picture": {"default": 1000. / singles},
        "gemm_gflops": gemm,
    }))
}

/// Runs the whole tutorial.
fn tutorial(arguments: &Arguments, settings: &Settings) -> Result<Value> {
    let start = Instant::now();
    let [train, validation] = arguments
        .images(settings, format_example)?
        .map(|images| images.batch(arguments.batch));
    let mut base = MobileNetV2::pretrained(IMG_SHAPE, settings)?;
    base.set_trainable(false);
    let model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(arguments.seed));

    let phase_1 = Instant::now();
    let mut model = model.compile(RmsProp::new(BASE_LEARNING_RATE), Loss::BinaryCrossentropy)?;
    let history = model.fit(
        &train,
        Fit::epochs(arguments.epochs).validation(&validation),
    )?;
    let phase_1_seconds = phase_1.elapsed().as_secs_f64();

    model.base_mut().set_trainable(true);
    model.base_mut().layers_mut()[..FINE_TUNE_AT].set_trainable(false);
    let phase_2 = Instant::now();
    let mut model = model.compile(
        RmsProp::new(BASE_LEARNING_RATE / 10.0),
        Loss::BinaryCrossentropy,
    )?;
    assert_eq!(model.trainable_variables().len(), FINE_TUNED_VARIABLES);
    let history_fine = model.fit(
        &train,
        Fit::epochs(2 * arguments.epochs)
            .initial_epoch(arguments.epochs)
            .validation(&validation),
    )?;
    let phase_2_seconds = phase_2.elapsed().as_secs_f64();

    let whole = history.then(&history_fine);
    let seconds = [
        phase_1_seconds,
        phase_2_seconds,
        start.elapsed().as_secs_f64(),
    ];
    let told = training(
        arguments,
        [&train, &validation],
        &whole,
        arguments.epochs,
        seconds,
    )?;
    Ok(figures(arguments, settings, told))
}

/// Fine-tunes a backbone as fastai does, with the frozen layers evaluated once per image.
fn fine_tune(arguments: &Arguments, settings: &Settings) -> Result<Value> {
    let start = Instant::now();
    let weights = arguments.backbone;
    let side = weights.image_size();
    let [train, validation] = arguments
        .images(settings, move |image| weights.format(image, side))?
        .map(|images| images.batch(arguments.batch));
    let shape = [3, side.into(), side.into()];
    let base = Backbone::pretrained(weights, shape, settings)?;
    let features = base.output_shape()[0] as usize;
    let from_layer = base.layers().len() * 2 / 3;
    let mut model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(features, 1).seed(arguments.seed))
        // fastai's defaults.
        .compile(
            AdamW::new(0.002).betas(0.9, 0.99).epsilon(1e-5),
            Loss::BinaryCrossentropy,
        )?;

    let both_phases = Instant::now();
    let mut phase_1_seconds = 0.;
    let tune = FineTune::epochs(arguments.epochs)
        .from_layer(from_layer)
        .validation(&validation)
        .on_epoch_end(|history| {
            if history.epochs.len() == 1 {
                phase_1_seconds = both_phases.elapsed().as_secs_f64();
            }
            Ok(())
        });
    let history = model.fine_tune(&train, tune)?;
    let phase_2_seconds = both_phases.elapsed().as_secs_f64() - phase_1_seconds;
    let seconds = [
        phase_1_seconds,
        phase_2_seconds,
        start.elapsed().as_secs_f64(),
    ];
    let mut told = training(arguments, [&train, &validation], &history, 1, seconds)?;
    told["backbone"] = json!(weights.name());
    told["seed"] = json!(arguments.seed);
    Ok(figures(arguments, settings, told))
}

/// Returns what is told of a training of two phases: `seconds` are theirs and those in all.
fn training(
    arguments: &Arguments,
    [train, validation]: [&Batches; 2],
    history: &History,
    phase_1_epochs: usize,
    seconds: [f64; 3],
) -> Result<Value> {
    let epoch_seconds = history.epochs.iter().map(|epoch| epoch.seconds);
    Ok(json!({
        "pictures": train.examples(),
        "validation_pictures": validation.examples(),
        "epochs": arguments.epochs,
        "phase_1_seconds": seconds[0],
        "phase_2_seconds": seconds[1],
        "seconds": seconds[2],
        "phase_1_val_accuracy": history.val_accuracy().iter().take(phase_1_epochs).next_back(),
        "phase_2_val_accuracy": history.val_accuracy().last(),
        "peak_memory_mb": program::peak_memory()? / (1024. * 1024.),
        "loss": history.loss(),
        "accuracy": history.accuracy(),
        "val_loss": history.val_loss(),
        "val_accuracy": history.val_accuracy(),
        "epoch_seconds": epoch_seconds.collect::<Vec<_>>(),
    }))
}

/// Adds what is told in every mode.
fn figures(arguments: &Arguments, settings: &Settings, mut figures: Value) -> Value {
    figures["program"] = json!("ours");
    figures["mode"] = json!(match arguments.mode {
        Mode::Pieces => "pieces",
        Mode::Forward => "forward",
        Mode::Tutorial => "tutorial",
        Mode::FineTune => "fine_tune",
    });
    figures["precision"] = json!(settings.precision.name());
    figures["device"] = json!(match settings.device {
        Device::Cuda(_) => "cuda",
        _ => "cpu",
    });
    figures["versions"] = json!({"support": env!("CARGO_PKG_VERSION")});
    figures["ranks"] = json!(settings.group.size());
    figures["threads"] = json!(tch::get_num_threads());
    figures
}

/// Returns the first of `count` examples that are this rank's, and that after its last.
fn part(count: usize, group: &ProcessGroup) -> (usize, usize) {
    let before = |rank| count * rank / group.size();
    (before(group.rank()), before(group.rank() + 1))
}

/// Waits until a GPU has done what it was told.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Returns the median of `amount` per second of `work`, after one call that is not counted.
fn median_rate<E>(
    amount: f64,
    repetitions: usize,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<f64, E> {
    work()?;
    let mut rates = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        work()?;
        rates.push(amount / start.elapsed().as_secs_f64());
    }
    Ok(median(rates))
}

/// Returns the middle value, or the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}
