//! One thing that is shown, and can change in place.

use super::bridge::{Bridge, Displayed};

/// Something shown while a cell runs, or a program does.
///
/// In a notebook of this project's kernel it appears at once, in order with the text, and changes
/// in place. Plain evcxr shows what was last shown of a MIME type when the cell ends. Elsewhere a
/// text stands for it on stdout.
#[derive(Default)]
pub(crate) struct Output {
    shown: Option<Shown>,
}

enum Shown {
    Bridge(Displayed),
    Evcxr,
    Text(String),
}

impl Output {
    /// Shows content of a MIME type (binary as base64) in place of what was shown; `text` stands
    /// for it where there is only text.
    pub(crate) fn show(&mut self, mime: &str, content: &str, text: &str) {
        match &mut self.shown {
            Some(Shown::Bridge(shown)) => {
                shown.update(mime, content);
            }
            Some(Shown::Evcxr) => println!("{}", for_evcxr(mime, content)),
            Some(Shown::Text(last)) if last == text => {}
            Some(Shown::Text(last)) => {
                println!("{text}");
                text.clone_into(last);
            }
            None => self.shown = Some(Shown::begin(mime, content, text)),
        }
    }
}

impl Shown {
    fn begin(mime: &str, content: &str, text: &str) -> Self {
        let shown = Bridge::connect().and_then(|bridge| bridge.display(mime, content));
        if let Some(shown) = shown {
            return Self::Bridge(shown);
        }
        if std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
            println!("{}", for_evcxr(mime, content));
            return Self::Evcxr;
        }
        println!("{text}");
        Self::Text(text.to_owned())
    }
}

/// Returns the lines that evcxr takes for an output of type `mime`.
pub(crate) fn for_evcxr(mime: &str, content: &str) -> String {
    format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evcxr_takes_content_between_marks_on_lines_of_their_own() {
        let lines = "EVCXR_BEGIN_CONTENT text/plain\nfirst\nsecond\nEVCXR_END_CONTENT";
        assert_eq!(for_evcxr("text/plain", "first\nsecond"), lines);
    }
}
