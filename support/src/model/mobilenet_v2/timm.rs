//! The names in the `state_dict` of timm's `mobilenetv2_{035, 050, 075, 100, 140}` (those that end in `d`
//! have more blocks):
//!
//! | tensor | layer |
//! |---|---|
//! | `conv_stem`, `bn1` | `Conv1`, `bn_Conv1` |
//! | `blocks.0.0.{conv_dw, bn1, conv_pw, bn2}` | `expanded_conv`: depthwise, project |
//! | `blocks.{row}.{repeat}.{conv_pw, bn1, conv_dw, bn2, conv_pwl, bn3}` | `block_{k}`: expand, depthwise, project |
//! | `conv_head`, `bn2` | `Conv_1`, `Conv_1_bn` |

use super::{INVERTED_RESIDUALS, in_block};
use crate::model::weights::pytorch::{kernel, statistic};

/// Returns this crate's name for a tensor of the base.
pub(super) fn variable_name(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    match module {
        "conv_stem" => return kernel("Conv1", kind),
        "bn1" => return statistic("bn_Conv1", kind),
        "conv_head" => return kernel("Conv_1", kind),
        "bn2" => return statistic("Conv_1_bn", kind),
        _ => {}
    }
    let mut parts = module.strip_prefix("blocks.")?.splitn(3, '.');
    let mut number = || parts.next()?.parse::<usize>().ok();
    let (row, repeat) = (number()?, number()?);
    let (_, _, repeats, _) = INVERTED_RESIDUALS.get(row)?;
    let before = INVERTED_RESIDUALS[..row].iter();
    let before: usize = before.map(|(_, _, repeats, _)| repeats).sum();
    let (part, normalizes) = match (row, parts.next()?) {
        (1.., "conv_pw") => ("expand", false),
        (1.., "bn1") => ("expand", true),
        (_, "conv_dw") => ("depthwise", false),
        (0, "bn1") | (1.., "bn2") => ("depthwise", true),
        (0, "conv_pw") | (1.., "conv_pwl") => ("project", false),
        (0, "bn2") | (1.., "bn3") => ("project", true),
        _ => return None,
    };
    (repeat < *repeats).then_some(())?;
    in_block(before + repeat, part, normalizes, kind)
}
