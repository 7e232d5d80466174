//! # ResNet
//!
//! - Paper: [Deep Residual Learning for Image Recognition][paper], table 1.
//! - Reference implementation: [`torchvision.models.resnet`][torchvision], whose layer names, order
//!   and strides (in the 3x3 convolution) this follows. A block's shortcut comes first in it, so that
//!   the addition is computed with the convolution before it.
//!
//! [paper]: https://arxiv.org/abs/1512.03385
//! [torchvision]: https://github.com/pytorch/vision/blob/main/torchvision/models/resnet.py

use serde::{Deserialize, Serialize};

use super::architecture::{Architecture, Dialect, Family, Shapes};
use super::builder::Builder;
use super::layer::Layer;
use super::origin::{Origin, PYTORCH, Weights};
use super::weights::pytorch;
use crate::pipeline::Filter;
use crate::{Error, Result};

/// (channels within a block, stride of the first block) of `layer1` to `layer4`.
const STAGES: [(i64, i64); 4] = [(64, 1), (128, 2), (256, 2), (512, 2)];
const STEM_CHANNELS: i64 = 64;
/// A bottleneck block's output has so many times the channels within it.
const EXPANSION: i64 = 4;
/// Below, there is less than an image for each position of the features.
const SMALLEST: i64 = 32;

/// ResNet without its classification top: images `[N, 3, H, W]` of any size from 32 on, made as the
/// [weights](Weights) want them, become features `[N, 512, H / 32, W / 32]` (depth 18) or
/// `[N, 2048, H / 32, W / 32]` (depth 50), sizes rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResNet {
    /// The number of layers as the paper counts them: 18 or 50.
    pub depth: u32,
}

/// How a network of some depth is made.
struct Plan {
    /// Blocks in each of the [`STAGES`].
    blocks: [usize; 4],
    /// Whether they are of three convolutions in place of two.
    bottleneck: bool,
}

impl ResNet {
    /// torchvision's [`ResNet18_Weights.IMAGENET1K_V1`][torchvision].
    ///
    /// [torchvision]: https://docs.pytorch.org/vision/stable/models/resnet.html
    pub const RESNET18: Weights = Weights::new(&Origin {
        name: "resnet18",
        asset: "resnet18",
        architecture: Architecture::ResNet(Self { depth: 18 }),
        image_size: 224,
        evaluation: Some((256, Filter::Bilinear)),
        conventions: &PYTORCH,
    });

    /// torchvision's `ResNet50_Weights.IMAGENET1K_V1`.
    pub const RESNET50: Weights = Weights::new(&Origin {
        name: "resnet50",
        asset: "resnet50",
        architecture: Architecture::ResNet(Self { depth: 50 }),
        image_size: 224,
        evaluation: Some((256, Filter::Bilinear)),
        conventions: &PYTORCH,
    });

    /// torchvision's `ResNet50_Weights.IMAGENET1K_V2`.
    pub const RESNET50_V2: Weights = Weights::new(&Origin {
        name: "resnet50_v2",
        asset: "resnet50_v2",
        architecture: Architecture::ResNet(Self { depth: 50 }),
        image_size: 224,
        evaluation: Some((232, Filter::Bilinear)),
        conventions: &PYTORCH,
    });

    pub(super) const ORIGINS: &[Weights] = &[Self::RESNET18, Self::RESNET50, Self::RESNET50_V2];

    pub(super) const DIALECTS: &[Dialect] = &[Dialect::StateDict {
        weights: Self::RESNET18,
        mark: "layer1.0.conv1.weight",
        top: "fc.",
        name: variable_name,
    }];

    fn plan(self) -> Result<Plan> {
        match self.depth {
            18 => Ok(Plan {
                blocks: [2, 2, 2, 2],
                bottleneck: false,
            }),
            50 => Ok(Plan {
                blocks: [3, 4, 6, 3],
                bottleneck: true,
            }),
            depth => Err(Error::Argument {
                name: "ResNet depth",
                expected: "18 or 50".into(),
                got: depth.to_string(),
            }),
        }
    }

    /// torchvision's `BasicBlock` or `Bottleneck`: the input, projected where the shape changes, plus
    /// what the convolutions make of it.
    fn block(
        builder: &mut Builder,
        prefix: &str,
        channels: i64,
        stride: i64,
        bottleneck: bool,
    ) -> Result<()> {
        let (input, input_channels) = (builder.last(), builder.shape()[0]);
        let name = |part: &str| format!("{prefix}.{part}");
        let outputs = if bottleneck {
            EXPANSION * channels
        } else {
            channels
        };
        let mut shortcut = input;
        if stride > 1 || input_channels != outputs {
            builder
                .conv(&name("downsample.0"), outputs, 1, stride, 0)?
                .batch_norm(&name("downsample.1"))?;
            shortcut = builder.last();
        }
        builder.read(input);
        // (channels, kernel, stride)
        let convolutions = if bottleneck {
            &[(channels, 1, 1), (channels, 3, stride), (outputs, 1, 1)][..]
        } else {
            &[(channels, 3, stride), (channels, 3, 1)]
        };
        for (number, &(channels, kernel, stride)) in (1..).zip(convolutions) {
            builder
                .conv(
                    &name(&format!("conv{number}")),
                    channels,
                    kernel,
                    stride,
                    kernel / 2,
                )?
                .batch_norm(&name(&format!("bn{number}")))?;
            if number < convolutions.len() {
                builder.relu(&name(&format!("relu{number}")));
            }
        }
        builder.add(&name("add"), shortcut).relu(&name("relu"));
        Ok(())
    }
}

impl Family for ResNet {
    fn name(&self) -> String {
        format!("resnet{}", self.depth)
    }

    fn layers(&self, mut builder: Builder) -> Result<Vec<Layer>> {
        let Plan { blocks, bottleneck } = self.plan()?;
        let image_shape @ [channels, height, width] = builder.shape();
        if channels != 3 || height.min(width) < SMALLEST {
            return Err(Error::Argument {
                name: "ResNet image shape",
                expected: format!("[3, height, width], height and width at least {SMALLEST}"),
                got: format!("{image_shape:?}"),
            });
        }
        builder
            .conv("conv1", STEM_CHANNELS, 7, 2, 3)?
            .batch_norm("bn1")?
            .relu("relu")
            .max_pool("maxpool", 3, 2, 1);
        for (stage, ((channels, first_stride), blocks)) in (1..).zip(STAGES.into_iter().zip(blocks))
        {
            for block in 0..blocks {
                let stride = if block == 0 { first_stride } else { 1 };
                let prefix = format!("layer{stage}.{block}");
                Self::block(&mut builder, &prefix, channels, stride, bottleneck)?;
            }
        }
        Ok(builder.finish())
    }

    /// Only bottleneck blocks have a third convolution.
    fn of_file(&self, tensors: &Shapes<'_>) -> Result<Architecture, String> {
        let bottleneck = tensors("layer1.0.conv3/kernel").is_some();
        let depth = if bottleneck { 50 } else { 18 };
        Ok(Architecture::ResNet(Self { depth }))
    }
}

/// Returns this crate's name for a tensor of torchvision's base: the layers have the modules' names.
fn variable_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let is_convolution = match module.rsplit('.').next()? {
        "0" => module.ends_with(".downsample.0"),
        part => part.starts_with("conv"),
    };
    if is_convolution {
        pytorch::kernel(module, kind)
    } else {
        pytorch::statistic(module, kind)
    }
}
