//! Reading a model file, and using it.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::info::ModelInfo;
use super::picture::Image;
use crate::analysis::{Novelty, THRESHOLD, predicted};
use crate::files::read_regular;
use crate::model::weights::{self, Contents};
use crate::model::{Backbone, HeadLayer, Sequential};
use crate::pipeline::{Pixels, Workers, stack, threads};
use crate::precision::Precision;
use crate::training::{Evaluation, History, TestTimeAugmentation, argmax, probabilities};
use crate::{Error, Result, device};

/// Images in a batch.
const BATCH_SIZE: usize = 32;

/// Images that are read before they are asked for.
const AHEAD: usize = 2 * BATCH_SIZE;

/// A model from a model file, ready for images.
///
/// Any number of threads may use one at the same time.
#[derive(Debug)]
pub struct Classifier {
    model: Sequential,
    info: ModelInfo,
    novelty: Option<Novelty>,
    with: Option<TestTimeAugmentation>,
}

/// An image as a classifier's network takes it.
#[derive(Clone, Debug)]
pub struct PreparedImage(Vec<Pixels>);

impl PreparedImage {
    /// Returns it without the variants that test-time augmentation draws.
    pub(super) fn as_it_is(&self) -> Option<&Pixels> {
        self.0.first()
    }
}

/// What a classifier makes of an image. Shows as `cats, 99.2 %`, and where an image can be of several classes
/// as `cat 99.2 %, outdoor 80.1 %` or `none`; if the image [is unlike](Self::is_unlike) those that the model
/// was trained on, as `unlike anything it was trained on (most like cats)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Classification {
    /// The most probable class.
    pub class: String,
    /// Its index in [`Classifier::classes`].
    pub index: usize,
    /// Its probability.
    pub probability: f64,
    /// What the image is taken for, each class with its probability: the most probable one; where an image
    /// can be of several, those that reach the [threshold](ModelInfo::threshold), the most probable one first.
    pub classes: Vec<(String, f64)>,
    /// The probability of each class, in the order of [`Classifier::classes`]; they add up to 1, unless an
    /// image can be of several classes.
    pub probabilities: Vec<f64>,
    /// The network's output: one number that speaks for the second class and against the first, or one
    /// for each class, as the [loss](ModelInfo::loss) says. Not divided by a calibrated model's temperature, which
    /// the probabilities are made with.
    pub logits: Vec<f32>,
    /// How unlike the training images it is, if the model is [calibrated](Sequential::calibrate): the squared
    /// distance of its features from theirs, as a share of the largest that is accepted.
    pub novelty: Option<f64>,
}

impl Classification {
    /// Returns whether the image is unlike those that the model was trained on: then its class and probability mean
    /// nothing. A model that is not calibrated cannot tell.
    #[must_use]
    pub fn is_unlike(&self) -> bool {
        self.novelty.is_some_and(|novelty| novelty > 1.)
    }
}

impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unlike() {
            let class = &self.class;
            return write!(f, "unlike anything it was trained on (most like {class})");
        }
        match self.classes.as_slice() {
            [] => f.write_str("none"),
            [(class, probability)] => write!(f, "{class}, {:.1} %", 100. * probability),
            several => {
                let class = |(class, probability): &(String, f64)| {
                    format!("{class} {:.1} %", 100. * probability)
                };
                f.write_str(&several.iter().map(class).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

// Safety: its tensors are only read, which any number of threads may do; what changes is behind locks.
unsafe impl Sync for Classifier {}

impl Classifier {
    /// Reads a file that [`Sequential::save`] wrote, for a GPU if there is one.
    ///
    /// # Errors
    /// `Io` when the file cannot be read; `ModelFile` when it is damaged, of another version, or no
    /// model file; `Torch` when the device has no room for it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_on(path, device::pick("auto")?)
    }

    /// Reads a file as [`load`](Self::load) does, for the given device.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_on(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let bytes = read_regular(path)?;
        let refused = |reason| Error::ModelFile {
            path: path.into(),
            reason,
        };
        let (mut contents, texts) = weights::read_safetensors(&bytes).map_err(refused)?;
        let info = ModelInfo::read(&texts).map_err(refused)?;
        let mut model = network(&info, &contents, device, &refused)?;
        let novelty = info.calibration.map(|_| {
            let inputs = model.layer_shape(model.before_last_dense());
            let inputs = inputs.first().copied().unwrap_or_default();
            Novelty::read(&mut contents, inputs, info.classes.len())
        });
        let novelty = novelty.transpose().map_err(&refused)?;
        weights::assign(contents, model.variables_mut().collect()).map_err(refused)?;
        model.base_mut().set_trainable(false);
        Ok(Self {
            model,
            info,
            novelty,
            with: None,
        })
    }

    /// Returns a classifier that judges several variants of each image: the probabilities are their
    /// average, and the logits are some that have these probabilities.
    ///
    /// # Errors
    /// `Argument` when the augmentation has no pass, mixes images, or has arguments that
    /// [`augment`](crate::pipeline::Dataset::augment) refuses.
    pub fn with_test_time_augmentation(self, augmentation: TestTimeAugmentation) -> Result<Self> {
        augmentation.check()?;
        Ok(Self {
            with: Some(augmentation),
            ..self
        })
    }

    /// Returns a classifier that computes with another precision than 32-bit floats; `Auto` is no other one, as it
    /// takes a training to decide.
    ///
    /// # Errors
    /// `Setting` for bfloat16 where that is not native.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.model.base_mut().set_precision(precision)?;
        Ok(self)
    }

    /// Returns the names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.info.classes
    }

    /// Returns how many pixels to a side an image is resized to.
    #[must_use]
    pub fn input_size(&self) -> u32 {
        self.info.input.size
    }

    /// Returns the epochs of the training.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.info.history
    }

    /// Returns loss and accuracy on images that were not trained on, if they were measured.
    #[must_use]
    pub fn evaluation(&self) -> Option<&Evaluation> {
        self.info.evaluation.as_ref()
    }

    /// Returns all that the file says.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Returns the model, for its logits or its [summary](Sequential::summary).
    #[must_use]
    pub fn model(&self) -> &Sequential {
        &self.model
    }

    /// Returns the model for more training: no layer is frozen, and it is to be
    /// [compiled](Sequential::compile).
    #[must_use]
    pub fn into_model(mut self) -> Sequential {
        self.model.base_mut().set_trainable(true);
        self.model
    }

    /// Classifies an image: a path, a file's bytes or an [`RgbImage`](image::RgbImage).
    ///
    /// # Errors
    /// `Io` or `Image` when it cannot be read, `Torch` when libtorch fails.
    pub fn predict(&self, picture: impl Into<Image>) -> Result<Classification> {
        let mut found = self.predict_prepared(vec![self.prepare(picture)?])?;
        Ok(found.remove(0))
    }

    /// Reads an image and makes of it what the network takes: the first part of [`predict`](Self::predict), which a
    /// server does on other threads.
    ///
    /// # Errors
    /// `Io` or `Image` when it cannot be read.
    pub fn prepare(&self, picture: impl Into<Image>) -> Result<PreparedImage> {
        let picture = picture.into();
        let pixels = picture.load(&self.info.input, self.with.as_ref())?;
        Ok(PreparedImage(pixels))
    }

    /// Classifies images that were [prepared](Self::prepare) by this classifier, or one of the same model file, in
    /// one batch; returns as many.
    ///
    /// # Errors
    /// `Shape` when they were prepared by another model's, `Torch` when libtorch fails.
    pub fn predict_prepared(&self, images: Vec<PreparedImage>) -> Result<Vec<Classification>> {
        match images.is_empty() {
            true => Ok(Vec::new()),
            false => self.classify(images.into_iter().map(|image| image.0).collect()),
        }
    }

    /// Classifies many images, which are read on other threads while the network is at work: an
    /// iterator over what [`predict`](Self::predict) gives for each, in their order. One that cannot be
    /// read is an error in its place; after an error of libtorch nothing follows. What `pictures` gives is
    /// held in memory from the start: paths are small, images are not.
    ///
    /// ```no_run
    /// # use support::{classifier::Classifier, dataset::images_in};
    /// # fn all(classifier: Classifier) -> support::Result<()> {
    /// let paths = images_in("photos".as_ref())?;
    /// for (path, found) in paths.iter().zip(classifier.predict_all(&paths)) {
    ///     match found {
    ///         Ok(classification) => println!("{}: {classification}", path.display()),
    ///         Err(error) => eprintln!("{error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn predict_all(
        &self,
        pictures: impl IntoIterator<Item = impl Into<Image>>,
    ) -> Classifications<'_> {
        let pictures: Vec<Image> = pictures.into_iter().map(Into::into).collect();
        let (order, input) = ((0..pictures.len()).collect(), self.info.input);
        let with = self.with.clone();
        let load = move |index: usize| pictures[index].load(&input, with.as_ref());
        Classifications {
            classifier: self,
            workers: Workers::start(load, order, threads(), AHEAD),
            ready: VecDeque::new(),
        }
    }

    /// Classifies images that were made for the network, each with its variants.
    fn classify(&self, pictures: Vec<Vec<Pixels>>) -> Result<Vec<Classification>> {
        let mut variants: Vec<Vec<Pixels>> = Vec::new();
        for picture in pictures {
            variants.resize_with(picture.len(), Vec::new);
            for (variants, pixels) in variants.iter_mut().zip(picture) {
                variants.push(pixels);
            }
        }
        let mut variants = variants.into_iter().map(stack);
        // There is at least one picture, and each is there as it is.
        let images = variants.next().unwrap_or_else(|| stack(Vec::new()))?;
        let (model, before_last) = (&self.model, self.model.before_last_dense());
        let features_of = model.inference(0, before_last)?;
        let logits_of = model.inference(before_last, model.last())?;
        let features = features_of(&images)?;
        let logits = match &self.with {
            None => logits_of(&features)?,
            Some(with) => {
                let forward = |images: &Tensor| logits_of(&features_of(images)?);
                let variants = variants.collect::<Result<_>>()?;
                with.logits(self.info.loss, forward, &images, variants)?
            }
        };
        let novelties = match (&self.novelty, self.info.calibration) {
            (Some(novelty), Some(info)) => {
                let distances = novelty.distances(&features)?.into_iter();
                let novelty = |distance| Some(distance / info.novelty.threshold);
                distances.map(novelty).collect()
            }
            _ => vec![None; logits.size()[0] as usize],
        };
        let temperature = self.info.calibration.map_or(1., |it| it.temperature);
        let scaled = logits
            .f_to_kind(Kind::Double)
            .and_then(|logits| logits.f_div_scalar(temperature))
            .map_err(Error::torch("temperature"))?;
        let probabilities = probabilities(self.info.loss, &scaled)?;
        let units = logits.size()[1] as usize;
        let logits = logits
            .f_to_device(Device::Cpu)
            .and_then(|logits| logits.f_reshape([-1]))
            .and_then(|logits| Vec::<f32>::try_from(&logits))
            .map_err(Error::torch("logits"))?;
        let rows = probabilities.chunks(self.info.classes.len());
        let rows = rows.zip(logits.chunks(units)).zip(novelties);
        let classification = |((probabilities, logits), novelty)| {
            self.classification(probabilities, logits, novelty)
        };
        Ok(rows.map(classification).collect())
    }

    fn classification(
        &self,
        probabilities: &[f64],
        logits: &[f32],
        novelty: Option<f64>,
    ) -> Classification {
        let index = argmax(probabilities);
        let threshold = self.info.threshold.unwrap_or(THRESHOLD);
        let found = predicted(self.info.loss, probabilities, threshold);
        let found = found
            .classes()
            .map(|class| (self.info.classes[class].clone(), probabilities[class]));
        let mut classes: Vec<_> = found.collect();
        classes.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Classification {
            classes,
            class: self.info.classes[index].clone(),
            index,
            probability: probabilities[index],
            probabilities: probabilities.to_vec(),
            logits: logits.to_vec(),
            novelty,
        }
    }
}

/// Makes the network that a file describes and holds the weights of; `refused` makes the error.
fn network(
    info: &ModelInfo,
    contents: &Contents,
    device: Device,
    refused: &impl Fn(String) -> Error,
) -> Result<Sequential> {
    let of_file = |error: Error| match error {
        Error::Argument { .. } => refused(error.to_string()),
        other => other,
    };
    let shape = info.input.shape().map_err(refused)?;
    let backbone = info.backbone;
    let base = Backbone::frame(backbone.architecture, backbone.weights, shape, device);
    let mut model = Sequential::new(base.map_err(of_file)?);
    info.check(model.base().output_shape()).map_err(refused)?;
    for layer in &info.head {
        // Before memory is taken for it.
        if let HeadLayer::Dense(dense) = layer {
            let kernel = format!("{}/kernel", dense.name());
            let shape = [dense.outputs() as i64, dense.inputs() as i64];
            let found = contents.get(&kernel).ok_or(format!("{kernel} is missing"));
            let fits = found.and_then(|found| found.check(&kernel, &shape));
            fits.map_err(refused)?;
        }
        model = model.push(layer.clone());
    }
    model.check_head().map_err(of_file)?;
    Ok(model)
}

/// The classifications of many images, in their order; dropping it stops its threads.
pub struct Classifications<'a> {
    classifier: &'a Classifier,
    workers: Workers<Result<Vec<Pixels>>>,
    ready: VecDeque<Result<Classification>>,
}

impl Classifications<'_> {
    /// Classifies the next batch.
    fn fill(&mut self) -> Result<()> {
        let (mut pictures, mut broken) = (Vec::with_capacity(BATCH_SIZE), Vec::new());
        for loaded in self.workers.by_ref().take(BATCH_SIZE) {
            let (picture, error) = match loaded.flatten() {
                Ok(picture) => (Some(picture), None),
                Err(error) => (None, Some(error)),
            };
            pictures.extend(picture);
            broken.push(error);
        }
        if pictures.is_empty() {
            self.ready.extend(broken.into_iter().flatten().map(Err));
            return Ok(());
        }
        let mut found = self.classifier.classify(pictures)?.into_iter();
        let results = broken.into_iter().filter_map(|broken| match broken {
            Some(error) => Some(Err(error)),
            None => found.next().map(Ok),
        });
        self.ready.extend(results);
        Ok(())
    }
}

impl Iterator for Classifications<'_> {
    type Item = Result<Classification>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && let Err(error) = self.fill()
        {
            self.workers.stop();
            return Some(Err(error));
        }
        self.ready.pop_front()
    }
}

impl fmt::Debug for Classifications<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Classifications, {} of them ready", self.ready.len())
    }
}
