//! Weight files: reading several formats into a network's variables, writing safetensors.
//!
//! A reader turns a file into named tensors in this crate's names and order of dimensions;
//! one function then checks the whole set against the network before anything is changed.

mod hdf5;
pub(super) mod pytorch;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::Tensor;

use super::architecture::{Architecture, Dialect, dialects};
use super::layer::Variable;
use super::origin::Weights;
use crate::files::{read_regular, write_whole};
use crate::{Error, Result};

/// A tensor's shape and values, as read from a file.
pub(crate) struct Values {
    shape: Vec<i64>,
    values: Vec<f32>,
}

impl Values {
    /// Checks that the shape is this one and that all values are finite.
    pub(crate) fn check(&self, name: &str, expected: &[i64]) -> Result<(), String> {
        let Self { shape, values } = self;
        if shape != expected {
            return Err(format!(
                "{name}: expected shape {expected:?}, got {shape:?}"
            ));
        }
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("{name} holds the value {value}")),
            None => Ok(()),
        }
    }

    /// Returns them as a tensor, on the CPU.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        Tensor::f_from_slice(&self.values)
            .and_then(|values| values.f_reshape(&self.shape))
            .map_err(Error::torch("reading a tensor"))
    }
}

/// What a file holds, by variable name. Tensors that belong to other parts of a network, which
/// the file may well hold, are not in it.
pub(crate) type Contents = BTreeMap<String, Values>;

/// The texts beside the tensors of a safetensors file, by name.
pub(crate) type Metadata = HashMap<String, String>;

const HDF5_SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The key in a safetensors file's metadata under which the weights' origin stands.
pub(crate) const ORIGIN: &str = "pretrained weights";

/// What the names of a model file's tensors start with that are no weights, see `docs/model_file.md`.
pub(crate) const NOVELTY: &str = "novelty/";

/// A file's tensors, and where they come from as far as it tells.
pub(crate) struct File {
    path: PathBuf,
    contents: Contents,
    origin: Option<Weights>,
}

/// Reads a file of any of the formats.
pub(crate) fn read(path: &Path) -> Result<File> {
    let bytes = read_regular(path)?;
    let read = if bytes.starts_with(HDF5_SIGNATURE) {
        read_hdf5(&bytes)
    } else if bytes.get(8) == Some(&b'{') {
        read_safetensors(&bytes).and_then(|(mut contents, metadata)| {
            contents.retain(|name, _| !name.starts_with(NOVELTY));
            let origin = metadata.get(ORIGIN).map(|name| name.parse());
            let origin = origin.transpose().map_err(|error: Error| error.to_string());
            Ok(of_state_dict(contents, origin?))
        })
    } else {
        pytorch::read(path).map(|contents| of_state_dict(contents, None))
    };
    let (contents, origin) = read.map_err(|reason| Error::Weights {
        path: path.into(),
        reason,
    })?;
    Ok(File {
        path: path.into(),
        contents,
        origin,
    })
}

/// Reads the tensors of the first family that the file has any of.
fn read_hdf5(bytes: &[u8]) -> Result<(Contents, Option<Weights>), String> {
    for dialect in dialects() {
        if let &Dialect::Hdf5 { weights, name } = dialect {
            let contents = hdf5::read(bytes, name)?;
            if !contents.is_empty() {
                return Ok((contents, Some(weights)));
            }
        }
    }
    Ok((Contents::new(), None))
}

/// Gives the tensors of a `state_dict` this crate's names; those that are in no dialect have them.
fn of_state_dict(contents: Contents, origin: Option<Weights>) -> (Contents, Option<Weights>) {
    for dialect in dialects() {
        if let &Dialect::StateDict {
            weights,
            mark,
            top,
            name,
        } = dialect
            && contents.contains_key(mark)
        {
            return (pytorch::renamed(contents, top, name), Some(weights));
        }
    }
    (contents, origin)
}

impl File {
    /// Returns where the weights come from; files that do not tell are of the default's kind.
    pub(super) fn origin(&self) -> Weights {
        self.origin.unwrap_or_default()
    }

    /// Returns the network that the tensors are for, and their origin: where a dialect is that of
    /// several, the one of this network.
    ///
    /// # Errors
    /// `Weights` when the family of their origin has none of their shapes.
    pub(super) fn network(&self) -> Result<(Architecture, Weights)> {
        let shape = |name: &str| {
            let values = self.contents.get(name);
            values.map(|values| values.shape.as_slice())
        };
        let origin = self.origin();
        let found = origin.architecture().family().of_file(&shape);
        let found = found.map_err(|reason| self.refused(reason))?;
        let is_of_found = |weights: &Weights| weights.architecture() == found;
        let weights = [origin].into_iter().chain(Weights::all()).find(is_of_found);
        Ok((found, weights.unwrap_or(origin)))
    }

    fn refused(&self, reason: String) -> Error {
        Error::Weights {
            path: self.path.clone(),
            reason,
        }
    }

    /// Copies the tensors into `variables`, all of them or, on an error, none.
    pub(super) fn assign<'a>(
        self,
        variables: impl Iterator<Item = &'a mut Variable>,
    ) -> Result<()> {
        let Self { path, contents, .. } = self;
        assign(contents, variables.collect()).map_err(|reason| Error::Weights { path, reason })
    }
}

/// Reads `path` into `variables` of a network with weights of `origin`, all of them or, on an error,
/// none.
pub(super) fn load<'a>(
    path: &Path,
    origin: Weights,
    variables: impl Iterator<Item = &'a mut Variable>,
) -> Result<()> {
    let file = read(path)?;
    let of_file = file.origin();
    if of_file.conventions() != origin.conventions() {
        return Err(file.refused(format!(
            "expected weights that go with {origin}'s conventions, got {of_file}'s: make the network \
             with Weights of that name"
        )));
    }
    file.assign(variables)
}

/// Checks that names and shapes match one to one and that all values are finite, then copies.
pub(crate) fn assign(mut contents: Contents, variables: Vec<&mut Variable>) -> Result<(), String> {
    let mut assignments = Vec::with_capacity(variables.len());
    for variable in variables {
        let name = variable.name();
        let found = contents
            .remove(name)
            .ok_or_else(|| format!("{name} is missing"))?;
        found.check(name, &variable.value().size())?;
        let value = found.tensor().map_err(|error| error.to_string())?;
        assignments.push((value, variable));
    }
    if let Some(name) = contents.keys().next() {
        return Err(format!("{name} does not belong to this network"));
    }
    for (value, variable) in assignments {
        variable.assign(&value).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Reads the tensors of a safetensors file and the texts beside them.
pub(crate) fn read_safetensors(bytes: &[u8]) -> Result<(Contents, Metadata), String> {
    let damaged = |error| format!("damaged safetensors file: {error}");
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let mut contents = Contents::new();
    for (name, view) in file.iter().filter(|(name, _)| !pytorch::is_counter(name)) {
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
    Ok((contents, metadata))
}

/// Writes `variables` and the origin of the base's weights to `path` as safetensors, under a temporary
/// name first.
pub(super) fn save<'a>(
    path: &Path,
    origin: Weights,
    variables: impl Iterator<Item = &'a Variable>,
) -> Result<()> {
    let tensors = variables.map(|variable| (variable.name().to_owned(), variable.value()));
    let metadata = Metadata::from([(ORIGIN.into(), origin.to_string())]);
    write(path, tensors, metadata)
}

/// Writes tensors, and texts beside them, to `path` as safetensors, under a temporary name first.
pub(crate) fn write<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, &'a Tensor)>,
    metadata: Metadata,
) -> Result<()> {
    let mut written = Vec::new();
    for (name, tensor) in tensors {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        written.push((name, shape, little_endian(tensor)?));
    }
    let views = written
        .iter()
        .map(|(name, shape, bytes): &(_, Vec<usize>, _)| {
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        });
    let bytes = views
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|error| Error::Weights {
            path: path.into(),
            reason: error.to_string(),
        })?;
    write_whole(path, &bytes)
}

/// Returns the values as bytes of 32-bit floats.
pub(super) fn little_endian(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = Vec::<f32>::try_from(tensor.detach().to_device(tch::Device::Cpu).reshape([-1]))
        .map_err(Error::torch("reading a variable"))?;
    Ok(values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect())
}
