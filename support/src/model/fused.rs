//! What tch leaves out of libtorch: oneDNN's convolution with what follows it in the same pass, for
//! inference and with a gradient, on the CPU only; whether a tensor has changed; and a change of many at once.

use std::ffi::c_char;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::foreign::{ERROR_SIZE, taken, tried};

/// How a square kernel moves over an image; fused.cpp has the same fields in the same order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    /// Step in both directions.
    pub(super) stride: i64,
    /// Zeros above and below, to the left and to the right.
    pub(super) padding: [i64; 2],
    pub(super) groups: i64,
}

/// What is done to a convolution's output; fused.cpp has the same values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    None,
    Relu,
    Relu6,
}

impl Activation {
    /// Returns what the output is kept within.
    pub(super) fn bounds(self) -> [f64; 2] {
        match self {
            Self::None => [f64::NEG_INFINITY, f64::INFINITY],
            Self::Relu => [0., f64::INFINITY],
            Self::Relu6 => [0., 6.],
        }
    }
}

unsafe extern "C" {
    fn support_version(tensor: *const C_tensor) -> i64;

    fn support_reorder_weight(
        weight: *const C_tensor,
        geometry: Geometry,
        input_size: *const i64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;

    fn support_fused_convolution(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        geometry: Geometry,
        activation: Activation,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;

    fn support_normalized_convolution(
        input: *const C_tensor,
        kernel: *const C_tensor,
        normalization: *const *const C_tensor,
        epsilon: f64,
        geometry: Geometry,
        activation: Activation,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;

    fn support_subtract(
        tensors: *const *const C_tensor,
        count: usize,
        flat: *const C_tensor,
        error: *mut c_char,
        error_size: usize,
    ) -> *const C_tensor;
}

/// A tensor's memory, and how often it has been changed in place: what stays the same as long as
/// its values do. `None` where libtorch does not count.
pub(super) fn state(tensor: &Tensor) -> Option<(usize, i64)> {
    // Safety: the tensor lives through the call, which only reads.
    let version = unsafe { support_version(tensor.as_ptr()) };
    (version >= 0).then(|| (tensor.data_ptr() as usize, version))
}

/// Returns a kernel `[out, in / groups, height, width]` in the memory layout that
/// [`convolution`] wants it in for inputs of `input_size` (others are slower); only that function
/// can read it.
pub(super) fn reorder_weight(
    weight: &Tensor,
    geometry: Geometry,
    input_size: [i64; 4],
) -> Result<Tensor, TchError> {
    taken(|error| {
        // Safety: the tensor lives through the call, which writes into `error` within its size.
        unsafe {
            support_reorder_weight(
                weight.as_ptr(),
                geometry,
                input_size.as_ptr(),
                error,
                ERROR_SIZE,
            )
        }
    })
}

/// Returns `input` `[N, C, H, W]`, channels last in memory, convolved with a
/// [reordered](reorder_weight) kernel, plus `bias`, activated.
pub(super) fn convolution(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    geometry: Geometry,
    activation: Activation,
) -> Result<Tensor, TchError> {
    taken(|error| {
        // Safety: the tensors live through the call, which writes into `error` within its size.
        unsafe {
            support_fused_convolution(
                input.as_ptr(),
                weight.as_ptr(),
                bias.as_ptr(),
                geometry,
                activation,
                error,
                ERROR_SIZE,
            )
        }
    })
}

/// Returns `input` `[N, C, H, W]` convolved with `kernel`, normalized by `[gamma, beta, mean, variance]` and
/// activated, recorded for a backward pass.
pub(super) fn normalized_convolution(
    input: &Tensor,
    kernel: &Tensor,
    normalization: [&Tensor; 4],
    epsilon: f64,
    geometry: Geometry,
    activation: Activation,
) -> Result<Tensor, TchError> {
    let normalization = normalization.map(Tensor::as_ptr);
    taken(|error| {
        // Safety: the tensors live through the call, which writes into `error` within its size.
        unsafe {
            support_normalized_convolution(
                input.as_ptr(),
                kernel.as_ptr(),
                normalization.as_ptr(),
                epsilon,
                geometry,
                activation,
                error,
                ERROR_SIZE,
            )
        }
    })
}

/// Subtracts from each tensor its part of a flat one, which has one's elements after the other's.
pub(crate) fn subtract(tensors: &[&Tensor], flat: &Tensor) -> Result<(), TchError> {
    let pointers: Vec<_> = tensors.iter().map(|tensor| tensor.as_ptr()).collect();
    // Safety: the tensors live through the call, which writes into `error` within its size.
    let subtracted = |error| unsafe {
        let (tensors, count) = (pointers.as_ptr(), pointers.len());
        support_subtract(tensors, count, flat.as_ptr(), error, ERROR_SIZE).cast_mut()
    };
    tried(subtracted).map(drop)
}

#[cfg(test)]
mod tests {
    use rand::rngs::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use tch::{Device, Kind};

    use super::*;
    use crate::precision::multiplies_bf16;

    /// Convolves, normalizes and activates by libtorch's operators, one after the other.
    fn by_operators(
        [input, kernel, gamma, beta, mean, variance]: [&Tensor; 6],
        epsilon: f64,
        geometry: Geometry,
        activation: Activation,
    ) -> Tensor {
        let (strides, padding) = ([geometry.stride; 2], geometry.padding);
        let bias = None::<&Tensor>;
        let output = input.conv2d(kernel, bias, strides, padding, [1, 1], geometry.groups);
        let statistics = [gamma, beta, mean, variance].map(Some);
        let [gamma, beta, mean, variance] = statistics;
        let output = output.batch_norm(gamma, beta, mean, variance, false, 0., epsilon, false);
        match activation {
            Activation::None => output,
            Activation::Relu => output.relu(),
            Activation::Relu6 => output.relu6(),
        }
    }

    #[test]
    fn a_normalized_convolution_has_the_outputs_and_gradients_of_the_operators_that_it_stands_for()
    {
        let geometry = |stride, padding, groups| Geometry {
            stride,
            padding: [padding; 2],
            groups,
        };
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let kinds = [(Kind::Float, 1e-4), (Kind::BFloat16, 0.02)];
        let native = multiplies_bf16(Device::Cpu);
        let kinds = kinds.iter().take(if native { 2 } else { 1 });
        for ((kernel, geometry, activation), &(kind, tolerance)) in [
            ([24, 16, 1, 1], geometry(1, 0, 1), Activation::Relu6),
            ([24, 16, 1, 1], geometry(1, 0, 1), Activation::None),
            ([16, 1, 3, 3], geometry(2, 1, 16), Activation::Relu6),
            ([16, 1, 3, 3], geometry(1, 1, 16), Activation::None),
            ([24, 16, 3, 3], geometry(2, 1, 1), Activation::Relu),
        ]
        .into_iter()
        .flat_map(|case| kinds.clone().map(move |kind| (case, kind)))
        {
            let mut random = |shape: &[i64]| {
                let count = shape.iter().product::<i64>() as usize;
                let values = (&mut generator).sample_iter(StandardNormal).take(count);
                Tensor::from_slice(&values.collect::<Vec<f32>>()).reshape(shape)
            };
            let channels = kernel[0];
            let mut tensors = [
                // So that all can be told exactly in bfloat16.
                random(&[4, 16, 9, 9]).to_kind(kind).to_kind(Kind::Float),
                random(&kernel),
                random(&[channels]) + 2.,
                random(&[channels]),
                random(&[channels]),
                random(&[channels]).abs() + 0.5,
            ];
            for tensor in &mut tensors[..4] {
                let _ = tensor.requires_grad_(true);
            }
            let [input, kernel, normalization @ ..] = tensors.each_ref();
            let (epsilon, inputs) = (1e-3, &tensors.each_ref()[..4]);
            let input = input.to_kind(kind);
            let fused = normalized_convolution(
                &input,
                kernel,
                normalization,
                epsilon,
                geometry,
                activation,
            );
            let fused = fused.unwrap();
            assert_eq!(fused.kind(), kind);
            let fused = fused.to_kind(Kind::Float);
            let expected = by_operators(tensors.each_ref(), epsilon, geometry, activation);
            let weights = random(&expected.size());
            let gradients = |output: &Tensor| {
                let loss = (output * &weights).sum(Kind::Float);
                Tensor::run_backward(&[loss], inputs, false, false)
            };
            let pairs = gradients(&fused).into_iter().zip(gradients(&expected));
            for (found, expected) in pairs.chain([(fused, expected)]) {
                let difference = (&found - &expected).norm() / expected.norm();
                let difference = difference.double_value(&[]);
                // Rounding moves some values over an edge of the activation, where gradients jump.
                let edges = match (kind, activation) {
                    (Kind::BFloat16, Activation::Relu | Activation::Relu6) => 0.15,
                    _ => 0.,
                };
                assert!(
                    difference < tolerance + edges,
                    "{kind:?}, {geometry:?}, {activation:?}: {difference}"
                );
            }
        }
    }
}
