//! The notebook's steps as a program: `notebooks/transfer_learning.ipynb` from a terminal.
//!
//! ```sh
//! cargo run -p support --example transfer_learning -- [FOLDER]
//! ```
//!
//! It reads the same `TRANSFER_*` settings and comes to the same numbers. The figures that the notebook
//! shows inline, and the model file, go into a folder, `target/transfer_learning` unless another is
//! named, in place of those of a run before.
//!
//! Several processes train together where torchrun starts them; rank 0 prints and saves:
//!
//! ```sh
//! torchrun --nproc-per-node 2 --no-python target/debug/examples/transfer_learning
//! ```

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use support::plotting::Figure;
use support::prelude::*;

const SPLIT_WEIGHTS: [u32; 3] = [8, 1, 1];
const IMG_SIZE: u32 = 160;
const IMG_SHAPE: [i64; 3] = [3, IMG_SIZE as i64, IMG_SIZE as i64];
const SHUFFLE_BUFFER_SIZE: usize = 1000;
const BASE_LEARNING_RATE: f64 = 0.0001;
const FINE_TUNE_AT: usize = 100;
const FEATURE_EXTRACTION: &str = "feature_extraction";
const FINE_TUNING: &str = "fine_tuning";

fn format_example(image: &RgbImage) -> Pixels {
    Pixels::from(image)
        .scale(1.0 / 127.5)
        .offset(-1.0)
        .resize(IMG_SIZE, IMG_SIZE)
}

/// Saves the checkpoints of a phase. After a fault torchrun starts all processes again: they go on after
/// the last whole epoch.
fn with_checkpoints<'a>(fit: Fit<'a>, phase: &str, settings: &Settings) -> Fit<'a> {
    let folder = settings.checkpoints.join(phase);
    match settings.group.restarts() {
        0 => fit.checkpoints(folder),
        _ => fit.resume(folder),
    }
}

/// Removes the checkpoints of earlier runs: processes that are started again take those that are there
/// for their own.
fn remove_checkpoints(settings: &Settings) -> std::io::Result<()> {
    for phase in [FEATURE_EXTRACTION, FINE_TUNING] {
        let entries = match fs::read_dir(settings.checkpoints.join(phase)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "safetensors") {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let folder = match &arguments[..] {
        [] => PathBuf::from("target/transfer_learning"),
        [folder] if !folder.starts_with('-') => folder.into(),
        _ => return Err("usage: transfer_learning [FOLDER]".into()),
    };
    fs::create_dir_all(&folder)?;
    let settings = Settings::from_env()?;
    let main = settings.group.is_main();
    let say = |text: &dyn Display| {
        if main {
            println!("{text}");
        }
    };
    let save = |figure: &dyn Fn() -> support::Result<Figure>, name: &str| -> support::Result<()> {
        if main {
            let path = folder.join(name);
            figure()?.save(&path)?;
            println!("saved {}", path.display());
        }
        Ok(())
    };
    say(&format!("{settings}\n{}\n", device_report()));
    if main && settings.group.size() > 1 && settings.group.restarts() == 0 {
        remove_checkpoints(&settings)?;
    }

    // Data preprocessing
    let dataset = ImageDataset::load(&settings)?;
    say(&format!("{dataset}\n"));
    let [raw_train, raw_validation, raw_test] = dataset.split(SPLIT_WEIGHTS)?;
    save(&|| raw_train.take(9).show(), "examples.png")?;
    let train = raw_train.map(format_example);
    let train_batches = train
        .shuffle(SHUFFLE_BUFFER_SIZE)
        .batch(settings.batch_size);
    let validation_batches = raw_validation
        .map(format_example)
        .batch(settings.batch_size);
    let test_batches = raw_test.map(format_example).batch(settings.batch_size);

    // Feature extraction
    let mut base_model = MobileNetV2::pretrained(IMG_SHAPE, &settings)?;
    base_model.set_trainable(false);
    let mut model = Sequential::new(base_model)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(settings.seed))
        .compile(RmsProp::new(BASE_LEARNING_RATE), Loss::BinaryCrossentropy)?;
    say(&model.summary());
    let validation_steps = 20;
    let initial = model.evaluate(&validation_batches.take(validation_steps))?;
    say(&format!("initial {initial}"));
    let history = model.fit(
        &train_batches,
        with_checkpoints(
            Fit::epochs(settings.epochs).validation(&validation_batches),
            FEATURE_EXTRACTION,
            &settings,
        ),
    )?;
    save(&|| history.learning_curves(), "feature_extraction.png")?;

    // Fine-tuning
    model.base_mut().set_trainable(true);
    model.base_mut().layers_mut()[..FINE_TUNE_AT].set_trainable(false);
    let mut model = model.compile(
        RmsProp::new(BASE_LEARNING_RATE / 10.0),
        Loss::BinaryCrossentropy,
    )?;
    say(&model.summary());
    let history_fine = model.fit(
        &train_batches,
        with_checkpoints(
            Fit::epochs(2 * settings.epochs)
                .initial_epoch(settings.epochs)
                .validation(&validation_batches),
            FINE_TUNING,
            &settings,
        ),
    )?;
    let history = history.then(&history_fine);
    save(
        &|| history.fine_tuning_curves(settings.epochs),
        "fine_tuning.png",
    )?;

    // Evaluation
    let unseen_batches = if test_batches.is_empty() {
        &validation_batches
    } else {
        &test_batches
    };
    let evaluation = model.evaluate(unseen_batches)?;
    say(&evaluation);
    if main {
        let predictions = model.predictions(unseen_batches)?;
        save(&|| predictions.spread(9).show(), "predictions.png")?;
        let matrix = predictions.confusion_matrix();
        say(&format!("{matrix}\n{}", predictions.report()));
        save(&|| matrix.show(), "confusion_matrix.png")?;
        save(&|| predictions.highest_loss(9).show(), "highest_loss.png")?;
        let explanations = model.explain(&predictions.spread(9))?;
        save(&|| explanations.show(), "explanations.png")?;
    }

    // Augmentation and dropout
    let augmentation = Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.2)
        .color_jitter(0.2, 0.2, 0.2);
    let augmented_train = train.augment(augmentation)?;
    save(&|| augmented_train.show_augmented(), "augmentation.png")?;
    let augmented_batches = augmented_train
        .shuffle(SHUFFLE_BUFFER_SIZE)
        .batch(settings.batch_size);
    let mut augmented_base = MobileNetV2::pretrained(IMG_SHAPE, &settings)?;
    augmented_base.set_trainable(false);
    let mut augmented_model = Sequential::new(augmented_base)
        .push(GlobalAveragePooling2d)
        .push(Dropout::new(0.2).seed(settings.seed))
        .push(Dense::new(1280, 1).seed(settings.seed))
        .compile(RmsProp::new(BASE_LEARNING_RATE), Loss::BinaryCrossentropy)?;
    augmented_model.fit(
        &augmented_batches,
        Fit::epochs(settings.epochs).validation(&validation_batches),
    )?;

    // The model file
    let model_file = folder.join("model.safetensors");
    let record = TrainingRecord::new(&train_batches)
        .history(&history)
        .evaluation(&evaluation);
    if main {
        model.save(&model_file, &record)?;
        println!("saved {}", model_file.display());
    }
    Ok(())
}
