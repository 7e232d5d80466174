//! What a WebP file's chunks tell before it is decoded. A chunk is name, length and data, padded to an
//! even length.

use std::iter::from_fn;

/// Returns the names and data of the chunks; of one that is cut off what there is of it.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    from_fn(move || {
        let (name, after) = rest.split_first_chunk()?;
        let (length, after) = after.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let next = length.saturating_add(length % 2).min(after.len());
        rest = &after[next..];
        Some((name, &after[..length.min(after.len())]))
    })
}

/// Returns the chunks of a file, which follow `RIFF`, its length and `WEBP`.
fn chunks_of(file: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    chunks(file.get(12..).unwrap_or_default())
}

/// Returns the EXIF data.
pub(super) fn exif(file: &[u8]) -> Option<&[u8]> {
    let mut chunks = chunks_of(file);
    chunks
        .find(|(name, _)| *name == b"EXIF")
        .map(|(_, data)| data)
}

/// Returns the most bytes that the decoder takes beside the image, of so many pixels. A lossy image has 12 bits a pixel, by
/// its own header: the decoder compares that with the file's only afterwards.
pub(super) fn bytes_beside(file: &[u8], pixels: u64) -> u64 {
    let (mut lossy, mut lossless, mut alpha, mut animation) = (0, 0, 0, 0);
    // The images of an animation follow 16 bytes about them.
    let images = chunks_of(file).flat_map(|(name, data)| {
        let within = chunks(data.get(16..).unwrap_or_default());
        let within = (name == b"ANMF").then_some(within).into_iter().flatten();
        within.chain([(name, data)])
    });
    for (name, data) in images {
        match (name, data) {
            (b"VP8 ", &[_, _, _, _, _, _, w0, w1, h0, h1, ..]) => {
                // The upper two bits are a scale.
                let side =
                    |bytes| u64::from(u16::from_le_bytes(bytes) & 0x3fff).next_multiple_of(16);
                lossy = lossy.max(side([w0, w1]) * side([h0, h1]) * 3 / 2);
            }
            // RGBA.
            (b"VP8L", _) => lossless = 4 * pixels,
            // It is green in RGBA, then alone.
            (b"ALPH", _) => alpha = 5 * pixels,
            // RGBA of the frame, which a lossless one is decoded into, and of what it is laid over.
            (b"ANMF", _) => animation = 8 * pixels,
            _ => {}
        }
    }
    lossy + alpha + lossless.max(animation)
}
