//! How many bits the network computes with, and why.

use std::str::FromStr;

use libloading::os::unix::{Library, RTLD_LAZY, Symbol};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{Error, Result};

/// What a network computes with. Weights, losses and optimizers are 32-bit floats in any case, and so are the
/// features that it gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16: numbers of 8 significant bits, in half of the memory, which are added up in 32 bits. Faster
    /// where the processor or GPU multiplies them natively, refused elsewhere.
    Bf16,
    /// `Bf16` where it is native and leaves the features of the first training batch as they are, up to
    /// [`LARGEST_DEVIATION`]; else `F32`. [`fit`](crate::model::Sequential::fit) decides, and says which and why;
    /// until then it is `F32`.
    Auto,
}

/// How far features computed in bfloat16 may be from those in 32 bits for [`Precision::Auto`] to choose it:
/// the norm of the difference, as a share of the features' norm, both over a batch and pooled over each image.
/// TF-Hub's MobileNetV2 is at 0.17 to 0.19, and the tutorial as accurate as in 32 bits (docs/performance.md); the
/// other networks that were tried are at 0.03 to 0.05.
pub const LARGEST_DEVIATION: f64 = 0.25;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` in cuda.h.
const COMPUTE_CAPABILITY_MAJOR: i32 = 75;

/// The first compute capability (Ampere's) that multiplies bfloat16.
const WITH_BF16: i32 = 8;

impl Precision {
    /// Returns the value of `TRANSFER_PRECISION` that chooses this.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Auto => "auto",
        }
    }

    /// Returns the kind of tensors that a network computes with.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 | Self::Auto => Kind::Float,
        }
    }

    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Refuses what a device cannot do well.
    pub(crate) fn check(self, device: Device) -> Result<()> {
        if self != Self::Bf16 || multiplies_bf16(device) {
            return Ok(());
        }
        Err(Error::Setting {
            name: "TRANSFER_PRECISION",
            value: self.name().into(),
            expected: format!("f32 or auto, as {NOT_NATIVE}"),
        })
    }
}

/// Why [`Precision::Auto`] is `F32`.
pub(crate) const NOT_NATIVE: &str = "what computes here does not multiply bfloat16 natively (processors with AVX512-BF16 and GPUs from Ampere on do)";

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::F32, Self::Bf16, Self::Auto];
        let found = all.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| Error::Setting {
            name: "TRANSFER_PRECISION",
            value: name.into(),
            expected: "f32, bf16 or auto".into(),
        })
    }
}

/// Returns whether a device multiplies bfloat16 natively.
#[must_use]
pub fn multiplies_bf16(device: Device) -> bool {
    match device {
        // AMX comes with it.
        #[cfg(target_arch = "x86_64")]
        Device::Cpu => is_x86_feature_detected!("avx512bf16"),
        Device::Cuda(index) => compute_capability(index).is_some_and(|major| major >= WITH_BF16),
        _ => false,
    }
}

/// Returns the major number of a GPU's compute capability, if the driver tells it.
fn compute_capability(index: usize) -> Option<i32> {
    type DeviceGet = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type DeviceGetAttribute = unsafe extern "C" fn(*mut i32, i32, i32) -> i32;
    let (mut device, mut major) = (0, 0);
    // Safety: NVIDIA's driver, which libtorch has loaded and initialized where there is a GPU, and two of its
    // functions with the signatures of cuda.h.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_LAZY).ok()?;
        let get: Symbol<DeviceGet> = driver.get(b"cuDeviceGet\0").ok()?;
        let attribute: Symbol<DeviceGetAttribute> = driver.get(b"cuDeviceGetAttribute\0").ok()?;
        (get(&mut device, i32::try_from(index).ok()?) == 0
            && attribute(&mut major, COMPUTE_CAPABILITY_MAJOR, device) == 0)
            .then_some(major)
    }
}
