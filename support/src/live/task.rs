//! Work in steps that are counted.

use std::time::Instant;

use super::{Progress, Stop};
use crate::distributed::ProcessGroup;
use crate::{Error, Result};

/// Work that shows after each step how far it is, and then hears Stop.
pub(crate) struct Task {
    operation: &'static str,
    /// What a step is called.
    step: &'static str,
    steps: usize,
    start: Instant,
    pub(crate) progress: Progress,
    pub(crate) stop: Stop,
}

impl Task {
    pub(crate) fn begin(operation: &'static str, step: &'static str, steps: usize) -> Self {
        Self {
            operation,
            step,
            steps,
            start: Instant::now(),
            progress: Progress::begin(),
            stop: Stop::listen(),
        }
    }

    /// Begins what the processes of a group do together.
    pub(crate) fn begin_together(
        group: &ProcessGroup,
        operation: &'static str,
        step: &'static str,
        steps: usize,
    ) -> Self {
        Self {
            progress: Progress::of(group),
            stop: Stop::of(group),
            ..Self::begin(operation, step, steps)
        }
    }

    /// Tells that so many steps are done, on so many images.
    ///
    /// # Errors
    /// `Stopped` once Stop was pressed.
    pub(crate) fn done(&mut self, steps: usize, pictures: usize) -> Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.done_with(steps, || format!("{:.0} img/s", pictures as f64 / seconds))
    }

    /// As [`done`](Self::done), with something else to show.
    pub(crate) fn done_with(
        &mut self,
        steps: usize,
        detail: impl FnOnce() -> String,
    ) -> Result<()> {
        let (operation, all) = (self.operation, self.steps);
        self.progress
            .show(|| format!("{operation}: {steps}/{all} - {}", detail()));
        if self.stop.requested() {
            return Err(self.stopped(steps));
        }
        Ok(())
    }

    /// Returns the error of a stop after so many steps.
    pub(crate) fn stopped(&self, steps: usize) -> Error {
        let Self {
            operation,
            step,
            steps: all,
            ..
        } = self;
        Error::Stopped {
            operation: format!("{operation}, after {step} {steps} of {all}"),
        }
    }
}
