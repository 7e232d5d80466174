//! Networks: a flat list of named layers, MobileNetV2, the layers on top, summaries, weight
//! files. How a network is trained is [`training`](crate::training)'s business.

mod fused;
mod head;
mod inference;
mod layer;
mod mobilenet_v2;
mod pretrained;
mod sequential;
mod steps;
mod summary;
pub(crate) mod weights;

pub use head::{Dense, Dropout, GlobalAveragePooling2d, TopLayer};
pub use layer::{Layer, Operation, SetTrainable, Variable};
pub use mobilenet_v2::MobileNetV2;
pub use pretrained::Weights;
pub use sequential::Sequential;
pub use summary::Summary;
