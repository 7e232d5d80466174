//! The cache folder outside the checkout: the Python environment, the tools and the folders in
//! which evcxr builds a notebook's cells. Images and weights are not here but in `data/`.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::EVCXR_VERSION;

/// The environment variable that chooses another cache folder.
pub const VARIABLE: &str = "TRANSFER_HOME";

/// The cache folder, `TRANSFER_HOME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// Returns the folder named by `TRANSFER_HOME`, or else `transfer-learning-rust` in the
    /// user's cache folder.
    ///
    /// # Errors
    ///
    /// Neither `TRANSFER_HOME` nor `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn from_env() -> anyhow::Result<Self> {
        Self::choose(|name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        })
    }

    /// Returns the cache folder at a path.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(chosen) = variable(VARIABLE) {
            return Ok(Self(std::path::absolute(chosen)?));
        }
        // The XDG specification has a relative path ignored.
        let cache = variable("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| Some(variable("HOME")?.join(".cache")))
            .with_context(|| {
                format!("set {VARIABLE}, or HOME: there is no place for the cache folder")
            })?;
        Ok(Self(cache.join("transfer-learning-rust")))
    }

    /// Returns the folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Returns where tools that are not part of the Python environment are installed.
    pub fn tools(&self) -> PathBuf {
        self.0.join("tools")
    }

    /// Returns the folder that evcxr is installed in.
    pub fn evcxr(&self) -> PathBuf {
        self.tools().join(format!("evcxr-{EVCXR_VERSION}"))
    }

    /// Returns the folder in which the folders with the build folders are, one for all that has
    /// its dependencies built in the same way.
    pub fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }

    /// Returns the environment that `path` is in, if it is one of those that lie here.
    pub fn environment_of(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.0).ok()?;
        Some(self.0.join(below.components().next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> anyhow::Result<Home> {
        Home::choose(|name| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some(PathBuf::from(value))
        })
    }

    #[test]
    fn the_variable_wins_over_the_users_cache_folder() {
        let all = [
            ("TRANSFER_HOME", "/t"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(chosen(&all).unwrap().root(), Path::new("/t"));
        assert_eq!(
            chosen(&all[1..]).unwrap().root(),
            Path::new("/x/transfer-learning-rust")
        );
        assert_eq!(
            chosen(&all[2..]).unwrap().root(),
            Path::new("/h/.cache/transfer-learning-rust")
        );
    }

    #[test]
    fn a_relative_cache_folder_is_ignored_and_a_relative_home_is_from_where_the_user_is() {
        let relative = [("XDG_CACHE_HOME", "x"), ("HOME", "/h")];
        let ignored = chosen(&relative).unwrap();
        assert_eq!(ignored, chosen(&relative[1..]).unwrap());
        let here = std::env::current_dir().unwrap();
        let home = chosen(&[("TRANSFER_HOME", "t")]).unwrap();
        assert_eq!(home.root(), here.join("t"));
    }

    #[test]
    fn an_environment_is_told_from_one_that_lies_elsewhere() {
        let home = chosen(&[("TRANSFER_HOME", "/t")]).unwrap();
        let environment = |path| home.environment_of(Path::new(path));
        assert_eq!(environment("/t/env-1/lib/torch"), Some("/t/env-1".into()));
        assert_eq!(environment("/mine/lib/torch"), None);
    }

    #[test]
    fn without_any_variable_it_says_which_to_set() {
        assert!(
            chosen(&[])
                .unwrap_err()
                .to_string()
                .contains("TRANSFER_HOME")
        );
    }
}
