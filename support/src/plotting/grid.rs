//! Images side by side, each under a title.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use plotters::prelude::{IntoFont, Text};
use plotters::style::RGBColor;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{FONT, Figure, MAX_WIDTH, draw, shortened};
use crate::analysis::{DoubtfulLabel, DoubtfulLabels, Prediction, Predictions};
use crate::dataset::Label;
use crate::pipeline::{Dataset, Pixels};
use crate::{Error, Result};

/// The most images that `show` draws.
pub(super) const MAX_IMAGES: usize = 25;

/// The largest an image is drawn, in pixels along its longer side.
const MAX_SIDE: u32 = 420;

/// How much an image of 16 or more pixels is enlarged at most; beyond that there is nothing more
/// to see.
const MAX_ENLARGEMENT: u32 = 8;

/// White around and between the images, in pixels.
const GAP: u32 = 16;

/// How wide the border of a marked image is, in pixels.
const BORDER: u32 = 4;

const TITLE_SIZE: u32 = 22;

/// Between two lines of a title, in pixels.
const LINE_GAP: u32 = 4;

const BLACK: Rgb<u8> = Rgb([0; 3]);

/// matplotlib's "tab:red".
const RED: Rgb<u8> = Rgb([214, 39, 40]);

/// An image in a grid.
pub(super) struct Titled {
    pub(super) picture: RgbImage,
    /// One line or several.
    pub(super) title: String,
    /// Whether title and border are red.
    pub(super) marked: bool,
}

impl Titled {
    fn new(picture: RgbImage, title: String) -> Self {
        Self {
            picture,
            title,
            marked: false,
        }
    }

    /// Returns an image under what was predicted for it.
    pub(super) fn predicted(
        picture: RgbImage,
        prediction: &Prediction,
        classes: &[String],
    ) -> Self {
        let percent = |probability: f64| format!("{:.0}%", 100. * probability);
        let predicted = match &prediction.predicted {
            Label::Classes(predicted) if !predicted.is_empty() => {
                let probability = |class: usize| prediction.probabilities.get(class).copied();
                let predicted = predicted.iter().map(|&class| {
                    let name = Label::Class(class).names(classes);
                    format!("{name} {}", percent(probability(class).unwrap_or(f64::NAN)))
                });
                predicted.collect::<Vec<_>>().join(", ")
            }
            label => format!(
                "{} {}",
                label.names(classes),
                percent(prediction.confidence())
            ),
        };
        let label = prediction.label.names(classes);
        Self {
            picture,
            title: format!("{predicted}\nlabel: {label}"),
            marked: !prediction.is_right(),
        }
    }
}

impl Dataset<RgbImage> {
    /// Draws the dataset's images, at most the first 25, each under the name of its class,
    /// or those of its classes.
    ///
    /// Images keep their aspect ratio.
    ///
    /// # Errors
    /// [`Error::Figure`] if there is no image that can be read; [`Error::Image`] for one that
    /// cannot be, where broken images are not skipped.
    pub fn show(&self) -> Result<Figure> {
        let titled = |item: Result<(RgbImage, Label)>| {
            item.map(|(picture, label)| Titled::new(picture, label.names(self.classes())))
        };
        let pictures: Vec<_> = self
            .iter()
            .take(MAX_IMAGES)
            .map(titled)
            .collect::<Result<_>>()?;
        grid(&pictures)
    }
}

/// In how many epochs `show_augmented` shows an image.
const EPOCHS: usize = 9;

impl Dataset<Pixels> {
    /// Draws what the dataset's first image becomes in the first nine epochs of training; where images are
    /// mixed, with the second one.
    ///
    /// # Errors
    /// [`Error::Figure`] if the dataset is not augmented or has no example; [`Error::Dataset`] if no
    /// image can be read; [`Error::Image`] for one that cannot be, where broken images are not skipped.
    pub fn show_augmented(&self) -> Result<Figure> {
        if !self.is_augmented() {
            let reason = "the dataset's images are not augmented; call `augment` first";
            return Err(Error::Figure(reason.to_owned()));
        }
        // Two where the second is mixed into the first.
        let batches = self.shuffle(1).batch(if self.is_mixed() { 2 } else { 1 });
        let batches = batches.sharded(1);
        let mut pictures = Vec::new();
        for epoch in 0..EPOCHS {
            let Some(pixels) = batches.first_pixels(epoch)? else {
                break;
            };
            let title = format!("epoch {}", epoch + 1);
            pictures.push(Titled::new(pixels.to_image(), title));
        }
        grid(&pictures)
    }
}

impl Predictions {
    /// Draws the images, at most the first 25, as they were made for the model: each under the
    /// predicted class with its probability, and the label. Those predicted wrong are red.
    ///
    /// # Errors
    /// [`Error::Figure`] if there is no image; [`Error::Image`] for one that cannot be read any
    /// more, where broken images are not skipped.
    pub fn show(&self) -> Result<Figure> {
        let pictures = self.pictures(MAX_IMAGES)?.into_iter();
        let titled = |(index, pixels): (usize, Pixels)| {
            Titled::predicted(pixels.to_image(), &self.examples()[index], self.classes())
        };
        grid(&pictures.map(titled).collect::<Vec<_>>())
    }
}

impl DoubtfulLabels {
    /// Draws the images of the doubtful labels, at most the first 25, the most doubtful first, as they were made for
    /// the model: each under its label and the suggested class with its probability. Says so where no label is doubtful.
    ///
    /// # Errors
    /// [`Error::Image`] for one that cannot be read any more, where broken images are not skipped.
    pub fn show(&self) -> Result<Figure> {
        if self.is_empty() {
            return sentence("No label is doubtful.");
        }
        let pictures = self.pictures(MAX_IMAGES)?.into_iter();
        let titled = |(found, pixels): (&DoubtfulLabel, Pixels)| {
            let [label, suggested] = [found.label, found.suggested].map(|it| &self.classes()[it]);
            let percent = 100. * found.probability;
            let title = format!("label: {label}\n{suggested}? {percent:.0}%");
            Titled::new(pixels.to_image(), title)
        };
        grid(&pictures.map(titled).collect::<Vec<_>>())
    }
}

/// Draws a sentence in the place of images.
fn sentence(text: &str) -> Result<Figure> {
    let mut figure = RgbImage::from_pixel(MAX_SIDE, TITLE_SIZE + 2 * GAP, Rgb([255; 3]));
    draw(&mut figure, |area| {
        let Rgb([r, g, b]) = BLACK;
        let style = (FONT, TITLE_SIZE).into_font().color(&RGBColor(r, g, b));
        area.draw(&Text::new(text, (GAP as i32, GAP as i32), style))?;
        Ok(())
    })?;
    Figure::new(&figure)
}

/// Returns how many images stand in a row.
fn columns(count: usize) -> usize {
    match count {
        0..=5 => count,
        6 | 9 => 3,
        7 | 8 | 11 | 12 | 16 => 4,
        _ => 5,
    }
}

/// Draws images side by side, each under its title.
pub(super) fn grid(pictures: &[Titled]) -> Result<Figure> {
    let sides = |titled: &Titled| titled.picture.width().max(titled.picture.height());
    let Some(longest @ 1..) = pictures.iter().map(sides).max() else {
        return Err(Error::Figure("there is no image to show".to_owned()));
    };
    let columns = columns(pictures.len()) as u32;
    let side = ((MAX_WIDTH - GAP) / columns - GAP)
        .min(MAX_SIDE)
        .min(longest.max(16).saturating_mul(MAX_ENLARGEMENT));
    let fitted: Vec<(RgbImage, &Titled)> = pictures
        .iter()
        .map(|titled| (fit(&titled.picture, side), titled))
        .collect();

    let lines = |titled: &Titled| titled.title.lines().count();
    let lines = pictures.iter().map(lines).max().unwrap_or(0).max(1) as u32;
    let title_height = lines * TITLE_SIZE + (lines - 1) * LINE_GAP + GAP / 2;
    let rows: Vec<_> = fitted.chunks(columns as usize).collect();
    let row_height = |row: &[(RgbImage, &Titled)]| {
        let highest = row.iter().map(|(picture, _)| picture.height()).max();
        title_height + highest.unwrap_or(0) + GAP
    };
    let width = GAP + columns * (side + GAP);
    let height = GAP + rows.iter().map(|row| row_height(row)).sum::<u32>();
    let mut figure = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let mut titles = Vec::new();
    let mut top = GAP;
    for row in rows {
        let image_top = top + title_height;
        for ((picture, titled), column) in row.iter().zip(0..) {
            let middle = GAP + column * (side + GAP) + side / 2;
            let (left, top) = (middle - picture.width() / 2, image_top);
            if titled.marked {
                let (width, height) = picture.dimensions();
                let border = RgbImage::from_pixel(width + 2 * BORDER, height + 2 * BORDER, RED);
                let (left, top) = (left - BORDER, top - BORDER);
                imageops::replace(&mut figure, &border, left.into(), top.into());
            }
            imageops::replace(&mut figure, picture, left.into(), top.into());
            let color = if titled.marked { RED } else { BLACK };
            let bottoms = (0..).map(|line| image_top - GAP / 2 - line * (TITLE_SIZE + LINE_GAP));
            for (line, bottom) in titled.title.lines().rev().zip(bottoms) {
                titles.push((line, color, (middle as i32, bottom as i32)));
            }
        }
        top += row_height(row);
    }
    draw(&mut figure, |area| {
        for (title, Rgb([r, g, b]), place) in titles {
            let style = (FONT, TITLE_SIZE)
                .into_font()
                .color(&RGBColor(r, g, b))
                .pos(Pos::new(HPos::Center, VPos::Bottom));
            let shown = shortened(area, title, &style, side + GAP / 2)?;
            area.draw(&Text::new(shown, place, style))?;
        }
        Ok(())
    })?;
    Figure::photos(&figure)
}

/// Resizes an image so that its longer side becomes `side`.
fn fit(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = u64::from(width.max(height).max(1));
    let scaled = |length: u32| ((u64::from(length) * u64::from(side) / longer) as u32).max(1);
    imageops::resize(
        picture,
        scaled(width),
        scaled(height),
        FilterType::CatmullRom,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Example;
    use crate::pipeline::Augmentation;
    use crate::settings::BrokenImages;

    fn pictures(count: usize, width: u32, height: u32) -> Vec<Titled> {
        let picture = |i: usize| RgbImage::from_pixel(width, height, Rgb([i as u8 * 10, 200, 100]));
        (0..count)
            .map(|i| Titled::new(picture(i), format!("class {i}")))
            .collect()
    }

    #[test]
    fn images_stand_in_reading_order_below_their_titles() {
        let figure = grid(&pictures(7, 300, 200)).unwrap();
        assert_eq!(figure.dimensions().0, 1000);
        let image = figure.image();
        let side = 1000 / 4;
        for i in 0..7 {
            let (column, row) = (i % 4, i / 4);
            let x = column * side + side / 2;
            let row_height = image.height() / 2;
            let pixel = image.get_pixel(x, row * row_height + row_height / 2);
            assert_eq!(pixel.0, [i as u8 * 10, 200, 100], "image {i}");
            let above = (0..row_height / 4).flat_map(|y| (x - 60..x + 60).map(move |x| (x, y)));
            let ink = above.filter(|(x, y)| image.get_pixel(*x, row * row_height + y).0[1] < 100);
            assert!(ink.count() > 50, "a title stands above image {i}");
        }
    }

    #[test]
    fn any_number_of_images_of_any_shape_fits_the_page() {
        for (width, height) in [(1, 1), (32, 32), (5000, 3), (3, 5000), (500, 374)] {
            for count in [1, 2, 3, 4, 5, 6, 10, 25] {
                let figure = grid(&pictures(count, width, height)).unwrap();
                let (across, down) = figure.dimensions();
                assert!(
                    across <= 1000 && down <= 6000,
                    "{count} of {width} x {height}: {figure:?}"
                );
            }
        }
    }

    #[test]
    fn an_empty_grid_is_an_error_and_a_long_title_is_cut() {
        assert!(matches!(grid(&[]), Err(Error::Figure(_))));
        assert!(matches!(grid(&pictures(2, 0, 0)), Err(Error::Figure(_))));
        let long = "Pomeranian and German Shepherd crossed with anything else that was there ";
        let titled = vec![
            Titled::new(RgbImage::new(40, 30), long.repeat(20)),
            Titled::new(RgbImage::new(3, 3), "".into()),
        ];
        assert!(grid(&titled).unwrap().dimensions().0 <= 1000);
    }

    /// The pixel in the middle of each cell of a grid of three by three.
    fn middles(figure: &Figure) -> Vec<[u8; 3]> {
        let image = figure.image();
        let (width, height) = (image.width() / 3, image.height() / 3);
        (0..9)
            .map(|i| (i % 3 * width + width / 2, i / 3 * height + height / 2 + 8))
            .map(|(x, y)| image.get_pixel(x, y).0)
            .collect()
    }

    #[test]
    fn the_first_image_is_shown_as_nine_epochs_make_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("broken.png"), b"").unwrap();
        let gray = RgbImage::from_pixel(40, 30, Rgb([100; 3]));
        gray.save(path("gray.png")).unwrap();
        let examples = ["broken.png", "gray.png"]
            .map(|name| Example::at_path(name.to_owned(), 0, &path(name)));
        let classes = vec!["gray".to_owned()];
        let pictures = Dataset::new(examples.to_vec(), classes, 0, BrokenImages::Skip)
            .map(|image| Pixels::from(image).scale(1.0 / 127.5).offset(-1.0));
        assert!(matches!(pictures.show_augmented(), Err(Error::Figure(_))));

        let brightness = Augmentation::new().color_jitter(0.5, 0.0, 0.0);
        let augmented = pictures.augment(brightness).unwrap();
        let shown = middles(&augmented.show_augmented().unwrap());
        for (epoch, shown) in shown.into_iter().enumerate() {
            let example = &augmented.examples()[1];
            let pixels = augmented.load_drawn(example, 0, epoch).unwrap().unwrap();
            let expected = pixels.to_image().get_pixel(20, 15).0;
            assert!(shown[0].abs_diff(expected[0]) <= 1, "epoch {epoch}");
        }
        let broken = augmented.take(1).show_augmented();
        assert!(matches!(broken, Err(Error::Dataset { .. })), "{broken:?}");
        let empty = augmented.take(0).show_augmented();
        assert!(matches!(empty, Err(Error::Figure(_))), "{empty:?}");
    }

    #[test]
    fn a_mixed_image_is_shown_with_what_is_mixed_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let examples = [100, 200].map(|gray| {
            let path = folder.path().join(format!("{gray}.png"));
            let image = RgbImage::from_pixel(40, 30, Rgb([gray; 3]));
            image.save(&path).unwrap();
            Example::at_path(path.display().to_string(), 0, &path)
        });
        let classes = vec!["gray".to_owned()];
        let images = Dataset::new(examples.to_vec(), classes, 0, BrokenImages::Stop);
        let images = images.map(|image| Pixels::from(image));
        // Shares of about a half.
        let mixed = images.augment(Augmentation::new().mix_up(100.)).unwrap();
        let shown = middles(&mixed.show_augmented().unwrap());
        assert!(
            shown.iter().all(|[red, ..]| red.abs_diff(150) < 15),
            "{shown:?}"
        );
        assert_ne!(shown[0], shown[1]);
    }

    #[test]
    fn a_wrong_prediction_has_a_red_title_and_border() {
        let classes = ["cats", "dogs"].map(str::to_owned);
        let titled = [1, 0].map(|label| {
            let prediction = Prediction {
                index: 0,
                id: String::new(),
                label: Label::Class(label),
                predicted: Label::Class(1),
                probabilities: vec![0.125, 0.875],
                loss: 0.,
            };
            let gray = RgbImage::from_pixel(50, 40, Rgb([128; 3]));
            Titled::predicted(gray, &prediction, &classes)
        });
        assert_eq!(titled[0].title, "dogs 88%\nlabel: dogs");
        assert_eq!(titled[1].title, "dogs 88%\nlabel: cats");
        let figure = grid(&titled).unwrap();
        let image = figure.image();
        let middle = image.width() / 2;
        // Of the image, and of the title above it.
        let red = |left: bool, rows: std::ops::Range<u32>| {
            let pixels = image.enumerate_pixels();
            let there = pixels.filter(|(x, y, _)| (*x < middle) == left && rows.contains(y));
            there.filter(|(_, _, pixel)| **pixel == RED).count()
        };
        let picture = 320 + 400;
        let top = GAP + 2 * TITLE_SIZE + LINE_GAP;
        assert!(red(false, 0..top) > 50);
        let border = red(false, top..image.height());
        assert!(border >= 2 * picture * BORDER as usize, "{border}");
        assert_eq!(red(true, 0..image.height()), 0);
    }

    #[test]
    fn of_several_labels_a_title_has_all_that_are_predicted_and_all_that_are_right() {
        let classes = ["cat", "dog", "outdoor"].map(str::to_owned);
        let title = |label: &[usize], predicted: &[usize]| {
            let [label, predicted] = [label, predicted].map(|of| Label::from_iter(of.to_vec()));
            let prediction = Prediction {
                index: 0,
                id: String::new(),
                label,
                predicted,
                probabilities: vec![0.75, 0.25, 0.625],
                loss: 0.,
            };
            let titled = Titled::predicted(RgbImage::new(3, 3), &prediction, &classes);
            (titled.title, titled.marked)
        };
        let [both, none] = ["cat 75%, outdoor 62%\nlabel: cat", "none 25%\nlabel: none"];
        assert_eq!(title(&[0], &[0, 2]), (both.into(), true));
        assert_eq!(title(&[], &[]), (none.into(), false));
    }

    #[test]
    fn nine_examples_stand_three_by_three() {
        let shown = middles(&grid(&pictures(9, 300, 200)).unwrap());
        let expected: Vec<_> = (0..9).map(|i| [i * 10, 200, 100]).collect();
        assert_eq!(shown, expected);
    }
}
