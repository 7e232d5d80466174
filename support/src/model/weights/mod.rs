//! Weight files: reading several formats into a network's variables, writing safetensors.
//!
//! A reader turns a file into named tensors in this crate's names and order of dimensions;
//! one function then checks the whole set against the network before anything is changed.

mod keras;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::Tensor;

use super::layer::Variable;
use crate::{Error, Result};

/// A tensor's shape and values, as read from a file.
struct Values {
    shape: Vec<i64>,
    values: Vec<f32>,
}

/// What a file holds, by variable name. Tensors that belong to other parts of a network, which
/// the file may well hold, are not in it.
type Contents = BTreeMap<String, Values>;

const HDF5_SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

/// Reads `path` into `variables`, all of them or, on an error, none.
pub(super) fn load<'a>(
    path: &Path,
    variables: impl Iterator<Item = &'a mut Variable>,
) -> Result<()> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let contents = if bytes.starts_with(HDF5_SIGNATURE) {
        keras::read(&bytes)
    } else {
        read_safetensors(&bytes)
    };
    contents
        .and_then(|contents| assign(contents, variables.collect()))
        .map_err(|reason| Error::Weights {
            path: path.into(),
            reason,
        })
}

/// Checks that names and shapes match one to one and that all values are finite, then copies.
fn assign(mut contents: Contents, variables: Vec<&mut Variable>) -> Result<(), String> {
    let mut assignments = Vec::with_capacity(variables.len());
    for variable in variables {
        let name = variable.name();
        let Values { shape, values } = contents
            .remove(name)
            .ok_or_else(|| format!("{name} is missing"))?;
        let expected = variable.value().size();
        if shape != expected {
            return Err(format!(
                "{name}: expected shape {expected:?}, got {shape:?}"
            ));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("{name} holds the value {value}"));
        }
        assignments.push((Tensor::from_slice(&values).reshape(shape), variable));
    }
    if let Some(name) = contents.keys().next() {
        return Err(format!("{name} does not belong to this network"));
    }
    for (value, variable) in assignments {
        variable.assign(&value).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn read_safetensors(bytes: &[u8]) -> Result<Contents, String> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("neither HDF5 nor safetensors ({error})"))?;
    let mut contents = Contents::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(format!("{name}: expected type F32, got {:?}", view.dtype()));
        }
        let values = view
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let shape = view.shape().iter().map(|&size| size as i64).collect();
        contents.insert(
            name.into(),
            Values {
                shape,
                values: values.collect(),
            },
        );
    }
    Ok(contents)
}

/// Writes `variables` to `path` as safetensors, under a temporary name first.
pub(super) fn save<'a>(path: &Path, variables: impl Iterator<Item = &'a Variable>) -> Result<()> {
    let mut tensors = Vec::new();
    for variable in variables {
        let shape = variable
            .value()
            .size()
            .iter()
            .map(|&size| size as usize)
            .collect();
        tensors.push((variable.name(), shape, little_endian(variable.value())?));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes): &(_, Vec<usize>, _)| {
            Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        });
    let bytes = views
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|error| Error::Weights {
            path: path.into(),
            reason: error.to_string(),
        })?;

    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder))?;
    file.write_all(&bytes).map_err(Error::io("write", path))?;
    file.persist(path)
        .map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}

fn little_endian(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = Vec::<f32>::try_from(tensor.detach().to_device(tch::Device::Cpu).reshape([-1]))
        .map_err(Error::torch("reading a variable"))?;
    Ok(values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect())
}
