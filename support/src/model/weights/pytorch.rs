//! PyTorch's own files (`torch.save`, `.pth`): a zip archive since PyTorch 1.6, one pickle after the
//! other before, as torchvision's weights still are. libtorch's C++ reads neither.

use std::path::Path;

use pytorch_reader::{DType, PytorchReader};

use super::{Contents, Values};

/// Reads a saved `state_dict` under PyTorch's names.
pub(super) fn read(path: &Path) -> Result<Contents, String> {
    let file = PytorchReader::new(path)
        .map_err(|error| format!("neither HDF5, safetensors nor PyTorch's format ({error})"))?;
    let tensors = file.into_tensors().into_iter();
    let tensors: Vec<_> = tensors.filter(|(name, _)| !is_counter(name)).collect();
    // One stored value may stand for any number of them.
    let size = std::fs::metadata(path).map_or(0, |file| u128::from(file.len()));
    let product = |shape: &[usize]| shape.iter().map(|&size| size as u128).product::<u128>();
    let values = tensors.iter().map(|(_, tensor)| product(tensor.shape()));
    let bytes = values.fold(0, u128::saturating_add).saturating_mul(4);
    if bytes > size.saturating_mul(4) {
        return Err(format!(
            "expected no more values than the file has room for, got {bytes} bytes of them"
        ));
    }
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            if tensor.dtype() != DType::F32 {
                return Err(format!(
                    "{name}: expected type F32, got {:?}",
                    tensor.dtype()
                ));
            }
            let bytes = tensor
                .read()
                .map_err(|error| format!("{name}: damaged PyTorch file: {error}"))?;
            let values = bytes.as_chunks().0.iter();
            let values = Values {
                shape: tensor.shape().iter().map(|&size| size as i64).collect(),
                values: values.map(|&bytes| f32::from_ne_bytes(bytes)).collect(),
            };
            Ok((name, values))
        })
        .collect()
}

/// Returns whether a tensor only counts batches, which a batch normalization in PyTorch does.
pub(super) fn is_counter(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// Gives a network's tensors this crate's names. Those of the classification top, which start with
/// `top`, are passed over; one that has no name here keeps its own, under which it is refused.
pub(super) fn renamed(
    contents: Contents,
    top: &str,
    variable_name: fn(&str) -> Option<String>,
) -> Contents {
    let of_base = |(name, _): &(String, Values)| !name.starts_with(top);
    let name = |name: String| variable_name(&name).unwrap_or(name);
    let tensors = contents.into_iter().filter(of_base);
    tensors.map(|(own, values)| (name(own), values)).collect()
}

/// Returns this crate's name for a tensor of the layer `convolution`.
pub(in crate::model) fn kernel(convolution: &str, kind: &str) -> Option<String> {
    (kind == "weight").then(|| format!("{convolution}/kernel"))
}

/// Returns this crate's name for a tensor of the layer `batch_norm`.
pub(in crate::model) fn statistic(batch_norm: &str, kind: &str) -> Option<String> {
    let kind = match kind {
        "weight" => "gamma",
        "bias" => "beta",
        "running_mean" => "moving_mean",
        "running_var" => "moving_variance",
        _ => return None,
    };
    Some(format!("{batch_norm}/{kind}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two files of `tests/reference/torch_backbones.py`.
    const FILES: [(&str, &[u8]); 2] = [
        ("legacy", include_bytes!("../../../tests/data/legacy.pth")),
        ("zip", include_bytes!("../../../tests/data/zip.pth")),
    ];

    fn read_bytes(bytes: &[u8]) -> Result<Contents, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn both_formats_are_read_without_the_counters() {
        for (format, bytes) in FILES {
            let contents = read_bytes(bytes).unwrap();
            let names: Vec<&str> = contents.keys().map(String::as_str).collect();
            let expected = [
                "classifier.1.bias",
                "features.0.0.weight",
                "features.0.1.running_var",
            ];
            assert_eq!(names, expected, "{format}");
            // Saved as the transpose of what lies in memory.
            let weight = &contents["features.0.0.weight"];
            assert_eq!(weight.shape, [2, 3], "{format}");
            assert_eq!(weight.values, [0., 0.5, 1., 0.25, 0.75, 1.25], "{format}");
            let variance = &contents["features.0.1.running_var"];
            assert_eq!(variance.values, [0.5, -1.5], "{format}");
        }
    }

    #[test]
    fn a_file_is_refused_wherever_it_is_cut() {
        for (format, bytes) in FILES {
            for length in 0..bytes.len() {
                assert!(read_bytes(&bytes[..length]).is_err(), "{format}, {length}");
            }
        }
    }

    #[test]
    fn a_value_that_stands_for_very_many_is_refused() {
        // Shape and strides of a tensor, as `BININT1 2, BININT1 3, TUPLE2`.
        let mut bytes = FILES[0].1.to_vec();
        for (from, to) in [([2, 3], [255, 255]), ([1, 2], [0, 0])] {
            let tuple = |[a, b]: [u8; 2]| [b'K', a, b'K', b, 0x86];
            let at = bytes
                .windows(5)
                .position(|five| five == tuple(from))
                .unwrap();
            bytes[at..at + 5].copy_from_slice(&tuple(to));
        }
        let error = read_bytes(&bytes).err().unwrap();
        let expected = "expected no more values than the file has room for, got 2601";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn a_file_of_no_format_is_refused_with_those_that_are_read() {
        let error = read_bytes(b"GIF89a, a picture").err().unwrap();
        assert!(
            error.starts_with("neither HDF5, safetensors nor PyTorch's format ("),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_byte_does_not_panic_nor_ask_for_memory_without_end() {
        for (_, bytes) in FILES {
            for at in 0..bytes.len() {
                for damage in [0, 0x7f, 0xff] {
                    let mut bytes = bytes.to_vec();
                    bytes[at] ^= damage;
                    if let Ok(contents) = read_bytes(&bytes) {
                        let values = contents.values().map(|values| values.values.len());
                        assert!(values.sum::<usize>() < bytes.len());
                    }
                }
            }
        }
    }
}
