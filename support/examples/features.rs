//! Writes the features of all images, for programs in other languages.
//!
//! ```sh
//! cargo run -p support --example features -- features.safetensors [WEIGHTS]
//! ```
//!
//! What the pretrained base and global average pooling make of each image of the dataset that the
//! `TRANSFER_*` settings choose, split 8 : 1 : 1: tensors `train`, `validation` and `test`
//! (`[pictures, 1280]`) and `train/labels` (`[pictures]`) and so on. `WEIGHTS` is an origin such as
//! `efficientnet_lite0`, which gets images of its own size; without it, it is the tutorial's network at 160x160.

use std::env;

use support::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (path, weights, size) = match &arguments[..] {
        [path] if !path.starts_with('-') => (path, Weights::default(), 160),
        [path, weights] => {
            let weights: Weights = weights.parse()?;
            (path, weights, weights.image_size())
        }
        _ => return Err("usage: features FILE [WEIGHTS]".into()),
    };
    let settings = Settings::from_env()?;
    let dataset = ImageDataset::load(&settings)?;
    println!("{dataset}");
    let base = Backbone::pretrained(weights, [3, size.into(), size.into()], &settings)?;
    let model = Sequential::new(base).push(GlobalAveragePooling2d);
    let mut tensors = Vec::new();
    let parts = dataset.split([8, 1, 1])?.into_iter();
    for (name, part) in ["train", "validation", "test"].iter().zip(parts) {
        if part.is_empty() {
            continue;
        }
        let batches = part.map(move |image| weights.format(image, size)).batch(32);
        let features = model.features(&batches)?;
        tensors.push((name.to_string(), features.values().shallow_clone()));
        tensors.push((format!("{name}/labels"), features.labels().shallow_clone()));
    }
    Tensor::write_safetensors(&tensors, path)?;
    Ok(())
}
