//! What an image shows: one class, or any number of them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The class or the classes of an example, indices into its dataset's. All examples of a dataset have the
/// same kind of label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    /// One class.
    Class(usize),
    /// Any number of classes, also none: several labels per image, "multi-label".
    Classes(Arc<BTreeSet<usize>>),
}

impl Label {
    /// Returns the class, if the label is of the kind that has one.
    #[must_use]
    pub fn class(&self) -> Option<usize> {
        match self {
            Self::Class(class) => Some(*class),
            Self::Classes(_) => None,
        }
    }

    /// Returns the classes in ascending order.
    pub fn classes(&self) -> impl Iterator<Item = usize> {
        let (one, several) = match self {
            Self::Class(class) => (Some(class), None),
            Self::Classes(classes) => (None, Some(classes.as_ref())),
        };
        one.into_iter()
            .chain(several.into_iter().flatten())
            .copied()
    }

    /// Returns whether the class is the label, or among its classes.
    #[must_use]
    pub fn has(&self, class: usize) -> bool {
        self.classes().any(|own| own == class)
    }

    /// Returns whether the label is of the kind that has any number of classes.
    #[must_use]
    pub fn is_multi_label(&self) -> bool {
        matches!(self, Self::Classes(_))
    }

    /// Returns the names of the classes, of which `names` are all: `cat, outdoor`, or `none`.
    #[must_use]
    pub fn names(&self, names: &[String]) -> String {
        let name = |class: usize| names.get(class).map_or("", String::as_str);
        let own: Vec<&str> = self.classes().map(name).collect();
        match own.as_slice() {
            [] => "none".into(),
            own => own.join(", "),
        }
    }
}

/// Whether it is a label of this one class.
impl PartialEq<usize> for Label {
    fn eq(&self, class: &usize) -> bool {
        self.class() == Some(*class)
    }
}

/// A label of one class.
impl From<usize> for Label {
    fn from(class: usize) -> Self {
        Self::Class(class)
    }
}

/// A label of any number of classes.
impl FromIterator<usize> for Label {
    fn from_iter<I: IntoIterator<Item = usize>>(classes: I) -> Self {
        Self::Classes(Arc::new(classes.into_iter().collect()))
    }
}

/// The index, as `2`, or all of them, as `{0, 2}`.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(f, "{class}"),
            Self::Classes(classes) => write!(f, "{classes:?}"),
        }
    }
}

/// The name of an example's class, or those of its classes, as a list gives them. A text, an array or a
/// vector of texts become one by themselves; what is in an array or a vector is multi-label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelNames {
    /// One class.
    Class(String),
    /// Any number of classes, also none.
    Classes(BTreeSet<String>),
}

impl LabelNames {
    pub(super) fn iter(&self) -> impl Iterator<Item = &String> {
        let (one, several) = match self {
            Self::Class(name) => (Some(name), None),
            Self::Classes(names) => (None, Some(names)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }
}

impl fmt::Display for LabelNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(String::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

impl From<String> for LabelNames {
    fn from(name: String) -> Self {
        Self::Class(name)
    }
}

impl From<&String> for LabelNames {
    fn from(name: &String) -> Self {
        Self::Class(name.clone())
    }
}

impl From<&str> for LabelNames {
    fn from(name: &str) -> Self {
        Self::Class(name.into())
    }
}

impl<S: Into<String>> From<Vec<S>> for LabelNames {
    fn from(names: Vec<S>) -> Self {
        Self::Classes(names.into_iter().map(Into::into).collect())
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for LabelNames {
    fn from(names: [S; N]) -> Self {
        Self::Classes(names.into_iter().map(Into::into).collect())
    }
}
