//! The frozen prefix's output for each image, computed once instead of once per epoch.
//!
//! While a layer is frozen and in inference mode its output for an image never changes, so
//! training can start after it. They live as long as one `fit`, during which nothing can change
//! a frozen weight. Whether they are wanted is not decided here.

use std::collections::HashMap;

use tch::Tensor;

use super::store::Store;
use crate::model::Sequential;
use crate::pipeline::{Batch, Batches};
use crate::{Error, Result, settings};

/// The outputs of one layer for all pictures of a dataset.
pub(super) struct Activations {
    store: Store,
    /// `[pictures]`
    labels: Tensor,
    /// Where each example's output is; nowhere if its picture is broken.
    rows: Vec<Option<i64>>,
    batch_size: usize,
}

impl Activations {
    /// Computes layer `index`'s outputs; those that take more than `memory` bytes go into a file
    /// in the data folder. `on_step_end` is called after every batch; its error ends it.
    pub(super) fn compute<C, E: From<Error>>(
        model: &Sequential<C>,
        index: usize,
        batches: &Batches,
        memory: usize,
        mut on_step_end: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        let frozen = model.inference(0, index)?;
        let shape = [vec![batches.examples() as i64], model.layer_shape(index)].concat();
        let mut store = Store::new(&shape, memory, &settings::data_dir())?;
        // All room is taken here: before 2.38, glibc cannot use a freed tensor's memory for the next
        // one of that size once something small that stays lies behind it.
        let mut row_of: HashMap<String, i64> = HashMap::with_capacity(batches.examples());
        let mut labels: Vec<i64> = Vec::with_capacity(batches.examples());
        for batch in batches.unshuffled().epoch(0) {
            let Batch {
                images,
                labels: batch_labels,
                ids,
            } = batch?;
            let first = row_of.len() as i64;
            store.write(first, &frozen(&images)?)?;
            let batch_labels = Vec::<i64>::try_from(batch_labels);
            labels.extend(batch_labels.map_err(Error::torch("labels"))?);
            row_of.extend(ids.into_iter().zip(first..));
            on_step_end()?;
        }
        Ok(Self {
            store,
            labels: Tensor::f_from_slice(&labels).map_err(Error::torch("labels"))?,
            rows: batches.ids().map(|id| row_of.get(id).copied()).collect(),
            batch_size: batches.size(),
        })
    }

    /// Returns the number of pictures.
    pub(super) fn len(&self) -> usize {
        self.labels.numel()
    }

    /// Returns where the outputs are kept.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns (outputs `[N, ...]`, labels `[N]`) of each batch of examples in the given order:
    /// the batches that the pictures themselves would come in.
    pub(super) fn batches<'a>(
        &'a self,
        order: &[usize],
    ) -> impl Iterator<Item = Result<(Tensor, Tensor)>> + use<'a> {
        let rows: Vec<i64> = order
            .iter()
            .filter_map(|&example| self.rows[example])
            .collect();
        let batches: Vec<Vec<i64>> = rows.chunks(self.batch_size).map(<[i64]>::to_vec).collect();
        batches.into_iter().map(move |rows| {
            let rows = Tensor::from_slice(&rows);
            let labels = self.labels.f_index_select(0, &rows);
            Ok((
                self.store.read(&rows)?,
                labels.map_err(Error::torch("labels"))?,
            ))
        })
    }
}
