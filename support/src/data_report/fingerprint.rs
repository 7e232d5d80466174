//! What an image looks like from afar, and which images look alike.

use image::{RgbImage, imageops};

/// At most so many of the 128 bits differ between two images that are taken for one.
///
/// Of 3000 photos no two different ones differed in less than 24 bits, while 300 of them that were
/// saved again, at JPEG quality 10, at half the size, squeezed to 160 x 160 or 64 pixels wide,
/// differed from themselves in at most 15.
pub(super) const MAX_HAMMING: u32 = 16;

/// At most so far, of 255, are the samples of their thumbnails apart on average: flat images of
/// any colour have the same bits. The same photos, saved again, were at most 6 apart, and at most 32
/// where they were made a fifth brighter.
const MOST_APART: u32 = 32;

/// The sides of the thumbnail.
const SIDE: u32 = 9;

/// An image's thumbnail and its difference hash: whether each pixel is darker than the one beside
/// it and the one below it. Source: N. Krawetz,
/// [Kind of Like That](https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html),
/// in both directions as in B. Hoyt's [dhash](https://github.com/benhoyt/dhash).
pub(super) struct Fingerprint {
    bits: u128,
    thumbnail: Vec<u8>,
}

impl Fingerprint {
    pub(super) fn of(picture: &RgbImage) -> Self {
        let thumbnail = imageops::thumbnail(picture, SIDE, SIDE);
        let gray = imageops::grayscale(&thumbnail);
        let at = |x: u32, y: u32| gray.get_pixel(x, y).0[0];
        let places = (0..SIDE - 1).flat_map(|y| (0..SIDE - 1).map(move |x| (x, y)));
        let bits = places.fold(0, |bits, (x, y)| {
            let darker = [at(x, y) < at(x + 1, y), at(x, y) < at(x, y + 1)];
            bits << 2 | u128::from(darker[0]) << 1 | u128::from(darker[1])
        });
        let thumbnail = thumbnail.into_raw();
        Self { bits, thumbnail }
    }

    /// Returns how many bits differ where the images look alike.
    pub(super) fn distance(&self, other: &Self) -> Option<u32> {
        let distance = (self.bits ^ other.bits).count_ones();
        // Most pairs end here.
        if distance > MAX_HAMMING {
            return None;
        }
        let pairs = self.thumbnail.iter().zip(&other.thumbnail);
        let apart: u32 = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
        (apart <= MOST_APART * self.thumbnail.len() as u32).then_some(distance)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn bits_tell_where_it_gets_lighter_to_the_right_and_downwards() {
        let bits = |picture: &RgbImage| Fingerprint::of(picture).bits;
        let gradient =
            |x: u32, y: u32| RgbImage::from_fn(90, 90, |i, j| Rgb([(x * i + y * j) as u8; 3]));
        assert_eq!(bits(&gradient(0, 0)), 0);
        assert_eq!(bits(&gradient(1, 0)), u128::MAX / 3 * 2);
        assert_eq!(bits(&gradient(0, 1)), u128::MAX / 3);
    }

    #[test]
    fn flat_images_of_other_colors_do_not_look_alike() {
        let flat = |color, side| Fingerprint::of(&RgbImage::from_pixel(side, side, Rgb(color)));
        let red = flat([200, 0, 0], 40);
        assert_eq!(red.distance(&flat([210, 5, 0], 1)), Some(0));
        assert_eq!(red.distance(&flat([0, 0, 200], 40)), None);
    }
}
