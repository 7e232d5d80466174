//! The folder in which a kernel builds its cells.
//!
//! Two kernels in one folder overwrite each other's cells, and a new folder compiles every
//! dependency again, libtorch's C++ bindings included. So folders are kept, numbered, each held
//! under a lock by one kernel at a time, and a new one starts as a copy of `warm`, a folder that
//! set-up has built the dependencies in and that no kernel of a person ever runs in. All of them lie
//! below a folder that is named after what the dependencies are built from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::kept::{self, try_take};
use crate::unless_missing;

/// The name of the folder that set-up builds and others are copied from.
pub const WARM: &str = "warm";

/// The file in a folder that tells what its dependencies were built from.
const STAMP: &str = ".warm";

/// A build folder and the lock on it.
#[derive(Debug)]
pub struct BuildFolder {
    /// The folder, for `EVCXR_TMPDIR`.
    pub path: PathBuf,
    /// The locked file: the folder is taken for as long as any process has it open.
    pub lock: File,
}

/// Takes the first numbered folder below `parent` that no other kernel holds, and makes it a copy
/// of the warm folder unless it already is one.
///
/// While the warm folder is being built it is not copied; the kernel then starts with what its
/// own folder holds.
///
/// # Errors
///
/// A folder or its lock cannot be created.
pub fn take_free(parent: &Path) -> anyhow::Result<BuildFolder> {
    for number in 0_u32.. {
        let path = parent.join(number.to_string());
        let Some(lock) = try_take(&path)? else {
            continue;
        };
        if let Err(error) = warm_up_from_copy(parent, &path) {
            // A cold folder works as well, it only takes longer.
            eprintln!("could not copy the warm build folder: {error:#}");
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        return Ok(BuildFolder { path, lock });
    }
    anyhow::bail!("every build folder in {} is in use", parent.display())
}

/// Takes the folder `name` below `parent`, which must not be in use.
///
/// # Errors
///
/// Another process holds the folder, or it cannot be created.
pub fn take(parent: &Path, name: &str) -> anyhow::Result<BuildFolder> {
    let path = parent.join(name);
    let Some(lock) = try_take(&path)? else {
        anyhow::bail!("the build folder {} is in use", path.display());
    };
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BuildFolder { path, lock })
}

/// Returns what the dependencies in `folder` were built from, if it was marked as complete.
pub fn stamp(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(STAMP)).ok()
}

/// Marks the warm folder below `parent` as complete, or (`None`) as being worked on.
///
/// # Errors
///
/// The mark cannot be written or removed.
pub fn set_stamp(parent: &Path, stamp: Option<&str>) -> io::Result<()> {
    let path = parent.join(WARM).join(STAMP);
    match stamp {
        Some(stamp) => fs::write(path, stamp),
        None if path.exists() => fs::remove_file(path),
        None => Ok(()),
    }
}

/// Removes the numbered folders below `parent` that no kernel has used for long, except the first.
/// Returns those that it has removed.
///
/// # Errors
///
/// A folder cannot be removed.
pub fn prune(parent: &Path) -> anyhow::Result<Vec<PathBuf>> {
    kept::prune(parent, |name| {
        name.parse().is_ok_and(|number: u32| number > 0)
    })
}

/// Makes `path` a copy of the warm folder, unless there is no complete one, it is being built, or
/// `path` already came from it.
fn warm_up_from_copy(parent: &Path, path: &Path) -> anyhow::Result<()> {
    let warm = parent.join(WARM);
    let Some(wanted) = stamp(&warm) else {
        return Ok(());
    };
    if stamp(path).as_deref() == Some(wanted.as_str()) {
        return Ok(());
    }
    let lock = File::open(parent.join(format!("{WARM}.lock")))?;
    if lock.try_lock_shared().is_err() {
        return Ok(());
    }
    // Under another name until it is complete: where the copy fails, what is there stays.
    let [unfinished, old] = ["unfinished", "old"].map(|name| path.with_extension(name));
    remove(&unfinished)?;
    copy_with_dates(&warm, &unfinished).with_context(|| {
        // The disk may be full.
        let _ = remove(&unfinished);
        format!("cannot copy {}", warm.display())
    })?;
    remove(&old)?;
    if path.exists() {
        fs::rename(path, &old)?;
    }
    fs::rename(&unfinished, path)?;
    remove(&old)
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    unless_missing(fs::remove_dir_all(folder))
        .with_context(|| format!("cannot remove {}", folder.display()))
}

/// Copies a tree with the files' modification times: Cargo decides by them what to rebuild.
fn copy_with_dates(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_with_dates(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn warm_folder(parent: &Path, built_from: &str, content: &str) {
        drop(take(parent, WARM).unwrap());
        let deps = parent.join(WARM).join("target/debug/deps");
        fs::create_dir_all(&deps).unwrap();
        fs::write(deps.join("library"), content).unwrap();
        set_stamp(parent, Some(built_from)).unwrap();
    }

    fn library(folder: &BuildFolder) -> io::Result<String> {
        fs::read_to_string(folder.path.join("target/debug/deps/library"))
    }

    #[test]
    fn two_kernels_get_different_folders_and_a_freed_one_is_taken_again() {
        let parent = tempfile::tempdir().unwrap();
        let first = take_free(parent.path()).unwrap();
        let second = take_free(parent.path()).unwrap();
        assert_eq!(first.path, parent.path().join("0"));
        assert_eq!(second.path, parent.path().join("1"));
        drop(first);
        assert_eq!(
            take_free(parent.path()).unwrap().path,
            parent.path().join("0")
        );
    }

    #[test]
    fn a_folder_starts_as_a_copy_of_the_warm_one_with_the_same_dates() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built");
        let original = parent.path().join("warm/target/debug/deps/library");
        let long_ago = SystemTime::now() - Duration::from_secs(86_400);
        File::options()
            .write(true)
            .open(&original)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();

        let folder = take_free(parent.path()).unwrap();
        assert_eq!(library(&folder).unwrap(), "built");
        let copy = folder.path.join("target/debug/deps/library");
        let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(modified(&copy), modified(&original));
    }

    #[test]
    fn a_folder_keeps_what_it_built_until_the_warm_one_changes() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built from a");
        let folder = take_free(parent.path()).unwrap();
        fs::write(folder.path.join("own"), "cell").unwrap();
        drop(folder);

        let again = take_free(parent.path()).unwrap();
        assert!(again.path.join("own").exists());
        drop(again);

        warm_folder(parent.path(), "b", "built from b");
        let renewed = take_free(parent.path()).unwrap();
        assert_eq!(library(&renewed).unwrap(), "built from b");
        assert!(!renewed.path.join("own").exists());
    }

    #[test]
    fn a_warm_folder_that_is_incomplete_or_being_built_is_not_copied() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built");
        set_stamp(parent.path(), None).unwrap();
        assert!(library(&take_free(parent.path()).unwrap()).is_err());

        set_stamp(parent.path(), Some("a")).unwrap();
        let _building = take(parent.path(), WARM).unwrap();
        assert!(library(&take_free(parent.path()).unwrap()).is_err());
    }

    #[test]
    fn a_copy_that_was_interrupted_is_started_again() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built");
        let unfinished = parent.path().join("0.unfinished/target");
        fs::create_dir_all(&unfinished).unwrap();
        fs::write(unfinished.join("half"), "").unwrap();

        let folder = take_free(parent.path()).unwrap();
        assert_eq!(library(&folder).unwrap(), "built");
        assert!(!folder.path.join("target/half").exists());
    }

    #[test]
    fn a_folder_whose_renewal_fails_keeps_what_it_holds() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built from a");
        drop(take_free(parent.path()).unwrap());
        warm_folder(parent.path(), "b", "built from b");
        let nowhere = parent.path().join("warm/nowhere");
        std::os::unix::fs::symlink("no-such-file", &nowhere).unwrap();

        let kept = take_free(parent.path()).unwrap();
        assert_eq!(library(&kept).unwrap(), "built from a");
        assert!(!parent.path().join("0.unfinished").exists());
        drop(kept);

        fs::remove_file(nowhere).unwrap();
        let renewed = take_free(parent.path()).unwrap();
        assert_eq!(library(&renewed).unwrap(), "built from b");
        assert!(!parent.path().join("0.old").exists());
    }

    #[test]
    fn of_the_folders_that_were_not_used_for_long_the_first_and_the_warm_one_stay() {
        let parent = tempfile::tempdir().unwrap();
        warm_folder(parent.path(), "a", "built");
        drop([(); 3].map(|()| take_free(parent.path()).unwrap()));
        let long_ago = SystemTime::now() - Duration::from_hours(31 * 24);
        for name in ["0", "1", "warm"] {
            let lock = File::options()
                .write(true)
                .open(parent.path().join(format!("{name}.lock")));
            lock.unwrap().set_modified(long_ago).unwrap();
        }
        assert_eq!(prune(parent.path()).unwrap(), [parent.path().join("1")]);
    }

    #[test]
    fn a_named_folder_in_use_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let _held = take(parent.path(), WARM).unwrap();
        let error = take(parent.path(), WARM).unwrap_err().to_string();
        assert!(error.contains("is in use"), "{error}");
    }
}
