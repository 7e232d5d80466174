//! What there is to know about images before a network sees them: how many there are of each
//! class, how large they are, which cannot be read, and which are there twice.

mod fingerprint;

use std::collections::BTreeMap;
use std::fmt;

use image::RgbImage;

use crate::assets::hash;
use crate::dataset::{Example, Label, Raw};
use crate::live::Task;
use crate::pipeline::{Dataset, Skipped, Workers, is_turned, read, threads};
use crate::text::{LISTED, thousands};
use crate::{Error, Result};
use fingerprint::{Fingerprint, MAX_HAMMING};

/// A class with less than a fifth of the images of two is what
/// [Google's course](https://developers.google.com/machine-learning/crash-course/overfitting/imbalanced-datasets)
/// calls a moderate imbalance: 4 to 1.
const UNBALANCED: usize = 4;

/// How many images each thread may be ahead.
const AHEAD: usize = 16;

/// Keras' MobileNetV2 takes no image with a shorter side, in pixels.
const TINY: u32 = 32;

/// What [`data_report`] found. It displays as a table, with warnings in words below.
#[derive(Clone, Debug)]
pub struct DataReport {
    classes: Vec<String>,
    parts: Vec<Part>,
    widths: Vec<u32>,
    heights: Vec<u32>,
    tiny: usize,
    turned: usize,
    formats: BTreeMap<String, usize>,
    duplicates: Vec<Duplicate>,
}

/// One part of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it was called.
    pub name: String,
    /// The number of images, unreadable ones included.
    pub images: usize,
    /// How many of them are of each class; with several labels per image, one counts for each of its own.
    pub counts: Vec<usize>,
    /// How many of them are of no class.
    pub unlabelled: usize,
    /// The images that cannot be read.
    pub unreadable: Vec<Skipped>,
}

/// The range of a size, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The smallest.
    pub smallest: u32,
    /// The one in the middle, the larger of two.
    pub median: u32,
    /// The largest.
    pub largest: u32,
}

/// An image that looks like one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The image.
    pub picture: Place,
    /// The one before it, of those in the same part the most similar.
    pub original: Place,
    /// How many of the 128 bits of their difference hashes differ: 0 to 16.
    pub distance: u32,
    /// Whether their files are the same, byte by byte.
    pub same_file: bool,
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The index of its part in [`DataReport::parts`].
    pub part: usize,
    /// Which of the part's examples it is.
    pub index: usize,
    /// The example's id.
    pub id: String,
    /// Its class, or classes, as indices into [`DataReport::classes`].
    pub label: Label,
}

/// Reads every image of the parts of a split, each under a name, and reports what they are like.
///
/// Images that were resized, recompressed or made a little brighter count as duplicates, those
/// that were turned, mirrored or cropped do not. To find them takes time with the square of the
/// number of images, a second for 25,000.
///
/// ```no_run
/// # use support::prelude::*;
/// # let dataset = ImageDataset::load(&Settings::from_env()?)?;
/// let [train, validation, test] = dataset.split([8, 1, 1])?;
/// data_report(&[("train", &train), ("validation", &validation), ("test", &test)])?
/// # ; Ok::<(), support::Error>(())
/// ```
///
/// # Errors
/// `Argument` where there is no part, the parts have different classes, or a label has none; `Stopped` by the
/// notebook's Stop button. An image that cannot be read is none.
pub fn data_report(parts: &[(&str, &Dataset<RgbImage>)]) -> Result<DataReport> {
    let classes = parts.first().map_or(&[][..], |(_, part)| part.classes());
    if classes.is_empty() || parts.iter().any(|(_, part)| part.classes() != classes) {
        return Err(Error::Argument {
            name: "data_report, the parts",
            expected: "parts of one dataset".into(),
            got: format!("{parts:?}"),
        });
    }
    for (_, part) in parts {
        part.check_labels("data_report, the parts")?;
    }
    let (mut places, mut all): (Vec<Place>, Vec<Example>) = (Vec::new(), Vec::new());
    for (part, (_, dataset)) in (0..).zip(parts) {
        all.extend_from_slice(dataset.examples());
        let of_part = dataset.examples().iter().enumerate();
        places.extend(of_part.map(|(index, example)| Place {
            part,
            index,
            id: example.id.clone(),
            label: example.label.clone(),
        }));
    }
    let (order, threads) = ((0..all.len()).collect(), threads());
    let inspected = Workers::start(move |at| inspect(&all[at]), order, threads, AHEAD * threads);
    let mut task = Task::begin("data_report", "image", places.len());

    let mut report = DataReport {
        classes: classes.to_vec(),
        parts: Vec::new(),
        widths: Vec::new(),
        heights: Vec::new(),
        tiny: 0,
        turned: 0,
        formats: BTreeMap::new(),
        duplicates: Vec::new(),
    };
    report.parts.extend(parts.iter().map(|(name, _)| Part {
        name: (*name).into(),
        images: 0,
        counts: vec![0; classes.len()],
        unlabelled: 0,
        unreadable: Vec::new(),
    }));
    let mut readable = Vec::new();
    for (done, (place, inspected)) in (1..).zip(places.into_iter().zip(inspected)) {
        let part = &mut report.parts[place.part];
        part.images += 1;
        place
            .label
            .classes()
            .for_each(|class| part.counts[class] += 1);
        part.unlabelled += usize::from(place.label.classes().next().is_none());
        match inspected.flatten() {
            Ok(picture) => {
                let (width, height) = picture.size;
                report.widths.push(width);
                report.heights.push(height);
                report.tiny += usize::from(width.min(height) < TINY);
                report.turned += usize::from(picture.turned);
                *report.formats.entry(picture.format.clone()).or_default() += 1;
                readable.push((place, picture));
            }
            Err(error) => part.unreadable.push(Skipped::new(&place.id, &error)),
        }
        task.done(done, done)?;
    }
    report.widths.sort_unstable();
    report.heights.sort_unstable();
    report.duplicates = duplicates(&readable)?;
    Ok(report)
}

/// What is kept of an image.
struct Inspected {
    size: (u32, u32),
    turned: bool,
    format: String,
    digest: String,
    fingerprint: Fingerprint,
}

fn inspect(example: &Example) -> Result<Inspected> {
    let (mut format, mut digest, mut turned) = (String::new(), String::new(), false);
    let picture = read(example, |raw| {
        let bytes = match raw {
            Raw::Encoded(bytes) => bytes,
            Raw::Pixels(picture) => picture.as_raw(),
        };
        digest = hash(bytes);
        turned = matches!(raw, Raw::Encoded(bytes) if is_turned(bytes));
        format = match (raw, image::guess_format(bytes)) {
            (Raw::Encoded(_), Ok(format)) => format!("{format:?}").to_uppercase(),
            _ => "raw".into(),
        };
    })?;
    Ok(Inspected {
        size: picture.dimensions(),
        turned,
        format,
        digest,
        fingerprint: Fingerprint::of(&picture),
    })
}

/// Finds for each image the most similar one before it in each part, if they look alike: few
/// pairs even where all images are the same, and every part's own.
fn duplicates(pictures: &[(Place, Inspected)]) -> Result<Vec<Duplicate>> {
    let mut task = Task::begin("data_report, comparing", "image", pictures.len());
    let mut found = Vec::new();
    for (at, (place, picture)) in pictures.iter().enumerate() {
        let mut closest = BTreeMap::new();
        for (earlier, before) in &pictures[..at] {
            if let Some(distance) = picture.fingerprint.distance(&before.fingerprint) {
                let candidate = (distance, picture.digest != before.digest);
                let best = closest.entry(earlier.part).or_insert((candidate, earlier));
                if candidate < best.0 {
                    *best = (candidate, earlier);
                }
            }
        }
        found.extend(
            closest
                .into_values()
                .map(|((distance, differ), earlier)| Duplicate {
                    picture: place.clone(),
                    original: earlier.clone(),
                    distance,
                    same_file: !differ,
                }),
        );
        task.done(at + 1, at + 1)?;
    }
    Ok(found)
}

impl DataReport {
    /// Returns the names of the classes, which labels are indices into.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the parts, as they were given.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the range of the readable images' widths, where there are any.
    #[must_use]
    pub fn widths(&self) -> Option<Sizes> {
        sizes(&self.widths)
    }

    /// Returns the range of the readable images' heights, where there are any.
    #[must_use]
    pub fn heights(&self) -> Option<Sizes> {
        sizes(&self.heights)
    }

    /// Returns how many readable images there are of each format, by its name ("JPEG").
    #[must_use]
    pub fn formats(&self) -> &BTreeMap<String, usize> {
        &self.formats
    }

    /// Returns how many readable images do not lie as they are to be looked at, and are turned upright
    /// by their EXIF orientation.
    #[must_use]
    pub fn turned(&self) -> usize {
        self.turned
    }

    /// Returns the images that look like one before them, with the most similar one of each part.
    #[must_use]
    pub fn duplicates(&self) -> &[Duplicate] {
        &self.duplicates
    }

    /// Returns what may spoil the training or its figures, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for part in &self.parts {
            let name = &part.name;
            let counts = part.counts.iter().zip(&self.classes);
            let most = counts.clone().rev().max_by_key(|(count, _)| **count);
            let fewest = counts.min_by_key(|(count, _)| **count);
            if let (Some((&many, most)), Some((&few, fewest))) = (most, fewest) {
                if many > 0 && few == 0 {
                    warnings.push(format!("{name} has no image of {fewest}"));
                } else if many > UNBALANCED * few {
                    warnings.push(format!(
                        "{name} is unbalanced: {} images of {most}, {} of {fewest} ({:.1} to 1); \
                         look at each class' recall, as the accuracy says little of rare ones",
                        thousands(many),
                        thousands(few),
                        many as f64 / few as f64,
                    ));
                }
            }
            match part.unreadable.len() {
                0 => {}
                count => warnings.push(format!("{} cannot be read", pictures(count, name))),
            }
        }
        if self.tiny > 0 {
            let count = thousands(self.tiny);
            warnings.push(format!(
                "{count} of the images are less than {TINY} pixels wide or high: too little to see"
            ));
        }
        for (at, part) in self.parts.iter().enumerate() {
            for (before, original) in self.parts[..at].iter().enumerate() {
                let shared = self.duplicates.iter().filter(|duplicate| {
                    (duplicate.picture.part, duplicate.original.part) == (at, before)
                });
                match shared.count() {
                    0 => {}
                    count => warnings.push(format!(
                        "{} are in {} as well: what is measured on {} looks better than it is",
                        pictures(count, &part.name),
                        original.name,
                        part.name
                    )),
                }
            }
        }
        let twice_labelled = |found: &&Duplicate| found.picture.label != found.original.label;
        match self.duplicates.iter().filter(twice_labelled).count() {
            0 => {}
            count => warnings.push(format!(
                "{} of the images look like one of another class",
                thousands(count)
            )),
        }
        warnings
    }

    /// Returns a place as a person looks for it.
    fn describe(&self, place: &Place) -> String {
        describe(&self.parts[place.part].name, &place.id)
    }
}

/// Names an image and its part, unless its name begins with that.
fn describe(part: &str, id: &str) -> String {
    match id.split_once('/') {
        Some((folder, _)) if folder == part => id.into(),
        _ => format!("{part} {id}"),
    }
}

fn pictures(count: usize, part: &str) -> String {
    format!("{} of the images of {part}", thousands(count))
}

fn sizes(sorted: &[u32]) -> Option<Sizes> {
    Some(Sizes {
        smallest: *sorted.first()?,
        median: sorted[sorted.len() / 2],
        largest: *sorted.last()?,
    })
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = self.parts.iter().map(|part| part.images);
        let unlabelled: Vec<usize> = self.parts.iter().map(|part| part.unlabelled).collect();
        let mut rows: Vec<(&str, Vec<usize>)> = Vec::new();
        for (label, class) in self.classes.iter().enumerate().take(LISTED) {
            let counts = self.parts.iter().map(|part| part.counts[label]);
            rows.push((class, counts.collect()));
        }
        if unlabelled.iter().any(|&count| count > 0) {
            rows.push(("of no class", unlabelled));
        }
        let more = format!("all {} classes", thousands(self.classes.len()));
        rows.push((
            if self.classes.len() > LISTED {
                &more
            } else {
                "all"
            },
            images.collect(),
        ));
        let unreadable = self.parts.iter().map(|part| part.unreadable.len());
        rows.push(("unreadable", unreadable.collect()));

        let names = rows.iter().map(|(name, _)| name.chars().count());
        let width = names.max().unwrap_or(0);
        let columns = self
            .parts
            .iter()
            .map(|part| part.name.chars().count().max(9));
        let columns: Vec<usize> = columns.collect();
        write!(f, "{:width$}", "images")?;
        for (part, column) in self.parts.iter().zip(&columns) {
            write!(f, "  {:>column$}", part.name)?;
        }
        for (name, counts) in rows {
            write!(f, "\n{name:width$}")?;
            for (count, column) in counts.into_iter().zip(&columns) {
                write!(f, "  {:>column$}", thousands(count))?;
            }
        }

        write!(
            f,
            "\n\n{:width$}  {:>9}  {:>9}  {:>9}",
            "pixels", "smallest", "median", "largest"
        )?;
        for (name, sizes) in [("width", self.widths()), ("height", self.heights())] {
            write!(f, "\n{name:width$}")?;
            let sizes = sizes.map(|sizes| [sizes.smallest, sizes.median, sizes.largest]);
            for size in sizes.into_iter().flatten() {
                write!(f, "  {:>9}", thousands(size as usize))?;
            }
        }
        let formats = self.formats.iter();
        let formats = formats.map(|(format, count)| format!("{} {format}", thousands(*count)));
        write!(f, "\n\nformats: {}", formats.collect::<Vec<_>>().join(", "))?;
        if self.turned > 0 {
            let count = thousands(self.turned);
            write!(
                f,
                "\nturned upright, as their EXIF orientation says: {count}"
            )?;
        }

        let unreadable = self.parts.iter().flat_map(|part| {
            let line = |skipped: &Skipped| {
                format!(
                    "{}: {}",
                    describe(&part.name, &skipped.name),
                    skipped.reason
                )
            };
            part.unreadable.iter().map(line)
        });
        list(f, "unreadable", unreadable.collect())?;
        // Those across parts first.
        let mut duplicates: Vec<&Duplicate> = self.duplicates.iter().collect();
        duplicates.sort_by_key(|found| found.picture.part == found.original.part);
        let duplicates = duplicates.into_iter().map(|found| {
            let [picture, original] =
                [&found.picture, &found.original].map(|place| self.describe(place));
            let how = match found.same_file {
                true => "the same file".into(),
                false => format!("{} of 128 bits differ", found.distance),
            };
            format!("{picture} = {original} ({how})")
        });
        let title =
            format!("look alike (at most {MAX_HAMMING} of 128 bits of a difference hash differ)");
        list(f, &title, duplicates.collect())?;
        let warnings = self.warnings();
        if warnings.is_empty() {
            return write!(f, "\n\nno warnings");
        }
        list(f, "warnings", warnings)
    }
}

/// Writes lines under a title, where there are any; not all of very many.
fn list(f: &mut fmt::Formatter<'_>, title: &str, lines: Vec<String>) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    write!(f, "\n\n{title}:")?;
    for line in lines.iter().take(LISTED) {
        write!(f, "\n  {line}")?;
    }
    match lines.len().saturating_sub(LISTED) {
        0 => Ok(()),
        more => write!(f, "\n  … and {} more", thousands(more)),
    }
}
