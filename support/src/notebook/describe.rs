//! What a variable holds, for the kernel's panel of variables.
//!
//! The kernel runs `(&&&Variable(&name)).description().show()` in a cell that nobody sees, with
//! this module's traits in scope. Method resolution takes the first that the variable's type has:
//! [`Describe`], `Debug`, or nothing but a type. A type of a notebook's own can implement
//! [`Describe`].

use std::fmt::{self, Debug, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, RgbImage};
use tch::{Kind, TchError, Tensor};

use super::Display;
use crate::analysis::Features;
use crate::live::for_evcxr;
use crate::model::{Backbone, Sequential, Summary};
use crate::text::{listed, thousands};
use crate::training::History;

/// The most characters of a text.
const TEXT: usize = 20_000;
/// The longer side of a thumbnail, in pixels.
const THUMBNAIL: u32 = 128;
/// The most values of a tensor that are looked at: some 30 MB for a moment, some 20 ms.
const VALUES: usize = 1 << 22;

/// What is shown of a value.
#[derive(Debug)]
pub struct Description {
    text: String,
    image: Option<Encoded>,
}

/// An image file.
#[derive(Debug)]
struct Encoded {
    mime: &'static str,
    base64: String,
}

/// A value that has more to tell, or less, than its `Debug` text.
pub trait Describe {
    /// Returns what is shown of it. The first line stands in the list of variables.
    fn describe(&self) -> Description;
}

/// A variable of any type.
#[derive(Debug)]
pub struct Variable<'a, T>(pub &'a T);

/// The description of a type that describes itself.
pub trait ByDescribe {
    /// Returns what is shown of it.
    fn description(&self) -> Description;
}

/// The description of a type that has only `Debug`.
pub trait ByDebug {
    /// Returns what is shown of it.
    fn description(&self) -> Description;
}

/// The description of any other type.
pub trait ByType {
    /// Returns what is shown of it.
    fn description(&self) -> Description;
}

impl<T: Describe> ByDescribe for &&Variable<'_, T> {
    fn description(&self) -> Description {
        Description::of(|| self.0.describe())
    }
}

impl<T: Debug> ByDebug for &Variable<'_, T> {
    fn description(&self) -> Description {
        Description::of(|| Description::text(format_args!("{:?}", self.0)))
    }
}

impl<T> ByType for Variable<'_, T> {
    fn description(&self) -> Description {
        Description::text(format_args!("{}", std::any::type_name::<T>()))
    }
}

impl Description {
    /// Returns a description that is a text, of a very long one its beginning.
    pub fn text(text: fmt::Arguments<'_>) -> Self {
        let mut beginning = Beginning(String::new());
        // An error means that it is full.
        if beginning.write_fmt(text).is_err() {
            beginning.0.push('…');
        }
        Self {
            text: beginning.0,
            image: None,
        }
    }

    /// Runs what may be somebody else's code: a panic in it must not end the cell.
    fn of(describe: impl FnOnce() -> Self) -> Self {
        catch_unwind(AssertUnwindSafe(describe))
            .unwrap_or_else(|_| Self::text(format_args!("it cannot be shown: its code panicked")))
    }

    /// Gives it to the kernel.
    pub fn show(&self) {
        for (mime, content) in self.contents() {
            println!("{}", for_evcxr(mime, &content));
        }
    }

    /// Returns what it is by MIME type. JupyterLab's panel shows one of them: HTML, which has both
    /// image and text, and keeps the lines of a text apart.
    fn contents(&self) -> Vec<(&'static str, String)> {
        let mut contents = vec![("text/plain", self.text.clone())];
        let text = self.text.replace('&', "&amp;").replace('<', "&lt;");
        let mut html = format!("<pre>{text}</pre>");
        if let Some(Encoded { mime, base64 }) = &self.image {
            html += &format!("<img src=\"data:{mime};base64,{base64}\">");
            contents.push((*mime, base64.clone()));
        }
        contents.push(("text/html", html));
        contents
    }
}

/// A text that takes no more than [`TEXT`] characters, so that what writes a longer one ends.
struct Beginning(String);

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT - self.0.chars().count().min(TEXT);
        let end = text.char_indices().nth(room).map(|(end, _)| end);
        self.0 += &text[..end.unwrap_or(text.len())];
        end.map_or(Ok(()), |_| Err(fmt::Error))
    }
}

impl<T: Display> Describe for T {
    fn describe(&self) -> Description {
        let (mime, base64) = self.content();
        Description {
            image: mime
                .starts_with("image/")
                .then_some(Encoded { mime, base64 }),
            ..Description::text(format_args!("{}", self.text()))
        }
    }
}

impl Describe for RgbImage {
    fn describe(&self) -> Description {
        let (width, height) = self.dimensions();
        let longer = width.max(height).max(1);
        let side = |side: u32| (side * THUMBNAIL.min(longer) / longer).max(1);
        let small = image::imageops::thumbnail(self, side(width), side(height));
        picture(width, height, small.into())
    }
}

impl Describe for DynamicImage {
    fn describe(&self) -> Description {
        picture(
            self.width(),
            self.height(),
            self.thumbnail(THUMBNAIL, THUMBNAIL),
        )
    }
}

fn picture(width: u32, height: u32, thumbnail: DynamicImage) -> Description {
    let mut png = Vec::new();
    let written = thumbnail.write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png);
    let image = written.is_ok().then(|| Encoded {
        mime: "image/png",
        base64: STANDARD.encode(png),
    });
    Description {
        image,
        ..Description::text(format_args!("{width} x {height} pixels"))
    }
}

impl Describe for Tensor {
    fn describe(&self) -> Description {
        if !self.defined() {
            return Description::text(format_args!("undefined"));
        }
        let of = format!("{:?} {:?} {:?}", self.size(), self.kind(), self.device());
        match tch::no_grad(|| range(self)) {
            Ok(Some(range)) => Description::text(format_args!("{of}, {range}")),
            // Of some kinds libtorch finds no range.
            Ok(None) | Err(_) => Description::text(format_args!("{of}")),
        }
    }
}

/// Returns the least, the greatest and the mean value, where there are any.
fn range(tensor: &Tensor) -> Result<Option<String>, TchError> {
    let mut part = tensor.f_detach()?;
    for (dimension, size) in (0..).zip(tensor.size()) {
        let excess = part.numel().div_ceil(VALUES).max(1);
        let length = (size / i64::try_from(excess).unwrap_or(i64::MAX)).max(1);
        part = part.f_narrow(dimension, 0, length.min(size))?;
    }
    let values = part.f_to_kind(Kind::Double)?;
    let finite = values.f_masked_select(&values.f_isfinite()?)?;
    let others = values.numel() - finite.numel();
    let mut text = match finite.numel() {
        0 => String::new(),
        1 => number(finite.f_double_value(&[0])?),
        _ => format!(
            "{} to {}, mean {}",
            number(finite.f_min()?.f_double_value(&[])?),
            number(finite.f_max()?.f_double_value(&[])?),
            number(finite.f_mean(None)?.f_double_value(&[])?),
        ),
    };
    if others > 0 {
        let separator = if text.is_empty() { "" } else { ", " };
        text += &format!("{separator}{} not finite", thousands(others));
    }
    if values.numel() < tensor.numel() {
        text += &format!(" (of the first {})", thousands(values.numel()));
    }
    Ok((!text.is_empty()).then_some(text))
}

/// Writes four digits, or all of a whole number.
fn number(value: f64) -> String {
    let size = value.abs();
    if value.fract() == 0.0 && size < 1e15 {
        format!("{value}")
    } else if (1e-3..1e6).contains(&size) {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}

impl<C> Describe for Sequential<C> {
    fn describe(&self) -> Description {
        model(&self.summary())
    }
}

impl Describe for Backbone {
    fn describe(&self) -> Description {
        model(&self.summary())
    }
}

fn model(summary: &Summary) -> Description {
    Description::text(format_args!(
        "{} parameters, {} of them trainable\n\n{summary}",
        thousands(summary.total),
        thousands(summary.trainable)
    ))
}

impl Describe for History {
    fn describe(&self) -> Description {
        let Some(last) = self.epochs.last() else {
            return Description::text(format_args!("no epochs"));
        };
        let mut text = format!(
            "{} epochs, loss {:.4}, accuracy {:.4}",
            self.epochs.len(),
            last.loss,
            last.accuracy
        );
        if let (Some(loss), Some(accuracy)) = (last.val_loss, last.val_accuracy) {
            text += &format!(", validation loss {loss:.4}, validation accuracy {accuracy:.4}");
        }
        for (name, value) in &last.metrics {
            text += &format!(", {name} {value:.4}");
        }
        Description::text(format_args!("{text}"))
    }
}

impl Describe for Features {
    fn describe(&self) -> Description {
        Description::text(format_args!(
            "{} features of {} examples of {}",
            thousands(self.values().size()[1] as usize),
            thousands(self.len()),
            listed(self.classes())
        ))
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Describes a value as the kernel does.
    macro_rules! describe {
        ($value:expr) => {
            (&&&Variable(&$value)).description()
        };
    }

    #[test]
    fn a_tensor_tells_its_shape_kind_device_and_range() {
        let float = Tensor::from_slice(&[-1.0_f32, 0.5, 2.0, 4.5]).reshape([2, 2]);
        assert_eq!(
            describe!(float).text,
            "[2, 2] Float Cpu, -1 to 4.5000, mean 1.5000"
        );
        for (tensor, expected) in [
            (Tensor::from_slice(&[3_i64]), "[1] Int64 Cpu, 3"),
            (
                Tensor::from_slice(&[true, false]),
                "[2] Bool Cpu, 0 to 1, mean 0.5000",
            ),
            (
                Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
                "[0, 3] Float Cpu",
            ),
            (
                Tensor::from_slice(&[f64::NAN, 1e-5, f64::INFINITY]),
                "[3] Double Cpu, 1.000e-5, 2 not finite",
            ),
            (
                Tensor::from_slice(&[f32::NAN]),
                "[1] Float Cpu, 1 not finite",
            ),
            (
                Tensor::ones([2], (Kind::Half, Device::Cpu)),
                "[2] Half Cpu, 1 to 1, mean 1",
            ),
            (Tensor::from(7_i32), "[] Int Cpu, 7"),
            (Tensor::new(), "undefined"),
        ] {
            assert_eq!(describe!(tensor).text, expected);
        }
    }

    #[test]
    fn of_a_big_tensor_the_first_values_are_looked_at() {
        let big = Tensor::zeros([3, VALUES as i64], (Kind::Uint8, Device::Cpu));
        assert_eq!(
            describe!(big).text,
            "[3, 4194304] Uint8 Cpu, 0 to 0, mean 0 (of the first 4,194,304)"
        );
        // One value, seen everywhere: 8 TB if it were copied.
        let huge = Tensor::from(1_f32).expand([1 << 20, 1 << 20], false);
        let text = describe!(huge).text;
        assert!(text.ends_with("mean 1 (of the first 4,194,304)"), "{text}");
    }

    #[test]
    fn a_tensor_that_takes_part_in_a_gradient_is_described_without_one() {
        let tensor = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        assert_eq!(describe!(tensor).text, "[2] Float Cpu, 1 to 1, mean 1");
    }

    fn thumbnail(description: Description) -> DynamicImage {
        let png = STANDARD.decode(description.image.unwrap().base64).unwrap();
        image::load_from_memory(&png).unwrap()
    }

    #[test]
    fn an_image_is_a_thumbnail_of_its_shape() {
        for (width, height, expected) in [
            (640, 480, (128, 96)),
            (10, 2000, (1, 128)),
            (20, 10, (20, 10)),
        ] {
            let image = RgbImage::from_pixel(width, height, image::Rgb([200, 0, 0]));
            let description = describe!(image);
            assert_eq!(description.text, format!("{width} x {height} pixels"));
            let thumbnail = thumbnail(description);
            assert_eq!((thumbnail.width(), thumbnail.height()), expected);
            assert_eq!(thumbnail.to_rgb8().get_pixel(0, 0).0, [200, 0, 0]);
        }
        let image = DynamicImage::new_luma8(300, 300);
        assert_eq!(thumbnail(describe!(image)).width(), 128);
        assert_eq!(describe!(RgbImage::new(0, 0)).text, "0 x 0 pixels");
    }

    #[test]
    fn an_image_is_shown_with_its_text_and_by_itself() {
        let contents = describe!(RgbImage::new(4, 3)).contents();
        let mimes: Vec<_> = contents.iter().map(|(mime, _)| *mime).collect();
        assert_eq!(mimes, ["text/plain", "image/png", "text/html"]);
        let (png, html) = (&contents[1].1, &contents[2].1);
        assert!(
            html.starts_with("<pre>4 x 3 pixels</pre>") && html.contains(png),
            "{html}"
        );
    }

    #[test]
    fn a_value_without_more_is_its_debug_text_or_its_type() {
        struct Opaque;
        assert_eq!(describe!(vec![1, 2]).text, "[1, 2]");
        assert_eq!(describe!("text").text, "\"text\"");
        assert!(describe!(Opaque).text.ends_with("Opaque"));
        let text = describe!(vec![u64::MAX; 1_000_000]).text;
        assert_eq!(text.chars().count(), TEXT + 1);
        assert!(text.ends_with('…'));
    }

    #[test]
    fn a_panic_in_somebodys_debug_stays_there() {
        struct Panics;
        impl Debug for Panics {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("on purpose")
            }
        }
        assert_eq!(
            describe!(Panics).text,
            "it cannot be shown: its code panicked"
        );
    }

    #[test]
    fn a_model_tells_its_parameters_and_a_history_its_last_epoch() {
        let mut base = Backbone::untrained([3, 96, 96], Device::Cpu).unwrap();
        base.set_trainable(false);
        let first = "2,257,984 parameters, 0 of them trainable";
        assert_eq!(describe!(base).text.lines().next(), Some(first));
        let model = Sequential::new(base)
            .push(crate::model::GlobalAveragePooling2d)
            .push(crate::model::Dense::new(1280, 1));
        let first = "2,259,265 parameters, 1,281 of them trainable";
        assert_eq!(describe!(model).text.lines().next(), Some(first));

        let history = History {
            epochs: vec![crate::training::EpochLog {
                loss: 0.5,
                accuracy: 0.75,
                metrics: [("val_auc".into(), 0.875)].into(),
                ..crate::training::EpochLog::default()
            }],
        };
        assert_eq!(
            describe!(history).text,
            "1 epochs, loss 0.5000, accuracy 0.7500, val_auc 0.8750"
        );
        assert_eq!(describe!(History::default()).text, "no epochs");
    }
}
