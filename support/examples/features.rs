//! Writes the features of all images, for programs in other languages.
//!
//! ```sh
//! cargo run -p support --example features -- features.safetensors
//! ```
//!
//! What the pretrained base and global average pooling make of each image of the dataset that the
//! `TRANSFER_*` settings choose, split 8 : 1 : 1: tensors `train`, `validation` and `test`
//! (`[pictures, 1280]`) and `train/labels` (`[pictures]`) and so on.

use std::env;

use support::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let path = match &arguments[..] {
        [path] if !path.starts_with('-') => path,
        _ => return Err("usage: features FILE".into()),
    };
    let settings = Settings::from_env()?;
    let dataset = ImageDataset::load(&settings)?;
    println!("{dataset}");
    let base = MobileNetV2::pretrained([3, 160, 160], &settings)?;
    let weights = base.weights();
    let model = Sequential::new(base).push(GlobalAveragePooling2d);
    let mut tensors = Vec::new();
    for (name, part) in ["train", "validation", "test"]
        .iter()
        .zip(dataset.split([8, 1, 1])?)
    {
        let batches = part.map(move |image| weights.format(image, 160)).batch(32);
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        for batch in batches.epoch(0) {
            let batch = batch?;
            features.push(model.forward(&batch.images)?.to_device(Device::Cpu));
            labels.push(batch.labels);
        }
        if features.is_empty() {
            continue;
        }
        tensors.push((name.to_string(), Tensor::f_cat(&features, 0)?));
        tensors.push((format!("{name}/labels"), Tensor::f_cat(&labels, 0)?));
    }
    Tensor::write_safetensors(&tensors, path)?;
    Ok(())
}
