//! A reader of JSON that a database made: it finds where values begin and end and decodes nothing.

use std::{borrow::Cow, collections::BTreeMap};

use memchr::memchr2;
use serde_json::value::RawValue;

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

/// A document as `serde_json` writes it, so that the same document has the same text wherever it comes from: keys sorted, the last of the
/// same ones, no white space. A number that `serde_json` would take for another stays as it is.
pub(crate) fn canonical(json: &str) -> Cow<'_, str> {
    let mut out = String::with_capacity(json.len());
    match write_canonical(json, 0, &mut out) {
        Ok(()) => Cow::Owned(out),
        Err(_) => minified(json),
    }
}

/// How deep a document may nest for its keys to be sorted.
const SORTED_DEPTH: usize = 128;

fn write_canonical(json: &str, depth: usize, out: &mut String) -> Result<(), serde_json::Error> {
    let json = json.trim_ascii();
    match json.as_bytes().first() {
        Some(b'{' | b'[') if depth == SORTED_DEPTH => out.push_str(&minified(json)),
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
            out.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                out.push_str(&serde_json::to_string(&key)?);
                out.push(':');
                write_canonical(value.get(), depth + 1, out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json)?;
            out.push('[');
            for (index, value) in items.into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write_canonical(value.get(), depth + 1, out)?;
            }
            out.push(']');
        }
        Some(b'"') => out.push_str(&serde_json::to_string(&serde_json::from_str::<String>(json)?)?),
        _ => {
            let value: serde_json::Value = serde_json::from_str(json)?;
            let precise = value.is_f64() && json.bytes().filter(u8::is_ascii_digit).count() > 15;
            if precise {
                out.push_str(json);
            } else {
                out.push_str(&value.to_string());
            }
        }
    }
    Ok(())
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
    #[test]
    fn the_same_document_has_the_same_text() {
        let same = |one: &str, other: &str| assert_eq!(canonical(one), other);
        same(
            r#" {"bb" : 6366814364853564627, "a": [1, null , "x\u0041"], "a": 1.50} "#,
            r#"{"a":1.5,"bb":6366814364853564627}"#,
        );
        same(r#"[0.1234567890123456789, {"\u00e4": "\/", "z": {}}]"#, r#"[0.1234567890123456789,{"z":{},"ä":"/"}]"#);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(canonical(&deep), deep);
    }
}
