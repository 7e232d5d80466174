//! Datasets that are given as a list: of paths and labels, in a CSV file, or of images in memory.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;

use super::tree::{PARTS, part_of};
use super::{Example, Examples, Found, ImageDataset, Label, LabelNames, Stored};
use crate::files::open_regular;
use crate::settings::Settings;
use crate::{Error, Result};

/// The largest CSV file that is read: about a million examples.
const LARGEST_CSV: u64 = 64 << 20;

/// An entry of a list.
pub(super) struct Entry {
    /// Its number in the list, for errors.
    pub(super) number: u64,
    pub(super) id: String,
    pub(super) label: LabelNames,
    pub(super) stored: Stored,
    /// Training, validation or test.
    pub(super) part: usize,
}

/// Where a CSV file has the labels.
enum LabelColumns {
    /// The class in the column `label`.
    Class,
    /// The classes in the column `label` or `labels`, with this between them.
    Separated(char),
    /// In a column for each class, 0 or 1.
    Indicators,
}

impl ImageDataset {
    /// Makes a dataset of image files, each with the name of its class, or with an array or a vector of
    /// the names of its classes. Class names are sorted; an example's id is its path as given, from which
    /// the split is derived.
    ///
    /// ```
    /// use support::prelude::*;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # std::env::set_current_dir(&folder).unwrap();
    /// # for path in ["max.jpg", "mia.jpg"] {
    /// #     RgbImage::new(8, 8).save(path).unwrap();
    /// # }
    /// let examples = [("max.jpg", "dog"), ("mia.jpg", "cat")];
    /// let dataset = ImageDataset::from_paths(examples, &Settings::from_env()?)?;
    /// assert_eq!(dataset.classes(), ["cat", "dog"]);
    /// let [train, validation, test] = dataset.split([8, 1, 1])?;
    /// # Ok::<(), support::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Dataset`] names the entry, counted from 0, whose label is empty, whose path is no file, or
    /// that was there before with another label, and says if there are less than two classes;
    /// [`Error::Setting`] for a limit that leaves a class out.
    pub fn from_paths(
        examples: impl IntoIterator<Item = (impl Into<PathBuf>, impl Into<LabelNames>)>,
        settings: &Settings,
    ) -> Result<Self> {
        let entry = |(number, (path, label))| {
            let path: PathBuf = Into::into(path);
            Entry {
                number,
                id: path.display().to_string(),
                label: Into::into(label),
                stored: Stored::File(path.into()),
                part: 0,
            }
        };
        let name = "of paths";
        let entries = (0..).zip(examples).map(entry).collect();
        Self::given(found(name, "entry", entries, false)?, name.into(), settings)
    }

    /// Makes a dataset of the image files that a CSV file lists, in UTF-8 and with commas between its
    /// columns: `path`, relative to the CSV file's folder, `label`, and if there is a column `split`,
    /// the set's own `train`, `validation` or `test` in it. Other columns are passed over.
    ///
    /// `TRANSFER_DATASET=pets.csv` does the same for [`ImageDataset::load`].
    ///
    /// ```
    /// use support::prelude::*;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # std::env::set_current_dir(&folder).unwrap();
    /// # std::fs::create_dir("photos").unwrap();
    /// # for path in ["photos/max.jpg", "photos/mia, asleep.jpg"] {
    /// #     RgbImage::new(8, 8).save(path).unwrap();
    /// # }
    /// let list = "\
    /// path,label,split
    /// photos/max.jpg,dog,train
    /// \"photos/mia, asleep.jpg\",cat,train
    /// ";
    /// std::fs::write("pets.csv", list).unwrap();
    /// let dataset = ImageDataset::from_csv("pets.csv", &Settings::from_env()?)?;
    /// assert_eq!((dataset.len(), dataset.classes()), (2, &["cat".to_owned(), "dog".to_owned()][..]));
    /// # Ok::<(), support::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Dataset`] if it is no CSV file or lacks a
    /// column, with the line, path and label of what is wrong; else as
    /// [`from_paths`](Self::from_paths).
    pub fn from_csv(path: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        Self::of_csv(path.as_ref(), &LabelColumns::Class, settings)
    }

    /// Makes a dataset of the image files that a CSV file lists, each with any number of classes, also
    /// none: as [`from_csv`](Self::from_csv), but that the column `labels` (or `label`) holds the names of
    /// the classes, with a separator between them, as fastai's `label_delim`. Images of no class have
    /// nothing there.
    ///
    /// ```
    /// use support::prelude::*;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # std::env::set_current_dir(&folder).unwrap();
    /// # for path in ["max.jpg", "mia.jpg", "moon.jpg"] {
    /// #     RgbImage::new(8, 8).save(path).unwrap();
    /// # }
    /// std::fs::write("pets.csv", "path,labels\nmax.jpg,dog;outdoor\nmia.jpg,cat\nmoon.jpg,\n").unwrap();
    /// let dataset = ImageDataset::from_csv_multi_label("pets.csv", ';', &Settings::from_env()?)?;
    /// assert_eq!(dataset.classes(), ["cat", "dog", "outdoor"]);
    /// # Ok::<(), support::Error>(())
    /// ```
    ///
    /// A model for it has an output for each class and is compiled with
    /// [`Loss::MultiLabelBinaryCrossentropy`](crate::training::Loss::MultiLabelBinaryCrossentropy).
    ///
    /// # Errors
    /// As [`from_csv`](Self::from_csv); a name that is empty is one, as in `dog;;outdoor`.
    pub fn from_csv_multi_label(
        path: impl AsRef<Path>,
        separator: char,
        settings: &Settings,
    ) -> Result<Self> {
        Self::of_csv(path.as_ref(), &LabelColumns::Separated(separator), settings)
    }

    /// Makes a dataset as [`from_csv_multi_label`](Self::from_csv_multi_label) does, of a CSV file with a
    /// column for each class: every column but `path` and `split`, with 1 for images of the class and 0
    /// for others.
    ///
    /// # Errors
    /// As [`from_csv`](Self::from_csv); another value than 0 and 1 is one.
    pub fn from_csv_indicators(path: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        Self::of_csv(path.as_ref(), &LabelColumns::Indicators, settings)
    }

    fn of_csv(path: &Path, labels: &LabelColumns, settings: &Settings) -> Result<Self> {
        let name = path.display().to_string();
        Self::given(read_labelled(path, labels)?, name, settings)
    }

    /// Makes a dataset of images in memory, each with the name of its class, or with an array or a vector
    /// of the names of its classes. Class names are sorted; an example's id is its number, the first being
    /// 0, from which the split is derived.
    ///
    /// ```
    /// use support::{image::Rgb, prelude::*};
    ///
    /// let picture = |n: u8| RgbImage::from_pixel(32, 32, Rgb([n; 3]));
    /// let examples = (0..200).map(|n| (picture(n), if n < 100 { "dark" } else { "light" }));
    /// let dataset = ImageDataset::from_images(examples, &Settings::from_env()?)?;
    /// let [train, validation, test] = dataset.split([8, 1, 1])?;
    /// assert_eq!([train.len(), validation.len(), test.len()], [160, 20, 20]);
    /// # Ok::<(), support::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Dataset`] names the entry, counted from 0, whose label is empty or whose image has no
    /// pixels, and says if there are less than two classes; [`Error::Setting`] for a limit that leaves a
    /// class out.
    pub fn from_images(
        examples: impl IntoIterator<Item = (RgbImage, impl Into<LabelNames>)>,
        settings: &Settings,
    ) -> Result<Self> {
        let entry = |(number, (image, label)): (u64, (_, _))| Entry {
            number,
            id: number.to_string(),
            label: Into::into(label),
            stored: Stored::Memory(Arc::new(image)),
            part: 0,
        };
        let name = "in memory";
        let entries = (0..).zip(examples).map(entry).collect();
        Self::given(found(name, "entry", entries, false)?, name.into(), settings)
    }

    pub(super) fn given(found: Found, name: String, settings: &Settings) -> Result<Self> {
        let note = found.about();
        Self::of(found, name, note, None, settings)
    }
}

/// Lists the images of a CSV file, of one class each.
pub(super) fn read_csv(path: &Path) -> Result<Found> {
    read_labelled(path, &LabelColumns::Class)
}

fn read_labelled(path: &Path, labels: &LabelColumns) -> Result<Found> {
    let name = path.display().to_string();
    let refused = |reason: String| unfit(&name, reason);
    let (columns, reader) = open_csv(path)?;
    let missing = || {
        columns.missing(match labels {
            LabelColumns::Class => "path and label",
            LabelColumns::Separated(_) => "path and labels",
            LabelColumns::Indicators => "path and one for each class",
        })
    };
    let column = |name| columns.position(name);
    let at_path = column("path").ok_or_else(missing)?;
    let at_split = column("split");
    let at_labels: Vec<usize> = match labels {
        LabelColumns::Class => column("label").into_iter().collect(),
        LabelColumns::Separated(_) => column("labels").or(column("label")).into_iter().collect(),
        LabelColumns::Indicators => {
            let all = 0..columns.header.len();
            all.filter(|&at| at != at_path && Some(at) != at_split)
                .collect()
        }
    };
    let &first_label = at_labels.first().ok_or_else(missing)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut entries = Vec::new();
    for record in reader.into_records() {
        let record = record.map_err(|error| refused(error.to_string()))?;
        let number = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default().to_owned();
        let id = field(at_path);
        let label = match labels {
            LabelColumns::Class => LabelNames::Class(field(first_label)),
            LabelColumns::Separated(separator) => separated(&field(first_label), *separator),
            LabelColumns::Indicators => {
                let is_of = |&at: &usize| match record.get(at).unwrap_or_default() {
                    "0" => Ok(None),
                    "1" => Ok(Some(columns.header[at].to_owned())),
                    other => Err(refused(format!(
                        "line {number}: {id}: expected 0 or 1 in the column {}, got {other:?}",
                        &columns.header[at]
                    ))),
                };
                let names = at_labels.iter().map(is_of).filter_map(Result::transpose);
                LabelNames::Classes(names.collect::<Result<_>>()?)
            }
        };
        let part = match at_split.map(field) {
            None => 0,
            Some(split) => part_of(&split).ok_or_else(|| {
                let known = PARTS.map(|(name, _)| name).join(", ");
                refused(format!(
                    "line {number}: {id} ({label}): expected a split of {known}, got {split:?}"
                ))
            })?,
        };
        entries.push(Entry {
            number,
            stored: Stored::File(folder.join(&id).into()),
            id,
            label,
            part,
        });
    }
    found(&name, "line", entries, at_split.is_some())
}

/// The columns of a CSV file.
pub(super) struct Columns {
    file: String,
    header: csv::StringRecord,
}

impl Columns {
    fn position(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|column| column == name)
    }

    /// Returns where these columns are, all of which have to be there.
    pub(super) fn find<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N]> {
        let places = names.map(|name| self.position(name));
        if places.contains(&None) {
            return Err(self.missing(&names.join(" and ")));
        }
        Ok(places.map(Option::unwrap_or_default))
    }

    fn missing(&self, expected: &str) -> Error {
        let got = crate::text::listed(&Vec::from_iter(&self.header));
        let expected = format!("expected a first line with the columns {expected}");
        unfit(
            &self.file,
            format!("{expected}, and commas between them, got {got}"),
        )
    }
}

/// Opens a CSV file, of which the first line is read.
pub(super) fn open_csv(path: &Path) -> Result<(Columns, csv::Reader<fs::File>)> {
    let name = path.display().to_string();
    let (file, size) = open_regular(path)?;
    if size > LARGEST_CSV {
        let largest = LARGEST_CSV >> 20;
        return Err(unfit(
            &name,
            format!("expected a CSV file of at most {largest} MiB, got {size} bytes"),
        ));
    }
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(file);
    let header = reader.headers().cloned();
    let header = header.map_err(|error| unfit(&name, error.to_string()))?;
    Ok((Columns { file: name, header }, reader))
}

impl Entry {
    /// Says what is wrong with it, if anything is.
    fn fault(&self) -> Option<String> {
        match &self.stored {
            _ if self.label.iter().any(String::is_empty) => Some("the label is empty".into()),
            Stored::Memory(image) if image.is_empty() => Some("the image has no pixels".into()),
            Stored::File(path) if !fs::metadata(path).is_ok_and(|file| file.is_file()) => {
                Some(format!("there is no such file as {}", path.display()))
            }
            _ => None,
        }
    }
}

/// Checks a list, and sorts it into classes and parts, as [`arrange`] does. `unit` is what its entries are counted in.
fn found(name: &str, unit: &str, entries: Vec<Entry>, split: bool) -> Result<Found> {
    let mut before: HashMap<&str, &Entry> = HashMap::with_capacity(entries.len());
    for entry in &entries {
        let first = *before.entry(&entry.id).or_insert(entry);
        let other_label = || {
            let Entry { label, number, .. } = first;
            let differs = *label != entry.label;
            differs.then(|| format!("it is labelled {label} in {unit} {number}"))
        };
        if let Some(fault) = entry.fault().or_else(other_label) {
            let Entry {
                number, id, label, ..
            } = entry;
            return Err(unfit(
                name,
                format!("{unit} {number}: {id} ({label}): {fault}"),
            ));
        }
    }
    arrange(name, entries, split)
}

/// Splits a list of names as a person writes it: nothing is none.
pub(super) fn separated(names: &str, separator: char) -> LabelNames {
    let names = names.split(separator).filter(|_| !names.is_empty());
    LabelNames::Classes(names.map(|name| name.trim().to_owned()).collect())
}

/// Sorts entries into classes and parts; where one of them has several classes, all are multi-label.
pub(super) fn arrange(name: &str, entries: Vec<Entry>, split: bool) -> Result<Found> {
    let classes: BTreeSet<&String> = entries
        .iter()
        .flat_map(|entry| entry.label.iter())
        .collect();
    let classes: Vec<String> = classes.into_iter().cloned().collect();
    let multi_label = entries
        .iter()
        .any(|entry| matches!(entry.label, LabelNames::Classes(_)));
    match classes.as_slice() {
        [] if entries.is_empty() => return Err(unfit(name, "it lists no images".into())),
        [] => return Err(unfit(name, "none of its images is of any class".into())),
        [only] => {
            let reason = format!("there is one class only, {only}; at least two are needed");
            return Err(unfit(name, reason));
        }
        _ => {}
    }
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for entry in entries {
        let mut label = entry
            .label
            .iter()
            .filter_map(|name| classes.binary_search(name).ok());
        parts[entry.part].push(Example {
            id: entry.id,
            label: match multi_label {
                true => label.collect(),
                false => Label::Class(label.next().unwrap_or_default()),
            },
            source: entry.stored,
            copy: 0,
        });
    }
    let trained = parts[0].iter().flat_map(|example| example.label.classes());
    let trained: BTreeSet<usize> = trained.collect();
    let missing = (0..classes.len()).find(|label| !trained.contains(label));
    if let Some(label) = missing {
        let class = &classes[label];
        let reason = format!("its training part has no image of {class}: nothing could learn it");
        return Err(unfit(name, reason));
    }
    let [training, validation, test] = parts;
    let examples = if split {
        Examples::Split([training, validation, test])
    } else {
        Examples::Whole([training])
    };
    Ok(Found { classes, examples })
}

pub(super) fn unfit(name: &str, reason: String) -> Error {
    Error::Dataset {
        name: name.into(),
        reason,
    }
}
