//! What evcxr compiles into every cell, so that the bridge learns what happens there.

use crate::bridge::{MARK, PLACE_ENDS, SOCKET, VERSION};

/// Returns the text of the `evcxr.toml` that holds the prelude.
#[must_use]
pub fn evcxr_toml() -> String {
    let prelude = PRELUDE
        .replace("SOCKET", SOCKET)
        .replace("VERSION", &VERSION.to_string())
        .replace("MARK", &MARK.escape_unicode().to_string())
        .replace("PLACE_ENDS", &PLACE_ENDS.escape_unicode().to_string());
    format!("# Written by the kernel at every start.\n[evcxr]\nprelude = '''\n{prelude}'''\n")
}

/// The code that evcxr puts around a cell catches a panic and a `?` on an `Err`, announces it with
/// one of two `println!`, and goes on. A macro of that name in the prelude shadows the standard one
/// in every cell and acts on exactly those tokens; `eprintln!` does on those that show the error
/// of a `?`. It leans on the wording of evcxr 0.22; with another one the kernel's tests fail.
///
/// A cell that ends with an expression is first compiled with a call of `evcxr_display`, which few
/// types have, and then once more: so all that is `Debug` has it. A type's own goes before a trait's.
///
/// Unused macros are allowed because evcxr would report one in place of a cell's own error. evcxr
/// asks for a backtrace on every panic: thirty lines of its own frames.
const PRELUDE: &str = r#"#[allow(unused_macros)]
macro_rules! transfer_tell {
    ($($argument:tt)*) => {{
        let told = match ::std::env::var_os("SOCKET").map(::std::os::unix::net::UnixStream::connect) {
            Some(Ok(mut bridge)) => {
                use ::std::io::{Read as _, Write as _};
                let line = ::std::format!($($argument)*) + "\n";
                let _ = bridge.set_read_timeout(Some(::std::time::Duration::from_secs(2)));
                bridge.write_all(line.as_bytes()).is_ok() && bridge.read(&mut [0; 64]).is_ok()
            }
            _ => false,
        };
        told
    }};
}
#[allow(unused_macros)]
macro_rules! transfer_note {
    ($text:expr) => {{
        let mut escaped = ::std::string::String::new();
        for c in $text.chars() {
            match c {
                '"' | '\\' => escaped.extend(['\\', c]),
                c if c.is_control() => escaped += &::std::format!("\\u{:04x}", c as u32),
                c => escaped.push(c),
            }
        }
        transfer_tell!("{{\"version\":VERSION,\"event\":\"note\",\"text\":\"{}\"}}", escaped)
    }};
}
#[allow(unused_macros)]
macro_rules! println {
    ("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED) => {
        transfer_tell!("{{\"version\":VERSION,\"event\":\"failed\"}}");
        ::std::println!("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED)
    };
    ("EVCXR_PANIC_NOTIFICATION") => {
        transfer_tell!("{{\"version\":VERSION,\"event\":\"failed\"}}");
        ::std::println!("EVCXR_PANIC_NOTIFICATION")
    };
    ($($argument:tt)*) => { ::std::println!($($argument)*) };
}
#[allow(unused_macros)]
macro_rules! eprintln {
    ("{}", $error:ident) => {
        if ::std::stringify!($error) != "error" || !transfer_note!(::std::format!("{}", $error)) {
            ::std::eprintln!("{}", $error)
        }
    };
    ($($argument:tt)*) => { ::std::eprintln!($($argument)*) };
}
#[allow(unused_macros)]
macro_rules! print {
    ($($argument:tt)*) => {{
        let text = ::std::format!($($argument)*);
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "MARK\n" };
        ::std::print!("{text}{end}")
    }};
}
trait TransferDisplay {
    fn evcxr_display(&self);
}
impl<T: ::std::fmt::Debug + ?Sized> TransferDisplay for T {
    fn evcxr_display(&self) {
        ::std::println!("EVCXR_BEGIN_CONTENT text/plain\n{self:?}\nEVCXR_END_CONTENT")
    }
}
unsafe { ::std::env::set_var("RUST_BACKTRACE", "0") };
{
    let default = ::std::panic::take_hook();
    ::std::panic::set_hook(::std::boxed::Box::new(move |panic| {
        let place = panic.location().map_or(::std::string::String::new(), |place| place.to_string());
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        if !transfer_note!(::std::format!("{}PLACE_ENDS{}", place, message)) {
            default(panic)
        }
    }));
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        let text = evcxr_toml();
        for placeholder in ["SOCKET", "VERSION", "MARK", "PLACE_ENDS"] {
            assert!(
                !text.contains(&format!("\"{placeholder}\"")),
                "{placeholder}"
            );
        }
        assert!(
            text.contains(r"\u{1e}\n") && text.contains(r"{}\u{1f}{}"),
            "{text}"
        );
    }
}
