//! How values are shown: at a notebook cell's end, in its middle, and while it runs.
//!
//! The value that ends a cell is shown by itself. [`display`] shows one at once, so that a cell
//! can show several, in order with its text; what it returns changes that in place.

pub mod describe;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Result;
use crate::analysis::{
    BackboneComparison, Calibration, ConfusionMatrix, DoubtfulLabels, Predictions, Report,
    ThresholdCurve,
};
use crate::classifier::Classification;
use crate::data_report::DataReport;
use crate::dataset::ImageDataset;
use crate::device::DeviceReport;
use crate::live::{Output, for_evcxr};
use crate::model::Summary;
use crate::plotting::Figure;
use crate::settings::Settings;
use crate::training::{Evaluation, LearningRates};

/// A value that can be shown.
pub trait Display {
    /// Returns a MIME type and the content, base64 where that is binary.
    fn content(&self) -> (&'static str, String);

    /// Returns what stands for it where only text can be shown.
    fn text(&self) -> String;
}

/// Shows a value now.
///
/// In a notebook of this project's kernel it appears at once, below what the cell has shown before.
/// Plain evcxr shows one value of each MIME type, the last, when the cell ends. A program prints the
/// value's text.
pub fn display(value: &impl Display) -> DisplayHandle {
    let mut handle = DisplayHandle::new();
    handle.show(value);
    handle
}

/// What [`display`] has shown, for changing it in place.
#[derive(Default)]
pub struct DisplayHandle(Output);

impl DisplayHandle {
    /// Returns one that has shown nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a value in place of what was shown.
    ///
    /// # Errors
    /// None of its own: it is what [`Fit::on_epoch_end`](crate::training::Fit::on_epoch_end) calls.
    pub fn update(&mut self, value: &impl Display) -> Result<()> {
        self.show(value);
        Ok(())
    }

    fn show(&mut self, value: &impl Display) {
        let (mime, content) = value.content();
        self.0.show(mime, &content, &value.text());
    }
}

impl std::fmt::Debug for DisplayHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DisplayHandle")
    }
}

impl Display for Figure {
    fn content(&self) -> (&'static str, String) {
        (self.mime_type(), STANDARD.encode(self.encoded()))
    }

    fn text(&self) -> String {
        format!("{self:?}; `save` writes it to a file")
    }
}

/// Makes types show as what `fmt::Display` writes.
macro_rules! show_as_text {
    ($($type:ty),* $(,)?) => {$(
        impl Display for $type {
            fn content(&self) -> (&'static str, String) {
                ("text/plain", self.to_string())
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

show_as_text!(
    BackboneComparison,
    Calibration,
    Classification,
    ConfusionMatrix,
    DataReport,
    DeviceReport,
    DoubtfulLabels,
    Evaluation,
    ImageDataset,
    LearningRates,
    Predictions,
    Report,
    Settings,
    Summary,
    ThresholdCurve,
);

/// Makes types show as the value that ends a notebook cell: evcxr looks for a method of this name.
macro_rules! show_at_the_end {
    ($($type:ty),* $(,)?) => {$(
        impl $type {
            /// Shows it as the value that ends a notebook cell.
            pub fn evcxr_display(&self) {
                let (mime, content) = self.content();
                println!("{}", for_evcxr(mime, &content));
            }
        }
    )*};
}

show_at_the_end!(
    BackboneComparison,
    Calibration,
    Classification,
    ConfusionMatrix,
    DataReport,
    DeviceReport,
    DoubtfulLabels,
    Evaluation,
    Figure,
    ImageDataset,
    LearningRates,
    Predictions,
    Report,
    Settings,
    Summary,
    ThresholdCurve
);
