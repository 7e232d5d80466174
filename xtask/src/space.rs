//! Whether there is room for what is still missing, on the disks that it will lie on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The environment variable that chooses where Cargo builds.
pub(crate) const TARGET_DIR: &str = "CARGO_TARGET_DIR";

/// Something large that is still missing.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    what: &'static str,
    megabytes: u64,
    place: PathBuf,
    /// The environment variable that chooses another place.
    variable: &'static str,
}

/// Makes sure that all fits, and says how much it is and how much is free.
pub(crate) fn ensure_room(needs: &[Need]) -> anyhow::Result<String> {
    fit(needs, disk)?;
    let total: u64 = needs.iter().map(Need::megabytes).sum();
    Ok(match total {
        0 => "nothing large is missing".to_owned(),
        total => format!("room for the {} that are missing", size(total)),
    })
}

/// Which disk a place is on, and how many megabytes are free there.
type Disk = (u64, u64);

fn fit(needs: &[Need], disk: impl Fn(&Path) -> anyhow::Result<Disk>) -> anyhow::Result<()> {
    let mut disks: BTreeMap<u64, (u64, Vec<&Need>)> = BTreeMap::new();
    for need in needs {
        let (id, free) = disk(&need.place)?;
        disks.entry(id).or_insert((free, Vec::new())).1.push(need);
    }
    for (free, needs) in disks.into_values() {
        let total = needs.iter().map(|need| need.megabytes).sum();
        let list: Vec<_> = needs.iter().map(|need| need.describe()).collect();
        ensure!(
            free >= total,
            "{} free on a disk where {} are needed: {}. Make room, or choose another place",
            size(free),
            size(total),
            list.join(", "),
        );
    }
    Ok(())
}

impl Need {
    pub(crate) fn new(
        what: &'static str,
        megabytes: u64,
        place: impl Into<PathBuf>,
        variable: &'static str,
    ) -> Self {
        Self {
            what,
            megabytes,
            place: place.into(),
            variable,
        }
    }

    pub(crate) fn megabytes(&self) -> u64 {
        self.megabytes
    }

    fn describe(&self) -> String {
        let (size, place) = (size(self.megabytes), self.place.display());
        format!("{size} for {} in {place} ({})", self.what, self.variable)
    }
}

fn size(megabytes: u64) -> String {
    format!("{}.{} GB", megabytes / 1000, megabytes % 1000 / 100)
}

fn disk(place: &Path) -> anyhow::Result<Disk> {
    let failed = || format!("cannot tell how much space is free in {}", place.display());
    let there = place.ancestors().find(|folder| folder.exists());
    let there = there.with_context(failed)?;
    let disk = rustix::fs::statvfs(there).with_context(failed)?;
    let free = disk.f_bavail * disk.f_frsize / 1_000_000;
    Ok((fs::metadata(there).with_context(failed)?.dev(), free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_one_disk_has_to_fit_on_it_together() {
        let disks = |place: &Path| {
            Ok(if place.starts_with("/home") {
                (1, 5000)
            } else {
                (2, 900)
            })
        };
        let error = |needs: &[Need]| fit(needs, disks).map_err(|error| error.to_string());
        let home = Need::new("this", 4000, "/home/a/.cache", "TRANSFER_HOME");
        let target = Need::new("this", 1000, "/home/a/checkout/target", "CARGO_TARGET_DIR");
        let downloads = Need::new("this", 900, "/tmp", "TMPDIR");
        let mut needs = vec![home, target, downloads];
        assert_eq!(error(&needs), Ok(()));
        needs[2].megabytes += 1;
        assert_eq!(
            error(&needs).unwrap_err(),
            "0.9 GB free on a disk where 0.9 GB are needed: 0.9 GB for this in /tmp (TMPDIR). \
             Make room, or choose another place"
        );
        needs[0].megabytes += 1200;
        let both = error(&needs).unwrap_err();
        let says = |part| both.contains(part);
        assert!(
            says("5.0 GB free on a disk where 6.2 GB are needed: 5.2 GB for this"),
            "{both}"
        );
        assert!(
            says("(TRANSFER_HOME), 1.0 GB for this") && !says("TMPDIR"),
            "{both}"
        );
    }

    #[test]
    fn a_folder_that_is_to_be_made_is_on_the_disk_of_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let id = |path: &Path| disk(path).unwrap().0;
        assert_eq!(id(&folder.path().join("new/er")), id(folder.path()));
        let place = folder.path().to_str().unwrap();
        ensure_room(&[Need::new("this", 0, place, "TMPDIR")]).unwrap();
        ensure_room(&[Need::new("this", u64::MAX, place, "TMPDIR")]).unwrap_err();
    }
}
