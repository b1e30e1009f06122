use std::{fmt, str::FromStr};

use crate::error::{Error, ErrorKind};

/// Tells one history of a log from another.
///
/// A database that is restored from a backup forgets changes that readers have already seen and then writes others in their place. A
/// cursor names the epoch that its last change was written in, so such a reader is answered by a resync and not by a silent gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub(crate) u64);

/// The set of transactions that its holder has seen.
///
/// Opaque outside this crate; [`Display`](fmt::Display) and [`FromStr`] give and take a text that is safe in URLs and JSON and that is
/// checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor(Seen);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Seen {
    /// Nothing: a reader from here is given the whole log.
    Nothing,
    /// Everything up to a number. Enough where the database has one writer at a time.
    Through { epoch: Epoch, seq: u64 },
}

impl Cursor {
    /// Before the first transaction.
    pub fn start() -> Self {
        Self(Seen::Nothing)
    }

    pub(crate) fn through(epoch: Epoch, seq: u64) -> Self {
        Self(Seen::Through { epoch, seq })
    }

    /// The number up to which everything has been seen, and the epoch that number belongs to (none before the first transaction).
    pub(crate) fn position(&self) -> (Option<Epoch>, u64) {
        match self.0 {
            Seen::Nothing => (None, 0),
            Seen::Through { epoch, seq } => (Some(epoch), seq),
        }
    }

    /// Whether the holder of this cursor has seen all that the holder of the other has.
    pub(crate) fn covers(&self, other: &Cursor) -> bool {
        self.position().1 >= other.position().1
    }
}

// The text form is base64url, without padding, of: one version byte, the payload, four bytes of CRC-32 over both. The check is against
// accidents (a cut or mixed-up text), not against malice: a cursor grants nothing.
const VERSION_NOTHING: u8 = 0;
const VERSION_THROUGH: u8 = 1;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(24);
        match self.0 {
            Seen::Nothing => bytes.push(VERSION_NOTHING),
            Seen::Through { epoch, seq } => {
                bytes.push(VERSION_THROUGH);
                bytes.extend_from_slice(&epoch.0.to_be_bytes());
                bytes.extend_from_slice(&seq.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Cursor,
                "this is not a cursor; use one that Tidewire gave, unchanged, or none to start anew",
            )
        })
    }
}

fn parse(text: &str) -> Option<Cursor> {
    // No cursor of any version is longer; a longer text is not worth decoding.
    if text.len() > 4096 {
        return None;
    }
    let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
    let (body, check) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*check) {
        return None;
    }
    match *body {
        [VERSION_NOTHING] => Some(Cursor::start()),
        [VERSION_THROUGH, ref payload @ ..] => {
            let (epoch, rest) = payload.split_first_chunk::<8>()?;
            let seq: &[u8; 8] = rest.try_into().ok()?;
            Some(Cursor::through(Epoch(u64::from_be_bytes(*epoch)), u64::from_be_bytes(*seq)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text_and_nothing_else_parses() {
        for cursor in [Cursor::start(), Cursor::through(Epoch(7), 0), Cursor::through(Epoch(u64::MAX), u64::MAX)] {
            let text = cursor.to_string();
            assert_eq!(text.parse::<Cursor>().expect("our own text"), cursor);

            for cut in 0..text.len() {
                assert!(text[..cut].parse::<Cursor>().is_err(), "cut at {cut}");
            }
            for (index, _) in text.char_indices() {
                let mut other = text.clone().into_bytes();
                other[index] = if other[index] == b'A' { b'B' } else { b'A' };
                let other = String::from_utf8(other).expect("ASCII");
                assert!(other == text || other.parse::<Cursor>().is_err(), "changed at {index}");
            }
        }
        for text in ["", "0", "not a cursor", "🦀", &"A".repeat(10_000)] {
            assert!(text.parse::<Cursor>().is_err());
        }
    }
}
