//! The families of networks that a [`Backbone`](super::Backbone) can be: the one place that lists them.
//!
//! A new one is a file that gives its [`Family`], `ORIGINS` and `DIALECTS`, and a line in `registry!`.

use serde::{Deserialize, Serialize};

use super::builder::Builder;
use super::efficientnet_lite::EfficientNetLite;
use super::layer::Layer;
use super::mobilenet_v2::MobileNetV2;
use super::origin::Weights;
use super::resnet::ResNet;
use crate::Result;

/// What a network of one family is.
pub(super) trait Family {
    /// Returns the network's name, such as `mobilenetv2_1.00`.
    fn name(&self) -> String;

    /// Returns the layers after the input that the builder begins with.
    ///
    /// # Errors
    /// `Argument` for images that the network cannot take, or where there is no such network.
    fn layers(&self, builder: Builder) -> Result<Vec<Layer>>;

    /// Returns which network of the family a file's tensors are for, by their shapes, or why it is
    /// none. Where a tensor is missing that tells it, any will do: assigning the tensors names it.
    fn of_file(&self, tensors: &Shapes<'_>) -> Result<Architecture, String>;
}

/// Gives the shape of a tensor in a file, if it is there.
pub(super) type Shapes<'a> = dyn Fn(&str) -> Option<&'a [i64]> + 'a;

/// How files name a family's tensors.
pub(super) enum Dialect {
    /// Keras' HDF5.
    Hdf5 {
        weights: Weights,
        /// Gives this crate's name for a data set's path, if it is the base's.
        name: fn(&str) -> Option<String>,
    },
    /// PyTorch's `state_dict`, as `.pth` or safetensors.
    StateDict {
        weights: Weights,
        /// A tensor that no other dialect has.
        mark: &'static str,
        /// What the names of the classification top's tensors start with; they are passed over.
        top: &'static str,
        /// Gives this crate's name for a tensor of the base.
        name: fn(&str) -> Option<String>,
    },
}

macro_rules! registry {
    ($($(#[$doc:meta])* $family:ident,)*) => {
        /// What a [`Backbone`](super::Backbone) is.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "architecture")]
        pub enum Architecture {
            $($(#[$doc])* $family($family),)*
        }

        impl Architecture {
            pub(super) fn family(&self) -> &dyn Family {
                match self {
                    $(Self::$family(family) => family,)*
                }
            }
        }

        impl Weights {
            /// Returns every origin, the default first.
            pub fn all() -> impl Iterator<Item = Self> {
                [$($family::ORIGINS),*].into_iter().flatten().copied()
            }
        }

        pub(super) fn dialects() -> impl Iterator<Item = &'static Dialect> {
            [$($family::DIALECTS),*].into_iter().flatten()
        }
    };
}

registry! {
    /// Sandler et al., 2018.
    MobileNetV2,
    /// Tan and Le, 2019, for small devices.
    EfficientNetLite,
    /// He et al., 2015.
    ResNet,
}

/// Those that the tutorial starts from.
impl Default for Weights {
    fn default() -> Self {
        MobileNetV2::TF_HUB
    }
}
