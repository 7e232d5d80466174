//! The learning-rate finder on a small folder of images. Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::fs;

use small_set::{batches, model, pictures, weights};
use support::model::Sequential;
use support::settings::BrokenImages;
use support::training::{Compiled, Fit, LearningRateFinder, Loss, RmsProp};

#[test]
#[ignore = "needs weights"]
fn the_model_is_as_before_and_a_rate_found_trains_it() {
    let folder = pictures(&["cats", "dogs"], 12);
    let (train, validation) = &batches(folder.path(), BrokenImages::Stop);
    let fit = |model: &mut Sequential<Compiled>, from: usize, to: usize| {
        let fit = Fit::epochs(to).initial_epoch(from);
        model.fit(train, fit).unwrap().loss()
    };
    for frozen in [155, 140] {
        let (mut searched, mut other) = (model(frozen, 1e-3), model(frozen, 1e-3));
        // The optimizer has a state by then.
        assert_eq!(fit(&mut searched, 0, 1), fit(&mut other, 0, 1));
        let before = weights(&searched);
        let finder = LearningRateFinder::new().steps(60);
        let found = searched.find_learning_rate(train, finder).unwrap();
        assert!(weights(&searched) == before, "the weights changed");
        assert_eq!(found, searched.find_learning_rate(train, finder).unwrap());
        assert!((20..60).contains(&found.rates().len()), "{found}");
        // Nor did the optimizer change, or the count of steps.
        assert_eq!(fit(&mut searched, 1, 2), fit(&mut other, 1, 2));
        assert!(weights(&searched) == weights(&other), "the weights differ");
    }

    let mut head = model(155, 1e-10);
    let found = head
        .find_learning_rate(train, LearningRateFinder::new())
        .unwrap();
    let rate = found.valley().unwrap();
    assert!((1e-5..1.).contains(&rate), "{found}");
    assert_eq!(found.show().unwrap().dimensions(), (1000, 500));
    let head = head.compile(RmsProp::new(rate), Loss::BinaryCrossentropy);
    let mut head = head.unwrap();
    let fit = Fit::epochs(8).validation(validation);
    let history = head.fit(train, fit).unwrap();
    assert!(history.val_accuracy()[7] > 0.9, "{found}\n{history:?}");
}

#[test]
#[ignore = "needs weights"]
fn after_an_error_the_model_is_as_before() {
    let folder = pictures(&["cats", "dogs"], 26);
    let (train, _) = batches(folder.path(), BrokenImages::Stop);
    assert_eq!(train.len(), 11);
    let broken = train.epoch(0).nth(8).unwrap().unwrap().indices[0];
    let broken = train.dataset().examples()[broken].id.clone();
    fs::write(folder.path().join(&broken), b"not a picture").unwrap();
    let mut model = model(140, 1e-3);
    let before = weights(&model);
    let few = LearningRateFinder::new().range(1e-9, 1e-8).steps(10);
    // Few steps meet no image twice: none is read before the first step.
    for finder in [LearningRateFinder::new(), few] {
        let error = model.find_learning_rate(&train, finder).unwrap_err();
        assert!(error.to_string().contains(&broken), "{error}");
        assert!(weights(&model) == before, "the weights changed");
    }
}
