//! The same on a GPU as on the CPU.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod small_set;

use std::process::Command;

use common::{assert_close, pictures, settings};
use small_set::{augmented_batches, batches, model_on};
use support::device::device_report;
use support::model::{
    Dense, Dropout, GlobalAveragePooling2d, MobileNetV2, Sequential, SetTrainable,
};
use support::pipeline::Augmentation;
use support::precision::Precision;
use support::settings::BrokenImages;
use support::training::{AdamW, Fit, History, Loss, Metric, OneCycle, OptimizerOptions};
use tch::Device;

/// The largest difference, of the largest value.
const TOLERANCE: f64 = 1e-3;

fn gpu() -> Device {
    let report = device_report();
    assert!(report.cuda_devices > 0, "{report}");
    let tf32 = std::env::var("NVIDIA_TF32_OVERRIDE");
    assert_eq!(
        tf32.as_deref(),
        Ok("0"),
        "cuDNN convolves with 10 bits of mantissa unless NVIDIA_TF32_OVERRIDE=0 is set, as \
         `cargo xtask test` does"
    );
    Device::Cuda(0)
}

#[test]
#[ignore = "needs a GPU"]
fn what_asks_tch_first_computes_on_the_gpu() {
    const FIRST: &str = "TRANSFER_TEST_ASKS_FIRST";
    if std::env::var_os(FIRST).is_some() {
        assert!(Device::cuda_if_available().is_cuda());
        return;
    }
    let test = "what_asks_tch_first_computes_on_the_gpu";
    // In a process of its own, where nothing has asked before.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--include-ignored", "--exact", test])
        .env(FIRST, "1")
        .status();
    assert!(status.unwrap().success());
}

#[test]
#[ignore = "needs a GPU and weights"]
fn features_and_logits_on_the_gpu_are_those_of_the_cpu() {
    let gpu = gpu();
    let shape = [3, 160, 160];
    let [on_cpu, on_gpu] =
        [Device::Cpu, gpu].map(|device| MobileNetV2::pretrained(shape, &settings(device)).unwrap());
    let images = pictures();
    let expected = on_cpu.forward(&images).unwrap();
    // From the third time on repeated from a recording.
    let mut all = (0..4).map(|_| on_gpu.forward(&images).unwrap());
    let features = all.next().unwrap();
    assert_eq!(features.device(), gpu);
    let reversed = on_gpu.forward(&images.flip([0])).unwrap().flip([0]);
    for found in all.chain([features.shallow_clone(), reversed]) {
        let found = found.to_device(Device::Cpu);
        assert_close("features", &found, &expected, TOLERANCE);
    }
    let pooled = GlobalAveragePooling2d.forward(&features).unwrap();
    assert_eq!(pooled.device(), gpu);
}

#[test]
#[ignore = "needs a GPU and weights"]
fn training_predictions_and_explanations_on_the_gpu_are_those_of_the_cpu() {
    let gpu = gpu();
    let folder = small_set::pictures(&["cats", "dogs"], 12);
    let (train, validation) = batches(folder.path(), BrokenImages::Stop);
    let run = |device| {
        let mut model = model_on(device, 155, 1e-4);
        let history = model
            .fit(&train, Fit::epochs(3).validation(&validation))
            .unwrap();
        model.base_mut().layers_mut()[100..].set_trainable(true);
        let fine = Fit::epochs(5).initial_epoch(3).validation(&validation);
        let history = history.then(&model.fit(&train, fine).unwrap());
        (model, history)
    };
    let [(on_cpu, expected), (on_gpu, history)] = [Device::Cpu, gpu].map(run);
    let losses = |history: &History| [history.loss(), history.val_loss()].concat();
    for (loss, expected) in losses(&history).into_iter().zip(losses(&expected)) {
        assert!((loss - expected).abs() < 0.02, "{history:?} {expected}");
    }
    let [actual, expected] = [&on_gpu, &on_cpu].map(|model| model.predictions(&train).unwrap());
    for (actual, expected) in actual.examples().iter().zip(expected.examples()) {
        let [a, b] = [actual, expected].map(|example| example.probabilities[1]);
        assert!((a - b).abs() < 0.03, "{actual:?} {expected:?}");
    }
    let explanations = on_gpu.explain(&actual).unwrap();
    assert_eq!(explanations.maps().unwrap().size(), [24, 96, 96]);

    // What one device saves the other loads.
    let path = folder.path().join("weights.safetensors");
    on_gpu.save_weights(&path).unwrap();
    let mut loaded = model_on(Device::Cpu, 155, 1e-4);
    loaded.load_weights(&path).unwrap();
    let (images, _) = train.first().unwrap();
    let [actual, expected] =
        [&on_gpu, &loaded].map(|model| model.forward(&images).unwrap().to_device(Device::Cpu));
    assert_close("logits", &actual, &expected, TOLERANCE);
}

#[test]
#[ignore = "needs a GPU and weights"]
fn steps_of_every_kind_are_on_the_gpu_those_of_the_cpu() {
    let gpu = gpu();
    let folder = small_set::pictures(&["cats", "dogs", "owls"], 12);
    let mixing = Augmentation::new().mix_up(0.4).cut_mix(1.);
    for augmentation in [Augmentation::new(), mixing] {
        let (train, validation) =
            augmented_batches(folder.path(), BrokenImages::Stop, augmentation);
        let run = |device| {
            let mut base = small_set::base(device);
            base.layers_mut()[..100].set_trainable(false);
            let loss = Loss::SparseCategoricalCrossentropy.label_smoothing(0.1);
            let model = Sequential::new(base)
                .push(GlobalAveragePooling2d)
                .push(Dropout::new(0.3))
                .push(Dense::new(1280, 3).seed(1))
                .compile(
                    AdamW::new(1e-4).weight_decay(0.01).clip_norm(5.),
                    loss.class_weights(&[0.5, 1.5, 1.]),
                );
            let mut model = model.unwrap().metrics([Metric::Auc]).unwrap();
            // After more steps, every rounding has grown to another history.
            let fit = Fit::epochs(1).validation(&validation);
            model.fit(&train, fit.schedule(OneCycle::new())).unwrap()
        };
        let [expected, found] = [Device::Cpu, gpu].map(run);
        let numbers = |history: &History| [history.loss()[0], history.epochs[0].metrics["auc"]];
        for (a, b) in numbers(&found).into_iter().zip(numbers(&expected)) {
            assert!((a - b).abs() < 0.01, "{found:?} {expected:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU and weights"]
fn features_in_bfloat16_on_the_gpu_are_close_to_those_in_32_bits() {
    let gpu = gpu();
    let mut base = MobileNetV2::pretrained([3, 160, 160], &settings(gpu)).unwrap();
    let images = pictures();
    let expected = base.forward(&images).unwrap();
    base.set_precision(Precision::Bf16).unwrap();
    // From the third time on repeated from a recording.
    for _ in 0..4 {
        let off = (base.forward(&images).unwrap() - &expected).norm() / expected.norm();
        let off = off.double_value(&[]);
        assert!((1e-4..0.25).contains(&off), "{off}");
    }
}

#[test]
#[ignore = "needs a GPU and weights"]
fn a_run_is_continued_on_the_gpu() {
    let gpu = gpu();
    let folder = small_set::pictures(&["cats", "dogs"], 12);
    let augmentation = Augmentation::new()
        .random_flip_horizontal()
        .random_rotation(0.2);
    let (train, validation) = augmented_batches(folder.path(), BrokenImages::Stop, augmentation);
    let checkpoints = folder.path().join("checkpoints");
    let fit = |epochs| Fit::epochs(epochs).validation(&validation);
    let whole = model_on(gpu, 100, 1e-4).fit(&train, fit(4)).unwrap();
    model_on(gpu, 100, 1e-4)
        .fit(&train, fit(2).checkpoints(&checkpoints))
        .unwrap();
    let continued = model_on(gpu, 100, 1e-4)
        .fit(&train, fit(4).resume(&checkpoints))
        .unwrap();
    // cuDNN's gradients are not the same to the bit from run to run.
    for (loss, expected) in continued.loss().into_iter().zip(whole.loss()) {
        assert!((loss - expected).abs() < 0.02, "{continued:?} {whole:?}");
    }
    assert!(whole.loss()[3] < whole.loss()[0], "{whole:?}");
}
