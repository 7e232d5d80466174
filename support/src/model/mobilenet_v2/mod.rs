//! # MobileNetV2
//!
//! - Paper: [MobileNetV2: Inverted Residuals and Linear Bottlenecks][paper], table 2.
//! - Reference implementation: [`keras.applications.MobileNetV2`][keras], whose layer names,
//!   order and widths this follows, in the version that the tutorial used: 155 layers, with
//!   `Conv1_pad` as a layer of its own. Padding and epsilon are those of the weights' origin.
//!
//! [paper]: https://arxiv.org/abs/1801.04381
//! [keras]: https://github.com/keras-team/keras/blob/master/keras/src/applications/mobilenet_v2.py

mod keras;
mod timm;
mod torchvision;

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Dialect, Family, Shapes};
use super::backbone::Backbone;
use super::builder::{Builder, scaled};
use super::layer::Layer;
use super::origin::{Origin, PYTORCH, TENSORFLOW, Weights};
use super::weights::pytorch;
use crate::pipeline::Filter;
use crate::settings::Settings;
use crate::{Error, Result};

/// One row of the paper's table 2: (expansion `t`, output channels `c`, repeats `n`, stride `s`
/// of the first repeat).
const INVERTED_RESIDUALS: [(i64, i64, usize, i64); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];
const STEM_CHANNELS: i64 = 32;
const FEATURE_CHANNELS: i64 = 1280;
/// Factors on the numbers of channels for which there are weights: Keras' `alpha`.
const ALPHAS: [f64; 6] = [1.0, 0.35, 0.5, 0.75, 1.3, 1.4];
/// Five steps of stride 2.
const DOWNSAMPLING: i64 = 32;

/// MobileNetV2 without its classification top: images `[N, 3, H, W]`, `H` and `W` multiples of 32,
/// made as the [weights](Weights) want them, become features `[N, 1280, H / 32, W / 32]` (more than
/// 1280 where `alpha` is above 1). It has Keras' 155 layers.
///
/// | weights | values of an image | padding at stride 2 | epsilon |
/// |---|---|---|---|
/// | [`TF_HUB`](Self::TF_HUB), [`KERAS`](Self::KERAS) | `[-1, 1]` | at the end | 1e-3 |
/// | [`TORCHVISION`](Self::TORCHVISION), [`TIMM`](Self::TIMM) | ImageNet's mean 0, standard deviation 1 | on both sides | 1e-5 |
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MobileNetV2 {
    /// The factor on the paper's numbers of channels, as Keras calls it: 0.35, 0.5, 0.75, 1.0, 1.3 or
    /// 1.4.
    pub alpha: f64,
}

const WIDTH_1: Architecture = Architecture::MobileNetV2(MobileNetV2 { alpha: 1.0 });

impl MobileNetV2 {
    /// TF-Hub's [`tf2-preview/mobilenet_v2/feature_vector/4`][hub], by Google: the default.
    ///
    /// [hub]: https://tfhub.dev/google/tf2-preview/mobilenet_v2/feature_vector/4
    pub const TF_HUB: Weights = Weights::new(&Origin {
        name: "tfhub",
        asset: crate::assets::DEFAULT_WEIGHTS,
        architecture: WIDTH_1,
        image_size: 224,
        evaluation: None,
        conventions: &TENSORFLOW,
    });

    /// [Keras Applications'][keras], trained for 160x160: the 2019 tutorial's own.
    ///
    /// [keras]: https://keras.io/api/applications/mobilenet/
    pub const KERAS: Weights = Weights::new(&Origin {
        name: "keras",
        asset: "mobilenet_v2_keras_160_no_top",
        architecture: WIDTH_1,
        image_size: 160,
        evaluation: None,
        conventions: &TENSORFLOW,
    });

    /// torchvision's [`MobileNet_V2_Weights.IMAGENET1K_V1`][torchvision].
    ///
    /// [torchvision]: https://docs.pytorch.org/vision/stable/models/mobilenetv2.html
    pub const TORCHVISION: Weights = Weights::new(&Origin {
        name: "torchvision",
        asset: "mobilenet_v2_torchvision",
        architecture: WIDTH_1,
        image_size: 224,
        evaluation: Some((256, Filter::Bilinear)),
        conventions: &PYTORCH,
    });

    /// timm's [`mobilenetv2_100.ra_in1k`][timm].
    ///
    /// [timm]: https://huggingface.co/timm/mobilenetv2_100.ra_in1k
    pub const TIMM: Weights = Weights::new(&Origin {
        name: "timm",
        asset: "mobilenet_v2_timm",
        architecture: WIDTH_1,
        image_size: 224,
        evaluation: Some((256, Filter::Bicubic)),
        conventions: &PYTORCH,
    });

    pub(super) const ORIGINS: &[Weights] =
        &[Self::TF_HUB, Self::KERAS, Self::TORCHVISION, Self::TIMM];

    pub(super) const DIALECTS: &[Dialect] = &[
        // TF-Hub's too: they are of the same conventions.
        Dialect::Hdf5 {
            weights: Self::KERAS,
            name: keras::variable_name,
        },
        Dialect::StateDict {
            weights: Self::TORCHVISION,
            mark: "features.0.0.weight",
            top: "classifier.",
            name: torchvision::variable_name,
        },
        Dialect::StateDict {
            weights: Self::TIMM,
            mark: "conv_stem.weight",
            top: "classifier.",
            name: timm::variable_name,
        },
    ];

    /// Returns the network with weights pretrained on ImageNet ([`TF_HUB`](Self::TF_HUB), fetched once
    /// into the settings' data folder), on the settings' device.
    ///
    /// `image_shape` is `[3, height, width]`, both multiples of 32.
    ///
    /// # Errors
    /// As [`Backbone::pretrained`].
    pub fn pretrained(image_shape: [i64; 3], settings: &Settings) -> Result<Backbone> {
        Backbone::pretrained(Self::TF_HUB, image_shape, settings)
    }

    /// Keras' `_inverted_res_block`: expand, filter each channel, project; add the input back
    /// where the shape allows it.
    fn inverted_residual(
        builder: &mut Builder,
        block: usize,
        expansion: i64,
        channels: i64,
        stride: i64,
    ) -> Result<()> {
        let input = builder.last();
        let input_channels = builder.shape()[0];
        let name = |part: &str| format!("{}_{part}", block_name(block));
        if block > 0 {
            builder
                .conv(&name("expand"), input_channels * expansion, 1, 1, 0)?
                .batch_norm(&name("expand_BN"))?
                .relu6(&name("expand_relu"));
        }
        // At stride 2 a layer of its own pads.
        let padding = if stride == 2 {
            builder.pad(&name("pad"), 3, stride);
            0
        } else {
            1
        };
        builder
            .depthwise(&name("depthwise"), 3, stride, padding)?
            .batch_norm(&name("depthwise_BN"))?
            .relu6(&name("depthwise_relu"))
            .conv(&name("project"), channels, 1, 1, 0)?
            .batch_norm(&name("project_BN"))?;
        if stride == 1 && input_channels == channels {
            builder.add(&name("add"), input);
        }
        Ok(())
    }
}

impl Family for MobileNetV2 {
    fn name(&self) -> String {
        format!("mobilenetv2_{:.2}", self.alpha)
    }

    fn layers(&self, mut builder: Builder) -> Result<Vec<Layer>> {
        let alpha = self.alpha;
        let image_shape @ [channels, height, width] = builder.shape();
        let fits = |side: i64| side > 0 && side % DOWNSAMPLING == 0;
        if channels != 3 || !fits(height) || !fits(width) {
            return Err(Error::Argument {
                name: "MobileNetV2 image shape",
                expected: "[3, height, width], height and width multiples of 32".into(),
                got: format!("{image_shape:?}"),
            });
        }
        if !ALPHAS.contains(&alpha) {
            return Err(Error::Argument {
                name: "MobileNetV2 alpha",
                expected: format!("one of {ALPHAS:?}"),
                got: alpha.to_string(),
            });
        }
        builder
            .pad("Conv1_pad", 3, 2)
            .conv("Conv1", scaled(STEM_CHANNELS, alpha), 3, 2, 0)?
            .batch_norm("bn_Conv1")?
            .relu6("Conv1_relu");
        let mut block = 0;
        for (expansion, channels, repeats, first_stride) in INVERTED_RESIDUALS {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { first_stride } else { 1 };
                let channels = scaled(channels, alpha);
                Self::inverted_residual(&mut builder, block, expansion, channels, stride)?;
                block += 1;
            }
        }
        // The paper makes the features no fewer where the network is narrower.
        let features = scaled(FEATURE_CHANNELS, alpha.max(1.0));
        builder
            .conv("Conv_1", features, 1, 1, 0)?
            .batch_norm("Conv_1_bn")?
            .relu6("out_relu");
        Ok(builder.finish())
    }

    /// The last convolution takes another number of channels at each `alpha`.
    fn of_file(&self, tensors: &Shapes<'_>) -> Result<Architecture, String> {
        let (_, last, _, _) = INVERTED_RESIDUALS[INVERTED_RESIDUALS.len() - 1];
        let Some(&[_, got, _, _]) = tensors("Conv_1/kernel") else {
            return Ok(WIDTH_1);
        };
        let found = ALPHAS.into_iter().find(|&alpha| scaled(last, alpha) == got);
        let found = found.map(|alpha| Architecture::MobileNetV2(Self { alpha }));
        found.ok_or_else(|| {
            let known = ALPHAS.map(|alpha| format!("{} ({alpha})", scaled(last, alpha)));
            format!(
                "Conv_1/kernel: expected as many input channels as for a known alpha, {}, got {got}",
                known.join(", ")
            )
        })
    }
}

/// Returns the prefix of a block's layers.
fn block_name(block: usize) -> String {
    match block {
        0 => "expanded_conv".into(),
        _ => format!("block_{block}"),
    }
}

/// Returns this crate's name for a `state_dict`'s tensor of a block's part: `expand`, `depthwise` or
/// `project`.
fn in_block(block: usize, part: &str, normalizes: bool, kind: &str) -> Option<String> {
    let layer = format!("{}_{part}", block_name(block));
    if normalizes {
        pytorch::statistic(&format!("{layer}_BN"), kind)
    } else {
        pytorch::kernel(&layer, kind)
    }
}
