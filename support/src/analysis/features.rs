//! What a model's last layer sees of each example, computed once for all that needs nothing else.

use tch::{Device, Tensor};

use crate::live::Task;
use crate::model::{HeadLayer, Sequential};
use crate::pipeline::Batches;
use crate::{Error, Result};

/// The input of a model's last [`Dense`](crate::model::Dense) for each example: with a pooled backbone below
/// it, the pooled features.
#[derive(Debug)]
pub struct Features {
    /// What they are of, neither shuffled nor augmented.
    batches: Batches,
    /// `[N, features]`, on the CPU.
    values: Tensor,
    /// `[N]`
    labels: Tensor,
    /// Which of the dataset's examples each row is of.
    indices: Vec<usize>,
    /// Over how many images a second they were computed, decoding included.
    pub(super) images_per_second: f64,
}

impl<C> Sequential<C> {
    /// Returns the input of the last [`Dense`](crate::model::Dense) on top, or without one the model's output, for
    /// each example, in the dataset's order before any shuffling and without augmentation. Images that are
    /// skipped because they cannot be read are not among them.
    ///
    /// Each image is decoded and goes through the network once, in inference mode; what is made of features
    /// then takes seconds: [`LinearProbe`](super::LinearProbe), [`doubtful_labels`](Features::doubtful_labels).
    ///
    /// # Errors
    /// `Shape` when the images do not fit the model or that input is not one row for each example; `Argument` when
    /// there is no example, or an example has several labels; `Image` when a broken image stops the run; `Stopped`
    /// by the notebook's Stop button.
    pub fn features(&self, batches: &Batches) -> Result<Features> {
        const NAME: &str = "features, the batches";
        self.check_head()?;
        batches.check_labels(NAME)?;
        let cut = self.before_last_dense();
        if self.layer_shape(cut).len() != 1 {
            return Err(Error::Shape {
                operation: "features".into(),
                expected: "[features] for each example: push GlobalAveragePooling2d".into(),
                got: self.layer_shape(cut),
            });
        }
        let batches = batches.unaugmented().unshuffled().sharded(1);
        let forward = self.inference(0, cut)?;
        let mut task = Task::begin("features", "batch", batches.len());
        let (mut values, mut labels, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        let start = std::time::Instant::now();
        for (step, batch) in (1..).zip(batches.epoch(0)) {
            let batch = batch?;
            if batch.labels.dim() != 1 {
                return Err(Error::Argument {
                    name: NAME,
                    expected: "one label for each example".into(),
                    got: format!("labels of shape {:?}", batch.labels.size()),
                });
            }
            let output = forward(&batch.images)?.f_to_device(Device::Cpu);
            values.push(output.map_err(Error::torch("features"))?);
            labels.push(batch.labels);
            indices.extend(batch.indices);
            task.done(step, indices.len())?;
        }
        if indices.is_empty() {
            return Err(batches.nothing_readable());
        }
        let images_per_second = indices.len() as f64 / start.elapsed().as_secs_f64();
        let joined = |parts: &[Tensor]| Tensor::f_cat(parts, 0).map_err(Error::torch("features"));
        Ok(Features {
            values: joined(&values)?,
            labels: joined(&labels)?,
            batches,
            indices,
            images_per_second,
        })
    }

    /// Returns the layer whose output the last `Dense` on top reads, else the last one, counted as
    /// [`last`](Self::last) does.
    pub(crate) fn before_last_dense(&self) -> usize {
        let top: Vec<&HeadLayer> = self.top().collect();
        let dense = top
            .iter()
            .rposition(|layer| matches!(layer, HeadLayer::Dense(_)));
        let after_base = self.last() - top.len();
        after_base + dense.unwrap_or(top.len())
    }
}

impl Features {
    /// Returns the features, `[N, features]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Returns the class indices, `[N]`.
    pub fn labels(&self) -> &Tensor {
        &self.labels
    }

    /// Returns which of the dataset's examples each row is of.
    #[must_use]
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// Returns the number of examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Returns whether there is none, which no constructor lets happen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Returns the names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.batches.classes()
    }

    pub(super) fn batches(&self) -> &Batches {
        &self.batches
    }
}
