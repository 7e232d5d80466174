//! Networks: a flat list of named layers, the families that it can be, the layers on top, summaries,
//! weight files. How a network is trained is [`training`](crate::training)'s business.

mod architecture;
mod backbone;
mod builder;
mod efficientnet_lite;
mod fused;
mod head;
mod inference;
mod layer;
mod mobilenet_v2;
pub(crate) mod onnx;
mod origin;
mod resnet;
mod sequential;
mod steps;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod weights;

pub use architecture::Architecture;
pub use backbone::Backbone;
pub use efficientnet_lite::EfficientNetLite;
pub(crate) use fused::subtract;
pub use head::{Dense, Dropout, GlobalAveragePooling2d, HeadLayer};
pub(crate) use head::{TrainingStep, output_shape};
pub use layer::{Layer, Operation, SetTrainable, Variable};
pub use mobilenet_v2::MobileNetV2;
pub use origin::Weights;
pub use resnet::ResNet;
pub use sequential::Sequential;
pub use summary::Summary;
