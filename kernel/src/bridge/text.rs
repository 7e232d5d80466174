//! Marks in what a cell writes to stdout.
//!
//! evcxr passes stdout on line by line, and hangs where the last line has no end. So the prelude's
//! `print!` ends every text that has no newline with a mark and a newline, which are taken out
//! here; and `support::notebook` leaves a line between two marks where something is to be shown.

/// ASCII's record separator, which no text has a use for.
pub const MARK: char = '\u{1e}';

/// A piece of a cell's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// Where the display of this id belongs.
    Show(&'a str),
}

/// Takes a text apart at its marks.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(MARK) {
        let id = after
            .split_once(MARK)
            .filter(|(id, _)| !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()));
        let (piece, next) = match (id, after.strip_prefix('\n')) {
            (Some((id, next)), _) => (
                Some(Piece::Show(id)),
                next.strip_prefix('\n').unwrap_or(next),
            ),
            (None, Some(next)) => (None, next),
            // Somebody else's.
            (None, None) => break,
        };
        pieces.extend((!before.is_empty()).then_some(Piece::Text(before)));
        pieces.extend(piece);
        rest = next;
    }
    pieces.extend((!rest.is_empty()).then_some(Piece::Text(rest)));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_marks_is_one_piece() {
        assert_eq!(pieces("line\n"), [Piece::Text("line\n")]);
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn a_mark_before_a_newline_takes_it_away() {
        assert_eq!(pieces("no end\u{1e}\n"), [Piece::Text("no end")]);
    }

    #[test]
    fn an_id_between_marks_is_where_something_is_shown() {
        let text = "before\u{1e}a1\u{1e}\nafter\n";
        let expected = [
            Piece::Text("before"),
            Piece::Show("a1"),
            Piece::Text("after\n"),
        ];
        assert_eq!(pieces(text), expected);
    }

    #[test]
    fn a_mark_of_somebody_elses_stays() {
        assert_eq!(pieces("a\u{1e}b\n"), [Piece::Text("a\u{1e}b\n")]);
    }
}
