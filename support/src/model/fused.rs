//! What tch leaves out of libtorch: oneDNN's convolution with what follows it in the same pass, for
//! inference on the CPU only, and whether a tensor has changed.

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

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

const ERROR_SIZE: usize = 1024;

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

/// Takes over the tensor that `call` returns, or the error that it writes.
fn taken(call: impl FnOnce(*mut c_char) -> *mut C_tensor) -> Result<Tensor, TchError> {
    let mut error = [0 as c_char; ERROR_SIZE];
    let tensor = call(error.as_mut_ptr());
    if tensor.is_null() {
        // Safety: zero-filled, and written to up to the last byte but one.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        return Err(TchError::Torch(text.to_string_lossy().into_owned()));
    }
    // Safety: the callee gives its ownership away.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}
