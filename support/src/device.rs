//! Which device the network runs on, and why.
//!
//! libtorch's CUDA half is a library of its own, which the linker drops from a Rust program
//! because nothing in it is called by name. It is loaded here, where there is a GPU, before `main` and
//! before a notebook's cell: libtorch remembers the answer to the first question about CUDA.

use std::error::Error as _;
use std::fmt;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use tch::{Cuda, Device};

use crate::{Error, Result};

/// Where NVIDIA's driver shows that it is loaded (the second: under WSL).
const DRIVER: [&str; 2] = ["/proc/driver/nvidia/version", "/dev/dxg"];

/// What was found when looking for a GPU.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// The number of CUDA devices that libtorch can use.
    pub cuda_devices: usize,
    /// Why there is no CUDA device, if there is none.
    pub reason: Option<String>,
    /// Threads that libtorch computes with on the CPU.
    pub threads: usize,
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            None => write!(f, "CUDA: {} device(s)", self.cuda_devices),
            Some(reason) => write!(f, "CPU, {} threads; no CUDA: {reason}", self.threads),
        }
    }
}

/// Looks for CUDA devices.
#[must_use]
pub fn device_report() -> DeviceReport {
    let reason = match load_cuda() {
        Err(reason) => Some(reason),
        Ok(()) if !Cuda::is_available() => {
            Some("libtorch_cuda is loaded and finds no usable GPU (see nvidia-smi)".into())
        }
        Ok(()) => None,
    };
    let cuda_devices = if reason.is_none() {
        Cuda::device_count().max(0) as usize
    } else {
        0
    };
    let threads = tch::get_num_threads().max(1) as usize;
    DeviceReport {
        cuda_devices,
        reason,
        threads,
    }
}

/// Has what the calling thread asks of libtorch's CPU half computed by that thread alone, not by all cores: several
/// threads, each with work of its own, are faster so.
pub fn compute_alone() {
    tch::set_num_threads(1);
}

/// Returns the device for `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// `Setting` for another word, or for a GPU that is not there.
pub fn pick(choice: &str) -> Result<Device> {
    pick_for(choice, 0)
}

/// As [`pick`], for one of the processes on this machine: each takes a GPU of its own.
pub(crate) fn pick_for(choice: &str, local_rank: usize) -> Result<Device> {
    let setting = |expected: String| Error::Setting {
        name: "TRANSFER_DEVICE",
        value: choice.into(),
        expected,
    };
    let cuda = |index: usize| {
        let report = device_report();
        if index < report.cuda_devices {
            Ok(Device::Cuda(index))
        } else {
            Err(setting(format!("a device that is there; found: {report}")))
        }
    };
    match choice {
        "cpu" => Ok(Device::Cpu),
        "auto" if device_report().cuda_devices == 0 => Ok(Device::Cpu),
        "auto" | "cuda" => cuda(local_rank),
        _ => match choice
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
        {
            Some(index) => cuda(index),
            None => Err(setting("auto, cpu, cuda or cuda:N".into())),
        },
    }
}

/// Runs when the program, or a cell's library, is loaded.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = {
    extern "C" fn at_load() {
        // Why it failed is told by `device_report`.
        let _ = load_cuda();
    }
    at_load
};

/// Makes libtorch's CUDA half available, or says why it is not.
fn load_cuda() -> Result<(), String> {
    if !DRIVER.iter().any(|path| Path::new(path).exists()) {
        return Err("no NVIDIA driver on this machine".into());
    }
    // Safety: loading libtorch's own library only registers its kernels. It stays loaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) };
    library
        .map(std::mem::forget)
        .map_err(|error| reason(&error))
}

/// Returns what the system says, which names the library.
pub(crate) fn reason(error: &libloading::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_refused_with_what_was_found() {
        let error = pick("cuda:99").unwrap_err().to_string();
        assert!(error.contains("TRANSFER_DEVICE=cuda:99"), "{error}");
        assert!(error.contains("found: "), "{error}");
    }

    #[test]
    fn an_unknown_word_is_refused_with_the_words_that_are_taken() {
        let error = pick("gpu").unwrap_err().to_string();
        assert!(error.contains("auto, cpu, cuda or cuda:N"), "{error}");
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_told_with_the_systems_reason() {
        // Safety: there is nothing to load.
        let library = unsafe { Library::open(Some("libno_such.so"), RTLD_LAZY) };
        let reason = reason(&library.unwrap_err());
        assert!(reason.starts_with("libno_such.so: "), "{reason}");
    }

    #[test]
    fn a_report_without_a_gpu_says_why() {
        let report = device_report();
        assert_eq!(
            report.cuda_devices == 0,
            report.reason.is_some(),
            "{report}"
        );
    }
}
