//! Transfer learning on libtorch, for Rust notebooks: what
//! [TensorFlow's tutorial](https://www.tensorflow.org/tutorials/images/transfer_learning) does,
//! in as few lines.
//!
//! | tutorial step | here |
//! |---|---|
//! | choose dataset, epochs, device, seed | [`Settings::from_env`](settings::Settings::from_env) |
//! | load and split the images | [`ImageDataset::load`](dataset::ImageDataset::load), [`split`](dataset::ImageDataset::split) |
//! | or those of a list | [`from_paths`](dataset::ImageDataset::from_paths), [`from_csv`](dataset::ImageDataset::from_csv), [`from_images`](dataset::ImageDataset::from_images) |
//! | with several labels per image | [`from_csv_multi_label`](dataset::ImageDataset::from_csv_multi_label), [`from_folder_multi_label`](dataset::ImageDataset::from_folder_multi_label), [`Loss::MultiLabelBinaryCrossentropy`](training::Loss::MultiLabelBinaryCrossentropy) |
//! | look at some | [`Dataset::take`](pipeline::Dataset::take), [`show`](pipeline::Dataset::show) |
//! | check them | [`data_report`](data_report::data_report) |
//! | scale and resize | [`Pixels`](pipeline::Pixels), [`Dataset::map`](pipeline::Dataset::map) |
//! | flip, rotate, crop, mix | [`Augmentation`](pipeline::Augmentation), [`Dataset::augment`](pipeline::Dataset::augment), [`show_augmented`](pipeline::Dataset::show_augmented) |
//! | shuffle and batch | [`Dataset::shuffle`](pipeline::Dataset::shuffle), [`batch`](pipeline::Dataset::batch) |
//! | or draw rare classes more often | [`sample_balanced`](pipeline::Dataset::sample_balanced), [`sample_weighted`](pipeline::Dataset::sample_weighted) |
//! | the pretrained base | [`MobileNetV2::pretrained`](model::MobileNetV2::pretrained), other networks and weights: [`Backbone::pretrained`](model::Backbone::pretrained) |
//! | compute in bfloat16 | [`Settings::precision`](settings::Settings::precision), [`Precision`](precision::Precision) |
//! | freeze | [`set_trainable`](model::Backbone::set_trainable), [`layers_mut`](model::Backbone::layers_mut) |
//! | add the head | [`Sequential`](model::Sequential), [`GlobalAveragePooling2d`](model::GlobalAveragePooling2d), [`Dropout`](model::Dropout), [`Dense`](model::Dense) |
//! | choose a network | [`compare_backbones`](analysis::compare_backbones), [`LinearProbe`](analysis::LinearProbe) |
//! | choose a learning rate | [`Sequential::find_learning_rate`](model::Sequential::find_learning_rate) |
//! | an optimizer | [`RmsProp`](training::RmsProp), [`Sgd`](training::Sgd), [`Adam`](training::Adam), [`AdamW`](training::AdamW), [weight decay, clipping, a slower base](training::OptimizerOptions) |
//! | a learning rate that changes | [`Fit::schedule`](training::Fit::schedule): [`CosineDecay`](training::CosineDecay), [`OneCycle`](training::OneCycle), [`ReduceOnPlateau`](training::ReduceOnPlateau) |
//! | head first, then all, in one call | [`Sequential::fine_tune`](model::Sequential::fine_tune) |
//! | on several processes | [`distributed`] |
//! | compile, evaluate, fit | [`Sequential::compile`](model::Sequential::compile), [`evaluate`](model::Sequential::evaluate), [`fit`](model::Sequential::fit) |
//! | measure AUC, F1 and others as well | [`Sequential::metrics`](model::Sequential::metrics), [`History::curve`](training::History::curve) |
//! | hook into the training | [`Fit::callback`](training::Fit::callback), [`training::callbacks`] |
//! | look at predictions | [`Sequential::predictions`](model::Sequential::predictions), [`Predictions`](analysis::Predictions) |
//! | judge several variants of each image | [`TestTimeAugmentation`](training::TestTimeAugmentation) |
//! | see what they come from | [`Sequential::explain`](model::Sequential::explain) |
//! | find wrong labels | [`Features::doubtful_labels`](analysis::Features::doubtful_labels), [`ImageDataset::relabel`](dataset::ImageDataset::relabel) |
//! | probabilities to rely on, "none of these" | [`Sequential::calibrate`](model::Sequential::calibrate) |
//! | take the model home, use it | [`Sequential::save`](model::Sequential::save), [`Classifier`](classifier::Classifier), as ONNX: [`save_onnx`](classifier::Classifier::save_onnx) |
//! | plot the learning curves | [`History::learning_curves`](training::History::learning_curves) |
//!
//! Modules, in the order that data flows; each uses only those above it: [`distributed`], [`live`], [`assets`],
//! [`dataset`], [`pipeline`], [`data_report`](mod@data_report), [`model`], [`training`], [`analysis`],
//! [`classifier`], [`plotting`], [`notebook`].
//!
//! With the feature `openvino`, a CPU computes frozen layers, a [`Classifier`](classifier::Classifier)'s among them, by
//! [OpenVINO](https://docs.openvino.ai), and trains as ever. Its library is the one that `TRANSFER_OPENVINO` names (`libopenvino_c.so`), that
//! of the Python package `openvino` in the environment that libtorch is of, or one that
//! [openvino-rs](https://crates.io/crates/openvino) finds.
//!
//! Tensors are `[batch, channels, height, width]`. Errors are [`Error`]; no function here panics on
//! bad input.

pub mod analysis;
pub mod assets;
pub mod classifier;
mod cuda;
pub mod data_report;
pub mod dataset;
pub mod device;
pub mod distributed;
pub mod error;
mod files;
mod foreign;
pub mod live;
pub mod model;
pub mod notebook;
pub mod pipeline;
pub mod plotting;
pub mod precision;
#[cfg(test)]
mod properties;
pub mod settings;
mod text;
pub mod training;

pub use error::{Error, Result};
/// Re-exported because their types are in this crate's signatures, and a notebook's kernel has to
/// be able to name the type of every variable.
pub use {image, tch};

/// What a notebook needs: `use support::prelude::*;`.
pub mod prelude {
    pub use image::RgbImage;
    pub use tch::{Device, Tensor};

    pub use crate::analysis::{LinearProbe, Predictions, compare_backbones};
    pub use crate::classifier::{Classifier, TrainingRecord};
    pub use crate::data_report::data_report;
    pub use crate::dataset::ImageDataset;
    pub use crate::device::device_report;
    pub use crate::model::{
        Backbone, Dense, Dropout, EfficientNetLite, GlobalAveragePooling2d, MobileNetV2, ResNet,
        Sequential, SetTrainable, Weights,
    };
    pub use crate::notebook::{DisplayHandle, display};
    pub use crate::pipeline::{Augmentation, Batches, Dataset, Filter, Pixels};
    pub use crate::precision::Precision;
    pub use crate::settings::{Limit, Settings};
    pub use crate::training::callbacks::{CsvLog, TensorBoard};
    pub use crate::training::{
        Adam, AdamW, CosineDecay, EarlyStopping, FineTune, Fit, History, LearningRateFinder, Loss,
        Metric, Monitor, Objective, OneCycle, OptimizerOptions, ReduceOnPlateau, RmsProp, Sgd,
        TestTimeAugmentation, WeightAverage, balanced_class_weights,
    };
}
