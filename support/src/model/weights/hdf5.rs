//! Keras' HDF5 files, with a family's own names for the data sets in them.

use hdf5_reader::Hdf5File;
use hdf5_reader::group::Group;

use super::{Contents, Values};
use crate::Result;

/// Depth of groups that a real file never reaches.
const MAX_DEPTH: usize = 16;

/// Gives this crate's name for a data set's path, or none where it is not of the base.
type Name = fn(&str) -> Option<String>;

/// Reads the tensors that `name` gives names; whatever else the file holds (a classification top,
/// another head, an optimizer's state) is passed over.
pub(super) fn read(bytes: &[u8], name: Name) -> Result<Contents, String> {
    let damaged = |error: hdf5_reader::error::Error| format!("damaged HDF5 file: {error}");
    let file = Hdf5File::from_bytes(bytes).map_err(damaged)?;
    let mut contents = Contents::new();
    read_group(
        &file.root_group().map_err(damaged)?,
        "",
        0,
        name,
        &mut contents,
    )?;
    Ok(contents)
}

fn read_group(
    group: &Group,
    path: &str,
    depth: usize,
    name_of: Name,
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
        let path = match &keras_3_layer {
            Some(layer) => keras_3_path(layer, &dataset),
            None => Some(format!("{path}/{dataset}")),
        };
        if let Some(name) = path.as_deref().and_then(name_of) {
            let values = read_values(group, &dataset, &name)?;
            if contents.insert(name.clone(), values).is_some() {
                return Err(format!("{name} occurs twice"));
            }
        }
    }
    for name in groups.iter().filter(|_| depth < MAX_DEPTH) {
        let child = group.group(name).map_err(in_group)?;
        let path = format!("{path}/{name}");
        read_group(&child, &path, depth + 1, name_of, contents)?;
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

/// Returns the path that a layer's variable would have in Keras 2's files, by its number in Keras 3's.
fn keras_3_path(layer: &str, number: &str) -> Option<String> {
    let kinds: &[&str] = if layer.to_lowercase().contains("bn") {
        &["gamma", "beta", "moving_mean", "moving_variance"]
    } else {
        &["kernel"]
    };
    let kind = kinds.get(number.parse::<usize>().ok()?)?;
    Some(format!("/{layer}/{kind}"))
}
