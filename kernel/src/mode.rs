//! What counts as a failed cell.
//!
//! evcxr reports a cell that panics, or that ends in `?` on an `Err`, as a success, and keeps the
//! variables. That suits a person in front of the notebook and misleads a program that runs it.

/// Whether a panic or an `Err` ends the notebook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A panic or an `Err` makes the cell fail; the variables are lost. For headless runs.
    Strict,
    /// A panic or an `Err` is shown and the variables are kept. For a person at the notebook.
    Lenient,
}

impl Mode {
    /// Returns the mode that `TRANSFER_KERNEL` names; else lenient where a Jupyter server started
    /// the kernel for a notebook that is open in a browser (it sets `JPY_SESSION_NAME`, which
    /// nbconvert, nbclient and papermill do not), else strict.
    ///
    /// # Errors
    ///
    /// `TRANSFER_KERNEL` names neither mode.
    pub fn choose(setting: Option<&str>, session: Option<&str>) -> anyhow::Result<Self> {
        match setting {
            Some("strict") => Ok(Self::Strict),
            Some("lenient") => Ok(Self::Lenient),
            Some(other) => anyhow::bail!("TRANSFER_KERNEL={other}: expected strict or lenient"),
            None if session.is_some() => Ok(Self::Lenient),
            None => Ok(Self::Strict),
        }
    }

    /// Returns the mode's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Lenient => "lenient",
        }
    }

    /// Returns the text of the `evcxr.toml` that brings the mode about.
    pub fn evcxr_toml(self) -> String {
        let strict = match self {
            Self::Strict => STRICT_PRELUDE,
            Self::Lenient => "",
        };
        format!(
            "# Written by the kernel launcher at every start.\n\
             [evcxr]\nprelude = '''\n{PRELUDE}{strict}'''\n"
        )
    }
}

/// evcxr asks for a backtrace on every panic: thirty lines of its own frames under one of ours.
const PRELUDE: &str = r#"unsafe { ::std::env::set_var("RUST_BACKTRACE", "0") };
"#;

/// Ends the process that runs the cells where evcxr would go on after a panic or a `?` on an
/// `Err`; evcxr reports the end of that process as the cell's failure.
///
/// The code that evcxr puts around a cell catches both, lets the message go to stderr, and
/// announces what happened with one of these two `println!`. A macro of that name in the prelude
/// shadows the standard one in every cell and acts on exactly those tokens. It leans on the
/// wording of evcxr 0.22; with another one the notebook checks of `cargo xtask test` fail.
/// (`preserve_vars_on_panic = false` covers panics alone, and by aborting in a second panic that
/// buries the message of the first under a backtrace.)
///
/// Unused macros are allowed because evcxr would report one in place of a cell's own error.
const STRICT_PRELUDE: &str = r#"#[allow(unused_macros)]
macro_rules! println {
    ("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED) => { ::std::process::exit(1) };
    ("EVCXR_PANIC_NOTIFICATION") => { ::std::process::exit(1) };
    ($($argument:tt)*) => { ::std::println!($($argument)*) };
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_session_is_lenient_and_everything_else_strict() {
        assert_eq!(
            Mode::choose(None, Some("notebooks/a.ipynb")).unwrap(),
            Mode::Lenient
        );
        assert_eq!(Mode::choose(None, None).unwrap(), Mode::Strict);
    }

    #[test]
    fn the_setting_wins_over_the_guess() {
        assert_eq!(
            Mode::choose(Some("strict"), Some("a.ipynb")).unwrap(),
            Mode::Strict
        );
        assert_eq!(Mode::choose(Some("lenient"), None).unwrap(), Mode::Lenient);
    }

    #[test]
    fn an_unknown_setting_is_refused_with_the_choices() {
        let error = Mode::choose(Some("harsh"), None).unwrap_err().to_string();
        assert_eq!(error, "TRANSFER_KERNEL=harsh: expected strict or lenient");
    }

    #[test]
    fn only_the_strict_mode_ends_the_process_on_a_panic_or_an_err() {
        let strict = Mode::Strict.evcxr_toml();
        assert!(strict.contains("USER_ERROR_OCCURRED") && strict.contains("PANIC_NOTIFICATION"));
        assert!(!Mode::Lenient.evcxr_toml().contains("process::exit"));
    }
}
