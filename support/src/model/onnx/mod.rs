//! Models as [ONNX](https://onnx.ai), which programs in other languages run.
//!
//! A file is made of the same [steps](super::steps) as the network is computed in: every batch normalization is
//! multiplied into the convolution before it.

#[cfg(feature = "openvino")]
pub(super) mod openvino;
mod proto;

use prost::Message as _;
use tch::Tensor;

use self::proto::{
    Attribute, AttributeType, DataType, Dimension, Graph, Model, Node, OperatorSetId, Size,
    StringStringEntry, TensorShape, TensorType, TensorValue, Type, ValueInfo,
};
use super::head::{BuiltLayer, HeadLayer};
use super::layer::{Layer, Operation};
use super::sequential::Sequential;
use super::steps::{Convolution, Work, steps};
use super::weights::little_endian;
use crate::{Error, Result};

/// ONNX 1.12's, of 2022: what runs models takes it, and no later one has changed what the operators here compute.
const OPSET: i64 = 17;

/// The version of the file's format that belongs to it.
const IR_VERSION: i64 = 8;

const INPUT: &str = "image";
const OUTPUT: &str = "logits";

/// What ReLU6 is bounded by.
const BOUNDS: [(&str, f32); 2] = [("relu6/min", 0.), ("relu6/max", 6.)];

/// Returns a file with the model as it is in inference, and texts by name.
///
/// # Errors
/// `Shape` or `Argument` when the layers on top do not fit, `Torch` when libtorch fails.
pub(crate) fn model<C>(
    model: &Sequential<C>,
    texts: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<u8>> {
    Ok(file(graph(model)?, texts))
}

fn file(graph: Graph, texts: impl IntoIterator<Item = (String, String)>) -> Vec<u8> {
    let texts = texts.into_iter();
    let file = Model {
        ir_version: IR_VERSION,
        producer_name: "transfer-learning-rust".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetId {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: texts
            .map(|(key, value)| StringStringEntry { key, value })
            .collect(),
    };
    file.encode_to_vec()
}

fn graph<C>(model: &Sequential<C>) -> Result<Graph> {
    let _no_grad = tch::no_grad_guard();
    model.check_head()?;
    let base = model.base();
    let (layers, last) = (base.layers(), base.layers().len() - 1);
    let mut graph = Graph::of_layers(base.name(), layers, 0, last)?;
    graph.output = vec![value_info(OUTPUT, &model.output_shape())];
    let mut output = value(layers, last);
    for layer in model.built() {
        output = graph.add_top(layer, output)?;
    }
    if let Some(last) = graph.node.last_mut() {
        last.output = vec![OUTPUT.into()];
    }
    Ok(graph)
}

impl Graph {
    /// Returns the layers after `from`, a cut, up to `to`, whose outputs are its input and output.
    fn of_layers(name: String, layers: &[Layer], from: usize, to: usize) -> Result<Self> {
        let info = |index: usize| value_info(&value(layers, index), &layers[index].output_shape());
        let mut graph = Self {
            name,
            input: vec![info(from)],
            output: vec![info(to)],
            ..Self::default()
        };
        let mut operations = layers[from + 1..=to].iter().map(Layer::operation);
        if operations.any(|operation| operation == Operation::Relu6) {
            let bounds = BOUNDS.map(|(name, value)| (name, Tensor::from(value)));
            for (name, value) in bounds {
                graph.add_tensor(name, &value)?;
            }
        }
        for step in steps(layers, from, to) {
            match step.work {
                Work::Layer => graph.add_layer(layers, step.output)?,
                Work::Convolution(convolution) => {
                    let normalized = graph.add_convolution(layers, step.input, convolution)?;
                    (normalized + 1..=step.output)
                        .try_for_each(|after| graph.add_layer(layers, after))?;
                }
            }
        }
        Ok(graph)
    }

    fn add_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.initializer.push(TensorValue {
            name: name.into(),
            dims: tensor.size(),
            data_type: DataType::Float.into(),
            raw_data: little_endian(tensor)?,
        });
        Ok(())
    }

    fn add(
        &mut self,
        op_type: &str,
        name: &str,
        input: Vec<String>,
        output: &str,
        attribute: Vec<Attribute>,
    ) {
        self.node.push(Node {
            input,
            output: vec![output.into()],
            name: name.into(),
            op_type: op_type.into(),
            attribute,
        });
    }

    /// Adds a convolution of layer `input`'s output and the batch normalization after it; returns that one's
    /// index.
    fn add_convolution(
        &mut self,
        layers: &[Layer],
        input: usize,
        convolution: Convolution,
    ) -> Result<usize> {
        let index = convolution.layer;
        let name = layers[index].name();
        let folded = convolution.folded(layers);
        let (kernel, bias) = folded.map_err(Error::torch(format!("layer {name}")))?;
        let mut inputs = vec![value(layers, input)];
        for (kind, tensor) in [("kernel", kernel), ("bias", bias)] {
            inputs.push(format!("{name}/{kind}"));
            self.add_tensor(&format!("{name}/{kind}"), &tensor)?;
        }
        let (geometry, [rows, columns]) = (convolution.geometry, convolution.uneven);
        let [top, left] = geometry.padding;
        let attributes = vec![
            ints("strides", &[geometry.stride; 2]),
            ints("pads", &[top, left, top + rows, left + columns]),
            int("group", geometry.groups),
        ];
        let output = value(layers, index + 1);
        self.add("Conv", name, inputs, &output, attributes);
        Ok(index + 1)
    }

    /// Adds a layer of the base that is no part of a convolution.
    fn add_layer(&mut self, layers: &[Layer], index: usize) -> Result<()> {
        let layer = &layers[index];
        let inputs = layer.inputs().iter().map(|&input| value(layers, input));
        let mut inputs: Vec<String> = inputs.collect();
        let (op_type, attributes) = match layer.operation() {
            Operation::Add => ("Add", Vec::new()),
            Operation::Relu => ("Relu", Vec::new()),
            Operation::Relu6 => {
                inputs.extend(BOUNDS.map(|(name, _)| name.into()));
                ("Clip", Vec::new())
            }
            Operation::MaxPool2d {
                kernel,
                stride,
                padding,
            } => {
                let kernel = ints("kernel_shape", &[kernel; 2]);
                let strides = ints("strides", &[stride; 2]);
                (
                    "MaxPool",
                    vec![kernel, strides, ints("pads", &[padding; 4])],
                )
            }
            other => {
                return Err(Error::Argument {
                    name: "ONNX, the network",
                    expected: "no padding without a convolution, and no convolution without a \
                               batch normalization"
                        .into(),
                    got: format!("{} ({})", layer.name(), other.class_name()),
                });
            }
        };
        self.add(op_type, layer.name(), inputs, layer.name(), attributes);
        Ok(())
    }

    /// Adds a layer on top, which reads `input`; returns its output's name.
    fn add_top(&mut self, built: &BuiltLayer, input: String) -> Result<String> {
        let name = built.layer.name();
        match &built.layer {
            HeadLayer::Dropout(_) => return Ok(input),
            HeadLayer::GlobalAveragePooling2d(_) => {
                let means = format!("{name}/means");
                self.add("GlobalAveragePool", &means, vec![input], &means, Vec::new());
                self.add("Flatten", name, vec![means], name, Vec::new());
            }
            HeadLayer::Dense(_) => {
                let mut inputs = vec![input];
                for variable in &built.variables {
                    inputs.push(variable.name().into());
                    self.add_tensor(variable.name(), variable.value())?;
                }
                self.add("Gemm", name, inputs, name, vec![int("transB", 1)]);
            }
        }
        Ok(name.into())
    }
}

/// Returns the name of a layer's output.
fn value(layers: &[Layer], index: usize) -> String {
    let name = if index == 0 {
        INPUT
    } else {
        layers[index].name()
    };
    name.into()
}

/// Describes a batch of any number of examples of a shape.
fn value_info(name: &str, shape: &[i64]) -> ValueInfo {
    let batch = Size::Param("batch".into());
    let sizes = std::iter::once(batch).chain(shape.iter().copied().map(Size::Value));
    let shape = TensorShape {
        dim: sizes.map(|size| Dimension { value: Some(size) }).collect(),
    };
    let tensor = TensorType {
        elem_type: DataType::Float.into(),
        shape: Some(shape),
    };
    ValueInfo {
        name: name.into(),
        r#type: Some(Type {
            tensor_type: Some(tensor),
        }),
    }
}

fn int(name: &str, value: i64) -> Attribute {
    Attribute {
        name: name.into(),
        r#type: AttributeType::Int.into(),
        i: Some(value),
        ..Attribute::default()
    }
}

fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute {
        name: name.into(),
        r#type: AttributeType::Ints.into(),
        ints: values.into(),
        ..Attribute::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::process::Command;

    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};
    use serde_json::Value;

    use super::*;
    use crate::model::tests::{NETWORKS, network};
    use crate::model::{Dense, Dropout, GlobalAveragePooling2d};

    /// Returns a model of one of the networks, with a dropout and two dense layers.
    fn sequential(of: usize) -> Sequential {
        let base = network(NETWORKS[of]);
        let features = base.output_shape()[0] as usize;
        Sequential::new(base)
            .push(GlobalAveragePooling2d)
            .push(Dropout::new(0.2))
            .push(Dense::new(features, 5).seed(1))
            .push(Dropout::new(0.2))
            .push(Dense::new(5, 3).seed(2))
    }

    #[test]
    fn every_layer_but_padding_normalization_and_dropout_is_a_node_that_reads_those_before() {
        for of in 0..NETWORKS.len() {
            let sequential = sequential(of);
            let file = Model::decode(&model(&sequential, []).unwrap()[..]).unwrap();
            let graph = file.graph.unwrap();
            let tensors = graph.initializer.iter().map(|tensor| tensor.name.as_str());
            let mut known: BTreeSet<&str> = tensors.chain([INPUT]).collect();
            assert_eq!(known.len(), graph.initializer.len() + 1);
            for node in &graph.node {
                let mut inputs = node.input.iter();
                assert!(inputs.all(|it| known.contains(it.as_str())), "{node:?}");
                assert!(known.insert(&node.output[0]), "{node:?}");
            }
            assert_eq!(graph.node.last().unwrap().output, [OUTPUT]);
            let names = graph.node.iter().map(|node| node.name.as_str());
            let left_out = |operation| {
                matches!(
                    operation,
                    Operation::Input
                        | Operation::ZeroPadding { .. }
                        | Operation::BatchNormalization { .. }
                )
            };
            let layers = sequential.base().layers().iter();
            let layers = layers.filter(|layer| !left_out(layer.operation()));
            let top = [
                "global_average_pooling2d/means",
                "global_average_pooling2d",
                "dense",
                "dense_1",
            ];
            let expected = layers.map(Layer::name).chain(top);
            assert_eq!(names.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_head_that_does_not_fit_is_refused() {
        let unfit = Sequential::new(network(NETWORKS[0])).push(Dense::new(1280, 1));
        let error = model(&unfit, []).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }

    /// Holds what another program makes of each network, by `tests/reference/onnx_logits.py`, to our logits.
    fn compare_with(program: &str) {
        let folder = tempfile::tempdir().unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut expected = Vec::new();
        for of in 0..NETWORKS.len() {
            let sequential = sequential(of);
            let shape = [&[3][..], &sequential.base().input_shape()].concat();
            let samples =
                (0..shape.iter().product()).map(|_: i64| 2. * random.random::<f32>() - 1.);
            let images = Tensor::from_slice(&samples.collect::<Vec<_>>()).reshape(shape);
            let path = |extension: &str| folder.path().join(format!("{of}.{extension}"));
            images.write_npy(path("npy")).unwrap();
            fs::write(path("onnx"), model(&sequential, []).unwrap()).unwrap();
            expected.push(sequential.forward(&images).unwrap());
        }
        let python = std::env::var_os("TRANSFER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/reference/onnx_logits.py"
        );
        let mut command = Command::new(python);
        command.arg(script).arg(program).arg(folder.path());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (of, expected) in expected.iter().enumerate() {
            for (key, count) in [("of_one", 1), ("of_all", 3)] {
                let logits = read[of.to_string()][key].clone();
                let logits: Vec<[f32; 3]> = serde_json::from_value(logits).unwrap();
                assert_eq!(logits.len(), count);
                let logits = Tensor::from_slice2(&logits);
                let expected = expected.narrow(0, 0, count as i64);
                let difference = (logits - &expected).abs().max() / expected.abs().max();
                let difference = difference.double_value(&[]);
                let network = NETWORKS[of];
                assert!(difference < 1e-4, "{network:?}, {key}: {difference}");
            }
        }
    }

    #[test]
    #[ignore = "needs ONNX Runtime"]
    fn every_family_has_its_logits_in_onnx_runtime() {
        compare_with("onnxruntime");
    }

    #[test]
    #[ignore = "needs OpenVINO"]
    fn every_family_has_its_logits_in_openvino() {
        compare_with("openvino");
    }
}
