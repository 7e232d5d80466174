//! Where pretrained weights come from, and what they were trained with: values of pictures, padding
//! and epsilon. A network and its pictures follow the same origin, or the features are worthless.

use std::fmt;
use std::str::FromStr;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::pipeline::Pixels;
use crate::{Error, Result};

/// An origin of weights for [`MobileNetV2`](super::MobileNetV2), all trained on ImageNet.
///
/// | | values of a picture | padding at stride 2 | epsilon |
/// |---|---|---|---|
/// | [`TfHub`](Self::TfHub), [`Keras`](Self::Keras) | `[-1, 1]` | at the end | 1e-3 |
/// | [`Torchvision`](Self::Torchvision), [`Timm`](Self::Timm) | ImageNet's mean 0, standard deviation 1 | on both sides | 1e-5 |
///
/// The network follows its origin by itself; the pictures do where [`format`](Self::format) makes
/// them, so that one name says it all:
///
/// ```no_run
/// # use support::prelude::*;
/// const WEIGHTS: Weights = Weights::Torchvision;
/// fn format_example(image: &RgbImage) -> Pixels {
///     WEIGHTS.format(image, 160)
/// }
/// let base = MobileNetV2::with_weights(WEIGHTS, [3, 160, 160], Device::Cpu)?;
/// # Ok::<(), support::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// TF-Hub's [`tf2-preview/mobilenet_v2/feature_vector/4`][hub], by Google.
    ///
    /// [hub]: https://tfhub.dev/google/tf2-preview/mobilenet_v2/feature_vector/4
    #[default]
    TfHub,
    /// [Keras Applications'][keras], trained for 160x160: the 2019 tutorial's own.
    ///
    /// [keras]: https://keras.io/api/applications/mobilenet/
    Keras,
    /// torchvision's [`MobileNet_V2_Weights.IMAGENET1K_V1`][torchvision].
    ///
    /// [torchvision]: https://docs.pytorch.org/vision/stable/models/mobilenetv2.html
    Torchvision,
    /// timm's [`mobilenetv2_100.ra_in1k`][timm].
    ///
    /// [timm]: https://huggingface.co/timm/mobilenetv2_100.ra_in1k
    Timm,
}

/// What a network's weights were trained with.
#[derive(Debug, PartialEq)]
pub(super) struct Conventions {
    /// Zeros (before, after) a picture in both directions, for a convolution of stride 2.
    pub(super) padding: (i64, i64),
    /// The batch normalizations'.
    pub(super) epsilon: f64,
    /// Each channel's, of samples from 0 to 1.
    mean: [f32; 3],
    std: [f32; 3],
}

const TENSORFLOW: Conventions = Conventions {
    padding: (0, 1),
    epsilon: 1e-3,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// `IMAGENET_DEFAULT_MEAN` and `_STD` in timm's `data/constants.py`, torchvision's the same.
const PYTORCH: Conventions = Conventions {
    padding: (1, 1),
    epsilon: 1e-5,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

impl Weights {
    /// Every origin, the default first.
    pub const ALL: [Self; 4] = [Self::TfHub, Self::Keras, Self::Torchvision, Self::Timm];

    /// Returns the name that the origin is chosen by: `tfhub`, `keras`, `torchvision` or `timm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TfHub => "tfhub",
            Self::Keras => "keras",
            Self::Torchvision => "torchvision",
            Self::Timm => "timm",
        }
    }

    /// Returns the name of the weights in `data/assets.toml`.
    #[must_use]
    pub fn asset(self) -> &'static str {
        match self {
            Self::TfHub => crate::assets::DEFAULT_WEIGHTS,
            Self::Keras => "mobilenet_v2_keras_160_no_top",
            Self::Torchvision => "mobilenet_v2_torchvision",
            Self::Timm => "mobilenet_v2_timm",
        }
    }

    /// Returns each channel's mean, red green blue, that is subtracted from samples between 0 and 1.
    #[must_use]
    pub fn mean(self) -> [f32; 3] {
        self.conventions().mean
    }

    /// Returns each channel's standard std, by which the difference is divided.
    #[must_use]
    pub fn std(self) -> [f32; 3] {
        self.conventions().std
    }

    /// Returns a picture as the weights' network takes it: `size` x `size`, and the values as in
    /// training. For [`TfHub`](Self::TfHub) and [`Keras`](Self::Keras) this is what the tutorial's
    /// `format_example` does.
    ///
    /// Of their evaluation recipes torchvision and timm take the values alone from here: they also
    /// filter before making a picture smaller, and cut off its margins.
    #[must_use]
    pub fn format(self, image: &RgbImage, size: u32) -> Pixels {
        Pixels::from(image)
            .scale(1.0 / 255.0)
            .resize(size, size)
            .normalize(self.mean(), self.std())
    }

    pub(super) fn conventions(self) -> &'static Conventions {
        match self {
            Self::TfHub | Self::Keras => &TENSORFLOW,
            Self::Torchvision | Self::Timm => &PYTORCH,
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Weights {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|weights| weights.name() == name);
        found.ok_or_else(|| Error::Argument {
            name: "weights",
            expected: Self::ALL.map(Self::name).join(", "),
            got: name.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Assets;

    #[test]
    fn a_picture_is_scaled_as_the_origin_was_trained() {
        let image = RgbImage::from_fn(31, 20, |x, y| image::Rgb([x as u8 * 8, y as u8, 255]));
        let tutorial = Pixels::from(&image).scale(1.0 / 127.5).offset(-1.0);
        let tutorial = tutorial.resize(32, 32).into_values();
        for weights in [Weights::TfHub, Weights::Keras] {
            let values = weights.format(&image, 32).into_values();
            assert_eq!(values.len(), tutorial.len());
            for (value, tutorial) in values.iter().zip(&tutorial) {
                assert!((value - tutorial).abs() < 1e-6, "{value} {tutorial}");
            }
        }
        // torchvision's Normalize of black and white.
        let [black, white] =
            [0, 255].map(|sample| RgbImage::from_pixel(1, 1, image::Rgb([sample; 3])));
        let expected = [
            (black, [-2.117_904, -2.035_714_4, -1.804_444_4]),
            (white, [2.248_908_2, 2.428_571_5, 2.64]),
        ];
        for (image, expected) in expected {
            for weights in [Weights::Torchvision, Weights::Timm] {
                let values = weights.format(&image, 1).into_values();
                for (value, expected) in values.iter().zip(expected) {
                    assert!((value - expected).abs() < 1e-6, "{value} {expected}");
                }
            }
        }
    }

    #[test]
    fn every_origin_can_be_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let list = Assets::open(folder.path()).unwrap().list();
        for weights in Weights::ALL {
            let is_asset = |line: &str| line.starts_with(&format!("{} ", weights.asset()));
            assert!(list.lines().any(is_asset), "{weights}");
        }
    }

    #[test]
    fn an_origin_is_chosen_by_its_name() {
        for weights in Weights::ALL {
            assert_eq!(weights.to_string().parse::<Weights>().unwrap(), weights);
        }
        let error = "pytorch".parse::<Weights>().unwrap_err().to_string();
        assert_eq!(
            error,
            "weights: expected tfhub, keras, torchvision, timm, got pytorch"
        );
    }
}
