//! A reader of JSON that a database made: it finds where values begin and end and decodes nothing.

use std::borrow::Cow;

use memchr::memchr2;

use crate::error::{Error, ErrorKind, Result};

/// Walks through JSON text value by value. Made for arrays nested a few levels deep, as [`crate::Select`] gives them; not a validator.
#[derive(Debug, Clone)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next byte that is not white space, without taking it.
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes this byte if it is the next.
    pub fn take(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    /// Takes the `[` or `,` before an array's next value; answers `false` and takes the `]` at the end of the array.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where none of the three follows.
    pub fn next_item(&mut self) -> Result<bool> {
        if self.take(b'[') {
            return Ok(!self.take(b']'));
        }
        if self.take(b',') {
            return Ok(true);
        }
        if self.take(b']') {
            return Ok(false);
        }
        Err(malformed())
    }

    /// Takes an array's opening bracket.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where something else follows.
    pub fn open(&mut self) -> Result<()> {
        if self.take(b'[') { Ok(()) } else { Err(malformed()) }
    }

    /// Takes a `null` if it is the next value.
    pub fn take_null(&mut self) -> bool {
        let null = self.peek() == Some(b'n');
        if null {
            self.at += 4;
        }
        null
    }

    /// Takes the next value whole, with all that is nested in it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the text ends before the value does.
    pub fn value(&mut self) -> Result<&'a str> {
        let first = self.peek().ok_or_else(malformed)?;
        let start = self.at;
        match first {
            b'"' => self.skip_string()?,
            b'[' | b'{' => self.skip_nested()?,
            _ => {
                let rest = &self.text.as_bytes()[self.at..];
                let length = rest.iter().position(|byte| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b':'));
                self.at += length.unwrap_or(rest.len());
            }
        }
        Ok(&self.text[start..self.at])
    }

    fn skip_string(&mut self) -> Result<()> {
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            let found = memchr2(b'"', b'\\', bytes.get(self.at..).unwrap_or_default()).ok_or_else(malformed)?;
            self.at += found + 1;
            if bytes[self.at - 1] == b'"' {
                return Ok(());
            }
            self.at += 1;
        }
    }

    fn skip_nested(&mut self) -> Result<()> {
        let bytes = self.text.as_bytes();
        let mut depth = 0_usize;
        loop {
            match bytes.get(self.at).ok_or_else(malformed)? {
                b'"' => {
                    self.skip_string()?;
                    continue;
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

fn malformed() -> Error {
    Error::new(ErrorKind::Corrupt, "the database gave JSON of another shape than was asked for")
}

/// JSON without the white space between its tokens.
pub(crate) fn minified(json: &str) -> Cow<'_, str> {
    if !json.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    Cow::Owned(out)
}

/// A document as `serde_json` writes it, so that the same document has the same text wherever it comes from. One with a number that
/// `serde_json` would not write back as it is only loses its white space.
pub(crate) fn canonical(json: &str) -> Cow<'_, str> {
    let precise = json.split(|c: char| !c.is_ascii_digit() && c != '.').any(|digits| digits.len() > 16);
    match serde_json::from_str::<serde_json::Value>(json) {
        Ok(value) if !precise => Cow::Owned(value.to_string()),
        _ => minified(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_whole() {
        let mut scanner = Scanner::new(r#"[1, "a]\"\\", [null,{"b":[2]}], -1.5e3]"#);
        let mut values = Vec::new();
        while scanner.next_item().expect("well-formed") {
            values.push(scanner.value().expect("well-formed"));
        }
        assert_eq!(values, ["1", r#""a]\"\\""#, r#"[null,{"b":[2]}]"#, "-1.5e3"]);
        assert!(Scanner::new("[\"open").value().is_err());
        assert!(Scanner::new("[[1]").value().is_err());
    }
}
