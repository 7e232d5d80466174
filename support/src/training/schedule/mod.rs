//! Schedules: how the learning rate goes from step to step of a `fit`. Each is a file here.
//!
//! The rate depends on the step, the compiled optimizer and the history alone, so that a run that is
//! resumed has the same, and every rank.

mod cosine_decay;
mod one_cycle;
mod reduce_on_plateau;

pub use cosine_decay::CosineDecay;
pub use one_cycle::OneCycle;
pub use reduce_on_plateau::ReduceOnPlateau;

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::EpochLog;
use super::optimizer::Rates;
use crate::{Error, Result};

/// How the learning rate goes while [`fit`](crate::model::Sequential::fit) trains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Schedule {
    /// It stays that of the optimizer.
    #[default]
    Constant,
    /// It rises, then falls along a cosine.
    CosineDecay(CosineDecay),
    /// It rises and falls along cosines, the momentum the other way.
    OneCycle(OneCycle),
    /// It falls when the validation does not improve any more.
    ReduceOnPlateau(ReduceOnPlateau),
}

/// Where a `fit` is.
pub(super) struct Moment<'a> {
    /// The steps of this `fit` before the next one.
    pub(super) step: usize,
    /// All of its steps.
    pub(super) steps: usize,
    /// The epochs of this `fit` before this one.
    pub(super) epochs: &'a [EpochLog],
}

impl Moment<'_> {
    /// Returns the share of the steps that are done.
    fn done(&self) -> f64 {
        self.step as f64 / self.steps as f64
    }
}

impl Schedule {
    pub(super) fn is_constant(&self) -> bool {
        matches!(self, Self::Constant)
    }

    /// Returns whether the rates depend on how many steps there are in all.
    pub(super) fn depends_on_end(&self) -> bool {
        matches!(self, Self::CosineDecay(_) | Self::OneCycle(_))
    }

    /// Returns the rates of the next step, `compiled` being the optimizer's own.
    pub(super) fn rates(&self, compiled: Rates, now: &Moment<'_>) -> Rates {
        match self {
            Self::Constant => compiled,
            Self::CosineDecay(schedule) => schedule.rates(compiled, now),
            Self::OneCycle(schedule) => schedule.rates(compiled, now),
            Self::ReduceOnPlateau(schedule) => schedule.rates(compiled, now),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Constant => Ok(()),
            Self::CosineDecay(schedule) => schedule.check(),
            Self::OneCycle(schedule) => schedule.check(),
            Self::ReduceOnPlateau(schedule) => schedule.check(),
        }
    }
}

/// Refuses a schedule that makes no sense.
fn check(name: &'static str, fits: bool, expected: &str, got: &impl std::fmt::Debug) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Argument {
        name,
        expected: expected.into(),
        got: format!("{got:?}"),
    })
}

/// Returns the value that is `done` of the way from one to another, along half a cosine.
fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) * (1. + (PI * done).cos()) / 2.
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    /// The cases of `tests/reference/schedules.py` for one schedule.
    pub(super) fn cases<T: DeserializeOwned>(schedule: &str) -> Vec<T> {
        let text = include_str!("../../../tests/data/schedules.json");
        let mut all: serde_json::Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(all[schedule].take()).unwrap()
    }

    /// Returns the rates of all steps of a schedule that depends on nothing else.
    pub(super) fn all(schedule: &Schedule, compiled: Rates, steps: usize) -> Vec<Rates> {
        let rates = |step| {
            let epochs = &[];
            schedule.rates(
                compiled,
                &Moment {
                    step,
                    steps,
                    epochs,
                },
            )
        };
        (0..steps).map(rates).collect()
    }

    #[track_caller]
    pub(super) fn assert_close(actual: f64, expected: f64, tolerance: f64) {
        let off = (actual - expected).abs();
        assert!(off <= tolerance * expected.abs(), "{actual} for {expected}");
    }

    #[test]
    fn a_schedule_that_makes_no_sense_is_refused() {
        let refused: [Schedule; 8] = [
            CosineDecay::new().warmup(1.).into(),
            CosineDecay::new().warmup(f64::NAN).into(),
            CosineDecay::new().end(-0.1).into(),
            OneCycle::new().pct_start(0.).into(),
            OneCycle::new().div(0.).into(),
            OneCycle::new().div_final(f64::INFINITY).into(),
            ReduceOnPlateau::new().factor(1.).into(),
            ReduceOnPlateau::new().min_lr(f64::NAN).into(),
        ];
        for schedule in refused {
            let error = schedule.check().unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        let accepted: [Schedule; 4] = [
            Schedule::Constant,
            CosineDecay::new().into(),
            OneCycle::new().into(),
            ReduceOnPlateau::new().into(),
        ];
        for schedule in accepted {
            schedule.check().unwrap();
        }
    }
}
