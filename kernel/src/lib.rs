//! The Jupyter kernel, as a library: where things lie, which build folder a kernel takes, the
//! environment and the prelude that evcxr gets, and the bridge between Jupyter and evcxr.
//!
//! `xtask` uses it to know the same places, without the feature `bridge`, the kernel itself.

#[cfg(feature = "bridge")]
pub mod bridge;
#[cfg(feature = "bridge")]
pub mod cargo;
pub mod environment;
pub mod folder;
pub mod home;
pub mod kept;
#[cfg(feature = "bridge")]
pub mod prelude;

use std::io;
use std::path::Path;

/// The evcxr that the kernel is written for.
pub const EVCXR_VERSION: &str = "0.22.0";

/// Writes a file unless it already holds this text, so that nothing is rebuilt for its date.
///
/// The text arrives under a temporary name: a kernel that starts at the same time reads either
/// the old file or the new one.
///
/// # Errors
///
/// The file or its folder cannot be written.
pub fn write_if_changed(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, path)
}

/// Passes on what came of removing something, if it is not that there was nothing.
fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}
