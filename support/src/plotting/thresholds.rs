//! Precision, recall and F1 by threshold.

use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;

use super::curves::{Axis, BLUE, GREEN, ORANGE, RED, key, legend, mesh, ticks, unit};
use super::{Figure, MAX_WIDTH, draw};
use crate::Result;
use crate::analysis::{Scores, ThresholdCurve};

const HEIGHT: u32 = MAX_WIDTH / 2;

impl ThresholdCurve {
    /// Draws precision, recall and F1 of the class against the threshold, with a line at the highest F1.
    ///
    /// # Errors
    /// [`Error::Figure`](crate::Error::Figure) if it cannot be drawn.
    pub fn show(&self) -> Result<Figure> {
        type Value = fn(&Scores) -> f64;
        let curves: [(&str, Value, RGBColor); 3] = [
            ("precision", |scores| scores.precision, BLUE),
            ("recall", |scores| scores.recall, ORANGE),
            ("F1", |scores| scores.f1, GREEN),
        ];
        let best = self.best_f1().threshold;
        let mut image = RgbImage::from_pixel(unit(MAX_WIDTH), unit(HEIGHT), Rgb([255; 3]));
        draw(&mut image, |area| {
            let axis = |margin: f64| Axis {
                range: -margin..1. + margin,
                ticks: ticks(0., 1., 0.),
            };
            let mut chart = ChartBuilder::on(area)
                .margin(unit(12))
                .x_label_area_size(unit(58))
                .y_label_area_size(unit(88))
                .build_cartesian_2d(axis(0.02), axis(0.05))?;
            mesh(&mut chart)
                .x_desc(format!("threshold on the probability of {}", self.class()))
                .draw()?;
            for (name, value, color) in curves {
                let style = color.stroke_width(unit(2));
                let points = self.points().iter();
                let points = points.map(|point| (point.threshold, value(&point.scores)));
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(name)
                    .legend(key(style));
            }
            let style = RED.stroke_width(unit(2));
            chart
                .draw_series(LineSeries::new([(best, 0.), (best, 1.)], style))?
                .label(format!("best F1: {best:.2}"))
                .legend(key(style));
            legend(&mut chart, SeriesLabelPosition::LowerLeft)
        })?;
        Figure::new(&imageops::thumbnail(&image, MAX_WIDTH, HEIGHT))
    }
}
