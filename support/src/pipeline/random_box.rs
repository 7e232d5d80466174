//! Parts of an image that are drawn at random, as torchvision does.
//!
//! `draw` gives numbers from 0 to 1, 1 excluded.

use std::ops::{Range, RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How often a part is drawn that must lie within the image.
const TRIES: usize = 10;

/// How large a part of an image may be, and of what shape.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Area {
    /// The least and the most share of the image's area.
    scale: [f64; 2],
    /// The least and the most ratio of one side to the other.
    ratio: [f64; 2],
}

impl Area {
    pub(super) fn new(scale: &RangeInclusive<f64>, ratio: &RangeInclusive<f64>) -> Self {
        let ends = |range: &RangeInclusive<f64>| [*range.start(), *range.end()];
        Self {
            scale: ends(scale),
            ratio: ends(ratio),
        }
    }

    /// Checks both ranges, which an error calls by these names.
    pub(super) fn check(self, [scale, ratio]: [&'static str; 2]) -> Result<()> {
        let refused = |name, expected: &str, [least, most]: [f64; 2]| {
            Err(Error::Argument {
                name,
                expected: expected.to_owned(),
                got: format!("{least}..={most}"),
            })
        };
        let (least, most) = (self.scale[0], self.scale[1]);
        if !(0.0 < least && least <= most && most <= 1.0) {
            return refused(scale, "a range of shares above 0, up to 1", self.scale);
        }
        let (least, most) = (self.ratio[0], self.ratio[1]);
        if !(0.0 < least && least <= most && most.is_finite()) {
            return refused(ratio, "a range of numbers above 0", self.ratio);
        }
        Ok(())
    }

    /// Draws two sides of a part of `area` pixels, the second being the shorter one where the ratio is
    /// above 1.
    fn sides(self, area: f64, draw: &mut impl FnMut() -> f64) -> [f64; 2] {
        let mut between = |[least, most]: [f64; 2]| least + (most - least) * draw();
        let area = area * between(self.scale);
        let ratio = between(self.ratio.map(f64::ln)).exp();
        [area * ratio, area / ratio].map(|square| square.sqrt().round_ties_even())
    }
}

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Part {
    /// Returns where its rows are in the values of an image of that width, three to a pixel.
    pub(super) fn rows(self, width: u32) -> impl Iterator<Item = Range<usize>> {
        let [x, length] = [self.x, self.width].map(|side| side as usize * 3);
        (self.y..self.y + self.height).map(move |y| {
            let start = y as usize * width as usize * 3 + x;
            start..start + length
        })
    }
}

/// Draws a number below `count`, 0 if that is 0.
fn below(count: u32, draw: &mut impl FnMut() -> f64) -> u32 {
    ((f64::from(count) * draw()) as u32).min(count.saturating_sub(1))
}

/// Draws the place of a part, its top first.
fn placed(
    [width, height]: [f64; 2],
    (of_width, of_height): (u32, u32),
    draw: &mut impl FnMut() -> f64,
) -> Part {
    let [width, height] = [width as u32, height as u32];
    let y = below(of_height - height + 1, draw);
    let x = below(of_width - width + 1, draw);
    Part {
        x,
        y,
        width,
        height,
    }
}

/// Draws the part of an image of that width and height that is cut out: `RandomResizedCrop.get_params`,
/// after ten tries the largest part at the centre whose ratio of width to height is allowed.
pub(super) fn crop_box(
    (width, height): (u32, u32),
    area: Area,
    mut draw: impl FnMut() -> f64,
) -> Part {
    let [of_width, of_height] = [width, height].map(f64::from);
    for _ in 0..TRIES {
        let sides = area.sides(of_width * of_height, &mut draw);
        let [w, h] = sides;
        if (1.0..=of_width).contains(&w) && (1.0..=of_height).contains(&h) {
            return placed(sides, (width, height), &mut draw);
        }
    }
    let [least, most] = area.ratio;
    let ratio = of_width / of_height;
    let at_least_one = |side: f64| (side.round_ties_even() as u32).max(1);
    let (w, h) = if ratio < least {
        (width, at_least_one(of_width / least))
    } else if ratio > most {
        (at_least_one(of_height * most), height)
    } else {
        (width, height)
    };
    Part {
        x: (width - w) / 2,
        y: (height - h) / 2,
        width: w,
        height: h,
    }
}

/// Draws the part of an image of that width and height that is erased: `RandomErasing.get_params`, none
/// after ten tries.
pub(super) fn erased_box(
    (width, height): (u32, u32),
    area: Area,
    mut draw: impl FnMut() -> f64,
) -> Option<Part> {
    let [of_width, of_height] = [width, height].map(f64::from);
    for _ in 0..TRIES {
        let [h, w] = area.sides(of_width * of_height, &mut draw);
        if h < of_height && w < of_width {
            return Some(placed([w, h], (width, height), &mut draw));
        }
    }
    None
}

/// Draws the part of an image of that width and height that another one is pasted over, and returns
/// which share of the image stays, about `share`: `CutMix.make_params`.
pub(super) fn pasted_box(
    (width, height): (u32, u32),
    share: f64,
    mut draw: impl FnMut() -> f64,
) -> (Part, f64) {
    let half = 0.5 * (1.0 - share).sqrt();
    let mut side = |length: u32| {
        let (middle, half) = (below(length, &mut draw), (half * f64::from(length)) as u32);
        let start = middle.saturating_sub(half);
        (start, (middle + half).min(length) - start)
    };
    let ((x, width_pasted), (y, height_pasted)) = (side(width), side(height));
    let pasted = f64::from(width_pasted) * f64::from(height_pasted);
    let part = Part {
        x,
        y,
        width: width_pasted,
        height: height_pasted,
    };
    (part, 1.0 - pasted / (f64::from(width) * f64::from(height)))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    /// What `tests/reference/torchvision_draws.py` found.
    pub(in crate::pipeline) fn reference() -> Value {
        let text = include_str!("../../tests/data/torchvision_draws.json");
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn of_the_same_random_numbers_the_parts_are_torchvisions() {
        let reference = reference();
        let boxes = reference["boxes"].as_array().unwrap();
        for expected in boxes {
            let size: (u32, u32) = serde_json::from_value(expected["size"].clone()).unwrap();
            let draws: Vec<f64> = serde_json::from_value(expected["draws"].clone()).unwrap();
            let mut draws = draws.into_iter();
            let draw = || draws.next().unwrap();
            let area = || serde_json::from_value(expected.clone()).unwrap();
            let found = match expected["kind"].as_str().unwrap() {
                "crop" => Some(crop_box(size, area(), draw)),
                "erase" => erased_box(size, area(), draw),
                _ => {
                    let share = expected["share"].as_f64().unwrap();
                    let (part, left) = pasted_box(size, share, draw);
                    assert_eq!(left, expected["left"].as_f64().unwrap(), "{expected}");
                    Some(part)
                }
            };
            let found = found.map(|part| [part.x, part.y, part.width, part.height]);
            assert_eq!(serde_json::json!(found), expected["box"], "{expected}");
        }
        let of_kind = |kind| {
            boxes
                .iter()
                .filter(move |expected| expected["kind"] == kind)
        };
        assert_eq!(of_kind("crop").count(), 42);
        let none = of_kind("erase").filter(|expected| expected["box"].is_null());
        assert!((1..28).contains(&none.count()));
        assert_eq!(of_kind("cut_mix").count(), 35);
    }

    #[test]
    fn a_part_has_its_rows_in_the_values() {
        let part = Part {
            x: 1,
            y: 2,
            width: 2,
            height: 2,
        };
        assert_eq!(part.rows(4).collect::<Vec<_>>(), [27..33, 39..45]);
    }
}
