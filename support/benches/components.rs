//! The parts, one by one, for comparing two versions of the code: `cargo bench -p support
//! --bench components`. How they do beside Keras and PyTorch is `cargo xtask bench`'s matter.
//!
//! Needs the default weights; `MALLOC_MMAP_THRESHOLD_` and the like are the caller's to set.

use divan::Bencher;
use divan::counter::ItemsCount;
use image::codecs::jpeg::JpegEncoder;
use support::pipeline::decode;
use support::prelude::*;
use support::tch::Kind;
use support::training::Compiled;

const IMG_SIZE: u32 = 160;

fn main() {
    divan::main();
}

/// A picture of the size and about the detail of a photo: `cats_and_dogs_filtered` has 152,000
/// pixels and 23 kB each on average.
fn photo() -> RgbImage {
    RgbImage::from_fn(450, 340, |x, y| {
        let wave = |period: f32, phase: f32| {
            let (x, y) = (x as f32, y as f32);
            (x / period).sin() * (y / (period + phase)).cos() + (x * y / 9000.0).sin() / 2.0
        };
        image::Rgb([7.0, 11.0, 23.0].map(|period| (128.0 + 80.0 * wave(period, 3.0)) as u8))
    })
}

#[divan::bench]
fn decode_jpeg(bencher: Bencher<'_, '_>) {
    let mut file = Vec::new();
    let encoded = JpegEncoder::new_with_quality(&mut file, 85).encode_image(&photo());
    encoded.expect("a JPEG in memory");
    bencher.bench(|| decode("photo", &file).expect("a JPEG"));
}

#[divan::bench]
fn format(bencher: Bencher<'_, '_>) {
    let photo = photo();
    bencher.bench(|| {
        Pixels::from(&photo)
            .scale(1.0 / 127.5)
            .offset(-1.0)
            .resize(IMG_SIZE, IMG_SIZE)
    });
}

fn flip() -> Augmentation {
    Augmentation::new().random_flip_horizontal()
}

/// What an augmentation costs beside decoding and formatting.
#[divan::bench(args = ["flip", "rotation", "flip and rotation", "erasing", "colour", "all"])]
fn augment(bencher: Bencher<'_, '_>, what: &str) {
    let augmentation = match what {
        "flip" => flip(),
        "rotation" => Augmentation::new().random_rotation(0.2),
        "flip and rotation" => flip().random_rotation(0.2),
        "erasing" => Augmentation::new().random_erasing(1.0, 0.02..=0.33, 0.3..=3.3),
        "colour" => Augmentation::new().color_jitter(0.2, 0.2, 0.2),
        _ => flip().random_rotation(0.2).color_jitter(0.2, 0.2, 0.2),
    };
    let pixels = Pixels::from(&photo())
        .scale(1.0 / 127.5)
        .offset(-1.0)
        .resize(IMG_SIZE, IMG_SIZE);
    let mut epoch = 0;
    bencher
        .counter(ItemsCount::new(1_usize))
        .with_inputs(|| {
            epoch += 1;
            (pixels.clone(), epoch)
        })
        .bench_local_values(|(pixels, epoch)| {
            augmentation.apply(RgbImage::default(), |_| Ok(pixels), 0, "photo", epoch)
        });
}

/// A base of the tutorial, and pictures for it.
fn base(pictures: i64) -> (Backbone, Tensor) {
    let side = i64::from(IMG_SIZE);
    let mut settings = Settings::from_env().expect("settings");
    settings.device = Device::Cpu;
    let base = MobileNetV2::pretrained([3, side, side], &settings).expect("the default weights");
    let images = Tensor::rand([pictures, 3, side, side], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    (base, images)
}

#[divan::bench(args = [1, 8, 32])]
fn base_forward(bencher: Bencher<'_, '_>, pictures: i64) {
    let (base, images) = base(pictures);
    bencher
        .counter(ItemsCount::new(pictures as usize))
        .bench_local(|| base.forward(&images).expect("features"));
}

/// From pictures: through the frozen layers, forward and backward through the others, and the
/// change of the weights.
#[divan::bench(args = [0, 100, 155])]
fn train_on_batch(bencher: Bencher<'_, '_>, frozen_layers: usize) {
    let (mut base, images) = base(32);
    base.layers_mut()[..frozen_layers].set_trainable(false);
    let mut model: Sequential<Compiled> = Sequential::new(base)
        .push(GlobalAveragePooling2d)
        .push(Dense::new(1280, 1))
        .compile(RmsProp::new(1e-5), Loss::BinaryCrossentropy)
        .expect("a model");
    let labels = Tensor::arange(32, (Kind::Int64, Device::Cpu)).remainder(2);
    bencher
        .counter(ItemsCount::new(32_usize))
        .bench_local(|| model.train_on_batch(&images, &labels).expect("a step"));
}
