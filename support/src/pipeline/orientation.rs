//! Which way up an image is: the EXIF orientation in a file, and turning an image by it.

use image::metadata::Orientation;
use image::{DynamicImage, ImageFormat, RgbImage};

use super::webp;

/// What EXIF starts with in a JPEG file.
pub(super) const EXIF_MARK: &[u8] = b"Exif\0\0";

/// Returns the orientation that a file says its image has, if it is no JPEG. (`image` would take memory
/// for as many bytes of EXIF as a WebP file claims.)
pub(super) fn of(format: ImageFormat, bytes: &[u8]) -> Orientation {
    let exif = match format {
        ImageFormat::Png => png_exif(bytes),
        ImageFormat::WebP => webp::exif(bytes),
        _ => None,
    };
    from_exif(exif.unwrap_or_default())
}

/// Returns the orientation in EXIF data, which is none if the data is damaged.
pub(super) fn from_exif(exif: &[u8]) -> Orientation {
    // Some programs write JPEG's mark into other files as well.
    let exif = exif.strip_prefix(EXIF_MARK).unwrap_or(exif);
    Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms)
}

/// Turns an image that lies so upright.
pub(super) fn upright(picture: RgbImage, orientation: Orientation) -> RgbImage {
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(orientation);
    picture.into_rgb8()
}

/// Finds the chunk `eXIf` of a PNG file. A chunk is length, name, data and checksum.
fn png_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if name == b"eXIf" {
            return after.get(..length);
        }
        rest = after.get(length.checked_add(4)?..)?;
    }
}
