//! Writing files whole or not at all, and reading only what is a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use crate::{Error, Result};

/// Writes `bytes` to `path` under a temporary name first: whatever fails, a file of that name is
/// either the old one or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // As any new file's, less the user's mask; a temporary file's are the owner's only.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder
        .tempfile_in(folder)
        .map_err(Error::io("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::io("write", path))?;
    file.persist(path)
        .map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}

/// A file larger than this is refused as an image.
pub(crate) const LARGEST_IMAGE: u64 = 256 << 20;

/// Opens a regular file, and returns its size in bytes: of a pipe or a device, which can keep a reader
/// waiting for ever, nothing is read.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        // Of a regular file it changes nothing.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(Error::io("read", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
        return Err(Error::io("read", path)(reason));
    }
    Ok((file, metadata.len()))
}

/// Reads a regular file.
pub(crate) fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let (mut file, _) = open_regular(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Reads an image file, of at most 256 MiB.
pub(crate) fn read_image_file(path: &Path) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path)?;
    let mut bytes = Vec::with_capacity(size.min(LARGEST_IMAGE + 1) as usize);
    // It may grow while it is read.
    file.take(LARGEST_IMAGE + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST_IMAGE {
        return Err(Error::Image {
            name: path.display().to_string(),
            reason: format!("the file is larger than {} MiB", LARGEST_IMAGE >> 20),
        });
    }
    Ok(bytes)
}
