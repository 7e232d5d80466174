//! Rows of numbers in a file, read front to back where the order in which they are wanted allows it.
//!
//! A shuffle with a buffer moves no example further forward than the buffer is large. So the order of an
//! epoch can be served by a reader that only moves forward and keeps, in a window of about that size, the
//! rows on its way that are wanted later. Where memory does not allow such a window, rows that found no
//! place in it are read when they are wanted, wherever they are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::slice;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A file of rows, which has no name and vanishes with this value, or with the process however that ends.
pub(super) struct RowFile {
    file: File,
    folder: PathBuf,
    /// The shape of a row.
    row: Vec<i64>,
    kind: Kind,
    row_bytes: usize,
    reading: Reading,
}

impl RowFile {
    /// Makes room for rows of `kind`, `[rows, ...]`, in a file in `folder`.
    ///
    /// # Errors
    /// `Io` where the disk has no room for them.
    pub(super) fn new(shape: &[i64], kind: Kind, folder: &Path) -> Result<Self> {
        let row = shape[1..].to_vec();
        let row_bytes = row.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        let create = || {
            fs::create_dir_all(folder)?;
            let file = tempfile::tempfile_in(folder)?;
            reserve(&file, shape[0] as u64 * row_bytes as u64)?;
            Ok(file)
        };
        let action = "reserve room for the frozen layers' activations (or turn them off with `cache_activations(false)`) in";
        Ok(Self {
            file: create().map_err(Error::io(action, folder))?,
            folder: folder.to_owned(),
            row,
            kind,
            row_bytes,
            reading: Reading::default(),
        })
    }

    /// Writes `values` `[n, ...]` into the rows from `first` on.
    pub(super) fn write(&mut self, first: i64, values: &Tensor) -> Result<()> {
        let values = values
            .f_to_device(Device::Cpu)
            .and_then(|values| values.f_to_kind(self.kind)?.f_contiguous());
        let mut values = values.map_err(Error::torch("storing activations"))?;
        let action = "write the frozen layers' activations into a file in";
        self.file
            .write_all_at(bytes(&mut values), self.offset(first))
            .map_err(Error::io(action, &self.folder))
    }

    /// Allows a window of up to `memory` bytes, of which no more is used than an order like `batches` needs.
    pub(super) fn set_window(&mut self, memory: usize, batches: &[Vec<i64>]) {
        let (needed, backwards) = read_forward(usize::MAX, batches);
        let window = needed.min(memory / self.row_bytes);
        self.reading = Reading {
            window,
            needed,
            backwards: match window == needed {
                true => backwards,
                false => read_forward(window, batches).1,
            },
        };
    }

    /// Returns each batch's rows, and their values `[rows, ...]`.
    pub(super) fn batches(
        &self,
        batches: Vec<Vec<i64>>,
    ) -> impl Iterator<Item = Result<(Vec<i64>, Tensor)>> {
        let mut reader = self.reader();
        batches
            .into_iter()
            .map(move |rows| reader.read(&rows).map(|values| (rows, values)))
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            file: self,
            window: Window::new(self.reading.window),
            free: Vec::new(),
        }
    }

    /// Returns how many bytes are kept in memory while the rows are read.
    pub(super) fn window_bytes(&self) -> usize {
        self.reading.window * self.row_bytes
    }

    /// Returns how many bytes would have to be kept for reading every row in the file's order.
    pub(super) fn needed_bytes(&self) -> usize {
        self.reading.needed * self.row_bytes
    }

    /// Returns how many rows are read behind some that were read before.
    pub(super) fn backwards(&self) -> usize {
        self.reading.backwards
    }

    /// Returns where in the file a row begins.
    fn offset(&self, row: i64) -> u64 {
        row as u64 * self.row_bytes as u64
    }
}

/// How rows are read in some order.
#[derive(Default)]
struct Reading {
    /// The most rows that are kept at a time.
    window: usize,
    /// How many that would be if memory did not count.
    needed: usize,
    /// How many rows are read behind some that were read before.
    backwards: usize,
}

/// Reads the rows of one epoch.
struct Reader<'a> {
    file: &'a RowFile,
    window: Window<Box<[u8]>>,
    /// For the next rows in the window.
    free: Vec<Box<[u8]>>,
}

impl Reader<'_> {
    /// Returns rows that are wanted now, `[rows, ...]`.
    fn read(&mut self, rows: &[i64]) -> Result<Tensor> {
        let row_bytes = self.file.row_bytes;
        let shape = [&[rows.len() as i64], self.file.row.as_slice()].concat();
        let mut values = Tensor::f_zeros(shape, (self.file.kind, Device::Cpu))
            .map_err(Error::torch("memory for activations"))?;
        let mut places = Vec::with_capacity(rows.len());
        let all_places = bytes(&mut values).chunks_exact_mut(row_bytes);
        for (&row, place) in rows.iter().zip(all_places) {
            match self.window.kept.remove(&row) {
                Some(kept) => {
                    place.copy_from_slice(&kept);
                    self.free.push(kept);
                }
                None => places.push((row, place)),
            }
        }
        places.sort_unstable_by_key(|&(row, _)| row);
        let wanted: Vec<i64> = places.iter().map(|&(row, _)| row).collect();
        let mut buffer = || self.free.pop().unwrap_or_else(|| vec![0; row_bytes].into());
        let kept = self.window.advance(&wanted).into_iter();
        let mut kept: Vec<_> = kept.map(|row| (row, buffer())).collect();
        places.extend(kept.iter_mut().map(|(row, place)| (*row, &mut **place)));
        places.sort_unstable_by_key(|&(row, _)| row);
        let RowFile { file, folder, .. } = self.file;
        let action = "read the frozen layers' activations back from a file in";
        places
            .into_iter()
            .try_for_each(|(row, place)| file.read_exact_at(place, self.file.offset(row)))
            .map_err(Error::io(action, folder))?;
        self.window.kept.extend(kept);
        Ok(values)
    }
}

/// The rows that a reader on its way forward has read and that are wanted later.
struct Window<B> {
    /// The most rows to keep.
    size: usize,
    kept: HashMap<i64, B>,
    /// The first row that the reader has not passed.
    next: i64,
}

impl<B> Window<B> {
    fn new(size: usize) -> Self {
        Self {
            size,
            kept: HashMap::new(),
            next: 0,
        }
    }

    /// Moves on behind the last of the rows that are wanted now, which are sorted and not in the window.
    /// Returns which of the others on the way are to be kept.
    fn advance(&mut self, wanted: &[i64]) -> Vec<i64> {
        let end = wanted.last().map_or(0, |last| last + 1).max(self.next);
        let others = (self.next..end).filter(|row| wanted.binary_search(row).is_err());
        self.next = end;
        others.take(self.size - self.kept.len()).collect()
    }
}

/// Returns how many rows a reader with such a window keeps at most at a time, and how many it reads behind
/// some that it read before.
fn read_forward(size: usize, batches: &[Vec<i64>]) -> (usize, usize) {
    let mut window = Window::new(size);
    let (mut most, mut backwards) = (0, 0);
    for rows in batches {
        let missing = rows.iter().filter(|row| window.kept.remove(row).is_none());
        let mut missing: Vec<i64> = missing.copied().collect();
        missing.sort_unstable();
        backwards += missing.partition_point(|&row| row < window.next);
        let kept = window.advance(&missing).into_iter().map(|row| (row, ()));
        window.kept.extend(kept);
        most = most.max(window.kept.len());
    }
    (most, backwards)
}

/// Returns the memory of a contiguous tensor on the CPU.
fn bytes(tensor: &mut Tensor) -> &mut [u8] {
    match tensor.numel() * tensor.kind().elt_size_in_bytes() {
        // It has no memory.
        0 => &mut [],
        // Safety: the tensor has its values one after the other, and nobody else while it is borrowed.
        size => unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), size) },
    }
}

/// Reserves the file's blocks, so that a full disk is an error before the work and not in the midst of it.
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
    use crate::dataset::Example;
    use crate::pipeline::{Dataset, Pixels};
    use crate::settings::BrokenImages;

    const ROWS: usize = 200;
    const BUFFER: usize = 50;
    const ROW_BYTES: usize = 3 * size_of::<f32>();

    /// Returns the batches of a shuffled epoch.
    fn shuffled(buffer: usize) -> Vec<Vec<i64>> {
        let example = |row: usize| Example::at_path(row.to_string(), 0, "".as_ref());
        let examples = (0..ROWS).map(example).collect();
        let dataset = Dataset::new(examples, vec!["ants".into()], 1, BrokenImages::Stop);
        let batches = dataset
            .map(|image| Pixels::from(image))
            .shuffle(buffer)
            .batch(7);
        let dealt = batches.deal(batches.order(2)).into_iter();
        dealt
            .map(|(rows, _)| rows.into_iter().map(|row| row as i64).collect())
            .collect()
    }

    /// Returns a file, and the rows in it `[ROWS, 3]`.
    fn file(folder: &Path) -> (RowFile, Tensor) {
        let values = Tensor::randn([ROWS as i64, 3], (Kind::Float, Device::Cpu));
        let mut file = RowFile::new(&values.size(), Kind::Float, folder).unwrap();
        file.write(0, &values).unwrap();
        (file, values)
    }

    #[test]
    fn a_shuffled_epoch_reads_the_file_front_to_back_through_a_window_of_less_than_the_buffer() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, values) = file(folder.path());
        let batches = shuffled(BUFFER);
        file.set_window(usize::MAX, &batches);
        assert_eq!(file.backwards(), 0);
        assert!(file.window_bytes() < BUFFER * ROW_BYTES);
        let (mut reader, mut most) = (file.reader(), 0);
        for rows in batches {
            let read = reader.read(&rows).unwrap();
            assert_eq!(read, values.index_select(0, &Tensor::from_slice(&rows)));
            // Whoever read there again would find this.
            let passed = vec![0xff; reader.window.next as usize * ROW_BYTES];
            file.file.write_all_at(&passed, 0).unwrap();
            most = most.max(reader.window.kept.len() + reader.free.len());
        }
        assert_eq!(most * ROW_BYTES, file.window_bytes());
    }

    #[test]
    fn memory_for_a_smaller_window_is_kept_to_and_the_rows_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, values) = file(folder.path());
        let batches = shuffled(BUFFER);
        let mut backwards = vec![0];
        for memory in [49, 25, 10, 0].map(|rows| rows * ROW_BYTES) {
            file.set_window(memory, &batches);
            assert!(file.window_bytes() <= memory);
            assert!(file.needed_bytes() > 40 * ROW_BYTES);
            let mut reader = file.reader();
            for rows in &batches {
                let read = reader.read(rows).unwrap();
                assert_eq!(read, values.index_select(0, &Tensor::from_slice(rows)));
                let kept = reader.window.kept.len() + reader.free.len();
                assert!(kept * ROW_BYTES <= memory);
            }
            backwards.push(file.backwards());
        }
        assert!(backwards.is_sorted(), "{backwards:?}");
        assert!(
            backwards[1] == 0 && backwards[4] > ROWS / 2,
            "{backwards:?}"
        );
    }

    #[test]
    fn the_order_of_the_file_needs_no_window() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, _) = file(folder.path());
        file.set_window(usize::MAX, &shuffled(1));
        assert_eq!((file.needed_bytes(), file.backwards()), (0, 0));
    }

    #[test]
    fn rows_that_are_wanted_several_times_or_never_are_read_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, values) = file(folder.path());
        let batches = vec![vec![3, 3, 0], vec![9, 3, 1], vec![], vec![0, 9, 199, 1]];
        for memory in [0, 1000] {
            file.set_window(memory, &batches);
            for batch in file.batches(batches.clone()) {
                let (rows, read) = batch.unwrap();
                assert_eq!(read, values.index_select(0, &Tensor::from_slice(&rows)));
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_that_names_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (file, _) = file(folder.path());
        file.file.set_len(5 * ROW_BYTES as u64).unwrap();
        let read: Vec<_> = file.batches(vec![vec![4], vec![5]]).collect();
        assert!(read[0].is_ok());
        let error = read[1].as_ref().unwrap_err();
        assert!(
            matches!(error, Error::Io { path, .. } if path == folder.path()),
            "{error}"
        );
    }

    #[test]
    fn a_disk_without_room_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = RowFile::new(&[1 << 48], Kind::Float, folder.path())
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("cache_activations(false)"),
            "{error}"
        );
    }
}
