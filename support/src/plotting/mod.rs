//! Images as JPEG and curves as PNG figures, in a font that ships with the crate.
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
mod thresholds;

use std::fmt;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ImageFormat, RgbImage};
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

/// Of photos there is nothing to see that this leaves out, and a sixth of a PNG file's bytes is left.
const JPEG_QUALITY: u8 = 85;

/// A drawing: as a JPEG file where it shows photos, so that a notebook that keeps it stays small, else
/// as a PNG file.
#[derive(Clone, PartialEq, Eq)]
pub struct Figure {
    image: RgbImage,
    format: ImageFormat,
    encoded: Vec<u8>,
}

impl Figure {
    /// Returns the bytes of the JPEG or PNG file.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Returns what these bytes are: `image/jpeg` or `image/png`.
    pub fn mime_type(&self) -> &'static str {
        self.format.to_mime_type()
    }

    /// Returns the pixels, as they were drawn.
    pub fn image(&self) -> &RgbImage {
        &self.image
    }

    /// Returns the width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        self.image.dimensions()
    }

    /// Writes the figure to a file whose name ends in `.png`, which has the pixels as they were drawn,
    /// or in `.jpg` or `.jpeg`. The file is either written as a whole or left as it was.
    ///
    /// # Errors
    /// [`Error::Argument`] for another ending, [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match ImageFormat::from_path(path) {
            Ok(format) if format == self.format => write_whole(path, &self.encoded),
            Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => {
                write_whole(path, &encode(&self.image, format)?)
            }
            _ => Err(Error::Argument {
                name: "path of Figure::save",
                expected: "a file name that ends in .png, .jpg or .jpeg".to_owned(),
                got: path.display().to_string(),
            }),
        }
    }

    /// Makes a figure of lines and areas.
    fn new(image: &RgbImage) -> Result<Self> {
        Self::of(image, ImageFormat::Png)
    }

    /// Makes a figure that shows photos.
    fn photos(image: &RgbImage) -> Result<Self> {
        Self::of(image, ImageFormat::Jpeg)
    }

    fn of(image: &RgbImage, format: ImageFormat) -> Result<Self> {
        Ok(Self {
            image: image.clone(),
            format,
            encoded: encode(image, format)?,
        })
    }
}

/// Returns the bytes of a PNG or JPEG file.
fn encode(image: &RgbImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = match format {
        ImageFormat::Jpeg => {
            image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))
        }
        _ => image.write_with_encoder(PngEncoder::new_with_quality(
            &mut bytes,
            CompressionType::Default,
            FilterType::Adaptive,
        )),
    };
    written.map_err(|error| Error::Figure(error.to_string()))?;
    Ok(bytes)
}

impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, height) = self.dimensions();
        write!(f, "Figure of {width} x {height} pixels")
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

    /// A step from white to red, of which JPEG keeps something else.
    fn image() -> RgbImage {
        RgbImage::from_fn(50, 40, |x, _| match x {
            ..23 => image::Rgb([255; 3]),
            _ => image::Rgb([214, 39, 40]),
        })
    }

    #[test]
    fn a_figure_is_saved_in_the_format_of_the_name_in_place_of_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let [drawing, photos] = [Figure::new, Figure::photos].map(|make| make(&image()).unwrap());
        assert_eq!(
            [drawing.mime_type(), photos.mime_type()],
            ["image/png", "image/jpeg"]
        );
        for figure in [&drawing, &photos] {
            assert_eq!(figure.image(), &image());
            for (name, same) in [
                ("figure.PNG", &drawing),
                ("a.jpg", &photos),
                ("a.jpeg", &photos),
            ] {
                let path = folder.path().join(name);
                std::fs::write(&path, b"old").unwrap();
                figure.save(&path).unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), same.encoded(), "{name}");
            }
        }
        let read = |figure: &Figure| {
            image::load_from_memory(figure.encoded())
                .unwrap()
                .into_rgb8()
        };
        assert_eq!(read(&drawing), image());
        let jpeg = read(&photos);
        assert_ne!(jpeg, image());
        let differences = jpeg
            .iter()
            .zip(image().into_raw())
            .map(|(a, b)| a.abs_diff(b));
        assert!(differences.max().unwrap() < 40);
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 3, "nothing temporary is left");
    }

    #[test]
    fn a_name_of_no_such_format_or_a_missing_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let figure = Figure::new(&image()).unwrap();
        for name in ["figure.webp", "figure", ".png", "figure.txt"] {
            let error = figure.save(folder.path().join(name)).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        for name in ["no/figure.png", "no/figure.jpg"] {
            let error = figure.save(folder.path().join(name)).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
