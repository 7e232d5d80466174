//! The calls to c10d.cpp.

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::NonNull;
use std::time::Duration;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

/// Why a call failed, in libtorch's words.
pub(super) type Result<T> = std::result::Result<T, String>;

/// How much of a text is told.
const TEXT: usize = 4096;

/// Where c10d.cpp writes why a call failed; it has the same fields.
#[repr(C)]
#[derive(Clone, Copy)]
struct Failure {
    text: *mut c_char,
    size: usize,
}

/// Something that C++ owns.
#[repr(C)]
struct Opaque {
    _data: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

unsafe extern "C" {
    fn support_torch_version() -> *const c_char;
    fn support_group_join(
        host: *const c_char,
        port: u16,
        serves: bool,
        prefix: *const c_char,
        timeout: i64,
        failure: Failure,
    ) -> *mut Opaque;
    fn support_group_set(
        group: *mut Opaque,
        key: *const c_char,
        value: *const c_char,
        failure: Failure,
    ) -> c_int;
    fn support_group_count(group: *mut Opaque, key: *const c_char, failure: Failure) -> i64;
    fn support_group_check(group: *mut Opaque, key: *const c_char, failure: Failure) -> c_int;
    fn support_group_get(
        group: *mut Opaque,
        key: *const c_char,
        value: *mut c_char,
        size: usize,
        failure: Failure,
    ) -> c_int;
    fn support_group_connect(
        group: *mut Opaque,
        rank: c_int,
        size: c_int,
        device: c_int,
        timeout: i64,
        failure: Failure,
    ) -> c_int;
    fn support_group_close(group: *mut Opaque);
    fn support_group_free(group: *mut Opaque);
    fn support_group_sum(group: *mut Opaque, tensor: *const C_tensor, failure: Failure) -> c_int;
    fn support_group_broadcast(
        group: *mut Opaque,
        tensor: *const C_tensor,
        failure: Failure,
    ) -> c_int;
    fn support_group_gather(
        group: *mut Opaque,
        tensor: *const C_tensor,
        failure: Failure,
    ) -> *mut C_tensor;
    fn support_reducer_new(
        group: *mut Opaque,
        variables: *const *const C_tensor,
        count: usize,
        sums: i64,
        bucket_bytes: usize,
        failure: Failure,
    ) -> *mut Opaque;
    fn support_reducer_free(reducer: *mut Opaque);
    fn support_reducer_backward(
        reducer: *mut Opaque,
        root: *const C_tensor,
        sums: *const C_tensor,
        failure: Failure,
    ) -> *mut C_tensor;
}

/// Returns libtorch's version.
pub(super) fn torch_version() -> String {
    // Safety: a text that C++ was compiled with.
    let version = unsafe { CStr::from_ptr(support_torch_version()) };
    version.to_string_lossy().into_owned()
}

/// A store that all ranks reach and, once it is connected, their collective operations.
#[derive(Debug)]
pub(super) struct Engine(NonNull<Opaque>);

// Safety: nothing in it belongs to a thread; it is not shared, as it is not `Sync`.
unsafe impl Send for Engine {}

impl Engine {
    /// Connects to the store, or serves it; the keys of this one begin with `prefix`.
    pub(super) fn join(
        host: &str,
        port: u16,
        serves: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Self> {
        let (host, prefix) = (text(host), text(prefix));
        let timeout = milliseconds(timeout);
        // Safety: the texts live through the call.
        let group = owned(|failure| unsafe {
            support_group_join(
                host.as_ptr(),
                port,
                serves,
                prefix.as_ptr(),
                timeout,
                failure,
            )
        });
        group.map(Self)
    }

    /// Connects the ranks with each other, of which this one is one: their GPUs by NCCL, else by Gloo.
    pub(super) fn connect(
        &mut self,
        rank: usize,
        size: usize,
        device: Device,
        timeout: Duration,
    ) -> Result<()> {
        let [rank, size] = [rank, size].map(|number| number as c_int);
        let device = match device {
            Device::Cuda(number) => number as c_int,
            _ => -1,
        };
        let timeout = milliseconds(timeout);
        // Safety: the group is alive.
        done(|failure| unsafe {
            support_group_connect(self.0.as_ptr(), rank, size, device, timeout, failure)
        })
    }

    /// Closes the connections to the other ranks, whose operations then fail; the store stays.
    pub(super) fn close(&mut self) {
        // Safety: the group is alive.
        unsafe { support_group_close(self.0.as_ptr()) }
    }

    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (text(key), text(value));
        // Safety: the group and the texts live through the call.
        done(|failure| unsafe {
            support_group_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), failure)
        })
    }

    /// Returns how often this was called with the key, by any rank.
    pub(super) fn count(&mut self, key: &str) -> Result<i64> {
        let key = text(key);
        // Safety: the group and the text live through the call.
        number(|failure| unsafe { support_group_count(self.0.as_ptr(), key.as_ptr(), failure) })
    }

    /// Returns a key's value, the first 4,095 bytes of it, if it is set.
    pub(super) fn get(&mut self, key: &str) -> Result<Option<String>> {
        let key = text(key);
        // Safety: the group and the text live through the call.
        let is_set = number(|failure| unsafe {
            i64::from(support_group_check(self.0.as_ptr(), key.as_ptr(), failure))
        })?;
        if is_set == 0 {
            return Ok(None);
        }
        let mut value = [0 as c_char; TEXT];
        // Safety: as above, and `value` is written to within its size.
        done(|failure| unsafe {
            support_group_get(
                self.0.as_ptr(),
                key.as_ptr(),
                value.as_mut_ptr(),
                TEXT,
                failure,
            )
        })?;
        Ok(Some(told(&value)))
    }

    /// Sums a tensor over the ranks, in place.
    pub(super) fn sum(&mut self, tensor: &Tensor) -> Result<()> {
        // Safety: the group and the tensor live through the call.
        done(|failure| unsafe { support_group_sum(self.0.as_ptr(), tensor.as_ptr(), failure) })
    }

    /// Overwrites a tensor with that of rank 0.
    pub(super) fn broadcast(&mut self, tensor: &Tensor) -> Result<()> {
        // Safety: the group and the tensor live through the call.
        done(|failure| unsafe {
            support_group_broadcast(self.0.as_ptr(), tensor.as_ptr(), failure)
        })
    }

    /// Returns the ranks' tensors, stacked.
    pub(super) fn gather(&mut self, tensor: &Tensor) -> Result<Tensor> {
        // Safety: the group and the tensor live through the call.
        taken(|failure| unsafe { support_group_gather(self.0.as_ptr(), tensor.as_ptr(), failure) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Safety: nothing else has the pointer; a reducer does not outlive the group.
        unsafe { support_group_free(self.0.as_ptr()) }
    }
}

/// Sums gradients over the ranks while a backward pass goes on to the next ones.
#[derive(Debug)]
pub(super) struct Buckets(NonNull<Opaque>);

// Safety: as for `Engine`.
unsafe impl Send for Buckets {}

impl Buckets {
    /// Prepares for variables, whose gradients are sent in parts of about so many bytes, and for `sums`
    /// other values.
    ///
    /// # Safety
    /// The engine has to live as long.
    pub(super) unsafe fn new(
        engine: &mut Engine,
        variables: &[&Tensor],
        sums: usize,
        bytes: usize,
    ) -> Result<Self> {
        let pointers: Vec<*const C_tensor> =
            variables.iter().map(|variable| variable.as_ptr()).collect();
        // Safety: the engine and the tensors live through the call, which takes copies of the latter.
        let buckets = owned(|failure| unsafe {
            support_reducer_new(
                engine.0.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                sums as i64,
                bytes,
                failure,
            )
        });
        buckets.map(Self)
    }

    /// Returns the sums over the ranks of the gradients of `root`, a scalar that a rank without examples
    /// lacks, and behind them of `sums`, in one flat tensor, which the next call overwrites.
    pub(super) fn backward(&mut self, root: Option<&Tensor>, sums: &Tensor) -> Result<Tensor> {
        let root = root.map_or(std::ptr::null(), |root| root.as_ptr());
        // Safety: the tensors live through the call, and the engine as long as this.
        taken(|failure| unsafe {
            support_reducer_backward(self.0.as_ptr(), root, sums.as_ptr(), failure)
        })
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        // Safety: nothing else has the pointer.
        unsafe { support_reducer_free(self.0.as_ptr()) }
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a text for C++, which ends at the first zero byte.
fn text(text: &str) -> CString {
    let whole = text.split('\0').next().unwrap_or_default();
    CString::new(whole).unwrap_or_default()
}

/// Returns a text from C++.
fn told(text: &[c_char; TEXT]) -> String {
    // Safety: zero-filled, and written to up to the last byte but one.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    text.to_string_lossy().into_owned()
}

/// Calls what tells why it failed, if `failed` says so of its result.
fn checked<T>(call: impl FnOnce(Failure) -> T, failed: impl FnOnce(&T) -> bool) -> Result<T> {
    let mut text = [0 as c_char; TEXT];
    let result = call(Failure {
        text: text.as_mut_ptr(),
        size: TEXT,
    });
    if failed(&result) {
        return Err(told(&text));
    }
    Ok(result)
}

fn number(call: impl FnOnce(Failure) -> i64) -> Result<i64> {
    checked(call, |&result| result < 0)
}

fn done(call: impl FnOnce(Failure) -> c_int) -> Result<()> {
    checked(call, |&result| result < 0).map(drop)
}

fn owned(call: impl FnOnce(Failure) -> *mut Opaque) -> Result<NonNull<Opaque>> {
    checked(|failure| NonNull::new(call(failure)), Option::is_none)?
        .ok_or_else(|| "nothing was made".to_owned())
}

fn taken(call: impl FnOnce(Failure) -> *mut C_tensor) -> Result<Tensor> {
    let tensor = checked(call, |tensor| tensor.is_null())?;
    // Safety: the callee gives its ownership away.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}
