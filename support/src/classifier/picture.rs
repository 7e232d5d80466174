//! An image to classify.

use std::path::{Path, PathBuf};

use image::RgbImage;

use super::Input;
use crate::files::read_image_file;
use crate::pipeline::{Pixels, decode, readable};
use crate::training::TestTimeAugmentation;
use crate::{Error, Result};

/// An image to classify: a path, an image file's bytes, or pixels become one by themselves.
#[derive(Clone, Debug)]
pub enum Image {
    /// A file of a format that [`decode`] reads.
    File(PathBuf),
    /// Such a file's bytes.
    Encoded(Vec<u8>),
    /// An image.
    Image(RgbImage),
}

impl Image {
    /// Makes it into what a network takes, and the variants of it that test-time augmentation draws.
    pub(super) fn load(
        &self,
        input: &Input,
        with: Option<&TestTimeAugmentation>,
    ) -> Result<Vec<Pixels>> {
        let format = |image: &RgbImage| match with {
            None => Ok(vec![input.format(image)]),
            Some(with) => with.images(image, |image| input.format(image)),
        };
        let decoded = |name: &str, bytes: &[u8]| format(&readable(name, || decode(name, bytes))?);
        match self {
            Self::File(path) => {
                let bytes = read_image_file(path)?;
                decoded(&path.display().to_string(), &bytes)
            }
            Self::Encoded(bytes) => decoded("in memory", bytes),
            Self::Image(image) if image.is_empty() => Err(Error::Image {
                name: "in memory".into(),
                reason: "it has no pixels".into(),
            }),
            Self::Image(image) => format(image),
        }
    }
}

impl From<&Path> for Image {
    fn from(path: &Path) -> Self {
        Self::File(path.into())
    }
}

impl From<PathBuf> for Image {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for Image {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&str> for Image {
    fn from(path: &str) -> Self {
        Self::File(path.into())
    }
}

impl From<String> for Image {
    fn from(path: String) -> Self {
        Self::File(path.into())
    }
}

impl From<&[u8]> for Image {
    fn from(bytes: &[u8]) -> Self {
        Self::Encoded(bytes.into())
    }
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Encoded(bytes)
    }
}

impl From<RgbImage> for Image {
    fn from(image: RgbImage) -> Self {
        Self::Image(image)
    }
}

impl From<&RgbImage> for Image {
    fn from(image: &RgbImage) -> Self {
        Self::Image(image.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Resize;

    const INPUT: Input = Input {
        size: 2,
        resize: Resize::Bilinear,
        mean: [0.; 3],
        std: [1.; 3],
    };

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.jpg");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let loaded = crate::classifier::Classifier::load(&pipe).map(drop);
        let weights = crate::model::weights::read(&pipe).map(drop);
        let picture = Image::from(pipe).load(&INPUT, None).map(drop);
        for read in [picture, loaded, weights] {
            let error = read.unwrap_err().to_string();
            assert!(error.ends_with("it is no regular file"), "{error}");
        }
    }

    #[test]
    fn samples_behind_a_images_last_are_passed_over() {
        let longer = RgbImage::from_raw(2, 2, vec![255; 100]).unwrap();
        let [pixels] = Image::from(longer)
            .load(&INPUT, None)
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(pixels.into_values(), [1.; 12]);
    }
}
