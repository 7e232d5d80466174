//! Learning curves: accuracy and loss by epoch, in training and validation.

use std::ops::Range;

use image::{Rgb, RgbImage, imageops};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::{Area, FONT, Figure, MAX_WIDTH, draw};
use crate::{Error, Result};

/// The numbers that [`learning_curves`] draws, one per epoch.
///
/// The validation's may be empty, and numbers that are not finite leave a gap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Curves<'a> {
    /// Training accuracy.
    pub accuracy: &'a [f64],
    /// Validation accuracy.
    pub val_accuracy: &'a [f64],
    /// Training loss.
    pub loss: &'a [f64],
    /// Validation loss.
    pub val_loss: &'a [f64],
}

/// Everything is drawn this much larger, then made smaller: plotters' thick lines are jagged.
const OVERSAMPLING: u32 = 2;

// matplotlib's first four colours.
pub(super) const BLUE: RGBColor = RGBColor(31, 119, 180);
pub(super) const ORANGE: RGBColor = RGBColor(255, 127, 14);
pub(super) const GREEN: RGBColor = RGBColor(44, 160, 44);
pub(super) const RED: RGBColor = RGBColor(214, 39, 40);

/// Draws the tutorial's two panels: training and validation accuracy (from the lowest value to
/// 1), and training and validation loss (0 to 1, or to the highest value above that).
///
/// The horizontal axis counts epochs from 0. `start_fine_tuning`, the number of epochs before
/// fine-tuning, draws the tutorial's vertical line at the last of them.
///
/// # Errors
/// [`Error::Figure`] if there is no epoch at all.
pub fn learning_curves(curves: &Curves<'_>, start_fine_tuning: Option<usize>) -> Result<Figure> {
    let Curves {
        accuracy,
        val_accuracy,
        loss,
        val_loss,
    } = *curves;
    let epochs = [accuracy, val_accuracy, loss, val_loss]
        .map(<[f64]>::len)
        .into_iter()
        .max();
    let Some(epochs @ 1..) = epochs else {
        return Err(Error::Figure("there is no epoch to draw".to_owned()));
    };
    let finite = |curve: &[f64]| -> Vec<f64> {
        curve
            .iter()
            .copied()
            .filter(|value| value.is_finite())
            .collect()
    };
    let accuracies = [finite(accuracy), finite(val_accuracy)].concat();
    let losses = [finite(loss), finite(val_loss)].concat();
    let highest = accuracies.iter().copied().fold(1.0, f64::max);
    let lowest = accuracies.iter().copied().fold(highest, f64::min);
    // As matplotlib does, a twentieth of what there is to see is left free below.
    let margin = if lowest < highest {
        (highest - lowest) / 20.0
    } else {
        0.05
    };
    let panels = [
        Panel {
            title: "Training and Validation Accuracy",
            description: "Accuracy",
            curves: [
                ("Training Accuracy", accuracy),
                ("Validation Accuracy", val_accuracy),
            ],
            values: (lowest - margin, highest),
            legend: SeriesLabelPosition::LowerRight,
            bottom: false,
        },
        Panel {
            title: "Training and Validation Loss",
            description: "Cross Entropy",
            curves: [("Training Loss", loss), ("Validation Loss", val_loss)],
            values: (
                losses.iter().copied().fold(0.0, f64::min),
                losses.iter().copied().fold(1.0, f64::max),
            ),
            legend: SeriesLabelPosition::UpperRight,
            bottom: true,
        },
    ];
    let side = unit(MAX_WIDTH);
    let mut image = RgbImage::from_pixel(side, side, Rgb([255; 3]));
    let fine_tuning = start_fine_tuning
        .map(|before| before.saturating_sub(1))
        .filter(|last| *last < epochs)
        .map(|last| last as f64);
    draw(&mut image, |area| {
        let [upper, lower] = &area.split_evenly((2, 1))[..] else {
            return Ok(());
        };
        panels[0].draw(upper, epochs, fine_tuning)?;
        panels[1].draw(lower, epochs, fine_tuning)
    })?;
    Figure::new(&imageops::thumbnail(&image, MAX_WIDTH, MAX_WIDTH))
}

/// Draws one panel: what was measured in training and in validation, either of which may be empty.
pub(super) fn metric_curve(name: &str, training: &[f64], validation: &[f64]) -> Result<Figure> {
    let finite = training.iter().chain(validation);
    let finite = finite.copied().filter(|value| value.is_finite());
    let low = finite.clone().fold(f64::INFINITY, f64::min);
    let high = finite.fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match low <= high {
        true => (low, high),
        false => (0., 1.),
    };
    let margin = match high - low {
        0. => f64::max(low.abs() / 10., 1e-9),
        // Half, as the difference of the largest numbers is none.
        _ => (high / 2. - low / 2.) / 10.,
    };
    let label = match validation {
        [] => name,
        _ => "Training",
    };
    let panel = Panel {
        title: name,
        description: name,
        curves: [(label, training), ("Validation", validation)],
        values: (low - margin, high + margin),
        legend: SeriesLabelPosition::LowerRight,
        bottom: true,
    };
    let epochs = training.len().max(validation.len());
    let mut image = RgbImage::from_pixel(unit(MAX_WIDTH), unit(MAX_WIDTH / 2), Rgb([255; 3]));
    draw(&mut image, |area| panel.draw(area, epochs, None))?;
    Figure::new(&imageops::thumbnail(&image, MAX_WIDTH, MAX_WIDTH / 2))
}

struct Panel<'a> {
    title: &'a str,
    description: &'a str,
    curves: [(&'a str, &'a [f64]); 2],
    values: (f64, f64),
    legend: SeriesLabelPosition,
    /// It names the horizontal axis, which the panel above shares.
    bottom: bool,
}

impl Panel<'_> {
    fn draw(
        &self,
        area: &Area<'_>,
        epochs: usize,
        fine_tuning: Option<f64>,
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let last = (epochs - 1) as f64;
        let margin = (last / 20.0).max(0.5);
        let (low, high) = self.values;
        let mut chart = ChartBuilder::on(area)
            .margin(unit(12))
            .caption(self.title, font(26))
            .x_label_area_size(unit(58))
            .y_label_area_size(unit(88))
            .build_cartesian_2d(
                Axis {
                    range: -margin..last + margin,
                    ticks: ticks(0.0, last, 1.0),
                },
                Axis {
                    range: low..high,
                    ticks: ticks(low, high, 0.0),
                },
            )?;
        mesh(&mut chart)
            .disable_x_mesh()
            .x_desc(if self.bottom { "epoch" } else { "" })
            .y_desc(self.description)
            .draw()?;
        for ((name, curve), color) in self.curves.into_iter().zip([BLUE, ORANGE]) {
            let style = color.stroke_width(unit(2));
            for piece in pieces(curve) {
                chart.draw_series(LineSeries::new(piece.clone(), style))?;
                let dot = |point| Circle::new(point, unit(4), color.filled());
                chart.draw_series(piece.into_iter().map(dot))?;
            }
            if !curve.is_empty() {
                chart
                    .draw_series(LineSeries::new([], style))?
                    .label(name)
                    .legend(key(style));
            }
        }
        if let Some(epoch) = fine_tuning {
            let style = GREEN.stroke_width(unit(2));
            chart
                .draw_series(LineSeries::new([(epoch, low), (epoch, high)], style))?
                .label("Start Fine Tuning")
                .legend(key(style));
        }
        legend(&mut chart, self.legend.clone())
    }
}

/// What a chart is drawn on, with our axes.
type Chart<'a, 'b> = ChartContext<'a, BitMapBackend<'b>, Cartesian2d<Axis, Axis>>;

pub(super) fn unit(pixels: u32) -> u32 {
    pixels * OVERSAMPLING
}

fn font(size: u32) -> FontDesc<'static> {
    (FONT, unit(size)).into_font()
}

/// Returns a chart's mesh in the style of all.
pub(super) fn mesh<'a, 'b, 'c>(
    chart: &'c mut Chart<'a, 'b>,
) -> plotters::chart::MeshStyle<'a, 'c, Axis, Axis, BitMapBackend<'b>> {
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(BLACK.mix(0.12).stroke_width(OVERSAMPLING))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.stroke_width(OVERSAMPLING))
        .set_all_tick_mark_size(unit(6))
        .y_label_offset(unit(2))
        .label_style(font(18))
        .axis_desc_style(font(20));
    mesh
}

/// Draws a chart's legend.
pub(super) fn legend<'a, 'b: 'a>(
    chart: &mut Chart<'a, 'b>,
    position: SeriesLabelPosition,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_series_labels()
        .position(position)
        .margin(unit(10))
        .legend_area_size(unit(40))
        .background_style(WHITE.mix(0.85))
        .label_font(font(18))
        .draw()?;
    Ok(())
}

/// Returns how a curve looks in the legend.
pub(super) fn key(style: ShapeStyle) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    let length = 32 * OVERSAMPLING as i32;
    move |(x, y)| PathElement::new([(x, y), (x + length, y)], style)
}

/// Returns a curve's points, in pieces without a gap.
fn pieces(curve: &[f64]) -> Vec<Vec<(f64, f64)>> {
    let points: Vec<(f64, f64)> = curve
        .iter()
        .enumerate()
        .map(|(epoch, &value)| (epoch as f64, value))
        .collect();
    points
        .split(|(_, value)| !value.is_finite())
        .filter(|piece| !piece.is_empty())
        .map(<[_]>::to_vec)
        .collect()
}

/// Returns up to eleven round numbers from `low` to `high`, at least `least` apart.
pub(super) fn ticks(low: f64, high: f64, least: f64) -> Vec<f64> {
    let span = high - low;
    let step = (-12..=308)
        .flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(exponent)))
        .find(|step| *step >= least && span / step <= 10.0);
    let Some(step) = step else { return vec![low] };
    let first = (low / step).ceil();
    (0..=10)
        .map(|i| (first + f64::from(i)) * step)
        .filter(|tick| *tick <= high + step * 1e-9)
        .collect()
}

/// An axis with ticks of our choice; plotters' own would put one at epoch 0.5.
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    pub(super) ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light lines would stand between these: there are none.
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    /// Writes a tick's value without needless digits.
    fn format(tick: &f64) -> String {
        let short = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
        // A learning rate's.
        if *tick != 0. && tick.abs() < 1e-3 {
            let text = format!("{tick:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            return format!("{}e{exponent}", short(digits));
        }
        short(&format!("{tick:.4}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Where pixels of about this color are, in the upper panel left of the legend.
    pub(in crate::plotting) fn places(figure: &Figure, color: RGBColor) -> Vec<(u32, u32)> {
        let image = figure.image();
        let close = |pixel: &Rgb<u8>| {
            [color.0, color.1, color.2]
                .iter()
                .zip(pixel.0)
                .all(|(a, b)| a.abs_diff(b) < 20)
        };
        let upper = image
            .enumerate_pixels()
            .filter(|(x, y, _)| *x < 750 && *y < 440);
        upper
            .filter(|(_, _, pixel)| close(pixel))
            .map(|(x, y, _)| (x, y))
            .collect()
    }

    #[test]
    fn a_better_accuracy_is_further_up_and_a_later_epoch_further_right() {
        let curves = Curves {
            accuracy: &[0.5, 0.7, 0.9],
            ..Curves::default()
        };
        let figure = learning_curves(&curves, None).unwrap();
        assert_eq!(figure.dimensions(), (1000, 1000));
        let blue = places(&figure, BLUE);
        let first = blue.iter().min_by_key(|(x, _)| *x).unwrap();
        let last = blue.iter().max_by_key(|(x, _)| *x).unwrap();
        assert!(first.0 < 300 && first.1 > 350, "{first:?}");
        assert!(last.0 > 650 && last.1 < 200, "{last:?}");
        assert!(places(&figure, ORANGE).is_empty(), "there is no validation");
    }

    #[test]
    fn fine_tuning_starts_at_the_last_epoch_before_it() {
        let accuracy = [0.8, 0.85, 0.9, 0.95];
        let curves = Curves {
            accuracy: &accuracy,
            val_accuracy: &accuracy,
            ..Curves::default()
        };
        assert!(places(&learning_curves(&curves, None).unwrap(), GREEN).is_empty());
        assert!(places(&learning_curves(&curves, Some(5)).unwrap(), GREEN).is_empty());
        let lines = places(&learning_curves(&curves, Some(2)).unwrap(), GREEN);
        let (left, right) = (
            lines.iter().map(|at| at.0).min().unwrap(),
            lines.iter().map(|at| at.0).max().unwrap(),
        );
        // Epoch 1 of 0 to 3, on an axis from -0.5 to 3.5.
        let place = 100 + (988 - 100) * 3 / 8;
        assert!(
            (place - 5..place + 5).contains(&left) && right - left < 5,
            "{left} {right}"
        );
    }

    #[test]
    fn no_epoch_is_an_error_and_nothing_else_is() {
        let error = learning_curves(&Curves::default(), Some(3)).unwrap_err();
        assert_eq!(error.to_string(), "figure: there is no epoch to draw");
        let odd = [
            &[0.5][..],
            &[1.0, 1.0],
            &[f64::NAN],
            &[f64::INFINITY, f64::NEG_INFINITY],
            &[0.5, f64::NAN, 0.25, 0.75],
            &[1e300, -1e300],
            &[f64::MAX, f64::MIN],
            &[-3.0, 1e-300],
            &[5.0; 300],
        ];
        for some in odd {
            for other in [&[][..], some, &[0.25, 0.5]] {
                let curves = Curves {
                    accuracy: some,
                    val_accuracy: other,
                    loss: other,
                    val_loss: some,
                };
                learning_curves(&curves, Some(0)).unwrap();
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(
            ticks(0.0, 19.0, 1.0),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0]
        );
        assert_eq!(ticks(0.0, 2.0, 1.0), [0.0, 1.0, 2.0]);
        let labels: Vec<String> = ticks(0.755, 1.0, 0.0).iter().map(Axis::format).collect();
        assert_eq!(labels, ["0.8", "0.85", "0.9", "0.95", "1"]);
        let labels = [0.0, 2e-5, 1.2 * 1e-5, 5e-4, 1e-3].map(|tick| Axis::format(&tick));
        assert_eq!(labels, ["0", "2e-5", "1.2e-5", "5e-4", "0.001"]);
        assert_eq!(ticks(0.0, 0.0, 1.0), [0.0]);
    }
}
