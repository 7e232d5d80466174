//! What the frozen layers make of each picture, computed once instead of once per epoch.
//!
//! While a layer is frozen and in inference mode its output for a picture never changes, so
//! training can start behind it. Whether that is worth it is decided in `fit`.

use std::collections::HashMap;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::model::Sequential;
use crate::pipeline::{Batch, Batches};
use crate::{Error, Result};

/// The outputs of one layer for all pictures of a dataset.
pub(super) struct Activations {
    /// `[pictures, ...]`, on the CPU.
    outputs: Tensor,
    /// `[pictures]`
    labels: Tensor,
    /// Where each example's output is; nowhere if its picture is broken.
    rows: Vec<Option<i64>>,
    batch_size: usize,
}

impl Activations {
    /// Computes layer `index`'s outputs, if they fit into `budget` bytes, and says so.
    pub(super) fn compute<C>(
        model: &Sequential<C>,
        index: usize,
        batches: &Batches,
        budget: usize,
    ) -> Result<Option<Self>> {
        let _no_grad = tch::no_grad_guard();
        let start = Instant::now();
        let mut row_of: HashMap<String, i64> = HashMap::new();
        let mut outputs: Option<Tensor> = None;
        let mut labels = Vec::new();
        for batch in batches.unshuffled().epoch(0) {
            let Batch {
                images,
                labels: batch_labels,
                ids,
            } = batch?;
            let output = model.run(0, &images, index)?;
            let first = row_of.len() as i64;
            let outputs = match &outputs {
                Some(outputs) => outputs,
                None => {
                    let shape = [&[batches.examples() as i64], &output.size()[1..]].concat();
                    let bytes = shape.iter().product::<i64>() as usize * size_of::<f32>();
                    if bytes > budget {
                        return Ok(None);
                    }
                    let empty = Tensor::f_empty(shape, (Kind::Float, Device::Cpu));
                    outputs.insert(empty.map_err(Error::torch("storing activations"))?)
                }
            };
            outputs
                .f_narrow(0, first, ids.len() as i64)
                .and_then(|mut rows| rows.f_copy_(&output))
                .map_err(Error::torch("storing activations"))?;
            labels.push(batch_labels);
            row_of.extend(ids.into_iter().zip(first..));
        }
        let Some(outputs) = outputs else {
            return Ok(None);
        };
        println!(
            "frozen up to {}: {} activations, {:.0} MB, computed once in {:.0}s",
            model.layer_name(index),
            row_of.len(),
            (outputs.numel() * size_of::<f32>()) as f64 / 1e6,
            start.elapsed().as_secs_f64(),
        );
        Ok(Some(Self {
            outputs,
            labels: Tensor::cat(&labels, 0),
            rows: batches.ids().map(|id| row_of.get(id).copied()).collect(),
            batch_size: batches.size(),
        }))
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
            let select = |tensor: &Tensor| tensor.f_index_select(0, &rows);
            select(&self.outputs)
                .and_then(|outputs| Ok((outputs, select(&self.labels)?)))
                .map_err(Error::torch("activations of a batch"))
        })
    }
}
