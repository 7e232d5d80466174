//! Whether code can be run as it stands, which a console asks after every line.

use jupyter_protocol::IsCompleteReply;
use ra_ap_rustc_lexer::{DocStyle, FrontmatterAllowed, LiteralKind, TokenKind, tokenize};

const INDENT: &str = "    ";

/// Judges by brackets, literals and comments; what else is wrong, the compiler says better.
pub(super) fn is_complete(code: &str) -> IsCompleteReply {
    let mut open: Vec<Bracket> = Vec::new();
    // The last two tokens that are neither blank nor a plain comment.
    let (mut last, mut before) = (None, None);
    // An attribute, or a comment, that documents what has yet to come.
    let mut announces = false;
    let mut at = 0;
    let rust = without_commands(code);
    for token in tokenize(rust, FrontmatterAllowed::No) {
        let start = at;
        at += token.len as usize;
        match token.kind {
            TokenKind::Whitespace | TokenKind::LineComment { doc_style: None } => continue,
            TokenKind::BlockComment {
                terminated: true,
                doc_style: None,
            } => continue,
            TokenKind::BlockComment {
                terminated: false, ..
            } => return IsCompleteReply::incomplete(String::new()),
            TokenKind::Literal { kind, .. } => match kind {
                LiteralKind::Str { terminated: false }
                | LiteralKind::ByteStr { terminated: false }
                | LiteralKind::CStr { terminated: false } => {
                    return IsCompleteReply::incomplete(String::new());
                }
                LiteralKind::RawStr { n_hashes: None }
                | LiteralKind::RawByteStr { n_hashes: None }
                | LiteralKind::RawCStr { n_hashes: None } => {
                    // One that is begun well takes in all that follows.
                    let begun = rust[start..at].trim_start_matches(['b', 'c', 'r', '#']);
                    return if begun.starts_with('"') {
                        IsCompleteReply::incomplete(String::new())
                    } else {
                        IsCompleteReply::invalid()
                    };
                }
                LiteralKind::Char { terminated: false }
                | LiteralKind::Byte { terminated: false } => return IsCompleteReply::invalid(),
                _ => announces = false,
            },
            TokenKind::OpenParen | TokenKind::OpenBrace | TokenKind::OpenBracket => {
                open.push(Bracket {
                    kind: token.kind,
                    start,
                    attribute: last == Some(TokenKind::Pound),
                });
            }
            TokenKind::CloseParen | TokenKind::CloseBrace | TokenKind::CloseBracket => {
                match open.pop() {
                    Some(bracket) if closes(token.kind, bracket.kind) => {
                        announces = bracket.attribute;
                    }
                    _ => return IsCompleteReply::invalid(),
                }
            }
            TokenKind::LineComment { doc_style } | TokenKind::BlockComment { doc_style, .. } => {
                announces = doc_style == Some(DocStyle::Outer);
            }
            _ => announces = false,
        }
        before = last.replace(token.kind);
    }
    let goes_on = last.is_some_and(|last| continues(before, last));
    match open.last() {
        Some(bracket) => {
            let indent = indent_at(rust, bracket.start) + INDENT;
            IsCompleteReply::incomplete(indent)
        }
        None if announces => IsCompleteReply::incomplete(String::new()),
        None if goes_on => IsCompleteReply::incomplete(INDENT.to_owned()),
        None => IsCompleteReply::complete(),
    }
}

struct Bracket {
    kind: TokenKind,
    /// Where it is.
    start: usize,
    /// Whether it is that of `#[…]`.
    attribute: bool,
}

/// Returns the code after the last line that is evcxr's: it takes commands before Rust only.
fn without_commands(code: &str) -> &str {
    let (mut rust, mut rest) = (code, code);
    while let Some(line) = rest.split_inclusive('\n').next() {
        rest = &rest[line.len()..];
        if line.starts_with('!') || line.trim_start_matches(' ').starts_with(':') {
            rust = rest;
        } else if !line.starts_with("//") && !line.trim().is_empty() {
            break;
        }
    }
    rust
}

fn closes(close: TokenKind, open: TokenKind) -> bool {
    matches!(
        (open, close),
        (TokenKind::OpenParen, TokenKind::CloseParen)
            | (TokenKind::OpenBrace, TokenKind::CloseBrace)
            | (TokenKind::OpenBracket, TokenKind::CloseBracket)
    )
}

/// Returns whether nothing that ends in these two tokens is whole. A `>` may end a type.
fn continues(before: Option<TokenKind>, last: TokenKind) -> bool {
    use TokenKind::{
        And, Bang, Caret, Colon, Comma, Dot, Eq, Gt, Lt, Minus, Or, Percent, Plus, Pound, Slash,
        Star,
    };
    match last {
        Gt => matches!(before, Some(Minus | Eq)),
        // `0..` is a range.
        Dot => before != Some(Dot),
        And | Bang | Caret | Colon | Comma | Eq | Lt | Minus | Or | Percent | Plus | Pound
        | Slash | Star => true,
        _ => false,
    }
}

/// Returns the blanks that the line of this place begins with.
fn indent_at(code: &str, place: usize) -> String {
    let line = code[..place].rfind('\n').map_or(0, |end| end + 1);
    code[line..place]
        .chars()
        .take_while(|c| c.is_whitespace())
        .collect()
}

#[cfg(test)]
mod tests {
    use jupyter_protocol::IsCompleteReplyStatus::{Complete, Incomplete, Invalid};

    use super::*;

    #[test]
    fn code_is_complete_where_all_brackets_literals_and_comments_are_closed() {
        for code in [
            "",
            "1 + 1",
            "let a = vec![1, 2];",
            "fn f<'a>(x: &'a str) -> char { '{' }",
            r##"let raw = r#"a " ( {"#;"##,
            r#"let text = "( \" {";"#,
            "let bytes = (b'(', b\"[\", c\"{\");",
            "/* a { /* nested ( */ } */ 1",
            "let a = 1; // ( {",
            "0..",
            "let a = 'outer: loop { break 'outer 1 };",
            "size_of::<u8>",
            "#[derive(Debug)]\nstruct A;",
            ":dep image = { version = \"0.25\"\n1",
            "// One.\n\n:dep image = {\n",
            "!ls (",
            "  :vars",
        ] {
            assert_eq!(is_complete(code).status, Complete, "{code}");
        }
    }

    #[test]
    fn code_that_goes_on_is_incomplete_and_says_how_far_to_indent() {
        for (code, indent) in [
            ("fn f() {", "    "),
            ("fn f() {\n    if a {", "        "),
            ("fn f() {\n    if a {\n        b();\n    }", "    "),
            ("f(|x| {", "    "),
            ("let a = [", "    "),
            ("let a =", "    "),
            ("let a = b.iter().", "    "),
            ("let a = 1 +", "    "),
            ("match a { 1 =>", "    "),
            ("fn f() ->", "    "),
            ("let a: ", "    "),
            ("let text = \"one", ""),
            ("let raw = br##\"one\"#", ""),
            ("/* a /* b */", ""),
            ("#[derive(Debug)]", ""),
            ("/// A point.", ""),
            (":dep image = \"0.25\"\nfn f() {", "    "),
        ] {
            let reply = is_complete(code);
            assert_eq!(reply.status, Incomplete, "{code}");
            assert_eq!(reply.indent, indent, "{code}");
        }
    }

    #[test]
    fn code_that_no_further_line_can_mend_is_invalid() {
        for code in ["}", "f(]", "let a = (1};", "let c = 'ab';\n'", "r#~\"a\"#"] {
            assert_eq!(is_complete(code).status, Invalid, "{code}");
        }
    }
}
