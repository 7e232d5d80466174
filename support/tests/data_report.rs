//! What is found in a folder of made images, and in real photos where there are some.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::picture;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};
use support::data_report::{DataReport, Duplicate, Sizes, data_report};
use support::dataset::ImageDataset;
use support::pipeline::Dataset;
use support::settings::{BrokenImages, Limit, Settings};

fn report(folder: &Path) -> DataReport {
    let mut settings = Settings::from_env().unwrap();
    settings.dataset = Some(folder.to_str().unwrap().into());
    settings.limit = Limit::All;
    let dataset = ImageDataset::load(&settings).unwrap();
    let [train, validation, test] = dataset.split([8, 1, 1]).unwrap();
    let parts = [
        ("train", &train),
        ("validation", &validation),
        ("test", &test),
    ];
    data_report(&parts).unwrap()
}

/// An image, its original, the bits that differ, and whether they are the same file.
fn pair(found: &Duplicate) -> (&str, &str, u32, bool) {
    let Duplicate {
        picture,
        original,
        distance,
        same_file,
    } = found;
    (&picture.id, &original.id, *distance, *same_file)
}

#[test]
fn copies_broken_images_sizes_and_classes_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for (part, numbers) in [("train", 0..3), ("validation", 3..4), ("test", 4..5)] {
        for (class, first) in [("ants", 0), ("bees", 10)] {
            for n in numbers.clone() {
                picture(first + n, 160)
                    .save(path(&format!("{part}/{class}/{n}.png")))
                    .unwrap();
            }
        }
    }
    fs::copy(path("train/ants/0.png"), path("validation/ants/copy.png")).unwrap();
    let smaller = resize(&picture(11, 160), 110, 90, FilterType::Lanczos3);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 40)
        .encode_image(&smaller)
        .unwrap();
    // What a file holds counts, not its suffix; and the label is another one's.
    fs::write(path("test/ants/smaller.png"), jpeg).unwrap();
    fs::write(path("train/bees/broken.png"), b"no picture").unwrap();
    RgbImage::from_pixel(1, 1, Rgb([9, 200, 3]))
        .save(path("train/bees/dot.png"))
        .unwrap();

    let report = report(folder.path());
    let counts: Vec<_> = report
        .parts()
        .iter()
        .map(|part| part.counts.clone())
        .collect();
    assert_eq!(counts, [[3, 5], [2, 1], [2, 1]]);
    let unreadable = &report.parts()[0].unreadable;
    assert_eq!(unreadable[0].name, "train/bees/broken.png");
    assert_eq!(
        [unreadable.len(), report.parts()[1].unreadable.len()],
        [1, 0]
    );
    let formats: Vec<_> = report
        .formats()
        .iter()
        .map(|(name, count)| (name.as_str(), *count))
        .collect();
    assert_eq!(formats, [("JPEG", 1), ("PNG", 12)]);
    let sizes = |smallest, median, largest| {
        Some(Sizes {
            smallest,
            median,
            largest,
        })
    };
    assert_eq!(
        [report.widths(), report.heights()],
        [sizes(1, 160, 160), sizes(1, 160, 160)]
    );

    let [copy, smaller] = report.duplicates() else {
        panic!("{:?}", report.duplicates())
    };
    assert_eq!(
        pair(copy),
        ("validation/ants/copy.png", "train/ants/0.png", 0, true)
    );
    let (picture, original, distance, same_file) = pair(smaller);
    assert_eq!(
        (picture, original, same_file),
        ("test/ants/smaller.png", "train/bees/1.png", false)
    );
    assert!(distance <= 8, "{distance}");

    let text = report.to_string();
    for line in [
        "images          train  validation       test",
        "ants                3           2          2",
        "unreadable          1           0          0",
        "width               1        160        160",
        "formats: 1 JPEG, 12 PNG",
        "  train/bees/broken.png: not a JPEG, PNG, GIF, WebP or BMP file",
        "  validation/ants/copy.png = train/ants/0.png (the same file)",
        "  1 of the images of train cannot be read",
        "  1 of the images are less than 32 pixels wide or high: too little to see",
        "  1 of the images of test are in train as well: what is measured on test looks better than it is",
        "  1 of the images look like one of another class",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(!text.contains("unbalanced"), "{text}");
}

#[test]
fn images_that_are_turned_upright_are_counted_and_copies_told_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let files = common::tensors("orientation.safetensors");
    for (class, names) in [("ants", ["jpeg 6", "png 1"]), ("bees", ["webp 8", "png 3"])] {
        fs::create_dir(folder.path().join(class)).unwrap();
        for name in names {
            let file = &files[format!("{name}.file").as_str()];
            let bytes = Vec::<u8>::try_from(file).unwrap();
            fs::write(folder.path().join(class).join(format!("{name}.jpg")), bytes).unwrap();
        }
    }
    let report = report(folder.path());
    assert_eq!(report.turned(), 3);
    let text = report.to_string();
    let line = "turned upright, as their EXIF orientation says: 3";
    assert!(text.lines().any(|found| found == line), "{text}");

    let mut settings = Settings::from_env().unwrap();
    settings.dataset = Some(folder.path().to_str().unwrap().into());
    let dataset = ImageDataset::load(&settings).unwrap();
    let [examples, ..] = dataset.split_examples([1, 0, 0]).unwrap();
    let twice = [&examples[..], &examples[1..2]].concat();
    let classes = dataset.classes().to_vec();
    let twice = Dataset::new(twice, classes, 0, BrokenImages::Stop);
    let report = data_report(&[("train", &twice)]).unwrap();
    let copies = report.duplicates().iter().filter(|found| found.same_file);
    let copies: Vec<_> = copies
        .map(|found| (found.picture.index, found.original.index))
        .collect();
    assert_eq!(copies, [(4, 1)]);
}

#[test]
fn classes_of_very_different_sizes_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    for (class, first, count) in [("ants", 0, 9), ("bees", 20, 1)] {
        let class = folder.path().join(class);
        fs::create_dir(&class).unwrap();
        for n in first..first + count {
            picture(n, 64).save(class.join(format!("{n}.png"))).unwrap();
        }
    }
    let text = report(folder.path()).to_string();
    let warning = "train is unbalanced: 8 images of ants, 1 of bees (8.0 to 1)";
    assert!(text.contains(warning), "{text}");
    assert!(text.contains("has no image of bees"), "{text}");
}

#[test]
fn of_several_labels_an_image_counts_for_each_of_its_classes_and_once_in_all() {
    let labels = [
        vec!["cats", "outdoor"],
        vec!["cats"],
        vec![],
        vec!["outdoor"],
        vec![],
    ];
    let images = labels
        .into_iter()
        .zip(0..)
        .map(|(label, n)| (picture(n, 64), label));
    let mut settings = Settings::from_env().unwrap();
    settings.limit = Limit::All;
    let dataset = ImageDataset::from_images(images, &settings).unwrap();
    let [all, ..] = dataset.split([1, 0, 0]).unwrap();
    let report = data_report(&[("train", &all)]).unwrap();
    let part = &report.parts()[0];
    assert_eq!(
        (part.images, &part.counts[..], part.unlabelled),
        (5, &[2, 2][..], 2)
    );
    let text = report.to_string();
    let rows = ["cats", "outdoor", "of no class", "all"].map(|row| {
        let line = text.lines().find(|line| line.starts_with(row)).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    });
    assert_eq!(rows, ["2", "2", "2", "5"]);
}

#[test]
#[ignore = "needs photos"]
fn of_real_photos_those_are_found_that_are_there_twice() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let root = std::env::var_os("TRANSFER_TEST_PHOTOS").unwrap_or_else(|| beside.into());
    let root = Path::new(&root).join("cats_and_dogs_filtered");
    let report = report(&root);
    let pairs: Vec<_> = report.duplicates().iter().map(pair).collect();
    let mut ids = [pairs[0].0, pairs[0].1];
    ids.sort_unstable();
    assert_eq!(ids, ["train/dogs/dog.180.jpg", "train/dogs/dog.74.jpg"]);
    assert_eq!((pairs.len(), report.warnings().len()), (1, 0), "{report}");
}
