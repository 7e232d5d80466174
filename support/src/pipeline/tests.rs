//! What datasets and batches do, on small images in a temporary folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use image::RgbImage;
use tch::{Kind, Tensor};
use tempfile::TempDir;

use super::{Augmentation, Batch, Batches, Dataset, Parts, Pixels, Skipped, stack};
use crate::Error;
use crate::dataset::{Example, Label};
use crate::properties::measured;
use crate::settings::BrokenImages;

/// A folder of PNG files, named by number; each one's red value is its number, and its label
/// whether that is odd.
struct Folder {
    folder: TempDir,
    count: usize,
}

impl Folder {
    fn new(count: usize) -> Self {
        let folder = Self {
            folder: tempfile::tempdir().unwrap(),
            count,
        };
        for number in 0..count {
            let color = image::Rgb([number as u8, 100, 200]);
            RgbImage::from_pixel(4, 3, color)
                .save(folder.path(number))
                .unwrap();
        }
        folder
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("{number}.png"))
    }

    fn damage(self, number: usize) -> Self {
        std::fs::write(self.path(number), b"").unwrap();
        self
    }

    fn dataset(&self, broken: BrokenImages) -> Dataset<RgbImage> {
        let example =
            |number| Example::at_path(format!("{number}.png"), number % 2, &self.path(number));
        let classes = vec!["even".to_owned(), "odd".to_owned()];
        Dataset::new((0..self.count).map(example).collect(), classes, 7, broken)
    }

    fn pixels(&self) -> Dataset<Pixels> {
        self.dataset(BrokenImages::Skip)
            .map(|image| Pixels::from(image))
    }
}

fn epoch(batches: &Batches, epoch: usize) -> Vec<Batch> {
    batches.epoch(epoch).collect::<crate::Result<_>>().unwrap()
}

/// The images' numbers, batch by batch, read from the tensors.
fn numbers(batches: &[Batch]) -> Vec<Vec<i64>> {
    let red = |batch: &Batch| batch.images.select(1, 0).select(1, 0).select(1, 0);
    batches
        .iter()
        .map(|batch| Vec::try_from(red(batch).to_kind(Kind::Int64)).unwrap())
        .collect()
}

#[test]
fn a_batch_is_nchw_with_its_labels_and_indices() {
    let folder = Folder::new(3);
    let made = folder
        .dataset(BrokenImages::Stop)
        .map(|image| Pixels::from(image).resize(2, 2))
        .batch(32);
    let [batch] = epoch(&made, 0).try_into().unwrap();
    assert_eq!(batch.images.size(), [3, 3, 2, 2]);
    assert!(batch.images.permute([0, 2, 3, 1]).is_contiguous());
    assert_eq!(batch.images.kind(), Kind::Float);
    assert_eq!(batch.indices, [0, 1, 2]);
    assert_eq!(batch.labels, Tensor::from_slice(&[0_i64, 1, 0]));
    let second: Vec<f32> = Vec::try_from(batch.images.get(1).flatten(0, -1)).unwrap();
    assert_eq!(second, [[1.0; 4], [100.0; 4], [200.0; 4]].concat());
}

#[test]
fn of_several_labels_a_batch_has_a_row_of_zeros_and_ones_for_each_image() {
    let folder = Folder::new(3);
    let mut examples = folder.dataset(BrokenImages::Stop).examples().to_vec();
    let labels = [vec![1, 0], vec![], vec![1]].map(Label::from_iter);
    for (example, label) in examples.iter_mut().zip(labels) {
        example.label = label;
    }
    let batches = |examples: &[Example]| {
        let classes = vec!["even".to_owned(), "odd".to_owned()];
        Dataset::new(examples.to_vec(), classes, 7, BrokenImages::Stop)
            .map(|image| Pixels::from(image))
            .batch(32)
    };
    let (_, labels) = batches(&examples).first().unwrap();
    let expected = Tensor::from_slice2(&[[1f32, 1.], [0., 0.], [0., 1.]]);
    assert_eq!((labels.kind(), &labels), (Kind::Float, &expected));
    // Labels of two kinds, and one of no class.
    for (label, got) in [
        (Label::Class(1), "got 1"),
        (Label::from_iter([0, 2]), "got {0, 2}"),
    ] {
        examples[1].label = label;
        let batches = batches(&examples);
        let error = batches.first().unwrap_err().to_string();
        assert!(error.ends_with(got), "{error}");
        let error = batches.check_labels("here").unwrap_err().to_string();
        assert!(error.contains(got), "{error}");
    }
}

#[test]
fn an_epoch_has_every_example_once_and_a_smaller_last_batch() {
    let folder = Folder::new(20);
    let batches = folder.pixels().batch(8);
    assert_eq!((batches.len(), batches.examples()), (3, 20));
    let all: Vec<Vec<i64>> = vec![(0..8).collect(), (8..16).collect(), (16..20).collect()];
    assert_eq!(numbers(&epoch(&batches, 0)), all);
    assert_eq!(
        numbers(&epoch(&batches, 1)),
        all,
        "without shuffle, every epoch is the same"
    );
}

#[test]
fn the_order_depends_on_seed_and_epoch_only() {
    let folder = Folder::new(40);
    let batches = folder.pixels().shuffle(1000).batch(16);
    let first = numbers(&epoch(&batches, 3));
    assert_eq!(first, numbers(&epoch(&batches.clone(), 3)));
    assert_ne!(first, numbers(&epoch(&batches, 4)));
    let mut all = first.concat();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<i64>>());
    let (images, _) = batches.first().unwrap();
    assert_eq!(images.size(), [16, 3, 3, 4]);
}

#[test]
fn shards_deal_the_examples_out_and_have_equal_parts_in_every_batch() {
    let folder = Folder::new(13);
    let batches = folder.pixels().shuffle(1000).batch(5).sharded(3);
    let of_epoch = |epoch| -> Vec<(Vec<i64>, Parts)> {
        let batches: Vec<Batch> = batches.epoch(epoch).map(Result::unwrap).collect();
        let parts = batches.iter().map(|batch| batch.parts.clone());
        numbers(&batches).into_iter().zip(parts).collect()
    };
    let first = of_epoch(0);
    // Shards of 5, 4 and 4 examples, of which a batch takes 1, 2 and 2.
    let parts: Vec<Parts> = first.iter().map(|(_, parts)| parts.clone()).collect();
    let full = vec![(0, 1), (1, 2), (2, 2)];
    let rest = vec![(0, 1), (1, 0), (2, 0)];
    assert_eq!(parts, [&full, &full, &rest, &rest, &rest].map(Clone::clone));
    assert_eq!(batches.len(), 5);
    for (numbers, parts) in &first {
        let shards = parts
            .iter()
            .flat_map(|&(shard, count)| vec![shard as i64; count as usize]);
        assert!(
            shards.eq(numbers.iter().map(|number| number % 3)),
            "{numbers:?}"
        );
    }
    let mut all: Vec<i64> = first
        .iter()
        .flat_map(|(numbers, _)| numbers.clone())
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..13).collect::<Vec<i64>>());
    assert_ne!(first, of_epoch(1));
    // None is left out where a batch is too small for a part of each.
    let small = batches.dataset().batch(2).sharded(4);
    let numbers = numbers(&epoch(&small, 0));
    assert_eq!((numbers.len(), numbers.concat().len()), (small.len(), 13));
}

#[test]
fn a_shuffle_buffer_moves_no_example_further_ahead_than_its_size() {
    let folder = Folder::new(40);
    let order = numbers(&epoch(&folder.pixels().shuffle(5).batch(1), 0)).concat();
    assert_ne!(order, (0..40).collect::<Vec<i64>>());
    for (place, number) in order.iter().enumerate() {
        assert!(*number < place as i64 + 5, "{number} at {place}");
    }
    let unmixed = numbers(&epoch(&folder.pixels().shuffle(0).batch(1), 0)).concat();
    assert_eq!(unmixed, (0..40).collect::<Vec<i64>>());
}

fn augmentation() -> Augmentation {
    Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.2)
        .random_zoom(0.2)
        .random_translation(0.2, 0.2)
        .random_erasing(0.5, 0.02..=0.33, 0.3..=3.3)
        .color_jitter(0.3, 0.3, 0.3)
}

#[test]
fn augmented_batches_depend_on_seed_and_epoch_and_not_on_threads_or_order() {
    let folder = Folder::new(24);
    // Pixels that differ, so that a rotation shows.
    let dataset = |seed| {
        let examples = folder.pixels().examples().to_vec();
        let classes = vec!["even".to_owned(), "odd".to_owned()];
        Dataset::new(examples, classes, seed, BrokenImages::Stop)
            .map(|image| {
                let mut image = image.clone();
                image.put_pixel(0, 0, image::Rgb([255; 3]));
                Pixels::from(&image)
            })
            .augment(augmentation())
            .unwrap()
    };
    let augmented = dataset(7);
    let batches = augmented.shuffle(24).batch(5);
    assert!(batches.is_augmented() && batches.take(1).is_augmented());
    let of_epoch = |batches: &Batches, threads, epoch| -> Vec<(String, i64, Vec<f32>)> {
        let mut examples = Vec::new();
        for batch in batches.epoch_on(threads, epoch) {
            let Batch {
                images,
                labels,
                indices,
                ..
            } = batch.unwrap();
            for (place, index) in indices.into_iter().enumerate() {
                let id = batches.dataset().examples()[index].id.clone();
                let image = images.get(place as i64).permute([1, 2, 0]).flatten(0, -1);
                let label = labels.int64_value(&[place as i64]);
                examples.push((id, label, Vec::try_from(image.contiguous()).unwrap()));
            }
        }
        examples
    };
    let first = of_epoch(&batches, 1, 3);
    for threads in [2, 7] {
        assert_eq!(first, of_epoch(&batches, threads, 3));
    }
    // In another order, in batches of another size, and one by one.
    let mut sorted = first.clone();
    let mut unshuffled = of_epoch(&augmented.batch(24), 2, 3);
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    unshuffled.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(sorted, unshuffled);
    for example in augmented.examples() {
        let pixels = augmented.load_drawn(example, 0, 3).unwrap().unwrap();
        let in_batch = &sorted[sorted.binary_search_by(|a| a.0.cmp(&example.id)).unwrap()];
        assert_eq!(example.label, in_batch.1 as usize);
        assert_eq!(in_batch.2, pixels.into_values());
    }
    // Other seeds and other epochs make others of every image; epochs do so without shuffling.
    let differs = |others: Vec<(String, i64, Vec<f32>)>| {
        others.iter().all(|(id, label, values)| {
            let one = unshuffled.iter().find(|one| &one.0 == id).unwrap();
            assert_eq!(one.1, *label);
            &one.2 != values
        })
    };
    assert!(differs(of_epoch(&augmented.batch(24), 2, 4)));
    assert!(differs(of_epoch(&dataset(8).batch(24), 2, 3)));
}

#[test]
fn each_copy_of_an_example_has_its_own_augmentation_and_the_others_keep_theirs() {
    let folder = Folder::new(3);
    let jitter = Augmentation::new().color_jitter(0.5, 0.0, 0.0);
    let values = |examples: Vec<Example>| -> Vec<f32> {
        let classes = vec!["even".to_owned(), "odd".to_owned()];
        let dataset = Dataset::new(examples, classes, 7, BrokenImages::Stop)
            .map(|image| Pixels::from(image))
            .augment(jitter.clone())
            .unwrap();
        let green = |batch: &Batch| batch.images.select(1, 1).select(1, 0).select(1, 0);
        Vec::try_from(green(&epoch(&dataset.batch(8), 0)[0])).unwrap()
    };
    let once = folder.dataset(BrokenImages::Stop).examples().to_vec();
    let twice = [&once[..], &once[1..2], &once[1..2]].concat();
    let (once, twice) = (values(once), values(twice));
    assert_eq!(twice[..3], once);
    assert!(twice[1] != twice[3] && twice[3] != twice[4] && twice[1] != twice[4]);
}

#[test]
fn examples_that_are_there_twice_are_batched_loaded_and_skipped_twice() {
    let folder = Folder::new(4).damage(2);
    let examples = folder.dataset(BrokenImages::Skip).examples().to_vec();
    let examples = [&examples[1..], &examples[1..]].concat();
    let classes = vec!["even".to_owned(), "odd".to_owned()];
    let batches = Dataset::new(examples, classes, 7, BrokenImages::Skip)
        .map(|image| Pixels::from(image))
        .batch(8);
    let [batch] = epoch(&batches, 0).try_into().unwrap();
    assert_eq!(batch.indices, [0, 2, 3, 5]);
    assert_eq!(numbers(&[batch]), [[1, 3, 1, 3]]);
    let skipped: Vec<String> = batches.skipped().into_iter().map(|one| one.name).collect();
    assert_eq!(skipped, ["2.png", "2.png"]);
    assert_eq!(batches.load(3).unwrap().unwrap().into_values()[0], 1.0);
    assert!(batches.load(4).unwrap().is_none() && batches.load(6).unwrap().is_none());
    let chosen = batches.only([5, 3, 5].into_iter());
    let [batch] = epoch(&chosen, 0).try_into().unwrap();
    assert_eq!(batch.indices, [0, 1, 2]);
    assert_eq!(numbers(&[batch]), [[3, 1, 3]]);
}

#[test]
fn what_is_not_augmented_stays_as_it_was() {
    let folder = Folder::new(6);
    let plain = folder.pixels();
    let augmented = plain.augment(augmentation()).unwrap();
    let batches = augmented.shuffle(6).batch(4);
    assert!(!plain.is_augmented() && !plain.batch(4).is_augmented());
    assert_eq!(
        numbers(&epoch(&plain.batch(4), 0)),
        [vec![0, 1, 2, 3], vec![4, 5]]
    );
    let unaugmented = batches.unaugmented();
    assert_eq!(unaugmented.order(2), batches.order(2));
    let order = batches.order(2).into_iter().flat_map(|(_, order)| order);
    let order: Vec<i64> = order.map(|index| index as i64).collect();
    assert_eq!(numbers(&epoch(&unaugmented, 2)).concat(), order);
    let iterated = augmented
        .iter()
        .map(|item| item.unwrap().0.into_values()[0]);
    assert!(iterated.eq((0..6).map(|number| number as f32)));
    let none = augmented.augment(Augmentation::new()).unwrap();
    assert!(!none.is_augmented());
}

#[test]
fn images_are_mixed_within_their_shard_whoever_loads_it() {
    let folder = Folder::new(24);
    let augmentation = Augmentation::new().mix_up(1.0).cut_mix(1.0);
    let dataset = folder.pixels().augment(augmentation).unwrap().shuffle(24);
    assert!(dataset.is_mixed());
    let batches = dataset.batch(8).sharded(4);
    let all = epoch(&batches, 1);
    let plain = epoch(&batches.unaugmented(), 1);
    assert!(plain.iter().all(|batch| batch.mixed.is_none()));
    for (batch, plain) in all.iter().zip(&plain) {
        let mixed = batch.mixed.as_ref().unwrap();
        assert_eq!(batch.indices, plain.indices);
        assert_eq!([batch.labels.size(), mixed.shares.size()], [[8], [8]]);
        assert_ne!(batch.images, plain.images);
        // What is red in an image is its number: shards of two, each mixed with the other.
        let red = plain
            .images
            .select(1, 0)
            .mean_dim([1, 2].as_slice(), false, Kind::Float);
        let got = batch
            .images
            .select(1, 0)
            .mean_dim([1, 2].as_slice(), false, Kind::Float);
        for at in 0..8 {
            let pair = [at, at ^ 1].map(|at: i64| red.double_value(&[at]));
            let share = mixed.shares.double_value(&[at]);
            let expected = [share, 1.0 - share].map(|own| own * pair[0] + (1.0 - own) * pair[1]);
            let got = got.double_value(&[at]);
            let own_is_larger = (got - expected[0]).abs() < 1e-3;
            assert!(
                own_is_larger || (got - expected[1]).abs() < 1e-3,
                "{got} {expected:?}"
            );
            let places = if own_is_larger {
                [at, at ^ 1]
            } else {
                [at ^ 1, at]
            };
            let labels = places.map(|place| plain.labels.int64_value(&[place]));
            let got = [&batch.labels, &mixed.labels].map(|labels| labels.int64_value(&[at]));
            assert_eq!(got, labels);
        }
    }
    // In other batches and other epochs otherwise.
    let shares = |batches: &[Batch]| -> Vec<Vec<f32>> {
        let shares = batches
            .iter()
            .map(|batch| &batch.mixed.as_ref().unwrap().shares);
        shares
            .map(|shares| Vec::try_from(shares).unwrap())
            .collect()
    };
    let (first, again, other) = (
        shares(&all),
        shares(&epoch(&batches, 1)),
        shares(&epoch(&batches, 2)),
    );
    assert_eq!(first, again);
    assert_ne!(first[0], first[1]);
    assert_ne!(first, other);
    assert!(first.iter().any(|shares| shares[0] != shares[2]));
}

#[test]
fn an_augmentation_that_makes_no_sense_is_refused() {
    let pixels = Folder::new(1).pixels();
    for value in [-0.1, f64::NAN, f64::INFINITY, -f64::INFINITY] {
        let none = Augmentation::new();
        for (augmentation, name) in [
            (
                none.clone().random_rotation(value),
                "random_rotation, the factor",
            ),
            (
                none.clone().color_jitter(value, 0.0, 0.0),
                "color_jitter, the brightness",
            ),
            (
                none.clone().color_jitter(0.0, value, 0.0),
                "color_jitter, the contrast",
            ),
            (
                none.clone().color_jitter(0.0, 0.0, value),
                "color_jitter, the saturation",
            ),
        ] {
            match pixels.augment(augmentation.random_flip_horizontal()) {
                Err(Error::Argument { name: got, .. }) => assert_eq!(got, name),
                other => panic!("{name} {value}: {other:?}"),
            }
        }
    }
    let none = Augmentation::new;
    for (augmentation, expected) in [
        (
            none().random_zoom(1.5),
            "random_zoom, the factor: expected a share, 0 to 1, got 1.5",
        ),
        (
            none().random_translation(0.0, -1.0),
            "random_translation, the width factor: expected a share, 0 to 1, got -1",
        ),
        (
            none().random_resized_crop(0.0..=1.0, 1.0..=1.0),
            "random_resized_crop, the scale: expected a range of shares above 0, up to 1, got 0..=1",
        ),
        (
            none().random_resized_crop(0.5..=1.0, 2.0..=1.0),
            "random_resized_crop, the ratio: expected a range of numbers above 0, got 2..=1",
        ),
        (
            none().random_erasing(1.5, 0.1..=0.2, 1.0..=1.0),
            "random_erasing, the probability: expected a share, 0 to 1, got 1.5",
        ),
        (
            none().random_erasing(0.5, 0.1..=f64::NAN, 1.0..=1.0),
            "random_erasing, the scale: expected a range of shares above 0, up to 1, got 0.1..=NaN",
        ),
        (
            none().mix_up(0.0),
            "mix_up, alpha: expected a number above 0, got 0",
        ),
        (
            none().cut_mix(f64::INFINITY),
            "cut_mix, alpha: expected a number above 0, got inf",
        ),
    ] {
        let error = pixels.augment(augmentation).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let error = pixels
        .augment(Augmentation::new().random_rotation(72.0))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "random_rotation, the factor: expected turns, 0 to 1, got 72"
    );
}

#[test]
fn a_broken_image_is_skipped_named_once_and_its_place_filled() {
    let folder = Folder::new(10).damage(1).damage(6);
    let dataset = folder.pixels();
    let batches = dataset.batch(4);
    for number in 0..2 {
        let epoch = epoch(&batches, number);
        assert_eq!(numbers(&epoch), [vec![0, 2, 3, 4], vec![5, 7, 8, 9]]);
    }
    let skipped = ["1.png", "6.png"].map(|name| Skipped {
        name: name.to_owned(),
        reason: "the file is empty".to_owned(),
    });
    assert_eq!(batches.skipped(), skipped);
    assert_eq!(
        dataset.skipped(),
        skipped,
        "the dataset that the batches are of knows as well"
    );
}

#[test]
fn a_broken_image_stops_the_epoch_if_so_set() {
    let folder = Folder::new(10).damage(6);
    let batches = folder
        .dataset(BrokenImages::Stop)
        .map(|image| Pixels::from(image))
        .batch(4);
    let mut epoch = batches.epoch(0);
    assert_eq!(epoch.next().unwrap().unwrap().indices.len(), 4);
    let error = epoch.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "image 6.png: the file is empty");
    assert!(epoch.next().is_none());
}

#[test]
fn an_epoch_of_broken_images_only_is_an_error() {
    let folder = Folder::new(2).damage(0).damage(1);
    let error = folder.pixels().batch(4).first().unwrap_err();
    assert_eq!(
        error.to_string(),
        "dataset even, odd: none of 2 images can be read; 0.png: the file is empty"
    );
}

#[test]
fn a_dataset_without_examples_has_no_first_batch_and_no_epoch() {
    let folder = Folder::new(2);
    let empty = folder.pixels().take(0).batch(4);
    assert_eq!((empty.len(), empty.is_empty()), (0, true));
    assert!(matches!(empty.first(), Err(Error::Dataset { .. })));
    assert!(empty.epoch(0).next().is_none());
}

#[test]
fn images_of_different_sizes_in_a_batch_are_an_error_that_names_one() {
    let folder = Folder::new(3);
    RgbImage::new(5, 3).save(folder.path(2)).unwrap();
    match folder.pixels().batch(4).first() {
        Err(Error::Shape {
            operation,
            expected,
            got,
        }) => {
            assert_eq!(operation, "batch, at image 2.png");
            assert!(expected.starts_with("[3, 3, 4]"), "{expected}");
            assert_eq!(got, [3, 3, 5]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_in_the_map_function_is_an_error_even_where_broken_images_are_skipped() {
    let folder = Folder::new(8);
    let dataset = folder.dataset(BrokenImages::Skip).map(|image| {
        assert!(image.get_pixel(0, 0)[0] != 5, "no fives");
        Pixels::from(image)
    });
    let mut epoch = dataset.batch(4).epoch(0);
    assert!(epoch.next().unwrap().is_ok());
    let error = epoch.next().unwrap().unwrap_err().to_string();
    assert_eq!(
        error,
        "image 5.png: the function given to `map` panicked: no fives"
    );
    assert!(epoch.next().is_none());
    assert_eq!(dataset.skipped(), []);
}

#[test]
fn no_more_than_two_batches_are_made_ahead() {
    let folder = Folder::new(200);
    let given = Arc::new(AtomicUsize::new(0));
    let made = AtomicUsize::new(0);
    let counter = given.clone();
    let dataset = folder.dataset(BrokenImages::Skip).map(move |image| {
        let made = made.fetch_add(1, Ordering::SeqCst) + 1;
        // Two batches ahead, and the one that is being collected.
        assert!(made <= counter.load(Ordering::SeqCst) + 30, "{made}");
        Pixels::from(image)
    });
    for batch in dataset.batch(10).epoch(0) {
        given.fetch_add(batch.unwrap().indices.len(), Ordering::SeqCst);
    }
    assert_eq!(given.load(Ordering::SeqCst), 200);
}

#[test]
fn dropping_an_epoch_ends_its_threads() {
    let folder = Folder::new(200);
    let held = Arc::new(());
    let by_map = held.clone();
    let dataset = folder.dataset(BrokenImages::Skip).map(move |image| {
        let _ = &by_map;
        Pixels::from(image)
    });
    let mut epoch = dataset.batch(10).epoch(0);
    drop(dataset);
    epoch.next().unwrap().unwrap();
    drop(epoch);
    let start = Instant::now();
    while Arc::strong_count(&held) > 1 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "a thread still holds the dataset"
        );
        thread::yield_now();
    }
}

#[test]
fn take_and_skip_cut_in_order_and_leave_the_dataset_as_it_was() {
    let folder = Folder::new(6);
    let dataset = folder.dataset(BrokenImages::Skip);
    let ids = |dataset: &Dataset<RgbImage>| -> Vec<String> {
        dataset
            .examples()
            .iter()
            .map(|example| example.id.clone())
            .collect()
    };
    assert_eq!(ids(&dataset.skip(1).take(2)), ["1.png", "2.png"]);
    assert_eq!(ids(&dataset.take(100).skip(4)), ["4.png", "5.png"]);
    assert!(dataset.skip(100).is_empty());
    assert_eq!(dataset.len(), 6);
    let labels: Vec<Label> = dataset.skip(2).iter().map(|item| item.unwrap().1).collect();
    assert_eq!(labels, [0, 1, 0, 1]);
}

#[test]
fn a_size_beyond_all_bounds_makes_one_batch_of_all() {
    let folder = Folder::new(5);
    for size in [usize::MAX, 1_000_000_000] {
        let batches = folder.pixels().take(usize::MAX).shuffle(size).batch(size);
        let batches = batches.take(usize::MAX);
        assert_eq!((batches.len(), batches.examples()), (1, 5));
        let (made, memory) = measured(|| epoch(&batches, 0));
        let [batch] = made.try_into().unwrap();
        assert_eq!(batch.images.size(), [5, 3, 3, 4]);
        assert!(memory < 1 << 20, "{memory} bytes");
    }
}

#[test]
fn images_of_different_sizes_are_not_stacked() {
    let pixels = |width, height| Pixels::from(&RgbImage::new(width, height));
    for other in [(3, 2), (2, 4), (0, 0), (2, 2)] {
        let error = stack(vec![pixels(2, 3), pixels(other.0, other.1)]).err();
        let is_refused = matches!(error, Some(Error::Shape { .. }));
        assert_eq!(is_refused, other != (3, 2), "{other:?}");
    }
}

#[test]
fn samples_behind_a_images_last_do_not_reach_the_batch() {
    let longer = |_: &RgbImage| {
        let samples = (0..100).map(|sample| sample % 12).collect();
        Pixels::from(&RgbImage::from_raw(2, 2, samples).unwrap())
    };
    let folder = Folder::new(3);
    let batches = folder.dataset(BrokenImages::Stop).map(longer).batch(3);
    let (images, _) = batches.first().unwrap();
    let values: Vec<f32> = Vec::try_from(images.permute([0, 2, 3, 1]).flatten(0, -1)).unwrap();
    let expected: Vec<f32> = (0..12).map(|sample| sample as f32).collect();
    assert_eq!(values, expected.repeat(3));
}

#[test]
#[ignore = "needs photos"]
fn real_photos_become_batches_whatever_their_suffix_says() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let root = std::env::var_os("TRANSFER_TEST_PHOTOS").unwrap_or_else(|| beside.into());
    let mut files = Vec::new();
    for folder in ["wrong_format", "cats_and_dogs_filtered/validation/cats"] {
        let folder = std::fs::read_dir(PathBuf::from(&root).join(folder)).unwrap();
        files.extend(folder.map(|file| file.unwrap().path()));
    }
    let example = |path: &PathBuf| Example::at_path(path.display().to_string(), 0, path);
    let examples: Vec<Example> = files.iter().map(example).collect();
    let count = examples.len();
    let batches = Dataset::new(examples, vec!["cat".to_owned()], 0, BrokenImages::Stop)
        .map(|image| {
            Pixels::from(image)
                .scale(1.0 / 127.5)
                .offset(-1.0)
                .resize(160, 160)
        })
        .batch(32);
    let epoch = epoch(&batches, 0);
    assert_eq!(
        epoch.iter().map(|batch| batch.indices.len()).sum::<usize>(),
        count
    );
    for batch in epoch {
        assert_eq!(batch.images.size()[1..], [3, 160, 160]);
        assert!(batch.images.min().double_value(&[]) >= -1.0);
        assert!(batch.images.max().double_value(&[]) <= 1.0);
    }
}
