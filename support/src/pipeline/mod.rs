//! From an example to a batch of tensors: decode, format, augment, shuffle, batch, ahead of need.
//!
//! Everything is lazy: a [`Dataset`] holds which images and what to do with them, and
//! [`Batches`] does it on worker threads while the network is at work on the batch before.
//! Where images come from is `dataset`'s affair.

mod augmentation;
mod batches;
mod dataset;
mod decode;
mod mixing;
mod noise;
mod orientation;
mod pixels;
mod random_box;
mod resize;
mod sampler;
mod warp;
mod webp;

#[cfg(test)]
mod tests;

pub use augmentation::Augmentation;
pub use batches::{Batch, BatchIter, Batches};
pub(crate) use batches::{Parts, Workers, stack, threads};
pub use dataset::{Dataset, Skipped, SkippedSummary};
pub(crate) use dataset::{read, readable};
pub(crate) use decode::is_turned;
pub use decode::{decode, decode_within};
pub use mixing::Mixed;
pub(crate) use noise::noise;
pub use pixels::Pixels;
pub use resize::{Filter, Resize};
pub(crate) use sampler::Sampler;
