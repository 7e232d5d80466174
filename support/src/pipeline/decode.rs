//! Image files to RGB, the way `tf.io.decode_image(channels=3, expand_animations=False)` does, but
//! upright: as every viewer and unlike TensorFlow, this turns an image as its EXIF orientation says.
//!
//! What a file holds decides, never its name.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::orientation::{self, EXIF_MARK, upright};
use super::webp;
use crate::{Error, Result};

/// The most that decoding may take in memory: 512 MiB, 178 megapixels of RGB. A header that
/// promises more is refused before anything is allocated for it. Turning the image, or making RGB of
/// other samples, takes up to as much again.
const MAX_BYTES: u64 = 512 << 20;

/// The longest side. JPEG, GIF and WebP have no longer ones; a PNG of narrow rows takes the longer to decode.
const MAX_SIDE: u32 = 65_535;

/// The most scans of a JPEG, as each may go over the whole image for a few bytes of the file. The progressive files of
/// libjpeg and mozjpeg have about ten.
const MAX_SCANS: usize = 64;

/// In image data that is none of the JPEG's, such as a video after it, two bytes look like the start of a scan once in
/// 65,536 bytes: in so many bytes, one is not counted.
const BYTES_FOR_A_FALSE_SCAN: usize = 8192;

/// Decodes a JPEG, PNG, GIF, WebP or BMP file to 8-bit RGB.
///
/// The image is upright: what the EXIF orientation of a JPEG, PNG or WebP file says is done, as by
/// PIL's `ImageOps.exif_transpose`. Else this follows `tf.io.decode_image`: grey becomes RGB, CMYK is
/// multiplied out, alpha is dropped (not blended; a GIF's transparent pixels are black), 16-bit samples
/// keep their high byte, a GIF gives its first frame, junk between a JPEG's parts is skipped. JPEG
/// samples differ from TensorFlow's by what the inverse cosine transforms differ: TensorFlow takes libjpeg's fast, inexact one (on 100 photos 1.1 of 255 on
/// average), this an exact one (0.2 from libjpeg's exact one).
///
/// `name` is what errors call the image.
///
/// # Errors
/// [`Error::Image`] if the bytes are none of these formats, are damaged or incomplete, or
/// hold an image that takes more than 512 MiB to decode: 178 megapixels, of a progressive JPEG about
/// 80. Also one with a side of more than 65,535 pixels, and a JPEG of more than 64 scans.
pub fn decode(name: &str, bytes: &[u8]) -> Result<RgbImage> {
    decode_within(MAX_BYTES, name, bytes)
}

/// Decodes a file as [`decode`] does, if that takes at most so many bytes of memory: about three a pixel, of a progressive
/// JPEG six.
///
/// # Errors
/// [`Error::Image`], also when it takes more.
pub fn decode_within(limit: u64, name: &str, bytes: &[u8]) -> Result<RgbImage> {
    let picture = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg(bytes, limit),
        Ok(format) => other(format, bytes, limit),
        Err(_) if bytes.is_empty() => Err("the file is empty".to_owned()),
        Err(_) => Err("not a JPEG, PNG, GIF, WebP or BMP file".to_owned()),
    };
    picture.map_err(|reason| Error::Image {
        name: name.to_owned(),
        reason,
    })
}

/// Returns whether a file's pixels do not lie as they are to be looked at.
pub(crate) fn is_turned(bytes: &[u8]) -> bool {
    let orientation = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => JpegLayout::of(bytes).map(|layout| layout.orientation),
        Ok(format) => Some(orientation::of(format, bytes)),
        Err(_) => None,
    };
    orientation.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}

/// Decodes what `image` decodes: everything but JPEG.
fn other(format: ImageFormat, bytes: &[u8], limit: u64) -> std::result::Result<RgbImage, String> {
    let mut limits = Limits::no_limits();
    // Of a PNG it is for what stands before the image: a color profile that inflates to more is left out.
    limits.max_alloc = Some(match format {
        ImageFormat::Png => limit.min(4 * bytes.len() as u64 + (1 << 20)),
        _ => limit,
    });
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE {
        return Err(format!(
            "{width} x {height} pixels: a side has at most {MAX_SIDE}"
        ));
    }
    let pixels = u64::from(width) * u64::from(height);
    let beside = match format {
        ImageFormat::WebP => webp::bytes_beside(bytes, pixels),
        _ => 0,
    };
    let needed = decoder.total_bytes().max(3 * pixels).max(beside);
    check_fits(width, height, needed, limit)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let high = |samples: Vec<u16>, channels| {
        let picture = RgbImage::from_raw(width, height, high_bytes(&samples, channels));
        picture.ok_or("its size does not fit its data")
    };
    let picture = match picture {
        DynamicImage::ImageLuma16(picture) => high(picture.into_raw(), 1)?,
        DynamicImage::ImageLumaA16(picture) => high(picture.into_raw(), 2)?,
        DynamicImage::ImageRgb16(picture) => high(picture.into_raw(), 3)?,
        DynamicImage::ImageRgba16(picture) => high(picture.into_raw(), 4)?,
        DynamicImage::ImageRgba8(mut picture) if format == ImageFormat::Gif => {
            let transparent = picture.pixels_mut().filter(|pixel| pixel[3] == 0);
            transparent.for_each(|pixel| pixel.0 = [0; 4]);
            DynamicImage::ImageRgba8(picture).into_rgb8()
        }
        _ => picture.into_rgb8(),
    };
    Ok(upright(picture, orientation::of(format, bytes)))
}

/// Refuses an image that takes more bytes to decode than are allowed.
fn check_fits(width: u32, height: u32, needed: u64, limit: u64) -> std::result::Result<(), String> {
    if needed <= limit {
        return Ok(());
    }
    Err(format!(
        "{width} x {height} pixels take {} MiB to decode, and {} MiB are allowed",
        needed >> 20,
        limit >> 20
    ))
}

/// Returns RGB of samples of 16 bits. `to_rgb8` would round; TensorFlow has libpng strip the low byte.
fn high_bytes(samples: &[u16], channels: usize) -> Vec<u8> {
    let rgb = |pixel: &[u16]| match *pixel {
        [r, g, b, ..] => [r, g, b],
        _ => [pixel[0]; 3],
    };
    let pixels = samples.chunks_exact(channels).map(rgb);
    pixels
        .flat_map(|pixel| pixel.map(|sample| (sample >> 8) as u8))
        .collect()
}

/// Decodes a JPEG.
///
/// `image`'s own JPEG decoder is the same `zune-jpeg`, but fills what is missing from a
/// truncated file with grey, and takes every CMYK file for an inverted one.
fn jpeg(bytes: &[u8], limit: u64) -> std::result::Result<RgbImage, String> {
    let layout = JpegLayout::of(bytes).ok_or("a JPEG without image data: the file is truncated")?;
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(MAX_SCANS);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder
        .decode_headers()
        .map_err(|error| format!("JPEG: {error}"))?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG without dimensions")?;
    let plain_cmyk = decoder.input_colorspace() == Some(ColorSpace::CMYK) && !layout.adobe;
    let (colors, samples) = if plain_cmyk {
        (ColorSpace::CMYK, 4)
    } else {
        (ColorSpace::RGB, 3)
    };
    // Neither side passes 65,535, so this cannot overflow.
    let size = width as u64 * height as u64 * samples;
    check_fits(
        width as u32,
        height as u32,
        size + layout.coefficients,
        limit,
    )?;
    if layout.scans > MAX_SCANS + bytes.len() / BYTES_FOR_A_FALSE_SCAN {
        return Err(format!(
            "a JPEG of more than {MAX_SCANS} scans, which no camera or program writes: save it anew"
        ));
    }
    if !layout.complete {
        return Err("a JPEG without an end: the file is truncated".to_owned());
    }
    decoder.set_options(options.jpeg_set_out_colorspace(colors));
    let mut pixels = vec![0; size as usize];
    decoder
        .decode_into(&mut pixels)
        .map_err(|error| format!("JPEG: {error}"))?;
    if plain_cmyk {
        pixels = cmyk_to_rgb(&pixels);
    }
    let picture = RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or("JPEG: its size does not fit its data")?;
    Ok(upright(picture, layout.orientation))
}

/// Multiplies CMYK out to RGB: `(255 - c) * (255 - k) / 255`, as TensorFlow does (its
/// `core/lib/jpeg/jpeg_mem.cc`) for files without Adobe's mark. Those with it store inverted
/// values, which `zune-jpeg` handles in the same way.
fn cmyk_to_rgb(pixels: &[u8]) -> Vec<u8> {
    pixels
        .chunks_exact(4)
        .flat_map(|cmyk| {
            let light = 255 - u32::from(cmyk[3]);
            [0, 1, 2].map(|i| ((255 - u32::from(cmyk[i])) * light / 255) as u8)
        })
        .collect()
}

/// What the decoder does not tell about a JPEG file.
struct JpegLayout {
    /// It carries Adobe's APP14 mark.
    adobe: bool,
    /// It has an end-of-image marker after its image data. libjpeg insists on one, so
    /// TensorFlow does.
    complete: bool,
    /// What EXIF says of how the image is to be turned.
    orientation: Orientation,
    /// Bytes that the decoder takes for the coefficients of all the image, which come in several
    /// scans; those of one scan are decoded as they come.
    coefficients: u64,
    /// What looks like the start of a scan, where there are several.
    scans: usize,
}

impl JpegLayout {
    /// Walks the segments up to the image data. `None` if the file ends before it.
    fn of(bytes: &[u8]) -> Option<Self> {
        const START_OF_SCAN: u8 = 0xda;
        const APP1: u8 = 0xe1;
        const APP14: u8 = 0xee;
        const PROGRESSIVE: u8 = 0xc2;
        const END: [u8; 2] = [0xff, 0xd9];
        let mut adobe = false;
        let mut exif: &[u8] = &[];
        let (mut frame, mut progressive): (&[u8], bool) = (&[], false);
        let mut rest = bytes.get(2..)?;
        loop {
            // Whatever stands between two segments is junk, and skipped.
            let start = rest
                .windows(2)
                .position(|two| two[0] == 0xff && (0xc0..0xff).contains(&two[1]))?;
            let marker = rest[start + 1];
            rest = &rest[start + 2..];
            let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
            let segment = rest.get(2..length)?;
            rest = &rest[length..];
            match marker {
                START_OF_SCAN => {
                    // In image data a 0xff stands before 0 or a restart marker only.
                    let complete = rest.windows(2).rev().any(|two| two == END);
                    let components = frame.get(5);
                    let several_scans = progressive || components != segment.first();
                    let (coefficients, scans) = if several_scans {
                        let starts = rest.windows(2).filter(|two| *two == [0xff, START_OF_SCAN]);
                        (coefficients(frame), 1 + starts.count())
                    } else {
                        (0, 1)
                    };
                    return Some(Self {
                        adobe,
                        complete,
                        orientation: orientation::from_exif(exif),
                        coefficients,
                        scans,
                    });
                }
                // Frames, less Huffman tables, arithmetic coding and what is reserved.
                0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                    (frame, progressive) = (segment, marker == PROGRESSIVE);
                }
                APP1 if exif.is_empty() && segment.starts_with(EXIF_MARK) => exif = segment,
                APP14 => adobe |= segment.starts_with(b"Adobe"),
                _ => {}
            }
        }
    }
}

/// Returns how many bytes the coefficients of a frame take, 16 bits each. A frame's header is precision,
/// height, width, the number of components and, of each, a number, its sampling and a table.
fn coefficients(frame: &[u8]) -> u64 {
    let &[_, h0, h1, w0, w1, _, ref components @ ..] = frame else {
        return 0;
    };
    let [height, width] = [[h0, h1], [w0, w1]].map(u16::from_be_bytes).map(u64::from);
    // Of one component alone the sampling does not count.
    let sampling = |component: &[u8; 3]| match components.len() {
        3 => [1, 1],
        _ => [component[1] >> 4, component[1] & 15].map(u64::from),
    };
    let sampling: Vec<[u64; 2]> = components.as_chunks().0.iter().map(sampling).collect();
    let most = |of: usize| sampling.iter().map(|all| all[of]).max().unwrap_or(1).max(1);
    let units = width.div_ceil(8 * most(0)) * height.div_ceil(8 * most(1));
    let blocks: u64 = sampling.iter().map(|[across, down]| across * down).sum();
    units * blocks * 64 * size_of::<i16>() as u64
}

#[cfg(test)]
mod tests {
    use image::codecs::webp::WebPEncoder;
    use image::{ExtendedColorType, ImageEncoder as _, RgbaImage};
    use safetensors::SafeTensors;

    use super::*;

    /// The file that `tests/reference/decode.py` made.
    const REFERENCE: &[u8] = include_bytes!("../../tests/data/decode.safetensors");

    fn file(name: &str) -> Vec<u8> {
        let reference = SafeTensors::deserialize(REFERENCE).unwrap();
        reference
            .tensor(&format!("{name}.file"))
            .unwrap()
            .data()
            .to_vec()
    }

    fn reason(bytes: &[u8]) -> String {
        match decode("cats/1.jpg", bytes) {
            Err(Error::Image { name, reason }) if name == "cats/1.jpg" => reason,
            other => panic!("{:?}", other.map(|picture| picture.dimensions())),
        }
    }

    #[test]
    fn every_kind_of_file_is_read_or_refused_as_tensorflow_does() {
        let reference = SafeTensors::deserialize(REFERENCE).unwrap();
        let mut names: Vec<&str> = reference
            .names()
            .iter()
            .filter_map(|name| name.strip_suffix(".file"))
            .collect();
        names.sort_unstable();
        assert_eq!(names.len(), 34);
        for name in names {
            let Ok(expected) = reference.tensor(&format!("{name}.pixels")) else {
                println!("{name}: {}", reason(&file(name)));
                continue;
            };
            let mut picture = decode(name, &file(name)).unwrap();
            if name == "jpeg exif rotation" {
                // TensorFlow leaves it as it lies.
                picture = image::imageops::rotate270(&picture);
            }
            let [height, width] = [picture.height() as usize, picture.width() as usize];
            assert_eq!([height, width, 3], expected.shape(), "{name}");
            let difference = picture
                .as_raw()
                .iter()
                .zip(expected.data())
                .map(|(a, b)| a.abs_diff(*b));
            // TensorFlow's fast inverse cosine transform is what the difference comes from.
            let allowed = if name.starts_with("jpeg") { 6 } else { 0 };
            let largest = difference.max().unwrap();
            println!("{name}: {largest}");
            assert!(largest <= allowed, "{name}: {largest} of 255");
        }
    }

    #[test]
    fn the_name_does_not_matter() {
        assert_eq!(
            decode("cat.jpg", &file("gif")).unwrap(),
            decode("cat.gif", &file("gif")).unwrap()
        );
    }

    #[test]
    fn a_truncated_jpeg_is_refused_as_such() {
        for name in [
            "jpeg no end",
            "jpeg truncated",
            "jpeg truncated with thumbnail",
            "jpeg header only",
        ] {
            let reason = reason(&file(name));
            assert!(reason.contains("truncated"), "{name}: {reason}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_as_such() {
        assert_eq!(reason(b""), "the file is empty");
        assert_eq!(
            reason(b"Some text.\n"),
            "not a JPEG, PNG, GIF, WebP or BMP file"
        );
    }

    #[test]
    fn no_cut_of_a_file_panics_or_passes_for_the_whole() {
        for name in ["jpeg", "jpeg progressive", "png", "gif", "webp", "bmp"] {
            let file = file(name);
            let whole = decode(name, &file).unwrap();
            for length in 0..file.len() {
                match decode(name, &file[..length]) {
                    Ok(picture) => assert_eq!(picture, whole, "{name} cut to {length} bytes"),
                    Err(error) => assert!(matches!(error, Error::Image { .. }), "{error}"),
                }
            }
        }
    }

    #[test]
    fn no_damaged_byte_panics() {
        for name in [
            "jpeg",
            "jpeg progressive",
            "jpeg cmyk plain",
            "png palette",
            "gif",
            "webp",
            "bmp",
        ] {
            let mut file = file(name);
            for i in 0..file.len() {
                for damage in [0xff, 0x80, 0x01] {
                    file[i] ^= damage;
                    if let Err(error) = decode(name, &file) {
                        assert!(matches!(error, Error::Image { .. }), "{error}");
                    }
                    file[i] ^= damage;
                }
            }
        }
    }

    #[test]
    fn a_header_of_50000_x_50000_is_refused_before_anything_is_allocated() {
        let mut jpeg = file("jpeg");
        let frame = jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&50_000_u16.to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&50_000_u16.to_be_bytes());
        assert_eq!(
            reason(&jpeg),
            "50000 x 50000 pixels take 7152 MiB to decode, and 512 MiB are allowed"
        );

        let mut png = file("png");
        png[16..20].copy_from_slice(&50_000_u32.to_be_bytes());
        png[20..24].copy_from_slice(&50_000_u32.to_be_bytes());
        let checksum = {
            let mut crc = flate2::Crc::new();
            crc.update(&png[12..29]);
            crc.sum()
        };
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        let expected = "50000 x 50000 pixels take 7152 MiB to decode";
        assert!(reason(&png).contains(expected), "{}", reason(&png));

        let mut bmp = file("bmp");
        bmp[18..22].copy_from_slice(&50_000_u32.to_le_bytes());
        bmp[22..26].copy_from_slice(&50_000_u32.to_le_bytes());
        assert!(reason(&bmp).contains(expected), "{}", reason(&bmp));

        let mut gif = file("gif");
        gif[6..8].copy_from_slice(&50_000_u16.to_le_bytes());
        gif[8..10].copy_from_slice(&50_000_u16.to_le_bytes());
        let expected = "50000 x 50000 pixels take 9536 MiB to decode";
        assert!(reason(&gif).contains(expected), "{}", reason(&gif));
    }

    #[test]
    fn a_side_that_is_longer_than_other_formats_have_is_refused() {
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        let encoded = encoder.write_image(&[0; 65_536], 1, 65_536, ExtendedColorType::L8);
        encoded.unwrap();
        assert_eq!(reason(&png), "1 x 65536 pixels: a side has at most 65535");
    }

    #[test]
    fn a_jpeg_of_more_scans_than_programs_write_is_refused() {
        let repeated = |mut file: Vec<u8>, count| {
            let start = file.windows(2).rposition(|two| two == [0xff, 0xda]);
            let scan = file[start.unwrap()..file.len() - 2].to_vec();
            file.truncate(file.len() - 2);
            file.extend(scan.repeat(count));
            [file, vec![0xff, 0xd9]].concat()
        };
        // One scan for each of three components, of 8 x 8 pixels: a code of one bit for each, and for the end of the block.
        let table = |kind: u8| [&[0xff, 0xc4, 0, 20, kind, 1][..], &[0; 16]].concat();
        let scan = |component| [0xff, 0xda, 0, 8, 1, component, 0, 0, 63, 0, 0x3f];
        let baseline = [
            &[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..],
            &[1; 64],
            &[0xff, 0xc0, 0, 17, 8, 0, 8, 0, 8, 3],
            &[1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0],
            &table(0x00),
            &table(0x10),
            &scan(1),
            &scan(2),
            &scan(3),
            &[0xff, 0xd9],
        ]
        .concat();
        for file in [file("jpeg progressive"), baseline] {
            decode("few", &repeated(file.clone(), 10)).unwrap();
            let reason = reason(&repeated(file, 100));
            assert!(reason.contains("more than 64 scans"), "{reason}");
        }
    }

    #[test]
    fn what_looks_like_scans_after_a_jpeg_does_not_count() {
        let video = [&[0xff, 0xda][..], &[0; 20_000]].concat().repeat(100);
        let file = file("jpeg progressive");
        let expected = decode("alone", &file).unwrap();
        assert_eq!(decode("both", &[file, video].concat()).unwrap(), expected);
    }

    /// The file that `tests/reference/orientation.py` made.
    const ORIENTATION: &[u8] = include_bytes!("../../tests/data/orientation.safetensors");

    #[test]
    fn images_are_turned_upright_as_by_pil() {
        let reference = SafeTensors::deserialize(ORIENTATION).unwrap();
        let names = reference.names();
        let names: Vec<&str> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".file"))
            .collect();
        assert_eq!(names.len(), 3 * 8 + 4);
        for name in names {
            let file = reference.tensor(&format!("{name}.file")).unwrap();
            let expected = reference.tensor(&format!("{name}.pixels")).unwrap();
            let picture = decode(name, file.data()).unwrap();
            let [height, width] = [picture.height() as usize, picture.width() as usize];
            assert_eq!([height, width, 3], expected.shape(), "{name}");
            let pairs = picture.as_raw().iter().zip(expected.data());
            let largest = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // What two decoders' inverse cosine transforms differ by.
            let lossy = name.starts_with("jpeg") || name.contains("lossy");
            println!("{name}: {largest}");
            assert!(largest <= 2 * u8::from(lossy), "{name}: {largest} of 255");
            assert_eq!(is_turned(file.data()), !name.ends_with('1'), "{name}");
        }
        for name in ["jpeg", "png", "gif", "webp", "bmp", "text"] {
            assert!(!is_turned(&file(name)), "{name}");
        }
    }

    #[test]
    fn alpha_of_a_webp_is_dropped_not_blended() {
        let picture = RgbaImage::from_pixel(3, 2, image::Rgba([200, 100, 50, 0]));
        let mut file = Vec::new();
        WebPEncoder::new_lossless(&mut file)
            .encode(picture.as_raw(), 3, 2, ExtendedColorType::Rgba8)
            .unwrap();
        assert_eq!(
            decode("alpha", &file).unwrap().get_pixel(1, 1).0,
            [200, 100, 50]
        );
    }
}
