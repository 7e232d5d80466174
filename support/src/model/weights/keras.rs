//! Keras' HDF5 files with a MobileNetV2 in them, in all the dialects that are about:
//!
//! | file | a dataset in it |
//! |---|---|
//! | Keras 2, weights or whole model | `.../block_1_expand/kernel:0` |
//! | Keras Applications' published weights | `.../mobl1_conv_1_expand/kernel:0`, `bn1_conv_1_bn_expand` |
//! | Keras 3, `.weights.h5` | `.../vars/0`, the layer's name in an attribute of `vars` |
//! | TF-Hub's module in a saved Keras model | `.../MobilenetV2/expanded_conv_1/expand/weights:0` |

use hdf5_reader::group::Group;
use hdf5_reader::{Hdf5File, OpenOptions};

use super::{Contents, Values};
use crate::Result;

/// Depth of groups that a real file never reaches.
const MAX_DEPTH: usize = 16;

/// Reads the base network's tensors; whatever else the file holds (a classification top,
/// another head, an optimizer's state) is passed over.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, String> {
    let damaged = |error: hdf5_reader::error::Error| format!("damaged HDF5 file: {error}");
    // Keras compresses nothing, so that a file is as large as what it holds.
    let most = bytes.len().saturating_mul(4);
    let limits = OpenOptions {
        max_chunk_bytes: most,
        max_read_bytes: most,
        max_object_header_bytes: bytes.len(),
        ..OpenOptions::default()
    };
    let file = Hdf5File::from_bytes_with_options(bytes, limits).map_err(damaged)?;
    let mut contents = Contents::new();
    let root = file.root_group().map_err(damaged)?;
    read_group(&root, "", 0, &mut Budget(most), &mut contents)?;
    Ok(contents)
}

/// How many more bytes of values are read: many datasets without data can claim any number of them.
struct Budget(usize);

fn read_group(
    group: &Group,
    path: &str,
    depth: usize,
    budget: &mut Budget,
    contents: &mut Contents,
) -> Result<(), String> {
    let in_group = |error: hdf5_reader::error::Error| format!("damaged HDF5 file: {path}: {error}");
    let (groups, datasets) = group.member_names().map_err(in_group)?;
    // Keras 3 numbers a layer's variables; the layer's own name is an attribute.
    let keras_3_layer = group
        .attribute("name")
        .ok()
        .and_then(|name| name.read_string().ok());
    for dataset in datasets {
        let name = match &keras_3_layer {
            Some(layer) => keras_3_name(layer, &dataset),
            None => variable_name(&format!("{path}/{dataset}")),
        };
        if let Some(name) = name {
            let values = read_values(group, &dataset, &name)?;
            let bytes = values.values.len() * size_of::<f32>();
            let left = budget.0.checked_sub(bytes);
            budget.0 = left.ok_or("expected no more values than the file has room for")?;
            if contents.insert(name.clone(), values).is_some() {
                return Err(format!("{name} occurs twice"));
            }
        }
    }
    for name in groups.iter().filter(|_| depth < MAX_DEPTH) {
        let child = group.group(name).map_err(in_group)?;
        read_group(
            &child,
            &format!("{path}/{name}"),
            depth + 1,
            budget,
            contents,
        )?;
    }
    Ok(())
}

/// Reads a dataset into libtorch's order of dimensions.
fn read_values(group: &Group, dataset: &str, name: &str) -> Result<Values, String> {
    let array = group
        .dataset(dataset)
        .and_then(|dataset| dataset.read_array::<f32>())
        .map_err(|error| format!("{name}: expected readable 32-bit floats: {error}"))?;
    let array = match array.ndim() {
        // Keras: (height, width, in, out), depthwise (height, width, channels, 1).
        4 if name.ends_with("depthwise/kernel") => array.permuted_axes(&[2, 3, 0, 1][..]),
        4 => array.permuted_axes(&[3, 2, 0, 1][..]),
        _ => array,
    };
    let shape = array.shape().iter().map(|&size| size as i64).collect();
    Ok(Values {
        shape,
        values: array.iter().copied().collect(),
    })
}

/// Returns this crate's name for a dataset, or none when it is not part of the base network.
fn variable_name(path: &str) -> Option<String> {
    let path = path.strip_suffix(":0").unwrap_or(path);
    if path.starts_with("/optimizer_weights") {
        return None;
    }
    if let Some((_, module_path)) = path.split_once("/MobilenetV2/") {
        return tf_hub_name(module_path);
    }
    let mut parts = path.rsplit('/');
    let (kind, layer) = (parts.next()?, parts.next()?);
    let kind = if kind == "depthwise_kernel" {
        "kernel"
    } else {
        kind
    };
    Some(format!("{}/{kind}", layer_name(layer)?))
}

/// Returns today's name of a layer that may have its old one, or none when it is not of the base.
fn layer_name(layer: &str) -> Option<String> {
    if ["Conv1", "bn_Conv1", "Conv_1", "Conv_1_bn"].contains(&layer)
        || layer.starts_with("block_")
        || layer.starts_with("expanded_conv_")
    {
        return Some(layer.into());
    }
    // mobl{k}_conv_{k}_{part} and bn{k}_conv_{k}_bn_{part}
    let (block_and_kind, part) = layer.rsplit_once('_')?;
    let (number, suffix) = match block_and_kind.strip_prefix("mobl") {
        Some(rest) => (rest.split_once("_conv_")?.0, ""),
        None => (
            block_and_kind.strip_prefix("bn")?.split_once("_conv_")?.0,
            "_BN",
        ),
    };
    Some(format!("{}_{part}{suffix}", block_name(number)))
}

/// Returns the prefix of block `number`'s layers.
fn block_name(number: &str) -> String {
    if number == "0" {
        "expanded_conv".into()
    } else {
        format!("block_{number}")
    }
}

/// `Conv/weights`, `Conv_1/BatchNorm/beta`, `expanded_conv_3/project/BatchNorm/gamma`, ...
fn tf_hub_name(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let (layer, batch_norm, rest) = match parts.as_slice() {
        ["Conv", rest @ ..] => ("Conv1".into(), "bn_Conv1".into(), rest),
        ["Conv_1", rest @ ..] => ("Conv_1".into(), "Conv_1_bn".into(), rest),
        [block, part, rest @ ..] => {
            let number = block
                .strip_prefix("expanded_conv")?
                .strip_prefix('_')
                .unwrap_or("0");
            let layer = format!("{}_{part}", block_name(number));
            (layer.clone(), format!("{layer}_BN"), rest)
        }
        _ => return None,
    };
    match rest {
        ["weights" | "depthwise_weights"] => Some(format!("{layer}/kernel")),
        ["BatchNorm", kind] => Some(format!("{batch_norm}/{kind}")),
        _ => None,
    }
}

/// Returns the name of a layer's variable by its number in Keras 3's files.
fn keras_3_name(layer: &str, number: &str) -> Option<String> {
    let layer = layer_name(layer)?;
    let kinds: &[&str] = if layer.to_lowercase().contains("bn") {
        &["gamma", "beta", "moving_mean", "moving_variance"]
    } else {
        &["kernel"]
    };
    let kind = kinds.get(number.parse::<usize>().ok()?)?;
    Some(format!("{layer}/{kind}"))
}

#[cfg(test)]
mod tests {
    use super::variable_name;

    #[test]
    fn dialects_name_the_same_variables() {
        let same = [
            (
                "/Conv1/Conv1/kernel:0",
                "/model_weights/keras_layer/MobilenetV2/Conv/weights:0",
            ),
            (
                "/bn_Conv1/bn_Conv1/gamma:0",
                "/MobilenetV2/Conv/BatchNorm/gamma:0",
            ),
            (
                "/Conv_1_bn/Conv_1_bn/moving_mean:0",
                "/m/MobilenetV2/Conv_1/BatchNorm/moving_mean:0",
            ),
            (
                "/mobl0_conv_0_depthwise/mobl0_conv_0_depthwise/depthwise_kernel:0",
                "/m/MobilenetV2/expanded_conv/depthwise/depthwise_weights:0",
            ),
            (
                "/block_16_project_BN/block_16_project_BN/beta:0",
                "/m/MobilenetV2/expanded_conv_16/project/BatchNorm/beta:0",
            ),
            (
                "/bn16_conv_16_bn_project/bn16_conv_16_bn_project/beta:0",
                "/m/MobilenetV2/expanded_conv_16/project/BatchNorm/beta:0",
            ),
        ];
        for (keras, tf_hub) in same {
            assert_eq!(variable_name(keras), variable_name(tf_hub), "{keras}");
            assert!(variable_name(keras).is_some(), "{keras}");
        }
    }

    #[test]
    fn tensors_of_other_parts_are_passed_over() {
        for path in [
            "/model_weights/dense/dense/kernel:0",
            "/predictions/predictions/bias:0",
            "/optimizer_weights/Adam/m/dense/kernel:0",
            "/optimizer_weights/Adam/m/Conv1/kernel:0",
        ] {
            assert_eq!(variable_name(path), None, "{path}");
        }
    }
}
