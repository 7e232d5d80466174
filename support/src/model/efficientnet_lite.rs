//! # EfficientNet-Lite
//!
//! - Paper: [EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks][paper], table 1,
//!   without squeeze-and-excitation, with ReLU6, stem and head not scaled.
//! - Reference implementation: [`efficientnet_lite_builder.py`][google], by way of PyTorch in
//!   [`efficientnet-lite-pytorch`][pytorch]. Layers are named as in Keras' EfficientNet, but the blocks
//!   are numbered from 0 on, as in the weight files.
//!
//! [paper]: https://arxiv.org/abs/1905.11946
//! [google]: https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py
//! [pytorch]: https://pypi.org/project/efficientnet-lite-pytorch/

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Dialect, Family, Shapes};
use super::builder::{Builder, scaled};
use super::layer::Layer;
use super::origin::{Conventions, Origin, Padding, Weights};
use super::weights::pytorch;
use crate::pipeline::Filter;
use crate::{Error, Result};

/// One row of the paper's table 1: (expansion, output channels, repeats, stride of the first repeat,
/// side of the depthwise kernel).
const BLOCKS: [(i64, i64, usize, i64, i64); 7] = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
];
const STEM_CHANNELS: i64 = 32;
const FEATURE_CHANNELS: i64 = 1280;
/// The factors of variant 0, 1 and 2: (on the numbers of channels, on the repeats).
const FACTORS: [(f64, f64); 3] = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2)];
/// Below, there is less than an image for each position of the features.
const SMALLEST: i64 = 32;

/// `(x - 127) / 128` of samples from 0 to 255.
const CONVENTIONS: Conventions = Conventions {
    padding: Padding::Same,
    epsilon: 1e-3,
    mean: [127. / 255.; 3],
    std: [128. / 255.; 3],
};

/// EfficientNet-Lite without its classification top: images `[N, 3, H, W]` of any size from 32 on, made
/// as the [weights](Weights) want them, become features `[N, 1280, H / 32, W / 32]`, sizes rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EfficientNetLite {
    /// 0, 1 or 2: the larger, the wider and deeper.
    pub variant: usize,
}

impl EfficientNetLite {
    /// Google's [EfficientNet-Lite0][lite], trained at 224x224: .751 of ImageNet's validation images.
    ///
    /// [lite]: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    pub const LITE0: Weights = Weights::new(&Origin {
        name: "efficientnet_lite0",
        asset: "efficientnet_lite0",
        architecture: Architecture::EfficientNetLite(Self { variant: 0 }),
        image_size: 224,
        evaluation: Some((256, Filter::Bicubic)),
        conventions: &CONVENTIONS,
    });

    /// Google's EfficientNet-Lite1, trained at 240x240: .767.
    pub const LITE1: Weights = Weights::new(&Origin {
        name: "efficientnet_lite1",
        asset: "efficientnet_lite1",
        architecture: Architecture::EfficientNetLite(Self { variant: 1 }),
        image_size: 240,
        evaluation: Some((272, Filter::Bicubic)),
        conventions: &CONVENTIONS,
    });

    /// Google's EfficientNet-Lite2, trained at 260x260: .776.
    pub const LITE2: Weights = Weights::new(&Origin {
        name: "efficientnet_lite2",
        asset: "efficientnet_lite2",
        architecture: Architecture::EfficientNetLite(Self { variant: 2 }),
        image_size: 260,
        evaluation: Some((292, Filter::Bicubic)),
        conventions: &CONVENTIONS,
    });

    pub(super) const ORIGINS: &[Weights] = &[Self::LITE0, Self::LITE1, Self::LITE2];

    pub(super) const DIALECTS: &[Dialect] = &[Dialect::StateDict {
        weights: Self::LITE0,
        mark: "_conv_stem.weight",
        top: "_fc.",
        name: variable_name,
    }];

    /// Returns the factors on the numbers of channels and on the repeats.
    fn factors(self) -> Result<(f64, f64)> {
        let factors = FACTORS.get(self.variant).copied();
        factors.ok_or_else(|| Error::Argument {
            name: "EfficientNetLite variant",
            expected: "0, 1 or 2".into(),
            got: self.variant.to_string(),
        })
    }

    /// Expands, filters each channel, projects; adds the input back where the shape allows it.
    fn block(
        builder: &mut Builder,
        number: usize,
        expansion: i64,
        channels: i64,
        stride: i64,
        kernel: i64,
    ) -> Result<()> {
        let (input, input_channels) = (builder.last(), builder.shape()[0]);
        let name = |part: &str| format!("block_{number}_{part}");
        if expansion > 1 {
            builder
                .conv(&name("expand_conv"), input_channels * expansion, 1, 1, 0)?
                .batch_norm(&name("expand_bn"))?
                .relu6(&name("expand_activation"));
        }
        // At stride 2 the zeros depend on the size, and a layer of its own adds them.
        let padding = if stride == 1 {
            kernel / 2
        } else {
            builder.pad(&name("dwconv_pad"), kernel, stride);
            0
        };
        builder
            .depthwise(&name("dwconv"), kernel, stride, padding)?
            .batch_norm(&name("bn"))?
            .relu6(&name("activation"))
            .conv(&name("project_conv"), channels, 1, 1, 0)?
            .batch_norm(&name("project_bn"))?;
        if stride == 1 && input_channels == channels {
            builder.add(&name("add"), input);
        }
        Ok(())
    }
}

/// Returns how often a row's block stands there; the first and the last row are not scaled.
fn repeats(row: usize, factor: f64) -> usize {
    let (_, _, repeats, _, _) = BLOCKS[row];
    if row == 0 || row == BLOCKS.len() - 1 {
        repeats
    } else {
        (repeats as f64 * factor).ceil() as usize
    }
}

impl Family for EfficientNetLite {
    fn name(&self) -> String {
        format!("efficientnet_lite{}", self.variant)
    }

    fn layers(&self, mut builder: Builder) -> Result<Vec<Layer>> {
        let (width, depth) = self.factors()?;
        let image_shape @ [channels, height, width_in_pixels] = builder.shape();
        if channels != 3 || height.min(width_in_pixels) < SMALLEST {
            return Err(Error::Argument {
                name: "EfficientNetLite image shape",
                expected: format!("[3, height, width], height and width at least {SMALLEST}"),
                got: format!("{image_shape:?}"),
            });
        }
        builder
            .pad("stem_conv_pad", 3, 2)
            .conv("stem_conv", STEM_CHANNELS, 3, 2, 0)?
            .batch_norm("stem_bn")?
            .relu6("stem_activation");
        let mut number = 0;
        for (row, (expansion, channels, _, first_stride, kernel)) in BLOCKS.into_iter().enumerate()
        {
            for repeat in 0..repeats(row, depth) {
                let stride = if repeat == 0 { first_stride } else { 1 };
                let channels = scaled(channels, width);
                Self::block(&mut builder, number, expansion, channels, stride, kernel)?;
                number += 1;
            }
        }
        builder
            .conv("top_conv", FEATURE_CHANNELS, 1, 1, 0)?
            .batch_norm("top_bn")?
            .relu6("top_activation");
        Ok(builder.finish())
    }

    fn of_file(&self, tensors: &Shapes<'_>) -> Result<Architecture, String> {
        let Some(&[_, got, _, _]) = tensors("top_conv/kernel") else {
            return Ok(Architecture::EfficientNetLite(*self));
        };
        let has_block = |number| tensors(&format!("block_{number}_bn/gamma")).is_some();
        let is = |&(width, depth): &(f64, f64)| {
            let blocks: usize = (0..BLOCKS.len()).map(|row| repeats(row, depth)).sum();
            let (_, last, _, _, _) = BLOCKS[BLOCKS.len() - 1];
            scaled(last, width) == got && has_block(blocks - 1) && !has_block(blocks)
        };
        let variant = FACTORS.iter().position(is).ok_or_else(|| {
            format!(
                "it is no EfficientNet-Lite 0, 1 or 2: none of them has as many blocks and a \
                 top_conv/kernel of {got} input channels"
            )
        })?;
        Ok(Architecture::EfficientNetLite(Self { variant }))
    }
}

/// Returns this crate's name for a tensor of efficientnet-lite-pytorch's base:
///
/// | tensor | layer |
/// |---|---|
/// | `_conv_stem`, `_bn0` | `stem_conv`, `stem_bn` |
/// | `_blocks.{k}.{_expand_conv, _bn0}` | `block_{k}_expand_conv`, `block_{k}_expand_bn` |
/// | `_blocks.{k}.{_depthwise_conv, _bn1}` | `block_{k}_dwconv`, `block_{k}_bn` |
/// | `_blocks.{k}.{_project_conv, _bn2}` | `block_{k}_project_conv`, `block_{k}_project_bn` |
/// | `_conv_head`, `_bn1` | `top_conv`, `top_bn` |
fn variable_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let Some(in_block) = module.strip_prefix("_blocks.") else {
        return match module {
            "_conv_stem" => pytorch::kernel("stem_conv", kind),
            "_bn0" => pytorch::statistic("stem_bn", kind),
            "_conv_head" => pytorch::kernel("top_conv", kind),
            "_bn1" => pytorch::statistic("top_bn", kind),
            _ => None,
        };
    };
    let (number, part) = in_block.split_once('.')?;
    let number = number.parse::<usize>().ok()?;
    let layer = |part: &str| format!("block_{number}_{part}");
    match part {
        "_expand_conv" => pytorch::kernel(&layer("expand_conv"), kind),
        "_bn0" => pytorch::statistic(&layer("expand_bn"), kind),
        "_depthwise_conv" => pytorch::kernel(&layer("dwconv"), kind),
        "_bn1" => pytorch::statistic(&layer("bn"), kind),
        "_project_conv" => pytorch::kernel(&layer("project_conv"), kind),
        "_bn2" => pytorch::statistic(&layer("project_bn"), kind),
        _ => None,
    }
}
