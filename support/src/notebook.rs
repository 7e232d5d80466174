//! How a value that ends a notebook cell is shown.
//!
//! evcxr calls the last expression's `evcxr_display`, and takes what that prints between two
//! marks for rich output. Outside a notebook, use [`Figure::save`] and `println!`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::dataset::ImageDataset;
use crate::device::DeviceReport;
use crate::model::Summary;
use crate::plotting::Figure;
use crate::settings::Settings;
use crate::training::Evaluation;

/// Returns the lines that evcxr takes for an output of type `mime`.
fn output(mime: &str, content: &str) -> String {
    format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT")
}

impl Figure {
    /// Shows the figure, as the value of a notebook cell.
    pub fn evcxr_display(&self) {
        println!("{}", output("image/png", &STANDARD.encode(self.png())));
    }
}

/// Makes types show as what `Display` writes when they are the value of a notebook cell.
macro_rules! show_as_text {
    ($($type:ty),* $(,)?) => {$(
        impl $type {
            /// Shows what `Display` writes, as the value of a notebook cell.
            pub fn evcxr_display(&self) {
                println!("{}", output("text/plain", &self.to_string()));
            }
        }
    )*};
}

show_as_text!(DeviceReport, Evaluation, ImageDataset, Settings, Summary);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_its_content_between_marks_on_lines_of_their_own() {
        let lines = "EVCXR_BEGIN_CONTENT text/plain\nfirst\nsecond\nEVCXR_END_CONTENT";
        assert_eq!(output("text/plain", "first\nsecond"), lines);
    }
}
