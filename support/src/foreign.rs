//! Calls to this crate's C++, which say by a null pointer that they failed, and in `error` why.

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

/// How much of a text is told.
pub(crate) const ERROR_SIZE: usize = 1024;

/// Returns the pointer that `call` returns, or the error that it writes.
pub(crate) fn tried<T>(call: impl FnOnce(*mut c_char) -> *mut T) -> Result<NonNull<T>, TchError> {
    let mut error = [0 as c_char; ERROR_SIZE];
    NonNull::new(call(error.as_mut_ptr())).ok_or_else(|| {
        // Safety: zero-filled, and written to up to the last byte but one.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        TchError::Torch(text.to_string_lossy().into_owned())
    })
}

/// Takes over the tensor that `call` returns, or the error that it writes.
pub(crate) fn taken(call: impl FnOnce(*mut c_char) -> *mut C_tensor) -> Result<Tensor, TchError> {
    // Safety: the callee gives its ownership away.
    tried(call).map(|tensor| unsafe { Tensor::from_ptr(tensor.as_ptr()) })
}
