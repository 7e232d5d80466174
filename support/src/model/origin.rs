//! Where pretrained weights come from, and what they were trained with: values of images, padding
//! and epsilon. A network and its images follow the same origin, or the features are worthless.

use std::fmt;
use std::str::FromStr;

use image::RgbImage;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::architecture::Architecture;
use crate::pipeline::{Filter, Pixels, Resize};
use crate::{Error, Result};

/// An origin of weights for a [`Backbone`](super::Backbone), all trained on ImageNet. The types of the
/// families have them as constants: [`MobileNetV2`](super::MobileNetV2),
/// [`EfficientNetLite`](super::EfficientNetLite), [`ResNet`](super::ResNet).
///
/// The network follows its origin by itself; the images do where [`format`](Self::format) makes
/// them, so that one name says it all:
///
/// ```no_run
/// # use support::prelude::*;
/// # let settings = Settings::from_env()?;
/// const WEIGHTS: Weights = EfficientNetLite::LITE0;
/// fn format_example(image: &RgbImage) -> Pixels {
///     WEIGHTS.format(image, 224)
/// }
/// let base = Backbone::pretrained(WEIGHTS, [3, 224, 224], &settings)?;
/// # Ok::<(), support::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Weights(&'static Origin);

/// What is known about an origin.
pub(super) struct Origin {
    /// Unlike any other origin's: files tell the origin by it.
    pub(super) name: &'static str,
    /// The name in `data/assets.toml`.
    pub(super) asset: &'static str,
    pub(super) architecture: Architecture,
    /// The height and width in pixels that the weights were trained at.
    pub(super) image_size: u32,
    /// The shorter side, in pixels, that images were resized to before the middle `image_size` were cut
    /// out of them to measure the accuracy that is told of the weights, and how; where that is known.
    pub(super) evaluation: Option<(u32, Filter)>,
    pub(super) conventions: &'static Conventions,
}

/// What a network's weights were trained with.
#[derive(Debug, PartialEq)]
pub(super) struct Conventions {
    pub(super) padding: Padding,
    /// The batch normalizations'.
    pub(super) epsilon: f64,
    /// Each channel's, of samples from 0 to 1.
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
}

/// How many zeros an image gets around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Padding {
    /// As many as [TensorFlow's `SAME`][same] needs for an output of `ceil(size / stride)`, an odd one
    /// at the end.
    ///
    /// [same]: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    Same,
    /// Half a window on both sides, as PyTorch's networks have it.
    Symmetric,
}

impl Padding {
    /// Returns the zeros (before, after) in one direction.
    pub(super) fn around(self, size: i64, kernel: i64, stride: i64) -> (i64, i64) {
        match self {
            Self::Same => {
                let outputs = (size + stride - 1) / stride;
                let zeros = ((outputs - 1) * stride + kernel - size).max(0);
                (zeros / 2, zeros - zeros / 2)
            }
            Self::Symmetric => (kernel / 2, kernel / 2),
        }
    }
}

/// TensorFlow's, for images in [-1, 1].
pub(super) const TENSORFLOW: Conventions = Conventions {
    padding: Padding::Same,
    epsilon: 1e-3,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// `IMAGENET_DEFAULT_MEAN` and `_STD` in timm's `data/constants.py`, torchvision's the same.
pub(super) const PYTORCH: Conventions = Conventions {
    padding: Padding::Symmetric,
    epsilon: 1e-5,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

impl Weights {
    pub(super) const fn new(origin: &'static Origin) -> Self {
        Self(origin)
    }

    /// Returns the name that the origin is chosen by and that files tell it by, such as `tfhub`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Returns the name of the weights in `data/assets.toml`.
    #[must_use]
    pub fn asset(self) -> &'static str {
        self.0.asset
    }

    /// Returns the network that the weights of this origin's [asset](Self::asset) are for.
    #[must_use]
    pub fn architecture(self) -> Architecture {
        self.0.architecture
    }

    /// Returns the height and width in pixels of the images that the weights were trained on.
    #[must_use]
    pub fn image_size(self) -> u32 {
        self.0.image_size
    }

    /// Returns each channel's mean, red green blue, that is subtracted from samples between 0 and 1.
    #[must_use]
    pub fn mean(self) -> [f32; 3] {
        self.conventions().mean
    }

    /// Returns each channel's standard deviation, by which the difference is divided.
    #[must_use]
    pub fn std(self) -> [f32; 3] {
        self.conventions().std
    }

    /// Returns an image as the weights' network takes it: `size` x `size`, and the values as in
    /// training. For TF-Hub's and Keras' this is what the tutorial's `format_example` does.
    ///
    /// Of the origins' evaluation recipes only the values are taken from here:
    /// [`format_evaluation`](Self::format_evaluation) takes it all.
    #[must_use]
    pub fn format(self, image: &RgbImage, size: u32) -> Pixels {
        Pixels::from(image)
            .scale(1.0 / 255.0)
            .resize(size, size)
            .normalize(self.mean(), self.std())
    }

    /// Returns an image as [`format`](Self::format) does, but resized as for the accuracy that is told of the
    /// weights: smaller images are filtered, and the margins cut off. For TF-Hub's and Keras' weights,
    /// which name no recipe, it is what [`format`](Self::format) does.
    #[must_use]
    pub fn format_evaluation(self, image: &RgbImage, size: u32) -> Pixels {
        let pixels = Pixels::from(image).scale(1.0 / 255.0);
        let resized = self.evaluation_resize(size).apply(pixels, size);
        resized.normalize(self.mean(), self.std())
    }

    /// Returns how [`format_evaluation`](Self::format_evaluation) resizes images to `size`; for another size
    /// than [`image_size`](Self::image_size) as large a share of the image is cut off.
    #[must_use]
    pub fn evaluation_resize(self, size: u32) -> Resize {
        let Some((shorter_side, filter)) = self.0.evaluation else {
            return Resize::Bilinear;
        };
        let share = f64::from(shorter_side) / f64::from(self.image_size());
        Resize::CenterCrop {
            shorter_side: (f64::from(size) * share).round() as u32,
            filter,
        }
    }

    pub(super) fn conventions(self) -> &'static Conventions {
        self.0.conventions
    }
}

/// Names differ between any two origins.
impl PartialEq for Weights {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Weights {}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({})", self.name())
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
        let found = Self::all().find(|weights| weights.name() == name);
        found.ok_or_else(|| Error::Argument {
            name: "weights",
            expected: Self::all().map(Self::name).collect::<Vec<_>>().join(", "),
            got: name.into(),
        })
    }
}

impl Serialize for Weights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Assets;
    use crate::model::MobileNetV2;

    #[test]
    fn an_image_is_scaled_as_the_origin_was_trained() {
        let image = RgbImage::from_fn(31, 20, |x, y| image::Rgb([x as u8 * 8, y as u8, 255]));
        let tutorial = Pixels::from(&image).scale(1.0 / 127.5).offset(-1.0);
        let tutorial = tutorial.resize(32, 32).into_values();
        for weights in [MobileNetV2::TF_HUB, MobileNetV2::KERAS] {
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
            for weights in [MobileNetV2::TORCHVISION, MobileNetV2::TIMM] {
                let values = weights.format(&image, 1).into_values();
                for (value, expected) in values.iter().zip(expected) {
                    assert!((value - expected).abs() < 1e-6, "{value} {expected}");
                }
            }
        }
    }

    /// torchvision's `weights.transforms()`, timm's `crop_pct` of .875, and the 32 pixels of padding that
    /// EfficientNet's `preprocessing.py` has.
    #[test]
    fn an_origins_evaluation_crops_as_its_authors_do() {
        use crate::model::{EfficientNetLite, ResNet};
        let crop = |shorter_side, filter| Resize::CenterCrop {
            shorter_side,
            filter,
        };
        for (weights, size, expected) in [
            (MobileNetV2::TF_HUB, 224, Resize::Bilinear),
            (MobileNetV2::TORCHVISION, 224, crop(256, Filter::Bilinear)),
            (MobileNetV2::TIMM, 224, crop(256, Filter::Bicubic)),
            (ResNet::RESNET50, 112, crop(128, Filter::Bilinear)),
            (ResNet::RESNET50_V2, 224, crop(232, Filter::Bilinear)),
            (EfficientNetLite::LITE0, 224, crop(256, Filter::Bicubic)),
            (EfficientNetLite::LITE2, 260, crop(292, Filter::Bicubic)),
        ] {
            assert_eq!(weights.evaluation_resize(size), expected, "{weights}");
            let image = crate::pipeline::noise();
            let pixels = Pixels::from(&image).scale(1.0 / 255.0);
            let resized = expected
                .apply(pixels, size)
                .normalize(weights.mean(), weights.std());
            let formatted = weights.format_evaluation(&image, size);
            assert_eq!(formatted.dimensions(), (size, size));
            assert_eq!(formatted.into_values(), resized.into_values());
        }
    }

    #[test]
    fn every_origin_can_be_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let list = Assets::open(folder.path()).unwrap().list();
        for weights in Weights::all() {
            let is_asset = |line: &str| line.starts_with(&format!("{} ", weights.asset()));
            assert!(list.lines().any(is_asset), "{weights}");
        }
    }

    #[test]
    fn an_origin_is_chosen_by_its_name() {
        for weights in Weights::all() {
            assert_eq!(weights.to_string().parse::<Weights>().unwrap(), weights);
        }
        let error = "pytorch".parse::<Weights>().unwrap_err().to_string();
        assert!(
            error.starts_with("weights: expected tfhub, keras, torchvision, timm, ")
                && error.ends_with(", got pytorch"),
            "{error}"
        );
    }

    #[test]
    fn no_two_origins_have_one_name() {
        let names: Vec<&str> = Weights::all().map(Weights::name).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
        }
    }

    /// `tf.nn.conv2d` of `SAME`: the sizes of EfficientNet-Lite2 on its way down, and even ones.
    #[test]
    fn an_odd_zero_of_tensorflows_padding_lies_at_the_end() {
        for (size, kernel, stride, expected) in [
            (224, 3, 2, (0, 1)),
            (65, 3, 2, (1, 1)),
            (130, 5, 2, (1, 2)),
            (17, 5, 2, (2, 2)),
            (17, 5, 1, (2, 2)),
            (1, 3, 2, (1, 1)),
        ] {
            assert_eq!(Padding::Same.around(size, kernel, stride), expected);
        }
    }
}
