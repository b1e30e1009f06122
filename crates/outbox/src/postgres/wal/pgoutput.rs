//! What PostgreSQL's logical decoding says, as its output plugin `pgoutput` writes it (protocol version 1): a function of bytes.
//!
//! Where a transaction begins and ends, and the messages that programs write into the log, are read by the client that streams; this reads
//! what is in between. See the chapter "Logical Replication Message Formats" of PostgreSQL's documentation.

use crate::error::{Error, ErrorKind, Result};

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// A table as it is in the changes that follow. Sent before the first of them, and again when the table has changed.
    Relation(Relation<'a>),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    /// `old` is there as far as the table's replica identity goes.
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Something that means nothing here: a type's name, a replication origin's.
    Other,
}

/// A table, by the id that changes name it with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Relation<'a> {
    pub(super) id: u32,
    pub(super) schema: &'a str,
    pub(super) name: &'a str,
    pub(super) columns: Vec<Column<'a>>,
}

/// A column, by its name and the id of its type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column<'a> {
    pub(super) name: &'a str,
    pub(super) type_id: u32,
}

/// A row before a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Old<'a> {
    /// Only the columns of its replica identity are told.
    Key(Tuple<'a>),
    /// All of it.
    Full(Tuple<'a>),
}

/// A row's values, in the order of the relation's columns.
pub(super) type Tuple<'a> = Vec<Value<'a>>;

/// A column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    /// A large value that the change did not touch, and that is not told therefore.
    Unchanged,
    /// In the type's text form.
    Text(&'a str),
}

/// Reads one message.
///
/// # Errors
/// [`ErrorKind::Corrupt`] where the bytes are not such a message.
pub(super) fn read(bytes: &[u8]) -> Result<Message<'_>> {
    let mut reader = Reader(bytes);
    let message = reader.message().ok_or_else(|| {
        let tag = bytes.first().map_or_else(|| "none".to_owned(), |tag| tag.escape_ascii().to_string());
        Error::new(ErrorKind::Corrupt, format!("the database's log holds a message that cannot be read (tag {tag})"))
    })?;
    Ok(message)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn message(&mut self) -> Option<Message<'a>> {
        let message = match self.byte()? {
            b'R' => Message::Relation(self.relation()?),
            b'I' => {
                let relation = self.u32()?;
                let b'N' = self.byte()? else { return None };
                Message::Insert { relation, new: self.tuple()? }
            }
            b'U' => {
                let relation = self.u32()?;
                let (old, tag) = match self.byte()? {
                    b'K' => (Some(Old::Key(self.tuple()?)), self.byte()?),
                    b'O' => (Some(Old::Full(self.tuple()?)), self.byte()?),
                    tag => (None, tag),
                };
                let b'N' = tag else { return None };
                Message::Update { relation, old, new: self.tuple()? }
            }
            b'D' => {
                let relation = self.u32()?;
                let old = match self.byte()? {
                    b'K' => Old::Key(self.tuple()?),
                    b'O' => Old::Full(self.tuple()?),
                    _ => return None,
                };
                Message::Delete { relation, old }
            }
            b'T' => {
                let count = self.u32()?;
                self.byte()?;
                // Each takes four bytes, so what is left bounds how many there can be.
                if self.0.len() / 4 < count as usize {
                    return None;
                }
                Message::Truncate { relations: (0..count).map(|_| self.u32()).collect::<Option<_>>()? }
            }
            b'Y' | b'O' => return Some(Message::Other),
            _ => return None,
        };
        self.0.is_empty().then_some(message)
    }

    fn relation(&mut self) -> Option<Relation<'a>> {
        let (id, schema, name) = (self.u32()?, self.text()?, self.text()?);
        // The replica identity; what it gives is seen in each change.
        self.byte()?;
        let count = self.u16()?;
        let column = |reader: &mut Self| {
            // Whether it is of the key, and after the type its modifier: neither matters here.
            reader.byte()?;
            let column = Column { name: reader.text()?, type_id: reader.u32()? };
            reader.u32()?;
            Some(column)
        };
        let columns = (0..count).map(|_| column(self)).collect::<Option<_>>()?;
        // `pg_catalog` is written as an empty name.
        Some(Relation { id, schema: if schema.is_empty() { "pg_catalog" } else { schema }, name, columns })
    }

    fn tuple(&mut self) -> Option<Tuple<'a>> {
        let count = self.u16()?;
        (0..count)
            .map(|_| {
                Some(match self.byte()? {
                    b'n' => Value::Null,
                    b'u' => Value::Unchanged,
                    b't' => {
                        let length = self.u32()? as usize;
                        Value::Text(std::str::from_utf8(self.take(length)?).ok()?)
                    }
                    _ => return None,
                })
            })
            .collect()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A text that ends with a zero.
    fn text(&mut self) -> Option<&'a str> {
        let length = memchr::memchr(0, self.0)?;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.byte()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(values: &[Value<'_>]) -> Vec<u8> {
        let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                Value::Null => bytes.push(b'n'),
                Value::Unchanged => bytes.push(b'u'),
                Value::Text(text) => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        [&[tag], parts.concat().as_slice()].concat()
    }

    const ID: [u8; 4] = 16_384_u32.to_be_bytes();

    #[test]
    fn each_message_is_read_and_none_that_is_cut() {
        let values = [Value::Text("1"), Value::Null, Value::Unchanged, Value::Text("ä")];
        let row = tuple(&values);
        let relation = message(
            b'R',
            &[&ID, b"public\0", b"Task\0", b"f", &1_u16.to_be_bytes(), b"\x01id\0", &[0, 0, 0, 23], &[255; 4]],
        );
        let columns = vec![Column { name: "id", type_id: 23 }];
        let read_relation = Relation { id: 16_384, schema: "public", name: "Task", columns };
        let values = || values.to_vec();
        for (bytes, expected) in [
            (relation, Message::Relation(read_relation)),
            (message(b'I', &[&ID, b"N", &row]), Message::Insert { relation: 16_384, new: values() }),
            (message(b'U', &[&ID, b"N", &row]), Message::Update { relation: 16_384, old: None, new: values() }),
            (
                message(b'U', &[&ID, b"O", &row, b"N", &row]),
                Message::Update { relation: 16_384, old: Some(Old::Full(values())), new: values() },
            ),
            (message(b'D', &[&ID, b"K", &row]), Message::Delete { relation: 16_384, old: Old::Key(values()) }),
            (message(b'D', &[&ID, b"O", &row]), Message::Delete { relation: 16_384, old: Old::Full(values()) }),
            (
                message(b'T', &[&[0, 0, 0, 2], b"\0", &ID, &[0, 0, 0, 7]]),
                Message::Truncate { relations: vec![16_384, 7] },
            ),
        ] {
            assert_eq!(read(&bytes).expect("well-formed"), expected);
            for cut in 0..bytes.len() {
                assert!(read(&bytes[..cut]).is_err(), "cut at {cut} of {bytes:?}");
            }
            assert!(read(&[&bytes[..], b"!"].concat()).is_err());
        }
        assert_eq!(read(b"Yanything").expect("skipped"), Message::Other);
        // Not UTF-8, an unknown value, an unknown message, more tables than there is room for.
        for bytes in [
            message(b'I', &[&ID, b"N", &[0, 1, b't', 0, 0, 0, 1, 0xff]]),
            message(b'I', &[&ID, b"N", &[0, 1, b'x']]),
            b"?".to_vec(),
            message(b'T', &[&[255; 4], b"\0", &ID]),
        ] {
            assert_eq!(read(&bytes).expect_err("malformed").kind(), ErrorKind::Corrupt);
        }
    }

    proptest! {
        /// Whatever the bytes are, they are read or refused.
        #[test]
        fn any_bytes_are_read_or_refused(tag in "[RIUDTYO?]", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&[tag.as_bytes(), &bytes].concat());
        }
    }
}
