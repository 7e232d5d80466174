//! Where activations are kept: in memory or, where they would take too much of it, in a file.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::row_file::RowFile;
use crate::{Error, Result};

/// Rows of numbers on the CPU.
pub(super) struct Store {
    rows: Rows,
    bytes: usize,
}

enum Rows {
    /// `[rows, ...]`
    Memory(Tensor),
    File(RowFile),
}

impl Store {
    /// Makes room for rows of `kind`: in memory up to `memory` bytes of them, else in a file in `folder`.
    ///
    /// # Errors
    /// `Io` where the disk has no room for them.
    pub(super) fn new(shape: &[i64], kind: Kind, memory: usize, folder: &Path) -> Result<Self> {
        let bytes = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        let rows = if bytes <= memory {
            let rows = Tensor::f_empty(shape, (kind, Device::Cpu));
            Rows::Memory(rows.map_err(Error::torch("memory for activations"))?)
        } else {
            Rows::File(RowFile::new(shape, kind, folder)?)
        };
        Ok(Self { rows, bytes })
    }

    /// Copies `values` `[n, ...]` into the rows from `first` on.
    pub(super) fn write(&mut self, first: i64, values: &Tensor) -> Result<()> {
        match &mut self.rows {
            Rows::Memory(rows) => rows
                .f_narrow(0, first, values.size()[0])
                .and_then(|mut rows| rows.f_copy_(values))
                .map_err(Error::torch("storing activations")),
            Rows::File(file) => file.write(first, values),
        }
    }

    /// Lets rows in a file be read through a window of up to `memory` bytes, as large as an order like
    /// `batches` needs.
    pub(super) fn set_window(&mut self, memory: usize, batches: &[Vec<i64>]) {
        if let Rows::File(file) = &mut self.rows {
            file.set_window(memory, batches);
        }
    }

    /// Returns each batch's rows, and their values `[rows, ...]`.
    pub(super) fn batches(
        &self,
        batches: Vec<Vec<i64>>,
    ) -> Box<dyn Iterator<Item = Result<(Vec<i64>, Tensor)>> + '_> {
        match &self.rows {
            Rows::Memory(stored) => Box::new(batches.into_iter().map(|rows| {
                let values = stored.f_index_select(0, &Tensor::from_slice(&rows));
                Ok((rows, values.map_err(Error::torch("reading activations"))?))
            })),
            Rows::File(file) => Box::new(file.batches(batches)),
        }
    }

    /// Returns the size of all rows in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns how many bytes of memory they take.
    pub(super) fn memory(&self) -> usize {
        match &self.rows {
            Rows::Memory(_) => self.bytes,
            Rows::File(file) => file.window_bytes(),
        }
    }

    /// Returns the file that the rows are in, if they are in one.
    pub(super) fn file(&self) -> Option<&RowFile> {
        match &self.rows {
            Rows::Memory(_) => None,
            Rows::File(file) => Some(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rows_in_a_file_are_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, bytes) in [(Kind::Float, 160), (Kind::BFloat16, 80)] {
            let values = Tensor::randn([3, 2, 5], (Kind::Float, Device::Cpu)).to_kind(kind);
            let wanted = Tensor::from_slice(&[2i64, 0]);
            let stored = |memory: usize| {
                let new = folder.path().join("data");
                let mut store = Store::new(&[4, 2, 5], kind, memory, &new).unwrap();
                store.write(1, &values.to_kind(Kind::Float)).unwrap();
                assert_eq!(store.file().is_some(), memory == 0);
                assert_eq!((store.bytes(), store.memory()), (bytes, memory));
                let (rows, read) = store.batches(vec![vec![3, 1]]).next().unwrap().unwrap();
                assert_eq!((rows, read.kind()), (vec![3, 1], kind));
                read
            };
            assert_eq!(stored(0), values.index_select(0, &wanted));
            assert_eq!(stored(bytes), stored(0));
        }
        let left = fs::read_dir(folder.path().join("data")).unwrap();
        assert_eq!(left.count(), 0);
    }
}
