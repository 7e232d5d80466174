//! The loss at each learning rate of a search.

use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;

use super::curves::{Axis, BLUE, GREEN, ORANGE, RED, key, legend, mesh, ticks, unit};
use super::{Figure, MAX_WIDTH, draw};
use crate::training::{LAST, LearningRates};
use crate::{Error, Result};

const HEIGHT: u32 = MAX_WIDTH / 2;

impl LearningRates {
    /// Draws the loss against the learning rate, on a logarithmic axis and without the last five
    /// steps, as fastai does, with a line at each suggestion.
    ///
    /// # Errors
    /// [`Error::Figure`] if the very first loss was not a finite number.
    pub fn show(&self) -> Result<Figure> {
        let shown = match self.losses().len() {
            steps @ ..=LAST => steps,
            steps => steps - LAST,
        };
        let points = self.rates().iter().zip(self.losses()).take(shown);
        let points: Vec<(f64, f64)> = points.map(|(rate, loss)| (rate.log10(), *loss)).collect();
        let (Some((left, _)), Some((right, _))) = (points.first(), points.last()) else {
            return Err(Error::Figure("there is no loss to draw".to_owned()));
        };
        let highest = points.iter().map(|point| point.1).fold(0., f64::max);
        let mut image = RgbImage::from_pixel(unit(MAX_WIDTH), unit(HEIGHT), Rgb([255; 3]));
        draw(&mut image, |area| {
            let (left, right) = (left - 0.1, right + 0.1);
            let top = if highest > 0. { highest * 1.05 } else { 1. };
            let mut chart = ChartBuilder::on(area)
                .margin(unit(12))
                .x_label_area_size(unit(58))
                .y_label_area_size(unit(88))
                .build_cartesian_2d(
                    Axis {
                        range: left..right,
                        ticks: ticks(left, right, 1.),
                    },
                    Axis {
                        range: 0. ..top,
                        ticks: ticks(0., top, 0.),
                    },
                )?;
            mesh(&mut chart)
                .x_label_formatter(&|exponent| format!("1e{exponent:.0}"))
                .x_desc("learning rate")
                .y_desc("loss")
                .draw()?;
            chart.draw_series(LineSeries::new(points.clone(), BLUE.stroke_width(unit(2))))?;
            for (name, rate, color) in [
                ("valley", self.valley(), RED),
                ("steepest", self.steepest(), ORANGE),
                ("minimum / 10", self.tenth_of_minimum(), GREEN),
            ] {
                let Some(rate) = rate else { continue };
                let (x, style) = (rate.log10(), color.stroke_width(unit(2)));
                chart
                    .draw_series(LineSeries::new([(x, 0.), (x, top)], style))?
                    .label(format!("{name}: {rate:.1e}"))
                    .legend(key(style));
            }
            legend(&mut chart, SeriesLabelPosition::LowerLeft)
        })?;
        Figure::new(&imageops::thumbnail(&image, MAX_WIDTH, HEIGHT))
    }
}
