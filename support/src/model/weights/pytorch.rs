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
    let tensors = tensors.filter(|(name, _)| !is_counter(name));
    tensors
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

/// Gives a network's tensors this crate's names. Those of a classification top are passed over; one
/// that has no name here keeps its own, under which it is refused.
pub(super) fn renamed(contents: Contents, variable_name: fn(&str) -> Option<String>) -> Contents {
    let of_base = |(name, _): &(String, Values)| !name.starts_with("classifier.");
    let name = |name: String| variable_name(&name).unwrap_or(name);
    let tensors = contents.into_iter().filter(of_base);
    tensors.map(|(own, values)| (name(own), values)).collect()
}

/// Returns this crate's name for a tensor of the layer `convolution`.
pub(super) fn kernel(convolution: &str, kind: &str) -> Option<String> {
    (kind == "weight").then(|| format!("{convolution}/kernel"))
}

/// Returns this crate's name for a tensor of the layer `batch_norm`.
pub(super) fn statistic(batch_norm: &str, kind: &str) -> Option<String> {
    let kind = match kind {
        "weight" => "gamma",
        "bias" => "beta",
        "running_mean" => "moving_mean",
        "running_var" => "moving_variance",
        _ => return None,
    };
    Some(format!("{batch_norm}/{kind}"))
}

/// Returns this crate's name for a tensor of a block's part: `expand`, `depthwise` or `project`.
pub(super) fn in_block(block: usize, part: &str, normalizes: bool, kind: &str) -> Option<String> {
    let prefix = match block {
        0 => "expanded_conv".into(),
        _ => format!("block_{block}"),
    };
    if normalizes {
        statistic(&format!("{prefix}_{part}_BN"), kind)
    } else {
        kernel(&format!("{prefix}_{part}"), kind)
    }
}
