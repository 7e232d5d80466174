//! Settings that are paths. They are meant from the folder that the user is in; a notebook's
//! kernel is in the notebook's.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Returns the `TRANSFER_*` variables that hold a relative path, with the absolute one.
pub(crate) fn absolute_paths() -> io::Result<Vec<(&'static str, PathBuf)>> {
    absolute_from(&std::env::current_dir()?, |name| std::env::var_os(name))
}

fn absolute_from(
    folder: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> io::Result<Vec<(&'static str, PathBuf)>> {
    let is_path = |name: &str, value: &OsString| {
        // A dataset is a folder where its name has a slash in it.
        !value.is_empty() && (name != "TRANSFER_DATASET" || value.to_string_lossy().contains('/'))
    };
    ["TRANSFER_DATA", "TRANSFER_CHECKPOINTS", "TRANSFER_DATASET"]
        .into_iter()
        .filter_map(|name| Some((name, variable(name).filter(|value| is_path(name, value))?)))
        .map(|(name, value)| Ok((name, std::path::absolute(folder.join(value))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_become_absolute_and_names_of_datasets_stay() {
        let paths = |dataset: &'static str| {
            let variable = move |name: &str| match name {
                "TRANSFER_DATASET" => Some(dataset.into()),
                "TRANSFER_DATA" => Some("downloads".into()),
                "TRANSFER_CHECKPOINTS" => Some("kept".into()),
                _ => None,
            };
            absolute_from(Path::new("/here"), variable).unwrap()
        };
        let folders = [
            ("TRANSFER_DATA", PathBuf::from("/here/downloads")),
            ("TRANSFER_CHECKPOINTS", PathBuf::from("/here/kept")),
        ];
        assert_eq!(paths("cifar10"), folders);
        assert_eq!(paths("./pets")[..2], folders);
        assert_eq!(
            paths("./pets")[2],
            ("TRANSFER_DATASET", "/here/pets".into())
        );
        assert_eq!(paths("/pets")[2].1, Path::new("/pets"));
    }
}
