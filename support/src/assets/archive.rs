//! Reads zip files in place, from many threads at once: the index is read once, each read of an
//! entry has a file position of its own, and nothing is unpacked to disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

use super::hash;
use crate::files::{LARGEST_IMAGE, open_regular};
use crate::{Error, Result};

/// An open zip file.
#[derive(Debug)]
pub(crate) struct Zip {
    path: PathBuf,
    names: Vec<String>,
    archive: ZipArchive<Cursor>,
}

impl Zip {
    /// Reads the index. An entry whose name leads out of the archive's folder is refused here,
    /// whether or not it would ever be read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::Archive {
            path: path.to_owned(),
            reason,
        };
        let (file, length) = open_regular(path)?;
        let cursor = Cursor {
            file: Arc::new(file),
            position: 0,
            length,
        };
        let archive = ZipArchive::new(cursor)
            .map_err(|error| refuse(format!("not a zip file, or a truncated one ({error})")))?;
        let names = archive
            .file_names()
            .map(|name| name.map(|name| name.into_owned()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| refuse(format!("unreadable entry name ({error})")))?;
        if let Some(name) = names.iter().find(|name| escapes(name)) {
            return Err(refuse(format!(
                "entry {name:?} leads out of the archive; refused"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            names,
            archive,
        })
    }

    /// The entries' names. An entry is read by its index in this list.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Reads and checks (CRC-32) a whole entry, of at most 256 MiB: a damaged or hostile one can inflate
    /// to a thousand times its compressed size.
    pub(crate) fn read(&self, index: usize) -> Result<Vec<u8>> {
        let bytes = self.head(index, LARGEST_IMAGE + 1)?;
        if bytes.len() as u64 > LARGEST_IMAGE {
            return Err(self.damaged(index, format!("larger than {LARGEST_IMAGE} bytes")));
        }
        Ok(bytes)
    }

    /// Reads at most `limit` bytes from the start of an entry.
    pub(crate) fn head(&self, index: usize, limit: u64) -> Result<Vec<u8>> {
        let mut archive = self.archive.clone(); // the index is shared, the position is not
        let entry = archive
            .by_index(index)
            .map_err(|error| self.damaged(index, error))?;
        let mut bytes = Vec::with_capacity(entry.entry().size().min(limit).min(1 << 20) as usize);
        entry
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| self.damaged(index, error))?;
        Ok(bytes)
    }

    /// Sums up the images in `train/` and `validation/`: sha256 over lines as `sha256sum`
    /// prints them, sorted by name, the names taken from that folder on.
    pub(crate) fn digest_of_images(&self) -> Result<String> {
        let mut lines = Vec::new();
        for (index, name) in self.names.iter().enumerate() {
            if let Some(name) = image_of_split(name) {
                lines.push((name, hash(&self.read(index)?)));
            }
        }
        lines.sort_unstable();
        let list: String = lines
            .iter()
            .map(|(name, hash)| format!("{hash}  {name}\n"))
            .collect();
        Ok(hash(list.as_bytes()))
    }

    fn damaged(&self, index: usize, reason: impl std::fmt::Display) -> Error {
        let name = self.names.get(index).map_or("?", String::as_str);
        Error::Archive {
            path: self.path.clone(),
            reason: format!("entry {name}: {reason}"),
        }
    }
}

/// The name from `train/` or `validation/` on, for a `.jpg` below one of them.
pub(crate) fn image_of_split(name: &str) -> Option<&str> {
    let name = match name.split_once('/')? {
        ("train" | "validation", _) => name,
        (_, rest) => rest,
    };
    let part = name.split_once('/')?.0;
    (matches!(part, "train" | "validation") && name.ends_with(".jpg")).then_some(name)
}

/// Whether unpacking an entry of this name could write outside the target folder.
fn escapes(name: &str) -> bool {
    let mut parts = name.split(['/', '\\']);
    name.starts_with(['/', '\\']) || name.get(1..2) == Some(":") || parts.any(|part| part == "..")
}

/// A position of its own in a shared open file.
#[derive(Clone, Debug)]
struct Cursor {
    file: Arc<File>,
    position: u64,
    length: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Builds zip files for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::io::{Cursor, Write};

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    /// A zip of these entries; every second one is stored without compression.
    pub(crate) fn pack(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (at, (name, bytes)) in entries.iter().enumerate() {
            let methods = [CompressionMethod::Deflated, CompressionMethod::Stored];
            let options = SimpleFileOptions::default().compression_method(methods[at % 2]);
            writer.start_file(*name, options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn refusal(bytes: &[u8]) -> String {
        let (_folder, path) = written(bytes);
        match Zip::open(&path) {
            Err(Error::Archive { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stored_and_deflated_entries_read_back() {
        let long = vec![7; 100_000];
        let (_folder, path) = written(&testing::pack(&[
            ("a", &long),
            ("b/c", b"stored"),
            ("d", b""),
        ]));
        let zip = Zip::open(&path).unwrap();
        assert_eq!(zip.names(), ["a", "b/c", "d"]);
        assert_eq!(zip.read(0).unwrap(), long);
        assert_eq!(zip.read(1).unwrap(), b"stored");
        assert_eq!(zip.read(2).unwrap(), b"");
        assert_eq!(zip.head(0, 3).unwrap(), [7, 7, 7]);
    }

    #[test]
    fn many_threads_read_at_once() {
        let entries: Vec<(String, Vec<u8>)> = (0..40u8)
            .map(|at| (format!("{at}"), vec![at; 20_000 + usize::from(at)]))
            .collect();
        let list: Vec<_> = entries
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect();
        let (_folder, path) = written(&testing::pack(&list));
        let zip = Zip::open(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (zip, entries) = (&zip, &entries);
                scope.spawn(move || {
                    for at in (0..40).map(|at| (at * 7 + thread) % 40) {
                        assert_eq!(zip.read(at).unwrap(), entries[at].1);
                    }
                });
            }
        });
    }

    #[test]
    fn an_entry_that_escapes_its_folder_is_refused() {
        for name in [
            "../x.jpg",
            "a/../../x.jpg",
            "/etc/x.jpg",
            "a\\..\\..\\x.jpg",
            "C:\\x.jpg",
        ] {
            let reason = refusal(&testing::pack(&[("a.jpg", b"1"), (name, b"2")]));
            assert!(
                reason.contains("leads out of the archive"),
                "{name}: {reason}"
            );
        }
    }

    #[test]
    fn a_truncated_zip_is_refused() {
        let bytes = testing::pack(&[("a", &[1; 5000]), ("b", &[2; 5000])]);
        for length in [0, 10, bytes.len() / 2, bytes.len() - 1] {
            let reason = refusal(&bytes[..length]);
            assert!(
                reason.starts_with("not a zip file, or a truncated one"),
                "{length}: {reason}"
            );
        }
    }

    #[test]
    fn a_damaged_entry_is_reported_by_name() {
        let mut bytes = testing::pack(&[("a", b"first"), ("b", b"stored")]);
        let at = bytes
            .windows(6)
            .position(|window| window == b"stored")
            .unwrap();
        bytes[at] ^= 1;
        let (_folder, path) = written(&bytes);
        let zip = Zip::open(&path).unwrap();
        assert_eq!(zip.read(0).unwrap(), b"first");
        let error = zip.read(1).unwrap_err().to_string();
        assert!(
            error.contains("entry b: ") && error.contains("checksum"),
            "{error}"
        );
    }

    #[test]
    fn the_digest_is_the_one_that_sha256sum_prints() {
        // printf 1 > train/a.jpg; printf 2 > validation/b.jpg
        // find train validation -name '*.jpg' | LC_ALL=C sort | xargs sha256sum | sha256sum
        const EXPECTED: &str = "3a039050b65ad7aca2144f14f6ec67f96a67e56db240e91bcf4216a1f6ba3a79";
        let packings: [&[(&str, &[u8])]; 2] = [
            &[
                ("x/validation/b.jpg", b"2"),
                ("x/train/a.jpg", b"1"),
                ("x/vectorize.py", b""),
            ],
            &[
                ("train/a.jpg", b"1"),
                ("validation/b.jpg", b"2"),
                ("train/notes.txt", b""),
            ],
        ];
        for packing in packings {
            let (_folder, path) = written(&testing::pack(packing));
            assert_eq!(
                Zip::open(&path).unwrap().digest_of_images().unwrap(),
                EXPECTED
            );
        }
    }
}
