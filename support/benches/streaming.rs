//! Training on more images than memory holds: simulated, by photos that are there many times.
//!
//! ```text
//! cargo bench -p support --bench streaming -- DIR [--examples N] [--memory MB]... [--side PIXELS]
//!     [--frozen LAYERS] [--epochs N]
//! ```
//!
//! `DIR` holds one folder of images per class. The images are listed and, for each `--memory` that `fit` may
//! take for the frozen layers' outputs, trained on from the same start; all histories have to be the same.
//! After each epoch what the system holds of the file of outputs is dropped, so that the next one reads the
//! disk however much memory the machine has. The last line is a JSON object.

mod program;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use program::{Result, field};
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use support::dataset::{ImageDataset, images_in};
use support::image;
use support::prelude::*;

const BATCH_SIZE: usize = 32;
const SHUFFLE_BUFFER_SIZE: usize = 1000;

struct Arguments {
    photos: PathBuf,
    examples: usize,
    /// In megabytes.
    memory: Vec<f64>,
    side: u32,
    frozen: usize,
    epochs: usize,
}

fn main() -> ExitCode {
    program::run("name a folder of images", |words| {
        measure(&Arguments::parse(words)?).map(Some)
    })
}

impl Arguments {
    fn parse(words: &[String]) -> Result<Self> {
        let [photos, options @ ..] = words else {
            return Err("expected: DIR".into());
        };
        let mut arguments = Self {
            photos: photos.into(),
            examples: 20_000,
            memory: Vec::new(),
            side: 64,
            frozen: 100,
            epochs: 2,
        };
        let known = "--examples, --memory, --side, --frozen or --epochs";
        program::options(options, known, |name, value| {
            match name {
                "--examples" => arguments.examples = value.parse()?,
                "--memory" => arguments.memory.push(value.parse()?),
                "--side" => arguments.side = value.parse()?,
                "--frozen" => arguments.frozen = value.parse()?,
                "--epochs" => arguments.epochs = value.parse()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(arguments)
    }
}

fn measure(arguments: &Arguments) -> Result<Value> {
    let mut settings = Settings::from_env()?;
    settings.limit = Limit::All;
    let folder = tempfile::tempdir()?;
    let paths = repeated(arguments, folder.path())?;
    restart_peak_memory()?;
    let before = resident_memory()?;
    let dataset = ImageDataset::from_paths(paths, &settings)?;
    let listed = resident_memory()?;
    let [training, validation, _] = dataset.split([99, 1, 0])?;
    let split = resident_memory()?;
    let peak = peak_memory()?;
    println!(
        "{} examples: {:.0} MB, split {:.0} MB, at most {:.0} MB on the way",
        dataset.len(),
        listed - before,
        split - before,
        peak - before
    );
    let side = arguments.side;
    let format = move |image: &RgbImage| {
        let pixels = Pixels::from(image).scale(1.0 / 127.5).offset(-1.0);
        pixels.resize(side, side)
    };
    let training = training.map(format).shuffle(SHUFFLE_BUFFER_SIZE);
    let batches = [
        training.batch(BATCH_SIZE),
        validation.map(format).batch(BATCH_SIZE),
    ];
    let mut runs = Vec::new();
    let mut histories: Vec<Vec<f64>> = Vec::new();
    for &memory in &arguments.memory {
        let (figures, history) = run(arguments, &settings, &batches, memory)?;
        println!("{figures}");
        runs.push(figures);
        histories.push([history.loss(), history.val_loss()].concat());
    }
    if let Some(other) = histories.iter().find(|losses| **losses != histories[0]) {
        return Err(format!("losses {other:?} after {:?}", histories[0]).into());
    }
    Ok(json!({
        "examples": dataset.len(),
        "side": side,
        "examples_mb": listed - before,
        "split_examples_mb": split - before,
        "listing_peak_mb": peak - before,
        "runs": runs,
    }))
}

/// Returns so many paths of images, each another one, with their classes: the photos over and over, made small
/// so that decoding them does not take the time, through links to one folder of them.
fn repeated(
    arguments: &Arguments,
    folder: &Path,
) -> Result<impl Iterator<Item = (PathBuf, String)>> {
    let mut images = Vec::new();
    for class in fs::read_dir(&arguments.photos)? {
        let class = class?;
        let name = class.file_name().to_string_lossy().into_owned();
        for (number, photo) in images_in(&class.path())?.iter().enumerate() {
            let file = format!("{name}-{number}.png");
            let small = image::open(photo)?.thumbnail_exact(arguments.side, arguments.side);
            small.into_rgb8().save(folder.join(&file))?;
            images.push((file, name.clone()));
        }
    }
    if images.is_empty() {
        let photos = arguments.photos.display();
        return Err(format!("{photos}: there are no folders of images").into());
    }
    for copy in 0..arguments.examples.div_ceil(images.len()) {
        symlink(folder, folder.join(copy.to_string()))?;
    }
    let path = move |number: usize| {
        let (file, class) = &images[number % images.len()];
        let link = folder.join((number / images.len()).to_string());
        (link.join(file), class.clone())
    };
    Ok((0..arguments.examples).map(path))
}

/// Trains with so many megabytes for the frozen layers' outputs.
fn run(
    arguments: &Arguments,
    settings: &Settings,
    [training, validation]: &[Batches; 2],
    memory: f64,
) -> Result<(Value, History)> {
    let side = i64::from(arguments.side);
    let mut base = MobileNetV2::pretrained([3, side, side], settings)?;
    base.layers_mut()[..arguments.frozen].set_trainable(false);
    let mut model = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1).seed(0))
        .compile(RmsProp::new(0.0001), Loss::BinaryCrossentropy)?;
    restart_peak_memory()?;
    let (before, start) = (resident_memory()?, Instant::now());
    let mut ends = Vec::new();
    let fit = Fit::epochs(arguments.epochs)
        .validation(validation)
        .activation_memory((memory * 1e6) as usize)
        .on_epoch_end(|_| {
            ends.push(EpochEnd::measure(start));
            Ok(())
        });
    let history = model.fit(training, fit)?;
    let ends = ends.into_iter().collect::<Result<Vec<_>>>()?;
    let images = (training.examples() + validation.examples()) as f64;
    let seconds: Vec<f64> = history.epochs.iter().map(|epoch| epoch.seconds).collect();
    let of_each = |value: fn(&EpochEnd) -> f64| ends.iter().map(value).collect::<Vec<_>>();
    let figures = json!({
        "memory_mb": memory,
        "before_mb": before,
        "file_mb": ends[0].file,
        "prefix_images_per_s": images / (ends[0].seconds - seconds[0]),
        "epochs_images_per_s": seconds.iter().map(|seconds| images / seconds).collect::<Vec<_>>(),
        "epochs_from_disk_mb": of_each(|end| end.from_disk),
        "epochs_peak_mb": of_each(|end| end.peak),
    });
    Ok((figures, history))
}

/// What is known at an epoch's end, in megabytes.
struct EpochEnd {
    /// Since the run began.
    seconds: f64,
    /// The most memory that was resident since the last epoch's end; in the first, since the run began.
    peak: f64,
    /// What was read from the disk until then, by this process.
    from_disk: f64,
    /// The size of the file of outputs.
    file: f64,
}

impl EpochEnd {
    /// Measures, and drops what the system holds of the file of outputs.
    fn measure(start: Instant) -> Result<Self> {
        let end = Self {
            seconds: start.elapsed().as_secs_f64(),
            peak: peak_memory()?,
            from_disk: field("/proc/self/io", "read_bytes:")? / 1e6,
            file: drop_cached_outputs()?,
        };
        restart_peak_memory()?;
        Ok(end)
    }
}

/// Returns the size of the files without a name that this process has open.
fn drop_cached_outputs() -> Result<f64> {
    let mut size = 0;
    for descriptor in fs::read_dir("/proc/self/fd")? {
        let path = descriptor?.path();
        // The descriptor of the folder itself is gone by now.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if target.to_string_lossy().ends_with(" (deleted)") {
            let file = File::open(&path)?;
            // Only what is on the disk can be dropped.
            file.sync_data()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            size += file.metadata()?.len();
        }
    }
    Ok(size as f64 / 1e6)
}

/// Lets the most memory that was resident be counted anew.
fn restart_peak_memory() -> Result<()> {
    Ok(fs::write("/proc/self/clear_refs", "5")?)
}

/// Returns the most memory that was resident, in megabytes.
fn peak_memory() -> Result<f64> {
    Ok(program::peak_memory()? / 1e6)
}

/// Returns the memory that is resident, in megabytes.
fn resident_memory() -> Result<f64> {
    Ok(field("/proc/self/status", "VmRSS:")? * 1024. / 1e6)
}
