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
    /// How far it is, in Cargo's words.
    state: String,
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

    /// Takes what Cargo is at, as in `7/350: syn, serde`.
    pub(super) fn tell(&mut self, state: String) {
        let running = self.running.get_or_insert_with(|| Running {
            since: Instant::now(),
            state: String::new(),
            shown: false,
        });
        running.state = state;
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
        let seconds = running.since.elapsed().as_secs();
        let text = format!("compiling {}, {seconds} s", running.state);
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
    fn a_build_is_shown_once_then_updated_until_its_end() {
        let mut build = Build::in_folder("/build".into());
        assert!(build.news().is_none() && !build.end());
        build.tell("7/350: torch-sys(build), syn".into());
        let (kind, id, text) = build.news().unwrap();
        assert_eq!((kind, id.as_str()), ("display_data", "build1"));
        assert_eq!(text, "compiling 7/350: torch-sys(build), syn, 0 s");
        build.tell("349/350: support".into());
        let (kind, id, text) = build.news().unwrap();
        assert_eq!((kind, id.as_str()), ("update_display_data", "build1"));
        assert_eq!(text, "compiling 349/350: support, 0 s");
        assert!(build.end() && build.news().is_none());
        build.tell("1/2: tch".into());
        assert_eq!(build.news().unwrap().1, "build2");
    }
}
