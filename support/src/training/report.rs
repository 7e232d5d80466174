//! What `fit` writes while it trains: Keras' line for each epoch, and how far the epoch is.

use std::time::{Duration, Instant};

use super::callbacks::{Callback, Console, End, EpochEnd, Phase, StepEnd};
use super::evaluation::Totals;
use super::{Compiled, EpochLog, Evaluation};
use crate::Result;
use crate::live::Progress;
use crate::model::Sequential;
use crate::pipeline::{Batches, SkippedSummary};

/// Shows each step, and leaves a line for each epoch and for the end.
pub(super) struct ProgressLines<'a> {
    training: &'a Batches,
    validation: Option<&'a Batches>,
    epochs: usize,
    start: Instant,
    /// Examples trained on in this epoch, and how long that took; none before the first epoch.
    trained: Option<(usize, Duration)>,
}

impl<'a> ProgressLines<'a> {
    pub(super) fn new(
        training: &'a Batches,
        validation: Option<&'a Batches>,
        epochs: usize,
    ) -> Self {
        Self {
            training,
            validation,
            epochs,
            start: Instant::now(),
            trained: None,
        }
    }
}

impl Callback for ProgressLines<'_> {
    fn on_epoch_begin(&mut self, epoch: usize, console: &mut Console<'_>) {
        let epochs = self.epochs;
        console.progress.line(&format!("Epoch {epoch}/{epochs}"));
        self.start = Instant::now();
    }

    fn on_step_end(&mut self, end: &StepEnd<'_>, console: &mut Console<'_>) -> Result<(), End> {
        let &StepEnd { step, totals, .. } = end;
        let steps = end.pass.steps;
        match end.pass.phase {
            Phase::Training => {
                let elapsed = self.start.elapsed();
                self.trained = Some((totals.examples, elapsed));
                let text = || epoch_progress(step, steps, totals, elapsed);
                console.progress.show(text);
            }
            Phase::Validation => {
                let text = || format!("validation: {step}/{steps}");
                console.progress.show(text);
            }
        }
        Ok(())
    }

    fn on_epoch_end(
        &mut self,
        _: &mut Sequential<Compiled>,
        end: &EpochEnd,
        console: &mut Console<'_>,
    ) -> Result<(), End> {
        let (examples, elapsed) = self.trained.unwrap_or_default();
        let line = epoch_line(
            &end.log,
            self.training.len(),
            examples,
            elapsed.as_secs_f64(),
        );
        console.progress.line(&line);
        Ok(())
    }

    fn on_train_end(
        &mut self,
        _: &mut Sequential<Compiled>,
        ended: Result<(), &End>,
        console: &mut Console<'_>,
    ) -> Result<()> {
        let progress = &mut *console.progress;
        if let Err(End::Stopped(line) | End::EarlyStopping(line)) = ended {
            progress.line(line);
        }
        if self.trained.is_some() && matches!(ended, Ok(()) | Err(End::EarlyStopping(_))) {
            report_skipped(progress, self.training, "training");
            if let Some(validation) = self.validation {
                report_skipped(progress, validation, "validation");
            }
        }
        Ok(())
    }
}

/// Formats the time of a step as Keras does.
fn step_time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.0}s"),
        1e-3.. => format!("{:.0}ms", 1e3 * seconds),
        _ => format!("{:.0}us", 1e6 * seconds),
    }
}

/// Formats an epoch as Keras does.
fn epoch_line(log: &EpochLog, steps: usize, examples: usize, train_seconds: f64) -> String {
    let mut line = format!(
        "{steps}/{steps} - {:.0}s {}/step - {:.0} img/s - loss: {:.4} - accuracy: {:.4}",
        log.seconds,
        step_time(train_seconds / steps as f64),
        examples as f64 / train_seconds,
        log.loss,
        log.accuracy,
    );
    if let (Some(loss), Some(accuracy)) = (log.val_loss, log.val_accuracy) {
        line += &format!(" - val_loss: {loss:.4} - val_accuracy: {accuracy:.4}");
    }
    line
}

/// Tells how far an epoch is.
pub(super) fn epoch_progress(
    step: usize,
    steps: usize,
    totals: &Totals,
    elapsed: Duration,
) -> String {
    let seconds = elapsed.as_secs_f64();
    let bar = 20 * step / steps;
    let Evaluation { loss, accuracy } = totals.mean();
    format!(
        "{step}/{steps} [{}{}] ETA {:.0}s - {:.0} img/s - loss: {loss:.4} - accuracy: {accuracy:.4}",
        "=".repeat(bar),
        ".".repeat(20 - bar),
        seconds / step as f64 * (steps - step) as f64,
        totals.examples as f64 / seconds,
    )
}

fn report_skipped(progress: &mut Progress, batches: &Batches, part: &str) {
    let skipped = batches.skipped();
    progress.line(&format!("{} broken {part} images skipped", skipped.len()));
    if !skipped.is_empty() {
        progress.line(&SkippedSummary(&skipped).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_printed_as_keras_prints_it() {
        let log = EpochLog {
            loss: 0.16341,
            accuracy: 0.942,
            val_loss: Some(0.152),
            val_accuracy: Some(0.953),
            learning_rate: None,
            seconds: 9.45,
        };
        assert_eq!(
            epoch_line(&log, 63, 2000, 9.4),
            "63/63 - 9s 149ms/step - 213 img/s - loss: 0.1634 - accuracy: 0.9420 \
             - val_loss: 0.1520 - val_accuracy: 0.9530"
        );
        let times = [2.4, 0.15, 0.000_312].map(step_time);
        assert_eq!(times, ["2s", "150ms", "312us"]);
    }
}
