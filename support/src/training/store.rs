//! Where activations are kept: in memory or, where they would take too much of it, in a file.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Rows of 32-bit floats on the CPU.
pub(super) struct Store {
    /// `[rows, ...]`. Declared before `file`, whose memory it may lie in.
    rows: Tensor,
    file: Option<MmapMut>,
}

impl Store {
    /// Makes room for rows: in memory up to `memory` bytes of them, else in a file in `folder`,
    /// which has no name and vanishes with the store, or with the process however that ends.
    ///
    /// # Errors
    /// `Io` where the disk has no room for them.
    pub(super) fn new(shape: &[i64], memory: usize, folder: &Path) -> Result<Self> {
        let bytes = shape.iter().product::<i64>() as usize * size_of::<f32>();
        if bytes <= memory {
            let rows = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))
                .map_err(Error::torch("memory for activations"))?;
            return Ok(Self { rows, file: None });
        }
        let map = || -> io::Result<MmapMut> {
            fs::create_dir_all(folder)?;
            let file = tempfile::tempfile_in(folder)?;
            reserve(&file, bytes as u64)?;
            // Safety: nobody else can open a file without a name.
            unsafe { MmapMut::map_mut(&file) }
        };
        let action = "reserve room for the frozen layers' activations (or turn them off with `cache_activations(false)`) in";
        let mut file = map().map_err(Error::io(action, folder))?;
        let strides = |dimension: usize| shape[dimension + 1..].iter().product();
        let strides: Vec<i64> = (0..shape.len()).map(strides).collect();
        // Safety: the memory is as large as the shape says, and dropped after the tensor.
        let rows = unsafe {
            Tensor::f_from_blob(file.as_mut_ptr(), shape, &strides, Kind::Float, Device::Cpu)
        };
        Ok(Self {
            rows: rows.map_err(Error::torch("activations in a file"))?,
            file: Some(file),
        })
    }

    /// Copies `values` `[n, ...]` into the rows from `first` on.
    pub(super) fn write(&mut self, first: i64, values: &Tensor) -> Result<()> {
        self.rows
            .f_narrow(0, first, values.size()[0])
            .and_then(|mut rows| rows.f_copy_(values))
            .map_err(Error::torch("storing activations"))
    }

    /// Returns a copy of some rows, `[indices, ...]`.
    pub(super) fn read(&self, indices: &Tensor) -> Result<Tensor> {
        self.rows
            .f_index_select(0, indices)
            .map_err(Error::torch("reading activations"))
    }

    /// Returns the size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.numel() * size_of::<f32>()
    }

    /// Returns whether the rows are in a file.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }
}

/// Reserves the file's blocks, so that a full disk is an error here and not a signal later.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // The file system cannot say.
        Err(Errno::OPNOTSUPP) => file.set_len(bytes),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_a_file_are_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let values = Tensor::randn([3, 2, 5], (Kind::Float, Device::Cpu));
        let wanted = Tensor::from_slice(&[2i64, 0]);
        let stored = |memory: usize| {
            let new = folder.path().join("data");
            let mut store = Store::new(&[4, 2, 5], memory, &new).unwrap();
            store.write(1, &values).unwrap();
            assert_eq!(store.is_file(), memory == 0);
            assert_eq!(store.bytes(), 160);
            store.read(&(&wanted + 1)).unwrap()
        };
        assert_eq!(stored(0), values.index_select(0, &wanted));
        assert_eq!(stored(160), stored(0));
        let left = fs::read_dir(folder.path().join("data")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_disk_without_room_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = Store::new(&[1 << 48], 0, folder.path()).err().unwrap();
        assert!(
            error.to_string().contains("cache_activations(false)"),
            "{error}"
        );
    }
}
