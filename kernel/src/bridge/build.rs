//! What is shown while the dependencies of a cell compile, which can take minutes.

use std::path::PathBuf;
use std::time::Instant;

pub(super) struct Build {
    pub(super) folder: PathBuf,
    number: usize,
    running: Option<Running>,
}

struct Running {
    since: Instant,
    /// How many crates have been begun.
    begun: usize,
    /// How many there are, at most: some may be built already.
    packages: Option<usize>,
    last: String,
    shown: bool,
}

impl Build {
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            number: 0,
            running: None,
        }
    }

    /// Returns whether a line of the kernel's log tells that a crate is being compiled.
    pub(super) fn compiles(&mut self, line: &str) -> bool {
        let package = line.trim_start().strip_prefix("Compiling ");
        // evcxr calls the cell itself `ctx`.
        let Some(package) = package.filter(|package| !package.starts_with("ctx ")) else {
            return false;
        };
        let running = self.running.get_or_insert_with(|| Running {
            since: Instant::now(),
            begun: 0,
            packages: std::fs::read_to_string(self.folder.join("Cargo.lock"))
                .ok()
                .map(|lock| lock.matches("[[package]]").count()),
            last: String::new(),
            shown: false,
        });
        running.begun += 1;
        package
            .split(" (")
            .next()
            .unwrap_or(package)
            .clone_into(&mut running.last);
        true
    }

    /// Returns the kind of message, the id and the text that tell how far the build is, if there is
    /// one.
    pub(super) fn news(&mut self) -> Option<(&'static str, String, String)> {
        let running = self.running.as_mut()?;
        let kind = if running.shown {
            "update_display_data"
        } else {
            self.number += 1;
            running.shown = true;
            "display_data"
        };
        let of = running
            .packages
            .map_or(String::new(), |packages| format!(" of at most {packages}"));
        let text = format!(
            "compiling {} (crate {}{of}), {} s",
            running.last,
            running.begun,
            running.since.elapsed().as_secs()
        );
        Some((kind, format!("build{}", self.number), text))
    }

    /// Ends the build; returns whether something was shown about it.
    pub(super) fn end(&mut self) -> bool {
        self.running.take().is_some_and(|running| running.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_shown_once_then_updated_and_a_cells_own_crate_is_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("Cargo.lock"),
            "[[package]]\n[[package]]\n",
        )
        .unwrap();
        let mut build = Build::in_folder(folder.path().into());
        assert!(!build.compiles("   Compiling ctx v1.0.0 (/build)") && build.news().is_none());
        assert!(!build.compiles("warning: unused") && !build.end());
        assert!(build.compiles("   Compiling tch v0.24.0"));
        let (kind, id, text) = build.news().unwrap();
        assert_eq!((kind, id.as_str()), ("display_data", "build1"));
        assert_eq!(text, "compiling tch v0.24.0 (crate 1 of at most 2), 0 s");
        assert!(build.compiles("   Compiling support v0.1.0 (/support)"));
        let (kind, _, text) = build.news().unwrap();
        assert_eq!(kind, "update_display_data");
        assert!(
            text.starts_with("compiling support v0.1.0 (crate 2 "),
            "{text}"
        );
        assert!(build.end() && build.news().is_none());
    }
}
