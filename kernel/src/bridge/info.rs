//! What the kernel says about itself.

use jupyter_protocol::UnknownMessage;
use serde_json::json;

/// Returns the answer to a `kernel_info_request`, with the version that `rustc --version` tells.
pub(super) fn kernel_info(rustc: &str) -> UnknownMessage {
    let version = env!("CARGO_PKG_VERSION");
    let banner = match rustc {
        "" => "Rust".to_owned(),
        rustc => format!("Rust {rustc}"),
    };
    UnknownMessage {
        msg_type: "kernel_info_reply".to_owned(),
        content: json!({
            "status": "ok",
            "protocol_version": "5.4",
            "implementation": "transfer-learning-kernel",
            "implementation_version": version,
            "language_info": {
                "name": "rust",
                "version": rustc,
                "mimetype": "text/rust",
                "file_extension": ".rs",
                "pygments_lexer": "rust",
                "codemirror_mode": "rust",
            },
            "banner": format!("{banner}, evaluated by evcxr (transfer-learning-kernel {version})"),
            "help_links": [
                {"text": "Rust", "url": "https://doc.rust-lang.org/stable/"},
                {"text": "evcxr", "url": "https://github.com/evcxr/evcxr/blob/main/evcxr_jupyter/README.md"},
            ],
            // Clients that do not know of features go by this.
            "debugger": true,
            "supported_features": ["debugger", "iopub_welcome"],
        }),
    }
}
