//! Layers computed by [OpenVINO](https://docs.openvino.ai), whose library is loaded at run time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{env, fs, slice};

use libloading::Library;
use openvino::{
    Core, DeviceType, InferRequest, InferenceError, PartialShape, RwPropertyKey, SetupError,
};
use openvino_sys::library;
use tch::{Device, Kind, Tensor};

use super::{Graph, file, ints, value, value_info};
use crate::device::reason;
use crate::model::layer::Layer;
use crate::{Error, Result};

/// Images at a time, all cores on each layer: as many as are fastest, as their activations stay in the caches.
const MICRO_BATCH: usize = 8;

/// Names the library.
const PATH: &str = "TRANSFER_OPENVINO";

/// The folder `site-packages/torch/lib` of the environment that libtorch is of, if it is of one.
const LIBTORCH: Option<&str> = option_env!("SUPPORT_LIBTORCH");

/// From there to what is installed beside it.
const FOLDER: &str = "../../openvino/libs";

const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// Layers that OpenVINO computes on the CPU with as many threads as libtorch. Preparing them takes longer than one
/// validation gains, so weights that change are not for it.
pub(in crate::model) struct Session {
    to: String,
    input_shape: [i64; 3],
    output_shape: [i64; 3],
    compiled: Mutex<Compiled>,
}

struct Compiled {
    core: Core,
    model: openvino::Model,
    /// By the number of images that they take.
    requests: BTreeMap<usize, InferRequest>,
}

impl Session {
    /// Prepares the layers after `from`, a cut, up to `to`, for computing in `kind`; `None` if there are none,
    /// or a convolution's padding or batch normalization is not among them.
    ///
    /// # Errors
    /// `OpenVino` when the library cannot be loaded or refuses the layers.
    pub(in crate::model) fn new(
        layers: &[Layer],
        from: usize,
        to: usize,
        kind: Kind,
    ) -> Result<Option<Self>> {
        if from == to {
            return Ok(None);
        }
        let graph = match channels_last(layers, from, to) {
            Err(Error::Argument { .. }) => return Ok(None),
            graph => graph?,
        };
        let file = file(graph, []);
        let to = &layers[to];
        let prepare = || {
            let mut core = Core::new()?;
            let threads = tch::get_num_threads().to_string();
            let precision = if kind == Kind::BFloat16 {
                "bf16"
            } else {
                "f32"
            };
            let properties = [
                (RwPropertyKey::InferenceNumThreads, threads.as_str()),
                (RwPropertyKey::NumStreams, "1"),
                // Other processes may have the same cores.
                (RwPropertyKey::HintEnableCpuPinning, "NO"),
                (RwPropertyKey::HintInferencePrecision, precision),
            ];
            core.set_properties(&DeviceType::CPU, properties)?;
            let model = core.read_model_from_buffer(&file, None)?;
            Ok::<_, SetupError>(Compiled {
                core,
                model,
                requests: BTreeMap::new(),
            })
        };
        load()?;
        Ok(Some(Self {
            to: to.name().into(),
            input_shape: layers[from].output_shape(),
            output_shape: to.output_shape(),
            compiled: Mutex::new(prepare().map_err(failed(to.name()))?),
        }))
    }

    /// Returns the last layer's output for `[N, C, H, W]` that it fits, as 32-bit floats.
    pub(in crate::model) fn run(&self, input: &Tensor) -> Result<Tensor> {
        let count = input.size()[0];
        let tensors = || {
            let [channels, height, width] = self.output_shape;
            let output = [count, height, width, channels];
            let output = Tensor::f_empty(output, (Kind::Float, Device::Cpu))?;
            let input = input.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            Ok((input.f_permute([0, 2, 3, 1])?.f_contiguous()?, output))
        };
        let (input, output) = tensors().map_err(Error::torch("batch"))?;
        if count > 0 {
            // Safety: both are contiguous, of 32-bit floats on the CPU, and live on; only this function has the
            // second one.
            let (from, to) = unsafe {
                let to = output.data_ptr().cast::<f32>();
                (
                    slice::from_raw_parts(input.data_ptr().cast::<f32>(), input.numel()),
                    slice::from_raw_parts_mut(to, output.numel()),
                )
            };
            self.compute(from, to).map_err(failed(&self.to))?;
        }
        output
            .f_permute([0, 3, 1, 2])
            .map_err(Error::torch("batch"))
    }

    /// Copies by itself: libtorch's threads would go on spinning on the cores that OpenVINO's want.
    fn compute(&self, mut from: &[f32], mut to: &mut [f32]) -> Result<(), InferenceError> {
        let values = |shape: [i64; 3]| shape.iter().product::<i64>() as usize;
        let (taken, given) = (values(self.input_shape), values(self.output_shape));
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        while !from.is_empty() {
            let images = match from.len() / taken {
                ..MICRO_BATCH => 1,
                _ => MICRO_BATCH,
            };
            let request = compiled.request(images, self.input_shape)?;
            let (part, rest) = from.split_at(images * taken);
            let mut input = request.get_input_tensor()?;
            input.get_data_mut::<f32>()?.copy_from_slice(part);
            request.infer()?;
            let (part, rest_to) = to.split_at_mut(images * given);
            part.copy_from_slice(request.get_output_tensor()?.get_data::<f32>()?);
            (from, to) = (rest, rest_to);
        }
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("Session");
        fields.field("to", &self.to).finish_non_exhaustive()
    }
}

impl Compiled {
    /// Returns what computes that many images at a time.
    fn request(
        &mut self,
        images: usize,
        shape: [i64; 3],
    ) -> Result<&mut InferRequest, InferenceError> {
        Ok(match self.requests.entry(images) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let [channels, height, width] = shape;
                let shape = [images as i64, height, width, channels];
                let shape = PartialShape::new_static(4, &shape)?;
                self.model.reshape_single_input(&shape)?;
                let mut model = self.core.compile_model(&self.model, DeviceType::CPU)?;
                entry.insert(model.create_infer_request()?)
            }
        })
    }
}

/// Returns the layers after `from`, a cut, up to `to` as a graph whose input and output are in N, H, W, C order, in
/// which the images come and OpenVINO computes.
fn channels_last(layers: &[Layer], from: usize, to: usize) -> Result<Graph> {
    let mut graph = Graph::of_layers("base".into(), layers, from, to)?;
    let info = |name, layer: usize| {
        let [channels, height, width] = layers[layer].output_shape();
        vec![value_info(name, &[height, width, channels])]
    };
    (graph.input, graph.output) = (info(INPUT, from), info(OUTPUT, to));
    let mut transpose = |input: &str, output: &str, order| {
        let order = vec![ints("perm", order)];
        graph.add("Transpose", output, vec![input.into()], output, order);
    };
    transpose(&value(layers, to), OUTPUT, &[0, 2, 3, 1]);
    transpose(INPUT, &value(layers, from), &[0, 3, 1, 2]);
    graph.node.rotate_right(1);
    Ok(graph)
}

/// Loads the library that is named, or that of the environment that libtorch is of, or the one that openvino-rs finds.
fn load() -> Result<()> {
    let named = env::var_os(PATH).filter(|path| !path.is_empty());
    let folder = Path::new(LIBTORCH.unwrap_or_default()).join(FOLDER);
    let path = named.map(PathBuf::from).or_else(|| find(&folder));
    path.map_or_else(library::load, load_from)
        .map_err(|reason| Error::OpenVino {
            operation: "loading its library".into(),
            reason: format!(
                "{reason}; `pip install openvino` in the environment that libtorch is of, or name libopenvino_c.so in {PATH}"
            ),
        })
}

/// Loads a library, if it is OpenVINO's: openvino-rs panics where a function is missing.
fn load_from(path: PathBuf) -> Result<(), String> {
    // Safety: opening a library runs what it does when it is loaded, as its user wants; nothing in it is called here.
    let version = unsafe {
        let library = Library::new(&path).map_err(|error| reason(&error))?;
        library.get::<*const ()>(b"ov_get_openvino_version").is_ok()
    };
    if !version {
        return Err(format!("{} is another library", path.display()));
    }
    library::load_from(path)
}

/// Returns the library in the folder of OpenVINO's wheel: libopenvino_c.so.2641, beside others.
fn find(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"libopenvino_c.")
    })
}

fn failed<E: Display>(to: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::OpenVino {
        operation: format!("the layers up to {to}"),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::inference::Inference;
    use crate::model::tests::{NETWORKS, network};

    #[test]
    fn frozen_layers_give_what_they_give_in_libtorch() {
        for (of, kind) in NETWORKS
            .iter()
            .flat_map(|&of| [(of, Kind::Float), (of, Kind::BFloat16)])
        {
            let network = network(of);
            let (layers, last) = (network.layers(), network.layers().len() - 1);
            let cut = network.last_bottleneck(last / 2);
            for (from, to) in [(0, last), (0, cut), (cut, last)] {
                let session = Session::new(layers, from, to, kind).unwrap().unwrap();
                let [channels, height, width] = layers[from].output_shape();
                // In one and in several pieces, and none.
                for count in [MICRO_BATCH as i64 + 2, 0] {
                    let input = [count, channels, height, width];
                    let input = Tensor::randn(input, (Kind::Float, Device::Cpu));
                    let found = session.run(&input).unwrap();
                    let expected = network.inference(from, to).unwrap().run(&input).unwrap();
                    assert_eq!(found.size(), expected.size());
                    let difference = (&found - &expected).norm() / expected.norm();
                    let difference = difference.double_value(&[]);
                    let tolerance = if kind == Kind::Float { 1e-4 } else { 0.2 };
                    let name = network.name();
                    assert!(
                        count == 0 || difference < tolerance,
                        "{name}, {kind:?}, {from} to {to}: {difference}"
                    );
                }
            }
        }
    }

    #[test]
    fn only_frozen_layers_are_computed_here() {
        let mut network = network(NETWORKS[0]);
        let last = network.layers().len() - 1;
        for (trainable, expected) in [(true, "Libtorch"), (false, "OpenVino")] {
            network.set_trainable(trainable);
            let inference = Inference::new(
                String::new(),
                network.layers(),
                0,
                last,
                Device::Cpu,
                Kind::Float,
            );
            let told = format!("{:?}", inference.unwrap());
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn another_library_is_refused() {
        for (path, expected) in [
            ("libc.so.6", "is another library"),
            ("/none.so", "/none.so"),
        ] {
            let error = load_from(path.into()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_library_of_the_wheel_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()), None);
        assert_eq!(find(&folder.path().join("none")), None);
        for name in ["libopenvino.so.2641", "libopenvino_c.so.2641"] {
            fs::write(folder.path().join(name), "no library").unwrap();
        }
        let path = find(folder.path()).unwrap();
        assert!(path.ends_with("libopenvino_c.so.2641"), "{path:?}");
    }
}
