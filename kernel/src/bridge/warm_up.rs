//! The first cell's work, begun while a person still reads.
//!
//! At the first `:dep` evcxr has Cargo resolve the dependencies and rust-analyzer read their
//! sources, and at the first `let` rust-analyzer works out what they define: ten seconds, at every
//! start. A completion of the same code needs all of that, and changes nothing.

use std::path::Path;

use jupyter_protocol::{CompleteRequest, JupyterMessage};

/// Where the project's notebooks have the crate that they begin with.
const SUPPORT: &str = "../support";

/// Returns the request for evcxr, where the kernel was started in the folder of such a notebook.
pub(super) fn request() -> Option<JupyterMessage> {
    let is_there = Path::new(SUPPORT).join("Cargo.toml").is_file();
    let code = format!(
        ":dep support = {{ path = \"{SUPPORT}\" }}\n\
         use support::prelude::*;\n\
         let settings = Settings::from_env()?;\n\
         settings."
    );
    let cursor_pos = code.chars().count();
    is_there.then(|| JupyterMessage::new(CompleteRequest { code, cursor_pos }, None))
}
