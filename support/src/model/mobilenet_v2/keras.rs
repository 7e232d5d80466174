//! The names in Keras' HDF5 files with a MobileNetV2 in them, in all the dialects that are about:
//!
//! | file | a dataset in it |
//! |---|---|
//! | Keras 2, weights or whole model | `.../block_1_expand/kernel:0` |
//! | Keras Applications' published weights | `.../mobl1_conv_1_expand/kernel:0`, `bn1_conv_1_bn_expand` |
//! | Keras 3, `.weights.h5` | `.../vars/0`, the layer's name in an attribute of `vars` |
//! | TF-Hub's module in a saved Keras model | `.../MobilenetV2/expanded_conv_1/expand/weights:0` |

use super::block_name;

/// Returns this crate's name for a dataset, or none when it is not part of the base network.
pub(super) fn variable_name(path: &str) -> Option<String> {
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
    Some(format!(
        "{}_{part}{suffix}",
        block_name(number.parse().ok()?)
    ))
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
            let layer = format!("{}_{part}", block_name(number.parse().ok()?));
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
