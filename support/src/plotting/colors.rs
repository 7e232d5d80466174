//! Colour maps: a number between 0 and 1 as a colour whose lightness rises or falls evenly.

use image::Rgb;

/// Nine colours from 0 to 1, the ones between are mixed.
pub(super) type ColorMap = [[u8; 3]; 9];

/// [ColorBrewer's](https://colorbrewer2.org) "Blues", from nearly white to dark blue.
pub(super) const BLUES: ColorMap = [
    [247, 251, 255],
    [222, 235, 247],
    [198, 219, 239],
    [158, 202, 225],
    [107, 174, 214],
    [66, 146, 198],
    [33, 113, 181],
    [8, 81, 156],
    [8, 48, 107],
];

/// [matplotlib's](https://bids.github.io/colormap/) "viridis", from dark violet to yellow.
pub(super) const VIRIDIS: ColorMap = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];

/// Returns the colour of a number, which is taken for 0 below it or if it is none, and for 1 above.
pub(super) fn color(map: &ColorMap, value: f64) -> Rgb<u8> {
    let last = map.len() - 1;
    let value = if value.is_nan() { 0. } else { value };
    let place = value.clamp(0., 1.) * last as f64;
    let lower = (place as usize).min(last - 1);
    let share = place - lower as f64;
    Rgb(std::array::from_fn(|c| {
        let [from, to] = [map[lower][c], map[lower + 1][c]].map(f64::from);
        (from + share * (to - from)).round() as u8
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_between_two_are_mixed_and_beyond_the_ends_are_the_ends() {
        let blue = |value| color(&BLUES, value).0;
        assert_eq!(blue(0.), [247, 251, 255]);
        assert_eq!(blue(0.5), [107, 174, 214]);
        assert_eq!(blue(0.1875), [210, 227, 243]);
        assert_eq!(
            [blue(1.), blue(7.), blue(-1.)],
            [BLUES[8], BLUES[8], BLUES[0]]
        );
        assert_eq!(blue(f64::NAN), BLUES[0]);
    }
}
