//! The events of the binary log, as far as they concern us. A function of bytes.
//!
//! The format is the one that MariaDB's documentation has under "Binlog Event Types".

use std::{borrow::Cow, io::Read};

use flate2::read::ZlibDecoder;

use crate::error::{Error, ErrorKind, Result};

/// An event without its header.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// Begins a group of events: a transaction, or a statement that stands alone.
    Gtid(Gtid),
    Query(Query<'a>),
    /// Says what the rows that follow are of. Read with [`TableMap::read`].
    TableMap {
        id: u64,
        body: &'a [u8],
    },
    Rows(Rows<'a>),
    /// Ends a transaction: it is committed.
    Xid,
    /// Ends the first half of a transaction of XA.
    XaPrepare,
    /// The log goes on in another file, from there on.
    Rotate {
        file: &'a str,
        position: u64,
    },
    /// A statement that loads a file, which comes in pieces before it.
    Load(Query<'a>),
    /// The server says that the log lacks something.
    Incident,
    /// Nothing to those who read rows.
    Other,
    /// Of a server that is newer than this program. It may tell of rows.
    Unknown,
}

/// What a group of events is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gtid {
    pub(super) domain: u32,
    pub(super) sequence: u64,
    /// The group is one event long: a definition, for example.
    pub(super) stands_alone: bool,
}

/// A statement as text.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) database: &'a [u8],
    pub(super) text: Cow<'a, [u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowsKind {
    Write,
    Update,
    Delete,
}

/// Rows of one table.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    pub(super) kind: RowsKind,
    pub(super) table: u64,
    /// Which columns the rows have; before and after the change, where it is an update.
    pub(super) present: [Bits<'a>; 2],
    pub(super) rows: Cow<'a, [u8]>,
}

/// A row of bits, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl Bits<'_> {
    pub(super) fn is_set(&self, index: usize) -> bool {
        index < self.len && self.bytes[index / 8] >> (index % 8) & 1 == 1
    }

    pub(super) fn are_all_set(&self) -> bool {
        (0..self.len).all(|index| self.is_set(index))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

pub(super) fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "the binary log holds an event that cannot be read")
}

/// Takes what it reads off the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of so many bytes, lowest first.
    pub(super) fn number(&mut self, len: usize) -> Result<u64> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn length(&mut self, len: usize) -> Result<usize> {
        usize::try_from(self.number(len)?).map_err(|_| damaged())
    }

    /// A number of as many bytes as it needs.
    pub(super) fn packed(&mut self) -> Result<usize> {
        match self.number(1)? {
            0xfc => self.length(2),
            0xfd => self.length(3),
            0xfe => self.length(8),
            small => Ok(small as usize),
        }
    }

    pub(super) fn bits(&mut self, len: usize) -> Result<Bits<'a>> {
        Ok(Bits { bytes: self.take(len.div_ceil(8))?, len })
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// Reads an event of a type.
pub(super) fn read(kind: u8, body: &[u8]) -> Result<Event<'_>> {
    let mut input = Input(body);
    Ok(match kind {
        2 => Event::Query(query(input, 0, false)?),
        4 => {
            let position = input.number(8)?;
            Event::Rotate { file: std::str::from_utf8(input.rest()).map_err(|_| damaged())?, position }
        }
        16 => Event::Xid,
        // What it executes stands behind 13 bytes more: the file's number, where its name stands in the text, and what to do with duplicates.
        18 => Event::Load(query(input, 13, false)?),
        19 => Event::TableMap { id: input.number(6)?, body },
        23..=25 | 30..=32 | 166..=171 => rows(kind, input)?,
        26 => Event::Incident,
        38 => Event::XaPrepare,
        162 => {
            let (sequence, domain, flags) = (input.number(8)?, input.number(4)?, input.number(1)?);
            let domain = u32::try_from(domain).map_err(|_| damaged())?;
            Event::Gtid(Gtid { domain, sequence, stands_alone: flags & 1 != 0 })
        }
        165 => Event::Query(query(input, 0, true)?),
        // Stops, variables of statements, pieces of files, heartbeats, comments, and what a file begins with.
        0 | 3 | 5 | 9 | 11 | 13..=15 | 17 | 27..=29 | 160 | 161 | 163 | 164 => Event::Other,
        _ => Event::Unknown,
    })
}

fn query(mut input: Input<'_>, further: usize, is_compressed: bool) -> Result<Query<'_>> {
    input.take(8)?;
    let name = input.length(1)?;
    input.take(2)?;
    let variables = input.length(2)?;
    input.take(further + variables)?;
    let database = input.take(name)?;
    input.take(1)?;
    let text = if is_compressed { Cow::Owned(inflate(input)?) } else { Cow::Borrowed(input.rest()) };
    Ok(Query { database, text })
}

fn rows(kind: u8, mut input: Input<'_>) -> Result<Event<'_>> {
    let table = input.number(6)?;
    input.take(2)?;
    if matches!(kind, 30..=32 | 169..=171) {
        let further = input.length(2)?.checked_sub(2).ok_or_else(damaged)?;
        input.take(further)?;
    }
    let (kind, is_compressed) = match kind {
        23 | 30 => (RowsKind::Write, false),
        24 | 31 => (RowsKind::Update, false),
        25 | 32 => (RowsKind::Delete, false),
        166 | 169 => (RowsKind::Write, true),
        167 | 170 => (RowsKind::Update, true),
        _ => (RowsKind::Delete, true),
    };
    let width = input.packed()?;
    let first = input.bits(width)?;
    let second = if kind == RowsKind::Update { input.bits(width)? } else { first };
    let rows = if is_compressed { Cow::Owned(inflate(input)?) } else { Cow::Borrowed(input.rest()) };
    Ok(Event::Rows(Rows { kind, table, present: [first, second], rows }))
}

/// What `log_bin_compress` made small: a byte that says how many follow with the length, highest first; then zlib's.
fn inflate(mut input: Input<'_>) -> Result<Vec<u8>> {
    let lengths = input.length(1)? & 7;
    let length = input.take(lengths)?.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    let mut out = Vec::new();
    ZlibDecoder::new(input.rest()).take(length as u64).read_to_end(&mut out).map_err(|_| damaged())?;
    if out.len() == length { Ok(out) } else { Err(damaged()) }
}

/// The type of a column, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) code: u8,
    /// What the type needs besides: a length, a precision.
    pub(super) detail: [u8; 2],
}

/// Codes of types.
pub(super) mod types {
    pub(in super::super) const TINY: u8 = 1;
    pub(in super::super) const SHORT: u8 = 2;
    pub(in super::super) const LONG: u8 = 3;
    pub(in super::super) const FLOAT: u8 = 4;
    pub(in super::super) const DOUBLE: u8 = 5;
    pub(in super::super) const LONGLONG: u8 = 8;
    pub(in super::super) const INT24: u8 = 9;
    pub(in super::super) const DATE: u8 = 10;
    pub(in super::super) const YEAR: u8 = 13;
    pub(in super::super) const NEWDATE: u8 = 14;
    pub(in super::super) const VARCHAR: u8 = 15;
    pub(in super::super) const BIT: u8 = 16;
    pub(in super::super) const TIMESTAMP2: u8 = 17;
    pub(in super::super) const DATETIME2: u8 = 18;
    pub(in super::super) const TIME2: u8 = 19;
    pub(in super::super) const BLOB_COMPRESSED: u8 = 140;
    pub(in super::super) const VARCHAR_COMPRESSED: u8 = 141;
    pub(in super::super) const NEWDECIMAL: u8 = 246;
    pub(in super::super) const ENUM: u8 = 247;
    pub(in super::super) const SET: u8 = 248;
    pub(in super::super) const BLOB: u8 = 252;
    pub(in super::super) const VAR_STRING: u8 = 253;
    pub(in super::super) const STRING: u8 = 254;
    pub(in super::super) const GEOMETRY: u8 = 255;
}

/// A column of a table, as it was when the rows were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) kind: Type,
    /// Empty where the log does not name columns.
    pub(super) name: String,
    pub(super) is_unsigned: bool,
    /// The number of its collation; 63 is that of bytes.
    pub(super) collation: u64,
    /// What an enumeration or a set may hold, in its character set.
    pub(super) labels: Vec<Vec<u8>>,
}

/// What the rows of a table are made of.
#[derive(Debug)]
pub(super) struct TableMap<'a> {
    pub(super) database: &'a [u8],
    pub(super) table: &'a [u8],
    /// The number of columns, and what tells about them.
    width: usize,
    columns: Input<'a>,
}

/// The collation of bytes.
pub(super) const BYTES: u64 = 63;

impl<'a> TableMap<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self> {
        let mut input = Input(body);
        input.take(8)?;
        let mut name = || {
            let len = input.length(1)?;
            let name = input.take(len)?;
            input.take(1).map(|_| name)
        };
        let (database, table) = (name()?, name()?);
        Ok(Self { database, table, width: input.packed()?, columns: input })
    }

    pub(super) fn columns(&self) -> Result<Vec<Column>> {
        let mut input = self.columns;
        let codes = input.take(self.width)?;
        let len = input.packed()?;
        let mut details = Input(input.take(len)?);
        let mut columns = Vec::with_capacity(self.width);
        for &code in codes {
            let kind = column_type(code, &mut details)?;
            columns.push(Column {
                kind,
                name: String::new(),
                is_unsigned: false,
                collation: BYTES,
                labels: Vec::new(),
            });
        }
        input.bits(self.width)?;
        while !input.is_empty() {
            let (field, len) = (input.number(1)?, input.packed()?);
            describe(field, Input(input.take(len)?), &mut columns)?;
        }
        Ok(columns)
    }
}

fn column_type(code: u8, details: &mut Input<'_>) -> Result<Type> {
    let len = match code {
        types::FLOAT | types::DOUBLE | types::BLOB | types::GEOMETRY | types::BLOB_COMPRESSED => 1,
        types::TIMESTAMP2 | types::DATETIME2 | types::TIME2 => 1,
        types::VARCHAR | types::VAR_STRING | types::STRING | types::NEWDECIMAL | types::BIT => 2,
        types::VARCHAR_COMPRESSED | types::ENUM | types::SET => 2,
        _ => 0,
    };
    let detail = match *details.take(len)? {
        [one] => [one, 0],
        [one, two] => [one, two],
        _ => [0, 0],
    };
    if code != types::STRING {
        return Ok(Type { code, detail });
    }
    // The first byte is the real type, with two bits of the length turned over in it.
    let [real, len] = detail;
    let code = real | 0x30;
    Ok(match code {
        types::ENUM | types::SET => Type { code, detail: [len, 0] },
        _ => Type { code: types::STRING, detail: [len, (real & 0x30 ^ 0x30) >> 4] },
    })
}

/// What a field of a table map, behind its types, tells of the columns.
fn describe(field: u64, mut input: Input<'_>, columns: &mut [Column]) -> Result<()> {
    let is_number = |column: &&mut Column| {
        let code = column.kind.code;
        matches!(code, types::TINY..=types::DOUBLE | types::LONGLONG | types::INT24 | types::YEAR | types::NEWDECIMAL)
    };
    let is_labelled = |column: &&mut Column| matches!(column.kind.code, types::ENUM | types::SET);
    let is_text = |column: &&mut Column| {
        let code = column.kind.code;
        matches!(code, types::STRING | types::VAR_STRING | types::VARCHAR | types::BLOB)
            || matches!(code, types::BLOB_COMPRESSED | types::VARCHAR_COMPRESSED)
    };
    match field {
        // The bits are the highest first.
        1 => {
            for (index, column) in columns.iter_mut().filter(is_number).enumerate() {
                let byte = input.0.get(index / 8).ok_or_else(damaged)?;
                column.is_unsigned = byte << (index % 8) & 0x80 != 0;
            }
        }
        // A collation, and those columns that have another.
        2 | 10 => {
            let mut texts: Vec<_> = match field {
                2 => columns.iter_mut().filter(is_text).collect(),
                _ => columns.iter_mut().filter(is_labelled).collect(),
            };
            let default = input.packed()? as u64;
            texts.iter_mut().for_each(|column| column.collation = default);
            while !input.is_empty() {
                let index = input.packed()?;
                texts.get_mut(index).ok_or_else(damaged)?.collation = input.packed()? as u64;
            }
        }
        3 => {
            for column in columns.iter_mut().filter(is_text) {
                column.collation = input.packed()? as u64;
            }
        }
        4 => {
            for column in columns.iter_mut() {
                let len = input.packed()?;
                column.name = std::str::from_utf8(input.take(len)?).map_err(|_| damaged())?.to_owned();
            }
        }
        5 | 6 => {
            let code = if field == 5 { types::SET } else { types::ENUM };
            for column in columns.iter_mut().filter(|column| column.kind.code == code) {
                for _ in 0..input.packed()? {
                    let len = input.packed()?;
                    column.labels.push(input.take(len)?.to_vec());
                }
            }
        }
        11 => {
            for column in columns.iter_mut().filter(is_labelled) {
                column.collation = input.packed()? as u64;
            }
        }
        _ => {}
    }
    Ok(())
}
