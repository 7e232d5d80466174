//! Writing a model file's network for programs in other languages.

use std::path::Path;

use super::Classifier;
use crate::files::write_whole;
use crate::model::onnx;
use crate::model::weights::Metadata;
use crate::{Error, Result};

impl Classifier {
    /// Saves the network as [ONNX](https://onnx.ai), opset 17, which ONNX Runtime, OpenVINO and others run without
    /// this library. The file appears whole or not at all.
    ///
    /// Its input `image` is `[batch, 3, size, size]`, 32-bit floats, of any number of images made as the file's
    /// [`input`](super::ModelInfo::input) says; its output `logits` is `[batch, outputs]`. The nodes have the
    /// layers' names. The metadata has one text, `model`: all that the model file [says](Self::info), as JSON, of
    /// which `docs/model_file.md` describes the fields. There stand the classes and the input, and the loss and
    /// the temperature that tell how logits become probabilities.
    ///
    /// What is not the network's is left to the program that runs it: making the images, probabilities, and whether
    /// an image is like those trained on. [Test-time augmentation](Self::with_test_time_augmentation) is no part of it.
    ///
    /// # Errors
    /// `Io` when the file cannot be written, `Torch` when libtorch fails.
    pub fn save_onnx(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut texts = Metadata::new();
        let written = self.info().write(&mut texts);
        written.map_err(|reason| Error::ModelFile {
            path: path.into(),
            reason,
        })?;
        write_whole(path, &onnx::model(self.model(), texts)?)
    }
}
