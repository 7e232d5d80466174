//! Training in bfloat16, where it is native. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use small_set::{batches, model, pictures};
use support::precision::{Precision, multiplies_bf16};
use support::settings::BrokenImages;
use support::training::{Fit, History};
use tch::Device;

#[test]
#[ignore = "needs weights"]
fn a_run_in_bfloat16_is_the_same_from_stored_activations_and_close_to_one_in_32_bits() {
    if !multiplies_bf16(Device::Cpu) {
        let error = model(100, 1e-4).base_mut().set_precision(Precision::Bf16);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("expected f32 or auto"), "{error}");
        return;
    }
    let folder = pictures(&["cats", "dogs"], 12);
    let (train, validation) = &batches(folder.path(), BrokenImages::Stop);
    let run = |precision, cache| {
        let mut model = model(100, 1e-4);
        model.base_mut().set_precision(precision).unwrap();
        let fit = Fit::epochs(3).validation(validation);
        let history: History = model.fit(train, fit.cache_activations(cache)).unwrap();
        [history.loss(), history.val_loss()].concat()
    };
    let expected = run(Precision::F32, true);
    let stored = run(Precision::Bf16, true);
    let computed = run(Precision::Bf16, false);
    assert_eq!(stored, computed);
    assert_ne!(stored, expected, "nothing was computed in bfloat16");
    // On so few images the epochs after that are others with every rounding.
    let difference = stored[0] / expected[0] - 1.;
    assert!(difference.abs() < 0.05, "{stored:?} for {expected:?}");
}

#[test]
#[ignore = "needs weights"]
fn a_checkpoint_goes_on_only_in_its_precision_and_auto_is_one_of_the_two() {
    let folder = pictures(&["cats", "dogs"], 6);
    let (train, _) = &batches(folder.path(), BrokenImages::Stop);
    let checkpoints = folder.path().join("checkpoints");
    let mut first = model(154, 1e-4);
    first.base_mut().set_precision(Precision::Auto).unwrap();
    let fit = Fit::epochs(1).checkpoints(&checkpoints);
    first.fit(train, fit).unwrap();
    let chosen = first.base().precision();
    assert_ne!(chosen, Precision::Auto);
    if !multiplies_bf16(Device::Cpu) {
        assert_eq!(chosen, Precision::F32);
        return;
    }
    let resume = |precision| {
        let mut model = model(154, 1e-4);
        model.base_mut().set_precision(precision).unwrap();
        model.fit(train, Fit::epochs(2).resume(&checkpoints))
    };
    let other = match chosen {
        Precision::F32 => Precision::Bf16,
        _ => Precision::F32,
    };
    let error = resume(other).unwrap_err().to_string();
    assert!(error.contains("precision"), "{error}");
    assert_eq!(resume(Precision::Auto).unwrap().epochs.len(), 2);
}
