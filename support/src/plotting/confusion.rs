//! A confusion matrix as a heat map.

use image::{Rgb, RgbImage};
use plotters::prelude::{BLACK, IntoFont, IntoTextStyle, Rectangle, Text, TextStyle, WHITE};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontTransform, RGBColor};

use super::colors::{BLUES, color};
use super::{Area, FONT, Figure, MAX_WIDTH, draw, shortened};
use crate::analysis::ConfusionMatrix;
use crate::text::thousands;
use crate::{Error, Result};

/// Up to so many classes, each count is written into its cell.
const MAX_WITH_COUNTS: usize = 20;

/// The sides of a cell, in pixels.
const MAX_CELL: u32 = 130;

/// Room for the classes' names beside and below the cells, and for the axes' names.
const MAX_NAME: u32 = 170;
const AXIS: u32 = 40;
const GAP: u32 = 12;

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

impl ConfusionMatrix {
    /// Draws the matrix: a row for each label, a column for each prediction. The darker a cell, the
    /// greater its share of the row, which is of the class' examples. Up to 20 classes, each count
    /// is written into its cell.
    ///
    /// # Errors
    /// [`Error::Figure`] if it cannot be drawn: there is room for 766 classes.
    pub fn show(&self) -> Result<Figure> {
        const ROOM: u32 = MAX_WIDTH - AXIS - 2 * GAP - MAX_NAME;
        let classes = self.classes().len().max(1);
        if classes > ROOM as usize {
            return Err(Error::Figure(format!(
                "a confusion matrix has room for {ROOM} classes, got {}: list its largest mistakes with \
                 `most_confused(20)`",
                thousands(classes)
            )));
        }
        let classes = classes as u32;
        let cell = (ROOM / classes).min(MAX_CELL);
        let name_size = (cell * 2 / 3).clamp(11, 20);
        let names = Names::new(self.classes(), name_size, cell)?;
        let side = cell * classes;
        let left = AXIS + names.beside + GAP;
        let size = (left + side + GAP, GAP + side + GAP + names.below + AXIS);
        let mut image = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
        draw(&mut image, |area| {
            let origin = (left as i32, GAP as i32);
            self.draw_cells(area, origin, cell)?;
            names.draw(area, origin, cell, side)?;
            let axis = (FONT, 20).into_font().color(&BLACK);
            let middle = side as i32 / 2;
            let below = (origin.0 + middle, size.1 as i32 - GAP as i32);
            let centered = axis.pos(Pos::new(HPos::Center, VPos::Bottom));
            area.draw(&Text::new("predicted", below, centered))?;
            let beside = (AXIS as i32 / 2, origin.1 + middle);
            draw_upwards(area, "label", beside, HPos::Center, 20)
        })?;
        Figure::new(&image)
    }

    fn draw_cells(&self, area: &Area<'_>, origin: (i32, i32), cell: u32) -> Drawn {
        let cell = cell as i32;
        let largest = self.counts().map(|(_, _, count)| count).max().unwrap_or(0);
        let digits = largest.to_string().len() as u32;
        // A digit is about two thirds as wide as the font is high.
        let size = (cell as u32 * 4 / (3 * digits.max(2))).clamp(8, 24);
        let with_counts = self.classes().len() <= MAX_WITH_COUNTS;
        let classes = self.classes().len();
        for label in 0..classes {
            let all: usize = (0..classes).map(|class| self.count(label, class)).sum();
            for predicted in 0..classes {
                let (row, column) = (label as i32, predicted as i32);
                let count = self.count(label, predicted);
                let share = count as f64 / all.max(1) as f64;
                let Rgb([r, g, b]) = color(&BLUES, share);
                let corner = (origin.0 + column * cell, origin.1 + row * cell);
                let opposite = (corner.0 + cell, corner.1 + cell);
                area.draw(&Rectangle::new(
                    [corner, opposite],
                    RGBColor(r, g, b).filled(),
                ))?;
                if with_counts {
                    let ink = if share > 0.5 { &WHITE } else { &BLACK };
                    let style = (FONT, size).into_font().color(ink);
                    let style = style.pos(Pos::new(HPos::Center, VPos::Center));
                    let middle = (corner.0 + cell / 2, corner.1 + cell / 2);
                    area.draw(&Text::new(count.to_string(), middle, style))?;
                }
            }
        }
        let side = cell * self.classes().len() as i32;
        let opposite = (origin.0 + side, origin.1 + side);
        area.draw(&Rectangle::new([origin, opposite], BLACK))?;
        Ok(())
    }
}

/// The classes' names beside the rows and below the columns.
struct Names {
    names: Vec<String>,
    size: u32,
    /// Every how many classes one is named.
    every: usize,
    /// Whether those below the columns are written upwards.
    upright: bool,
    /// The room that they take, in pixels.
    beside: u32,
    below: u32,
}

impl Names {
    fn new(classes: &[String], size: u32, cell: u32) -> Result<Self> {
        let mut names = Vec::new();
        let mut widest = 0;
        // Only to measure: an area does not know the font before it is registered.
        draw(&mut RgbImage::new(1, 1), |area| {
            let style = style(size);
            for class in classes {
                let name = shortened(area, class, &style, MAX_NAME)?;
                widest = widest.max(area.estimate_text_size(&name, &style)?.0);
                names.push(name);
            }
            Ok(())
        })?;
        let upright = widest + GAP / 2 > cell;
        Ok(Self {
            names,
            size,
            every: (size + 2).div_ceil(cell).max(1) as usize,
            upright,
            beside: widest,
            below: if upright { widest } else { size },
        })
    }

    fn draw(&self, area: &Area<'_>, origin: (i32, i32), cell: u32, side: u32) -> Drawn {
        let (cell, gap) = (cell as i32, GAP as i32 / 2);
        let below = origin.1 + side as i32 + gap;
        let named = (0..).zip(&self.names).step_by(self.every);
        for (class, name) in named {
            let middle = cell * class + cell / 2;
            let beside = (origin.0 - gap, origin.1 + middle);
            let style = style(self.size);
            let right = style.pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(name.as_str(), beside, right))?;
            let below = (origin.0 + middle, below);
            if self.upright {
                draw_upwards(area, name, below, HPos::Right, self.size)?;
            } else {
                let style = style_centered(self.size);
                area.draw(&Text::new(name.as_str(), below, style))?;
            }
        }
        Ok(())
    }
}

fn style(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&BLACK)
}

fn style_centered(size: u32) -> TextStyle<'static> {
    style(size).pos(Pos::new(HPos::Center, VPos::Top))
}

/// Writes a text from below to above.
fn draw_upwards(area: &Area<'_>, text: &str, at: (i32, i32), anchor: HPos, size: u32) -> Drawn {
    let font = (FONT, size).into_font().transform(FontTransform::Rotate270);
    let style = font.color(&BLACK).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style.into_text_style(area)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix in which every class is mostly predicted right.
    fn matrix(classes: usize, name: &str) -> ConfusionMatrix {
        let names = (0..classes)
            .map(|class| format!("{name} {class}"))
            .collect();
        let pairs = (0..classes).flat_map(|label| {
            (0..classes).flat_map(move |predicted| {
                let count = if label == predicted {
                    83
                } else {
                    (label * 7 + predicted) % 4
                };
                vec![(label, predicted); count]
            })
        });
        ConfusionMatrix::new(names, pairs)
    }

    /// The middle of a cell's left edge, where no count is written.
    fn pixel(figure: &Figure, classes: u32, row: u32, column: u32) -> [u8; 3] {
        let image = figure.image();
        // The frame's upper left corner is the first pixel in its row that is black far down.
        let is_black = |x: u32, y: u32| image.get_pixel(x, y).0 == [0; 3];
        let left = (0..image.width()).find(|x| (GAP..GAP + 100).all(|y| is_black(*x, y)));
        let side = image.width() - GAP - left.unwrap();
        let cell = side / classes;
        let (x, y) = (
            left.unwrap() + column * cell + 3,
            GAP + row * cell + cell / 2,
        );
        image.get_pixel(x, y).0
    }

    #[test]
    fn a_row_is_a_label_and_the_darker_a_cell_the_greater_its_share_of_the_row() {
        let pairs = [
            (0, 0),
            (0, 0),
            (0, 1),
            (0, 1),
            (1, 1),
            (2, 0),
            (2, 0),
            (2, 0),
            (2, 2),
        ];
        let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
        let figure = ConfusionMatrix::new(classes, pairs).show().unwrap();
        let shares = [[0.5, 0.5, 0.], [0., 1., 0.], [0.75, 0., 0.25]];
        for (row, shares) in (0..).zip(shares) {
            for (column, share) in (0..).zip(shares) {
                let found = pixel(&figure, 3, row, column);
                assert_eq!(found, color(&BLUES, share).0, "row {row}, column {column}");
            }
        }
    }

    #[test]
    fn any_number_of_classes_of_any_name_fits_the_page() {
        for classes in [0, 1, 2, 3, 10, 20, 37, 120, 600] {
            for name in ["", "tree frog of the north and the", "\u{1f438}"] {
                let (width, height) = matrix(classes, name).show().unwrap().dimensions();
                assert!(
                    width <= MAX_WIDTH && height <= MAX_WIDTH,
                    "{classes} {name}"
                );
            }
        }
    }

    #[test]
    fn more_classes_than_the_page_has_pixels_for_are_refused_with_what_to_do() {
        let names = (0..10_000).map(|class| class.to_string()).collect();
        let error = ConfusionMatrix::new(names, []).show().unwrap_err();
        assert!(error.to_string().contains("most_confused"), "{error}");
    }

    #[test]
    fn counts_are_written_for_up_to_twenty_classes() {
        // Of the row of a class without examples, which is as light as can be.
        let ink = |classes: usize| {
            let names = (0..classes).map(|class| class.to_string()).collect();
            let matrix = ConfusionMatrix::new(names, []);
            let figure = matrix.show().unwrap();
            let image = figure.image();
            let cells = image.enumerate_pixels().filter(|(x, y, _)| {
                let inside = GAP + 5..GAP + 700;
                inside.contains(y) && (150..800).contains(x)
            });
            cells.filter(|(_, _, pixel)| pixel.0[0] < 100).count()
        };
        assert!(ink(20) > 1000);
        assert_eq!(ink(21), 0);
    }
}
