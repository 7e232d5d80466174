//! Keras' HDF5 files, with a family's own names for the data sets in them.

use hdf5_reader::group::Group;
use hdf5_reader::{Hdf5File, OpenOptions};

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
    // Keras compresses nothing, so that a file is as large as what it holds.
    let most = bytes.len().saturating_mul(4);
    let limits = OpenOptions {
        max_chunk_bytes: most,
        max_read_bytes: most,
        max_object_header_bytes: bytes.len(),
        ..OpenOptions::default()
    };
    let file = Hdf5File::from_bytes_with_options(bytes, limits).map_err(damaged)?;
    let root = file.root_group().map_err(damaged)?;
    let mut reading = Reading {
        name,
        left: most,
        contents: Contents::new(),
    };
    reading.group(&root, "", 0)?;
    Ok(reading.contents)
}

struct Reading {
    name: Name,
    /// How many more bytes of values are read: many data sets without data can claim any number of them.
    left: usize,
    contents: Contents,
}

impl Reading {
    fn group(&mut self, group: &Group, path: &str, depth: usize) -> Result<(), String> {
        let in_group =
            |error: hdf5_reader::error::Error| format!("damaged HDF5 file: {path}: {error}");
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
            if let Some(name) = path.as_deref().and_then(self.name) {
                let values = read_values(group, &dataset, &name)?;
                let bytes = values.values.len() * size_of::<f32>();
                let left = self.left.checked_sub(bytes);
                self.left = left.ok_or("expected no more values than the file has room for")?;
                if self.contents.insert(name.clone(), values).is_some() {
                    return Err(format!("{name} occurs twice"));
                }
            }
        }
        for name in groups.iter().filter(|_| depth < MAX_DEPTH) {
            let child = group.group(name).map_err(in_group)?;
            self.group(&child, &format!("{path}/{name}"), depth + 1)?;
        }
        Ok(())
    }
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
