//! Class folders, on disk or in a zip: `{class}/…/picture`, or the same below `train/` and
//! `validation/` and/or `test/`, which is then the split.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Example, Examples, Found, Source};
use crate::assets::archive::{Zip, picture_of_split};
use crate::{Error, Result};

/// What counts as a picture; what a file really is shows when it is decoded.
const SUFFIXES: [&str; 6] = ["jpg", "jpeg", "png", "gif", "webp", "bmp"];

/// The folders of a split: training, validation, test.
const PARTS: [&[&str]; 3] = [&["train"], &["validation", "val", "valid"], &["test"]];

const LAYOUT: &str = "a dataset is a folder with one folder of pictures per class, or with train/ \
                      and validation/ and/or test/ that hold those";

/// Folders and pictures by their path relative to the root, with `/` between the parts.
#[derive(Default)]
struct Tree {
    folders: BTreeSet<String>,
    pictures: Vec<(String, Source)>,
}

/// Lists a folder, recursively as torchvision's `ImageFolder` does; symbolic links are followed.
pub(super) fn read_folder(root: &Path) -> Result<Found> {
    let name = root.display().to_string();
    if !root.is_dir() {
        return Err(unfit(&name, format!("there is no such folder; {LAYOUT}")));
    }
    let mut tree = Tree::default();
    let mut visited = HashSet::new();
    let mut pending = vec![(root.to_owned(), String::new())];
    while let Some((folder, relative)) = pending.pop() {
        // A link to a folder above itself would be followed for ever.
        let real: PathBuf = folder.canonicalize().map_err(Error::io("read", &folder))?;
        if !visited.insert(real) {
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let path = entry.map_err(Error::io("read", &folder))?.path();
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            if file_name.starts_with('.') {
                continue;
            }
            let relative = if relative.is_empty() {
                file_name.into_owned()
            } else {
                format!("{relative}/{file_name}")
            };
            if path.is_dir() {
                tree.folders.insert(relative.clone());
                pending.push((path, relative));
            } else if has_picture_suffix(&path) {
                tree.pictures.push((relative, Source::File(path.into())));
            }
        }
    }
    tree.classify(&name)
}

/// Lists the pictures below `train/` and `validation/` of a zip.
pub(super) fn read_zip(name: &str, path: &Path) -> Result<Found> {
    let zip = Arc::new(Zip::open(path)?);
    let mut tree = Tree::default();
    for (index, entry) in zip.names().iter().enumerate() {
        let Some(picture) = picture_of_split(entry) else {
            continue;
        };
        let parents = picture
            .match_indices('/')
            .map(|(at, _)| picture[..at].to_owned());
        tree.folders.extend(parents);
        tree.pictures.push((
            picture.to_owned(),
            Source::Zip {
                zip: zip.clone(),
                index,
            },
        ));
    }
    tree.classify(name)
}

fn has_picture_suffix(path: &Path) -> bool {
    let suffix = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    SUFFIXES.contains(&suffix.as_str())
}

fn unfit(name: &str, reason: String) -> Error {
    Error::Dataset {
        name: name.into(),
        reason,
    }
}

impl Tree {
    /// Finds the layout, the classes and each picture's place in them.
    fn classify(self, name: &str) -> Result<Found> {
        let top = self.folders_in("");
        let part_folders: Vec<Vec<&str>> = PARTS
            .iter()
            .map(|names| {
                names
                    .iter()
                    .copied()
                    .filter(|name| top.contains(name))
                    .collect()
            })
            .collect();
        let split = !part_folders[0].is_empty() && part_folders.concat().len() > 1;
        let roots: Vec<(usize, String)> = if split {
            let in_part = |(part, folders): (usize, Vec<&str>)| {
                folders
                    .into_iter()
                    .map(move |folder| (part, format!("{folder}/")))
                    .collect::<Vec<_>>()
            };
            part_folders
                .into_iter()
                .enumerate()
                .flat_map(in_part)
                .collect()
        } else {
            vec![(0, String::new())]
        };

        let mut classes: Vec<&str> = Vec::new();
        for (_, root) in &roots {
            let found = self.folders_in(root);
            if root == &roots[0].1 {
                classes = found;
            } else if found != classes {
                let (expected, got) = (classes.join(", "), found.join(", "));
                return Err(unfit(
                    name,
                    format!(
                        "{} holds the classes {expected}, {root} holds {got}: they have to be the same",
                        roots[0].1
                    ),
                ));
            }
        }
        match classes.as_slice() {
            [] => return Err(unfit(name, format!("there are no class folders; {LAYOUT}"))),
            [only] => {
                return Err(unfit(
                    name,
                    format!("there is one class only, {only}; at least two are needed; {LAYOUT}"),
                ));
            }
            _ => {}
        }

        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        let mut empty: BTreeSet<String> = roots
            .iter()
            .flat_map(|(_, root)| classes.iter().map(move |class| format!("{root}{class}")))
            .collect();
        for (id, source) in self.pictures.iter().cloned() {
            let Some((part, root)) = roots.iter().find(|(_, root)| id.starts_with(root.as_str()))
            else {
                continue;
            };
            // A picture beside the class folders belongs to no class.
            let Some((class, _)) = id[root.len()..].split_once('/') else {
                continue;
            };
            let Ok(label) = classes.binary_search(&class) else {
                continue;
            };
            empty.remove(&format!("{root}{class}"));
            parts[*part].push(Example { id, label, source });
        }
        if let Some(folder) = empty.first() {
            return Err(unfit(
                name,
                format!(
                    "the class folder {folder} is empty: it has no file that ends in {}",
                    SUFFIXES.join(", ")
                ),
            ));
        }
        let classes = classes.into_iter().map(str::to_owned).collect();
        let [all, ..] = &mut parts;
        let examples = if split {
            Examples::Split(parts)
        } else {
            Examples::Whole([std::mem::take(all)])
        };
        Ok(Found { classes, examples })
    }

    /// The names of the folders directly below `root`, which is empty or ends in `/`; sorted.
    fn folders_in(&self, root: &str) -> Vec<&str> {
        let below = self
            .folders
            .iter()
            .filter_map(|folder| folder.strip_prefix(root));
        below.filter(|name| !name.contains('/')).collect()
    }
}
