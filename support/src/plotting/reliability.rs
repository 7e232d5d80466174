//! How often predictions of a given confidence are right, before and after calibration.

use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;

use super::curves::{Axis, BLUE, ORANGE, key, legend, mesh, ticks, unit};
use super::{Figure, draw};
use crate::Result;
use crate::analysis::{Calibration, Reliability};

const SIDE: u32 = 600;

impl Calibration {
    /// Draws a reliability diagram: the accuracy of the predictions of about the same confidence, the larger a dot the
    /// more there are, before and after calibration. On the dashed line, confidence is what it should be.
    ///
    /// # Errors
    /// [`Error::Figure`](crate::Error::Figure) if it cannot be drawn.
    pub fn show(&self) -> Result<Figure> {
        let mut image = RgbImage::from_pixel(unit(SIDE), unit(SIDE), Rgb([255; 3]));
        draw(&mut image, |area| {
            let axis = || Axis {
                range: 0. ..1.02,
                ticks: ticks(0., 1., 0.2),
            };
            let mut chart = ChartBuilder::on(area)
                .margin(unit(12))
                .x_label_area_size(unit(58))
                .y_label_area_size(unit(70))
                .build_cartesian_2d(axis(), axis())?;
            mesh(&mut chart)
                .x_desc("confidence")
                .y_desc("accuracy")
                .draw()?;
            let diagonal = [(0., 0.), (1., 1.)];
            let grey = BLACK.mix(0.5).stroke_width(unit(1));
            let (dash, gap) = (unit(6), unit(6));
            chart.draw_series(DashedLineSeries::new(diagonal, dash, gap, grey))?;
            let drawn = [
                ("before", ORANGE, self.before()),
                ("after", BLUE, self.after()),
            ];
            for (name, color, reliability) in drawn {
                let style = color.stroke_width(unit(2));
                let filled = reliability.bins.iter().filter(|bin| bin.examples > 0);
                let points: Vec<(f64, f64)> = filled
                    .clone()
                    .map(|bin| (bin.confidence, bin.accuracy))
                    .collect();
                let error = reliability.expected_error();
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(format!("{name}: calibration error {error:.4}"))
                    .legend(key(style));
                let dot = |bin: &crate::analysis::ReliabilityBin| {
                    let size = radius(bin.examples, reliability);
                    Circle::new((bin.confidence, bin.accuracy), unit(size), color.filled())
                };
                chart.draw_series(filled.map(dot))?;
            }
            legend(&mut chart, SeriesLabelPosition::LowerRight)
        })?;
        Figure::new(&imageops::thumbnail(&image, SIDE, SIDE))
    }
}

/// Returns a dot's radius in pixels, for an area in proportion to its examples as far as it can be seen.
fn radius(examples: usize, of: &Reliability) -> u32 {
    let all: usize = of.bins.iter().map(|bin| bin.examples).sum();
    3 + (9. * (examples as f64 / all.max(1) as f64).sqrt()) as u32
}
