//! Folders that are kept because they took long to make: environments, evcxr's versions, build
//! folders. Each is named after what it was made from, so that checkouts on different branches do
//! not take turns in making one, and is removed when it has not been used for long.
//!
//! Beside a folder lies its lock, `NAME.lock`, whose date says when the folder was last used. The
//! lock stays when the folder goes: somebody may be about to lock the file.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;

/// How long a folder may lie unused.
const UNUSED: Duration = Duration::from_hours(30 * 24);

/// Marks a folder as used now. It is not removed for as long as the file that is returned is open.
///
/// # Errors
///
/// The lock cannot be written.
pub fn hold(folder: &Path) -> anyhow::Result<File> {
    let lock = open_lock(folder)?;
    let failed = || format!("cannot lock {}", folder.display());
    lock.lock_shared().with_context(failed)?;
    mark(&lock, folder)?;
    Ok(lock)
}

/// Takes a folder for one process alone, or returns `None` where another one has it.
///
/// # Errors
///
/// The lock cannot be written.
pub fn try_take(folder: &Path) -> anyhow::Result<Option<File>> {
    let lock = try_lock(folder)?;
    if let Some(lock) = &lock {
        mark(lock, folder)?;
    }
    Ok(lock)
}

/// Removes the folders below `parent` that have not been used for 30 days, of those whose names
/// `may_go` returns true for. Returns those that it has removed.
///
/// # Errors
///
/// A folder cannot be removed.
pub fn prune(parent: &Path, may_go: impl Fn(&str) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(parent) else {
        return Ok(removed);
    };
    for entry in entries {
        let folder = entry?.path();
        let name = folder.file_name().and_then(OsStr::to_str);
        if !folder.is_dir() || !name.is_some_and(&may_go) {
            continue;
        }
        let Some(lock) = try_lock(&folder)? else {
            continue;
        };
        // A folder from before there were locks gets one here, and its time begins.
        let used = lock.metadata()?.modified()?;
        if SystemTime::now().duration_since(used).unwrap_or_default() > UNUSED {
            let failed = || format!("cannot remove {}", folder.display());
            fs::remove_dir_all(&folder).with_context(failed)?;
            removed.push(folder);
        }
    }
    Ok(removed)
}

/// Does so for folders of the same kind as this one, in whose name it comes before the first `-`.
///
/// # Errors
///
/// A folder cannot be removed.
pub fn prune_siblings(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let kind = |name: &str| name.split_once('-').map(|(kind, _)| kind.to_owned());
    let Some((parent, name)) = folder.parent().zip(folder.file_name()) else {
        return Ok(Vec::new());
    };
    let own = name.to_str().and_then(kind);
    prune(parent, |name| own.is_some() && kind(name) == own)
}

fn open_lock(folder: &Path) -> anyhow::Result<File> {
    let mut path = folder.as_os_str().to_owned();
    path.push(".lock");
    let parent = folder.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", Path::new(&path).display()))
}

fn try_lock(folder: &Path) -> anyhow::Result<Option<File>> {
    let lock = open_lock(folder)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", folder.display()))
        }
    }
}

fn mark(lock: &File, folder: &Path) -> anyhow::Result<()> {
    lock.set_modified(SystemTime::now())
        .with_context(|| format!("cannot mark {} as used", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a folder that was last used some days ago.
    fn unused_for(days: u64, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let used = SystemTime::now() - Duration::from_hours(days * 24);
        open_lock(folder).unwrap().set_modified(used).unwrap();
    }

    #[test]
    fn what_was_not_used_for_long_goes_unless_it_is_in_use_or_of_another_kind() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        for (name, days) in [
            ("env-1.0", 31),
            ("env-1.1", 29),
            ("env-2", 31),
            ("bench-1", 31),
        ] {
            unused_for(days, &path(name));
        }
        let lock = open_lock(&path("env-2")).unwrap();
        lock.lock_shared().unwrap();
        fs::create_dir(path("env-no-lock-yet")).unwrap();

        let prune = || prune(parent.path(), |name| name.starts_with("env-")).unwrap();
        assert_eq!(prune(), [path("env-1.0")]);
        drop(lock);
        assert_eq!(prune(), [path("env-2")]);
        for kept in ["env-1.1", "env-no-lock-yet", "bench-1"] {
            assert!(path(kept).is_dir(), "{kept}");
        }
    }

    #[test]
    fn use_renews_a_folder_and_two_may_use_what_neither_may_take() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("env");
        for held in [
            |folder: &Path| hold(folder).unwrap(),
            |folder: &Path| try_take(folder).unwrap().unwrap(),
        ] {
            unused_for(31, &folder);
            drop(held(&folder));
            assert_eq!(
                prune(parent.path(), |_| true).unwrap(),
                [""; 0].map(PathBuf::from)
            );
        }
        let _both = [hold(&folder).unwrap(), hold(&folder).unwrap()];
        assert!(try_take(&folder).unwrap().is_none());
    }
}
