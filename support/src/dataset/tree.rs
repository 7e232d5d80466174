//! Class folders, on disk or in a zip: `{class}/…/picture`, or the same below `train/` and
//! `validation/` and/or `test/`, which is then the split.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::iter::successors;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::listed::{Entry, arrange, separated};
use super::{Example, Examples, Found, ImageDataset, Label, Stored};
use crate::assets::archive::{Zip, image_of_split};
use crate::settings::Settings;
use crate::text::{listed, thousands};
use crate::{Error, Result};

/// What counts as an image; what a file really is shows when it is decoded.
const SUFFIXES: [&str; 6] = ["jpg", "jpeg", "png", "gif", "webp", "bmp"];

/// The folders of a split, and which part each is: training, validation, test.
pub(super) const PARTS: [(&str, usize); 5] = [
    ("train", 0),
    ("validation", 1),
    ("val", 1),
    ("valid", 1),
    ("test", 2),
];

/// Links from folder to folder make more of them than there are, and soon more than can be listed.
const MOST_FOLDERS: usize = 100_000;

const LAYOUT: &str = "a dataset is a folder with one folder of images per class, or with train/ \
                      and validation/ and/or test/ that hold those";

/// Folders and images by their path relative to the root, with `/` between the parts.
#[derive(Default)]
pub(super) struct Tree {
    folders: BTreeSet<String>,
    pictures: Vec<(String, Stored)>,
}

/// Lists a folder, recursively as torchvision's `ImageFolder` does; symbolic links are followed.
pub(super) fn read_folder(root: &Path) -> Result<Found> {
    tree(root)?.classify(&root.display().to_string())
}

fn tree(root: &Path) -> Result<Tree> {
    if !root.is_dir() {
        let name = root.display().to_string();
        return Err(unfit(&name, format!("there is no such folder; {LAYOUT}")));
    }
    walk(root, MOST_FOLDERS)
}

impl ImageDataset {
    /// Makes a dataset of a folder's images, each with any number of classes, also none. The folder is as
    /// for [`load`](Self::load), but that the names of its folders are split at the separator: with `+`,
    /// what is in `cat+outdoor/` is of both classes, what is in `cat/` of one, and what is in `+/` of none.
    /// An image lies in one folder only; an equal name in another is another image.
    ///
    /// ```
    /// use support::prelude::*;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # for path in ["pets/cat/mia.jpg", "pets/dog+outdoor/max.jpg", "pets/+/moon.jpg"] {
    /// #     let path = folder.path().join(path);
    /// #     std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    /// #     RgbImage::new(8, 8).save(path).unwrap();
    /// # }
    /// # std::env::set_current_dir(&folder).unwrap();
    /// let dataset = ImageDataset::from_folder_multi_label("pets", '+', &Settings::from_env()?)?;
    /// assert_eq!(dataset.classes(), ["cat", "dog", "outdoor"]);
    /// # Ok::<(), support::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Dataset`] for a folder that cannot serve, [`Error::Setting`] for a limit that leaves a class
    /// out.
    pub fn from_folder_multi_label(
        path: impl AsRef<Path>,
        separator: char,
        settings: &Settings,
    ) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let found = tree(path)?.classify_multi_label(&name, separator)?;
        Self::given(found, name, settings)
    }
}

/// Returns the paths of the images in a folder and in those below it, sorted: what counts as one is
/// decided as in [`ImageDataset::load`](super::ImageDataset::load).
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read.
pub fn images_in(root: &Path) -> Result<Vec<PathBuf>> {
    let mut pictures = walk(root, MOST_FOLDERS)?.pictures;
    pictures.sort_by(|(a, _), (b, _)| a.cmp(b));
    let path = |(_, source)| match source {
        Stored::File(path) => Some(path.to_path_buf()),
        _ => None,
    };
    Ok(pictures.into_iter().filter_map(path).collect())
}

/// Lists a folder with all below it, at most so many of them.
pub(super) fn walk(root: &Path, most: usize) -> Result<Tree> {
    let mut tree = Tree::default();
    let found = fs::metadata(root).map_err(Error::io("read", root))?;
    let mut pending = vec![Rc::new(Folder {
        path: root.to_owned(),
        relative: String::new(),
        inode: inode(&found),
        above: None,
    })];
    let mut listed = 0;
    while let Some(folder) = pending.pop() {
        listed += 1;
        if listed > most {
            let reason = format!(
                "there are more than {} folders in it: do symbolic links lead from one to the other?",
                thousands(most)
            );
            return Err(unfit(&root.display().to_string(), reason));
        }
        let entries = fs::read_dir(&folder.path).and_then(Iterator::collect);
        let mut entries: Vec<fs::DirEntry> = entries.map_err(Error::io("read", &folder.path))?;
        entries.sort_by_cached_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            if file_name.starts_with('.') {
                continue;
            }
            let relative = match folder.relative.as_str() {
                "" => file_name.into_owned(),
                above => format!("{above}/{file_name}"),
            };
            // What a link leads to; a file needs no second look.
            let found = match entry.file_type() {
                Ok(kind) if kind.is_file() => None,
                _ => fs::metadata(&path).ok(),
            };
            match found {
                Some(found) if found.is_dir() => {
                    let inode = inode(&found);
                    if folder.is_in(inode) {
                        continue;
                    }
                    tree.folders.insert(relative.clone());
                    pending.push(Rc::new(Folder {
                        path,
                        relative,
                        inode,
                        above: Some(folder.clone()),
                    }));
                }
                // Reading a pipe or a device may never end.
                Some(found) if !found.is_file() => {}
                // What cannot be opened is reported when the image is asked for.
                _ if has_image_suffix(&path) => {
                    tree.pictures.push((relative, Stored::File(path.into())));
                }
                _ => {}
            }
        }
    }
    Ok(tree)
}

/// A folder that is to be listed.
struct Folder {
    path: PathBuf,
    relative: String,
    inode: (u64, u64),
    above: Option<Rc<Self>>,
}

impl Folder {
    /// Returns whether this folder, or one above it on the way here, is that one: a link to it would be
    /// followed for ever.
    fn is_in(&self, inode: (u64, u64)) -> bool {
        let mut folders = successors(Some(self), |folder| folder.above.as_deref());
        folders.any(|folder| folder.inode == inode)
    }
}

/// What a folder is known by, whatever links lead to it.
fn inode(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Lists the images below `train/` and `validation/` of a zip.
pub(super) fn read_zip(name: &str, path: &Path) -> Result<Found> {
    let zip = Arc::new(Zip::open(path)?);
    let mut tree = Tree::default();
    for (index, entry) in zip.names().iter().enumerate() {
        let Some(picture) = image_of_split(entry) else {
            continue;
        };
        let parents = picture
            .match_indices('/')
            .map(|(at, _)| picture[..at].to_owned());
        tree.folders.extend(parents);
        tree.pictures.push((
            picture.to_owned(),
            Stored::Zip {
                zip: zip.clone(),
                index,
            },
        ));
    }
    tree.classify(name)
}

/// Returns which part of a split goes by this name.
pub(super) fn part_of(name: &str) -> Option<usize> {
    let part = PARTS.iter().find(|(known, _)| *known == name);
    part.map(|(_, part)| *part)
}

fn has_image_suffix(path: &Path) -> bool {
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

/// The error of a class folder in which there is no image.
fn empty(name: &str, root: &str, folder: &str) -> Error {
    let suffixes = SUFFIXES.join(", ");
    let reason =
        format!("the class folder {root}{folder} is empty: it has no file that ends in {suffixes}");
    unfit(name, reason)
}

impl Tree {
    /// Finds the folders that hold class folders, as `""` or `"train/"`, each with its part of the split,
    /// training first; several where there is a split.
    fn roots(&self, name: &str) -> Result<Vec<(String, usize)>> {
        let top = self.folders_in("");
        let folders = PARTS.iter().filter(|(folder, _)| top.contains(folder));
        let mut roots: Vec<(String, usize)> = folders
            .map(|(folder, part)| (format!("{folder}/"), *part))
            .collect();
        let split = roots.len() > 1 && top.contains(&"train");
        if !split {
            roots = vec![(String::new(), 0)];
        }
        if let Some([(one, _), (other, _)]) = roots.array_windows().find(|[a, b]| a.1 == b.1) {
            let reason = format!("{one} and {other} are two names of one part: keep one of them");
            return Err(unfit(name, reason));
        }
        Ok(roots)
    }

    /// Finds the layout, the classes and each image's place in them.
    fn classify(self, name: &str) -> Result<Found> {
        let roots = self.roots(name)?;
        let (first, _) = &roots[0];
        let classes = self.folders_in(first);
        match classes.as_slice() {
            [] => return Err(unfit(name, format!("there are no class folders; {LAYOUT}"))),
            [only] => {
                let mut reason =
                    format!("there is one class only, {only}; at least two are needed; {LAYOUT}");
                let below = self.folders_in(&format!("{only}/"));
                if below.len() > 1 {
                    let below = listed(&below);
                    reason += &format!(
                        "; {name}/{only} holds {below}: if these are the classes, give that"
                    );
                }
                return Err(unfit(name, reason));
            }
            _ => {}
        }
        for (root, _) in &roots[1..] {
            let found = self.folders_in(root);
            if found != classes {
                let [expected, got] = [&classes, &found].map(BTreeSet::from_iter);
                let differ: Vec<_> = expected.symmetric_difference(&got).copied().collect();
                let reason = format!(
                    "{first} and {root} have to hold the same classes, and only one of them holds {}",
                    listed(&differ)
                );
                return Err(unfit(name, reason));
            }
        }

        // The root's index and the label; none for an image beside the class folders.
        let place = |id: &str| {
            let root = roots.iter().position(|(root, _)| id.starts_with(root))?;
            let (class, _) = id[roots[root].0.len()..].split_once('/')?;
            Some((root, classes.binary_search(&class).ok()?))
        };
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        let mut filled = HashSet::new();
        for (id, source) in &self.pictures {
            if let Some((root, label)) = place(id) {
                filled.insert((root, label));
                let (id, source) = (id.clone(), source.clone());
                parts[roots[root].1].push(Example {
                    id,
                    label: Label::Class(label),
                    source,
                    copy: 0,
                });
            }
        }
        for (at, (root, _)) in roots.iter().enumerate() {
            for (label, class) in classes.iter().enumerate() {
                if !filled.contains(&(at, label)) {
                    return Err(empty(name, root, class));
                }
            }
        }
        let classes = classes.into_iter().map(str::to_owned).collect();
        let [training, validation, test] = parts;
        let examples = if roots.len() > 1 {
            Examples::Split([training, validation, test])
        } else {
            Examples::Whole([training])
        };
        Ok(Found { classes, examples })
    }

    /// Does the same for folders whose names are those of any number of classes.
    fn classify_multi_label(self, name: &str, separator: char) -> Result<Found> {
        let roots = self.roots(name)?;
        let mut entries = Vec::new();
        for (root, part) in &roots {
            let folders = self.folders_in(root).into_iter().map(|folder| (folder, 0));
            let mut sizes = BTreeMap::from_iter(folders);
            for ((id, source), number) in self.pictures.iter().zip(0..) {
                let below = id
                    .strip_prefix(root)
                    .and_then(|below| below.split_once('/'));
                let Some((folder, _)) = below else { continue };
                *sizes.entry(folder).or_default() += 1;
                let of_none = folder.chars().eq([separator]);
                entries.push(Entry {
                    number,
                    id: id.clone(),
                    label: separated(if of_none { "" } else { folder }, separator),
                    stored: source.clone(),
                    part: *part,
                });
            }
            if let Some((folder, _)) = sizes.iter().find(|(_, size)| **size == 0) {
                return Err(empty(name, root, folder));
            }
        }
        let unnamed = |entry: &&Entry| entry.label.iter().any(String::is_empty);
        if let Some(Entry { id, .. }) = entries.iter().find(unnamed) {
            let reason = format!("{id}: the name of a class in its folder's name is empty");
            return Err(unfit(name, reason));
        }
        arrange(name, entries, roots.len() > 1)
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
