//! Networks of all families for tests: small images, weights drawn at random.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tch::{Device, Tensor};

use super::{Architecture, Backbone, EfficientNetLite, MobileNetV2, ResNet, Weights};

/// What differs: widths, both paddings, sizes that are no multiples of 32 (and oblong), both blocks of
/// ResNet.
pub(crate) const NETWORKS: [(Architecture, Weights, [i64; 3]); 8] = [
    (
        Architecture::MobileNetV2(MobileNetV2 { alpha: 1.0 }),
        MobileNetV2::TF_HUB,
        [3, 64, 64],
    ),
    (
        Architecture::MobileNetV2(MobileNetV2 { alpha: 0.35 }),
        MobileNetV2::KERAS,
        [3, 64, 96],
    ),
    (
        Architecture::MobileNetV2(MobileNetV2 { alpha: 1.4 }),
        MobileNetV2::TORCHVISION,
        [3, 64, 64],
    ),
    (
        Architecture::EfficientNetLite(EfficientNetLite { variant: 0 }),
        EfficientNetLite::LITE0,
        [3, 64, 64],
    ),
    (
        Architecture::EfficientNetLite(EfficientNetLite { variant: 2 }),
        EfficientNetLite::LITE2,
        [3, 65, 82],
    ),
    (
        Architecture::ResNet(ResNet { depth: 18 }),
        ResNet::RESNET18,
        [3, 64, 64],
    ),
    (
        Architecture::ResNet(ResNet { depth: 18 }),
        ResNet::RESNET18,
        [3, 70, 97],
    ),
    (
        Architecture::ResNet(ResNet { depth: 50 }),
        ResNet::RESNET50_V2,
        [3, 64, 64],
    ),
];

/// Returns a network with weights drawn at random, about as large as trained ones; every time the same,
/// which libtorch's generator does not give: all tests share it.
pub(crate) fn network(
    (architecture, weights, shape): (Architecture, Weights, [i64; 3]),
) -> Backbone {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut network = Backbone::frame(architecture, weights, shape, Device::Cpu).unwrap();
    for variable in network.variables_mut() {
        let shape = variable.value().size();
        let mut uniform = || 3_f32.sqrt() * (2. * random.random::<f32>() - 1.);
        let values: Vec<f32> = (0..variable.value().numel()).map(|_| uniform()).collect();
        let random = Tensor::from_slice(&values).reshape(&shape);
        let inputs: i64 = shape.iter().skip(1).product();
        let values = match variable.name().rsplit('/').next() {
            Some("kernel") => random * (2. / inputs as f64).sqrt(),
            Some("gamma" | "moving_variance") => random.abs() * 0.2 + 0.8,
            _ => random * 0.1,
        };
        variable.assign(&values).unwrap();
    }
    network
}
