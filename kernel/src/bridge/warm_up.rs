//! The first cell's work, begun while a person still reads.
//!
//! At the first `:dep` evcxr has Cargo resolve the dependencies and rust-analyzer read their
//! sources, and at the first `let` rust-analyzer works out what they define: ten seconds, at every
//! start. A completion of the same code needs all of that, and changes nothing.

use std::path::Path;

use jupyter_protocol::{CompleteRequest, JupyterMessage, KernelInfoRequest};

/// Where the project's notebooks have the crate that they begin with.
const SUPPORT: &str = "../support";

/// Returns whether the kernel was started in the folder of such a notebook.
pub(super) fn is_wanted() -> bool {
    Path::new(SUPPORT).join("Cargo.toml").is_file()
}

/// Returns a request that evcxr answers when it has started. A cell that has come by then is not to
/// wait for a warm-up.
pub(super) fn is_started() -> JupyterMessage {
    JupyterMessage::new(KernelInfoRequest {}, None)
}

/// Returns the request that has evcxr do the work.
pub(super) fn request() -> JupyterMessage {
    let code = format!(
        ":dep support = {{ path = \"{SUPPORT}\" }}\n\
         use support::prelude::*;\n\
         let settings = Settings::from_env()?;\n\
         settings."
    );
    let cursor_pos = code.chars().count();
    JupyterMessage::new(CompleteRequest { code, cursor_pos }, None)
}
