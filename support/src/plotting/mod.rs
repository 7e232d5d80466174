//! Images and curves as PNG figures, in a font that ships with the crate.
//!
//! How a figure gets into a notebook is `notebook`'s affair.

mod colors;
mod confusion;
mod curves;
mod explanations;
mod grid;
mod history;
mod learning_rates;
mod reliability;

use std::fmt;
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ImageEncoder, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, FontStyle, IntoDrawingArea};
use plotters::style::{TextStyle, register_font};

pub use curves::{Curves, learning_curves};

use crate::files::write_whole;
use crate::{Error, Result};

/// The widest that a figure is, in pixels: what a notebook page has room for.
const MAX_WIDTH: u32 = 1000;

/// The font that all text is drawn in.
const FONT: &str = "DejaVu Sans";

/// A drawing, as PNG.
#[derive(Clone, PartialEq, Eq)]
pub struct Figure {
    png: Vec<u8>,
    width: u32,
    height: u32,
}

impl Figure {
    /// Returns the PNG file's bytes.
    pub fn png(&self) -> &[u8] {
        &self.png
    }

    /// Returns the width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Writes the figure to a file whose name ends in `.png`. The file is either written as a
    /// whole or left as it was.
    ///
    /// # Errors
    /// [`Error::Argument`] for another ending, [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
        {
            return Err(Error::Argument {
                name: "path of Figure::save",
                expected: "a file name that ends in .png".to_owned(),
                got: path.display().to_string(),
            });
        }
        write_whole(path, &self.png)
    }

    fn new(image: &RgbImage) -> Result<Self> {
        let (width, height) = image.dimensions();
        let mut png = Vec::new();
        PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive)
            .write_image(
                image.as_raw(),
                width,
                height,
                image::ExtendedColorType::Rgb8,
            )
            .map_err(|error| Error::Figure(error.to_string()))?;
        Ok(Self { png, width, height })
    }
}

impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Figure of {} x {} pixels", self.width, self.height)
    }
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws on `image` with plotters.
fn draw(
    image: &mut RgbImage,
    drawing: impl FnOnce(&Area<'_>) -> std::result::Result<(), Box<dyn std::error::Error>>,
) -> Result<()> {
    // At every drawing: plotters keeps fonts in a static, and each notebook cell has its own.
    let font = include_bytes!("../../assets/fonts/DejaVuSans.ttf");
    register_font(FONT, FontStyle::Normal, font)
        .map_err(|_| Error::Figure("the font is damaged".to_owned()))?;
    let size = image.dimensions();
    let area = BitMapBackend::with_buffer(image, size).into_drawing_area();
    drawing(&area)
        .and_then(|()| Ok(area.present()?))
        .map_err(|error| Error::Figure(error.to_string()))
}

/// Returns a text with its end cut off where it is wider than `width` pixels.
fn shortened(
    area: &Area<'_>,
    text: &str,
    style: &TextStyle<'_>,
    width: u32,
) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut shown = text.to_owned();
    let mut kept: Vec<char> = text.chars().collect();
    while area.estimate_text_size(&shown, style)?.0 > width && kept.pop().is_some() {
        shown = kept.iter().collect::<String>() + "…";
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure::new(&RgbImage::from_pixel(5, 4, image::Rgb([1, 2, 3]))).unwrap()
    }

    #[test]
    fn a_figure_is_saved_as_png_in_place_of_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figure.PNG");
        std::fs::write(&path, b"old").unwrap();
        figure().save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), figure().png());
        assert_eq!(image::load_from_memory(figure().png()).unwrap().width(), 5);
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 1, "nothing temporary is left");
    }

    #[test]
    fn a_name_without_png_or_a_missing_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["figure.jpg", "figure", ".png"] {
            let error = figure().save(folder.path().join(name)).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        let error = figure()
            .save(folder.path().join("no/figure.png"))
            .unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
