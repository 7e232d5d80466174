//! The frozen prefix's output for each image, computed once instead of once per epoch.
//!
//! While a layer is frozen and in inference mode its output for an image never changes, so
//! training can start after it. They live as long as one `fit`, during which nothing can change
//! a frozen weight. Whether they are wanted is not decided here.

use super::frozen::PrefixBatch;
use super::store::Store;
use crate::model::Sequential;
use crate::pipeline::{Batch, Batches, Parts};
use crate::{Error, Result};

/// The outputs of one layer for all images of a dataset.
pub(super) struct Activations {
    store: Store,
    /// Which example each row is of.
    examples: Vec<usize>,
    /// Where each example's output is; nowhere if its image is broken, or it is another process'.
    rows: Vec<Option<i64>>,
}

impl Activations {
    /// Computes layer `index`'s outputs; those that take more than `memory` bytes go into a file
    /// in the dataset's data folder, and are read through a window of at most as many bytes.
    /// `on_step_end` is called after every batch; its error ends it.
    pub(super) fn compute<C, E: From<Error>>(
        model: &Sequential<C>,
        index: usize,
        batches: &Batches,
        memory: usize,
        mut on_step_end: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        let frozen = model.inference(0, index)?;
        let count = batches.own_examples();
        let shape = [vec![count as i64], model.layer_shape(index)].concat();
        let mut store = Store::new(&shape, model.layer_kind(index), memory, batches.data_dir())?;
        // All room is taken here: before 2.38, glibc cannot use a freed tensor's memory for the next
        // one of that size once something small that stays lies behind it.
        let mut rows = vec![None; batches.examples()];
        let mut examples = Vec::with_capacity(count);
        for batch in batches.unshuffled().epoch(0) {
            let Batch {
                images, indices, ..
            } = batch?;
            let first = examples.len() as i64;
            store.write(first, &frozen(&images)?)?;
            for (&index, row) in indices.iter().zip(first..) {
                rows[index] = Some(row);
            }
            examples.extend(indices);
            on_step_end()?;
        }
        let mut stored = Self {
            store,
            examples,
            rows,
        };
        let (like_all_epochs, _): (Vec<_>, Vec<_>) = stored.rows(batches, 0).into_iter().unzip();
        stored.store.set_window(memory, &like_all_epochs);
        Ok(stored)
    }

    /// Returns the number of images.
    pub(super) fn len(&self) -> usize {
        self.examples.len()
    }

    /// Returns where the outputs are kept.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the outputs in the batches of an epoch of `batches`, which they are of: those that the
    /// images themselves would come in.
    pub(super) fn batches<'a>(
        &'a self,
        batches: &Batches,
        epoch: usize,
    ) -> impl Iterator<Item = Result<PrefixBatch>> + use<'a> {
        let (rows, parts): (Vec<_>, Vec<_>) = self.rows(batches, epoch).into_iter().unzip();
        let batches = batches.clone();
        self.store
            .batches(rows)
            .zip(parts)
            .map(move |(batch, parts)| {
                let (rows, input) = batch?;
                let examples: Vec<usize> = rows
                    .iter()
                    .map(|&row| self.examples[row as usize])
                    .collect();
                Ok(PrefixBatch {
                    input,
                    labels: batches.labels(&examples)?,
                    mixed: None,
                    parts,
                })
            })
    }

    /// Returns the rows of each batch of an epoch.
    fn rows(&self, batches: &Batches, epoch: usize) -> Vec<(Vec<i64>, Parts)> {
        let rows = |(shard, order): (usize, Vec<usize>)| {
            let rows = order.iter().filter_map(|&example| self.rows[example]);
            (shard, rows.collect())
        };
        let order = batches.order(epoch).into_iter().map(rows);
        batches.deal(order.collect())
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use tch::{Device, Tensor};

    use super::*;
    use crate::dataset::{Example, Label};
    use crate::model::Backbone;
    use crate::pipeline::{Dataset, Pixels};
    use crate::settings::BrokenImages;

    #[test]
    fn examples_that_are_there_twice_keep_their_labels_and_outputs() {
        let folder = tempfile::tempdir().unwrap();
        let example = |label: usize| {
            let path = folder.path().join(format!("{label}.png"));
            let color = image::Rgb([90 * label as u8; 3]);
            RgbImage::from_pixel(32, 32, color).save(&path).unwrap();
            Example::at_path(format!("{label}.png"), label, &path)
        };
        let examples = [0, 0, 1, 2, 1].map(example).to_vec();
        let classes = ["ants", "bees", "cats"].map(str::to_owned).to_vec();
        let batches = Dataset::new(examples, classes, 0, BrokenImages::Stop)
            .map(|image| Pixels::from(image).scale(1. / 255.))
            .batch(2);
        let base = Backbone::untrained([3, 32, 32], Device::Cpu).unwrap();
        let model = Sequential::new(base);
        let on_step_end = || Ok::<(), Error>(());
        let stored = Activations::compute(&model, 5, &batches, 1 << 30, on_step_end).unwrap();
        let frozen = model.inference(0, 5).unwrap();
        let shuffled = batches.dataset().shuffle(5).batch(2);
        let order = shuffled.order(1).remove(0).1;
        assert_ne!(order, [0, 1, 2, 3, 4]);
        let outputs = stored.batches(&shuffled, 1).map(Result::unwrap);
        let (outputs, labels): (Vec<_>, Vec<_>) =
            outputs.map(|batch| (batch.input, batch.labels)).unzip();
        let expected: Vec<i64> = order
            .iter()
            .map(|&example| [0, 0, 1, 2, 1][example])
            .collect();
        assert_eq!(Tensor::cat(&labels, 0), Tensor::from_slice(&expected));
        let outputs = Tensor::cat(&outputs, 0);
        for (row, example) in (0..).zip(order) {
            let (image, _) = batches.only([example].into_iter()).first().unwrap();
            let difference = outputs.get(row) - frozen(&image).unwrap().get(0);
            let largest = difference.abs().max().double_value(&[]);
            assert!(largest < 1e-4, "example {example}: {largest}");
        }
    }

    #[test]
    fn an_example_that_is_drawn_often_is_stored_once_with_all_its_labels() {
        let folder = tempfile::tempdir().unwrap();
        let example = |(at, classes): (usize, Vec<usize>)| {
            let path = folder.path().join(format!("{at}.png"));
            let color = image::Rgb([60 * at as u8; 3]);
            RgbImage::from_pixel(32, 32, color).save(&path).unwrap();
            Example::at_path(format!("{at}.png"), Label::from_iter(classes), &path)
        };
        let examples = [vec![0], vec![1, 2], vec![], vec![2]]
            .into_iter()
            .enumerate();
        let examples: Vec<Example> = examples.map(example).collect();
        let classes = ["ants", "bees", "cats"].map(str::to_owned).to_vec();
        let sampled = Dataset::new(examples, classes, 0, BrokenImages::Stop)
            .map(|image| Pixels::from(image).scale(1. / 255.))
            .sample_weighted(&[1., 1., 1., 0.], 9)
            .unwrap()
            .batch(4);
        let model = Sequential::new(Backbone::untrained([3, 32, 32], Device::Cpu).unwrap());
        let frozen = model.inference(0, 5).unwrap();
        // In memory and in a file.
        for memory in [1 << 30, 0] {
            let on_step_end = || Ok::<(), Error>(());
            let stored = Activations::compute(&model, 5, &sampled, memory, on_step_end).unwrap();
            assert_eq!(
                (stored.len(), stored.store().file().is_some()),
                (4, memory == 0)
            );
            let mut steps = 0;
            for (stored, batch) in stored.batches(&sampled, 3).zip(sampled.epoch(3)) {
                let (stored, batch) = (stored.unwrap(), batch.unwrap());
                assert_eq!(stored.labels, batch.labels);
                assert_eq!(stored.labels.size()[1], 3);
                let difference = stored.input - frozen(&batch.images).unwrap();
                assert!(difference.abs().max().double_value(&[]) < 1e-4);
                steps += 1;
            }
            assert_eq!(steps, 3);
        }
    }
}
