//! What the tests against references share.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use hdf5_writer::{DatasetBuilder, Hdf5Builder, WriteOptions};
use image::RgbImage;
use safetensors::SafeTensors;
use support::settings::Settings;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// Returns the settings for a device, whatever the environment says.
pub(crate) fn settings(device: Device) -> Settings {
    let mut settings = Settings::from_env().unwrap();
    settings.device = device;
    settings
}

/// Returns a file of `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// Returns the tensors of a safetensors file of `tests/data`.
pub(crate) fn tensors(name: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(data(name))
        .unwrap()
        .into_iter()
        .collect()
}

/// A file's shapes by tensor, from a reference's metadata.
pub(crate) type Shapes = BTreeMap<String, Vec<usize>>;

pub(crate) fn shapes(reference: &str, model: &str) -> Shapes {
    let bytes = fs::read(data(reference)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[model]).unwrap()
}

/// The weights of `tests/reference/formula.py`.
pub(crate) fn formula(name: &str, shape: &[usize], inputs: usize) -> Vec<f32> {
    let seed = name.bytes().fold(2_166_136_261_u32, |seed, byte| {
        (seed ^ u32::from(byte)).wrapping_mul(16_777_619)
    });
    let kind = name.rsplit(['.', '/']).next().unwrap();
    let count: usize = shape.iter().product();
    let value = |i: usize| {
        let mut x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        for _ in 0..2 {
            x = (x ^ (x >> 16)).wrapping_mul(73_244_475);
        }
        x ^= x >> 16;
        let u = (x >> 8) as f32 / 8_388_608. - 1.;
        match kind {
            _ if inputs > 0 => u * (6. / inputs as f64).sqrt() as f32,
            "moving_variance" | "running_var" => 1. + (u + 1.) / 2.,
            "gamma" | "weight" => 1. + u / 4.,
            _ => u / 8.,
        }
    };
    (0..count).map(value).collect()
}

/// Writes Keras' variables with the formula's weights, as Keras 2 names them in a file.
pub(crate) fn keras_file(folder: &TempDir, shapes: &Shapes) -> std::path::PathBuf {
    let path = folder.path().join("weights.h5");
    let mut file = Hdf5Builder::new();
    for (name, shape) in shapes {
        let inputs = match shape.as_slice() {
            [height, width, ..] if name.contains("depthwise/") => height * width,
            [height, width, channels, _] => height * width * channels,
            _ => 0,
        };
        let (layer, variable) = name.split_once('/').unwrap();
        let sizes: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        let values = formula(name, shape, inputs);
        let dataset =
            DatasetBuilder::typed_data(format!("{layer}/{layer}/{variable}:0"), sizes, &values);
        file = file.dataset(dataset.unwrap());
    }
    let plan = file.into_plan().unwrap();
    fs::write(&path, plan.encode(WriteOptions::default()).unwrap()).unwrap();
    path
}

/// Writes a `state_dict` of PyTorch's with the formula's weights.
pub(crate) fn state_file(folder: &TempDir, shapes: &Shapes) -> PathBuf {
    let path = folder.path().join("state_dict.safetensors");
    let tensor = |(name, shape): (&String, &Vec<usize>)| {
        if name.ends_with("num_batches_tracked") {
            return (name.clone(), Tensor::from(7_i64));
        }
        let is_kernel = shape.len() == 4;
        let inputs: usize = shape.iter().skip(1).product();
        let values = formula(name, shape, if is_kernel { inputs } else { 0 });
        let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        (name.clone(), Tensor::from_slice(&values).reshape(sizes))
    };
    let tensors: Vec<_> = shapes.iter().map(tensor).collect();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    path
}

/// Returns a synthetic image of `tests/reference/pictures.py`, `tiled` to `size` x `size` as in
/// `formula.py`.
pub(crate) fn picture(n: i64, size: u32) -> RgbImage {
    RgbImage::from_fn(size, size, |x, y| {
        let (x, y) = (i64::from(x) % 160, i64::from(y) % 160);
        image::Rgb([0, 1, 2].map(|c| {
            let centre_x = 20 + (53 * n + 29 * c) % 120;
            let centre_y = 20 + (37 * n + 61 * c) % 120;
            let blob = 144_000 / (900 + (x - centre_x).pow(2) + (y - centre_y).pow(2));
            let period = 64 + 8 * n;
            let phase = (x * (1 + n % 3) + y * (1 + c)) % period;
            let wave = 120 * phase.min(period - phase) / period;
            let checks = 40 * ((x / (4 + n) + y / (5 + n)) % 2);
            let noise = (7 * x * x + 11 * y * y + (3 + n) * x * y + 31 * c) % (8 + 8 * n);
            ((blob + wave + checks + noise) % 256) as u8
        }))
    })
}

/// Returns the eight images, `[8, 3, 160, 160]`, scaled to `[-1, 1]`.
pub(crate) fn pictures() -> Tensor {
    let values: Vec<f32> = (0..8)
        .flat_map(|n| picture(n, 160).into_raw())
        .map(|sample| f32::from(sample) * (1. / 127.5) - 1.)
        .collect();
    Tensor::from_slice(&values)
        .reshape([8, 160, 160, 3])
        .permute([0, 3, 1, 2])
}

/// Asserts that no value is further from the reference than `tolerance` times the reference's
/// largest value.
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.size(), expected.size(), "{what}");
    let largest = |tensor: &Tensor| tensor.to_kind(Kind::Double).abs().max().double_value(&[]);
    let (actual, expected) = (actual.detach(), expected.to_device(Device::Cpu));
    let deviation = largest(&(actual.to_device(Device::Cpu) - &expected)) / largest(&expected);
    assert!(
        deviation <= tolerance,
        "{what}: off by {deviation:.1e} of the largest value"
    );
}
