//! The names in the `state_dict` of torchvision's `mobilenet_v2`:
//!
//! | tensor | layer |
//! |---|---|
//! | `features.0.{0, 1}` | `Conv1`, `bn_Conv1` |
//! | `features.1.conv.{0.0, 0.1, 1, 2}` | `expanded_conv`: depthwise, project |
//! | `features.{k + 1}.conv.{0.0, 0.1, 1.0, 1.1, 2, 3}` | `block_{k}`: expand, depthwise, project |
//! | `features.18.{0, 1}` | `Conv_1`, `Conv_1_bn` |

use super::in_block;
use crate::model::weights::pytorch::{kernel, statistic};

const LAST_BLOCK: usize = 16;

/// Returns this crate's name for a tensor of the base.
pub(super) fn variable_name(name: &str) -> Option<String> {
    let (module, kind) = name.strip_prefix("features.")?.rsplit_once('.')?;
    match module {
        "0.0" => return kernel("Conv1", kind),
        "0.1" => return statistic("bn_Conv1", kind),
        "18.0" => return kernel("Conv_1", kind),
        "18.1" => return statistic("Conv_1_bn", kind),
        _ => {}
    }
    let (number, part) = module.split_once(".conv.")?;
    let block = number.parse::<usize>().ok()?.checked_sub(1)?;
    let (part, normalizes) = match (block, part) {
        (1..=LAST_BLOCK, "0.0") => ("expand", false),
        (1..=LAST_BLOCK, "0.1") => ("expand", true),
        (0, "0.0") | (1..=LAST_BLOCK, "1.0") => ("depthwise", false),
        (0, "0.1") | (1..=LAST_BLOCK, "1.1") => ("depthwise", true),
        (0, "1") | (1..=LAST_BLOCK, "2") => ("project", false),
        (0, "2") | (1..=LAST_BLOCK, "3") => ("project", true),
        _ => return None,
    };
    in_block(block, part, normalizes, kind)
}
