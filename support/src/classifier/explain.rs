//! Where in an image a classifier sees the class that it takes it for.

use super::predict::PreparedImage;
use super::{Classification, Classifier, Image};
use crate::analysis::explanation;
use crate::pipeline::{Pixels, stack};
use crate::{Error, Result};

/// A classification, and how much each part of the image speaks for its class.
///
/// [`overlay`](Self::overlay) draws it.
#[derive(Clone, Debug)]
pub struct Explained {
    classification: Classification,
    pixels: Pixels,
    map: Vec<f32>,
}

impl Explained {
    /// Returns what the image is taken for.
    #[must_use]
    pub fn classification(&self) -> &Classification {
        &self.classification
    }

    /// Returns the image as the network takes it.
    #[must_use]
    pub fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// Returns how much each pixel of it speaks for the class, from 0 to 1, row by row. All are 0 where nothing does.
    #[must_use]
    pub fn map(&self) -> &[f32] {
        &self.map
    }
}

impl Classifier {
    /// Classifies an image and tells where in it the class comes from, as
    /// [`Sequential::explain`](crate::model::Sequential::explain) does. Of several variants of the image, which
    /// test-time augmentation draws, the map is that of the image itself.
    ///
    /// # Errors
    /// `Io` or `Image` when it cannot be read, `Torch` when libtorch fails.
    pub fn explain(&self, picture: impl Into<Image>) -> Result<Explained> {
        self.explain_prepared(self.prepare(picture)?)
    }

    /// Does the same for an image that was [prepared](Self::prepare).
    ///
    /// # Errors
    /// As [`predict_prepared`](Self::predict_prepared).
    pub fn explain_prepared(&self, image: PreparedImage) -> Result<Explained> {
        let pixels = image.as_it_is().cloned().ok_or_else(|| Error::Image {
            name: "in memory".into(),
            reason: "it has no pixels".into(),
        })?;
        let classification = self.predict_prepared(vec![image])?.remove(0);
        let images = stack(vec![pixels.clone()])?;
        let loss = self.info().loss;
        let map = explanation(self.model(), &images, classification.index, loss)?;
        Ok(Explained {
            classification,
            pixels,
            map,
        })
    }
}
