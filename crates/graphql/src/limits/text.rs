use super::at_most;
use crate::{error::ApiError, options::Options};

/// Refuses a document that is too long or nests too deeply, before the parser, which is recursive, looks at it.
pub(crate) fn check_text(query: &str, options: &Options) -> Result<(), ApiError> {
    at_most("bytes of document", query.len(), "max_document_bytes", options.max_document_bytes)?;
    let found = scan(query);
    at_most("levels of brackets", found.nesting, "max_nesting", options.max_nesting)?;
    at_most("tokens", found.tokens, "max_tokens", options.max_tokens)
}

#[derive(Debug, PartialEq, Eq)]
struct Scan {
    /// How deeply brackets nest, outside strings and comments.
    nesting: usize,
    tokens: usize,
}

fn scan(query: &str) -> Scan {
    let bytes = query.as_bytes();
    let (mut depth, mut nesting, mut tokens, mut at) = (0_usize, 0, 0, 0);
    while let Some(byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let (length, is_token) = match byte {
            b'{' | b'[' | b'(' => {
                depth += 1;
                nesting = nesting.max(depth);
                (1, true)
            }
            b'}' | b']' | b')' => {
                depth = depth.saturating_sub(1);
                (1, true)
            }
            b'#' => (rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len()), false),
            b'"' => (string_length(rest), true),
            b' ' | b'\t' | b'\n' | b'\r' | b',' => (1, false),
            b'.' => (length_while(rest, |byte| byte == b'.'), true),
            b'-' | b'0'..=b'9' => {
                (length_while(rest, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-')), true)
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                (length_while(rest, |byte| byte.is_ascii_alphanumeric() || byte == b'_'), true)
            }
            _ => (1, true),
        };
        at += length;
        tokens += usize::from(is_token);
    }
    Scan { nesting, tokens }
}

fn length_while(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|byte| !belongs(*byte)).unwrap_or(bytes.len())
}

fn string_length(bytes: &[u8]) -> usize {
    let (quote, mut at): (&[u8], usize) = if bytes.starts_with(b"\"\"\"") { (b"\"\"\"", 3) } else { (b"\"", 1) };
    while at < bytes.len() {
        if bytes[at..].starts_with(quote) {
            return at + quote.len();
        }
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nesting(query: &str) -> usize {
        scan(query).nesting
    }

    #[test]
    fn nesting_looks_past_strings_and_comments() {
        assert_eq!(nesting("{ a(b: [{c: 1}]) { d } }"), 4);
        assert_eq!(nesting("{ a(b: \"{{{{\\\"{{\") # {{{{\n { c } }"), 2);
        assert_eq!(nesting("{ a(b: \"\"\"{{ \" {{ \\\"\"\" {\"\"\") }"), 2);
        assert_eq!(nesting(&"{".repeat(10_000)), 10_000);
        assert_eq!(nesting("\"open {{{"), 0);
    }

    #[test]
    fn tokens_are_names_values_and_punctuation() {
        for (text, tokens) in [
            ("", 0),
            ("{ a }", 3),
            ("query($n:Int!=-1.5e+3){a(b:$n,c:\"x y\")...f}#end\n", 24),
            ("a,b\n\tc # d e f", 3),
            ("{{{{", 4),
        ] {
            assert_eq!(scan(text).tokens, tokens, "{text}");
        }
    }
}
