//! Values of the binary log as the database itself writes them as text.

use std::{borrow::Cow, fmt::Write as _};

use super::events::{BYTES, Column, Input, Type, damaged, types};
use crate::{
    cell,
    error::{Error, ErrorKind, Result},
    registry::Kind,
};

/// How the log keeps a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    Utf8,
    /// What the database calls so is `cp1252`, with control characters where that has nothing.
    Latin1,
}

impl Charset {
    /// By the name that the database has for it; none where the log could not be read.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" | "binary" => Some(Self::Utf8),
            "latin1" => Some(Self::Latin1),
            _ => None,
        }
    }

    fn write(self, bytes: &[u8], out: &mut String) {
        /// The 32 characters from 0x80 on.
        const HIGH: [char; 32] = [
            '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
            '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
        ];
        match self {
            // The server takes halves of surrogates into such columns, and any byte as ASCII.
            Self::Utf8 => out.push_str(&String::from_utf8_lossy(bytes)),
            Self::Latin1 => out.extend(bytes.iter().map(|byte| match byte {
                0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
                _ => char::from(*byte),
            })),
        }
    }
}

/// What keeps a column from being read.
pub(super) fn unreadable(table: &str, column: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Setup,
        format!(
            "the column {table}.{column} {why}, which cannot be read from the binary log. Capture by `triggers` instead"
        ),
    )
}

impl Type {
    /// The value at the front of a row: without its length, where it has one.
    pub(super) fn take<'a>(&self, input: &mut Input<'a>) -> Result<&'a [u8]> {
        let [one, two] = self.detail.map(usize::from);
        let fraction = one.div_ceil(2);
        let len = match self.code {
            types::TINY | types::YEAR => 1,
            types::SHORT => 2,
            types::INT24 | types::DATE | types::NEWDATE => 3,
            types::LONG | types::FLOAT => 4,
            types::DOUBLE | types::LONGLONG => 8,
            types::TIMESTAMP2 => 4 + fraction,
            types::DATETIME2 => 5 + fraction,
            types::TIME2 => 3 + fraction,
            types::NEWDECIMAL => decimal_len(one, two).ok_or_else(damaged)?,
            types::BIT => two + usize::from(one > 0),
            types::ENUM | types::SET => one,
            types::BLOB | types::GEOMETRY | types::BLOB_COMPRESSED => input.length(one)?,
            types::STRING | types::VARCHAR | types::VAR_STRING | types::VARCHAR_COMPRESSED => {
                input.length(if one + (two << 8) < 256 { 1 } else { 2 })?
            }
            _ => return Err(damaged()),
        };
        input.take(len)
    }

    /// Whether the log's values can be read: not those of columns that the server compresses, or that were made by a server before 10.1.
    pub(super) fn is_readable(self) -> bool {
        !matches!(self.code, 0 | 6 | 7 | 11 | 12 | types::GEOMETRY | types::BLOB_COMPRESSED | types::VARCHAR_COMPRESSED)
    }

    fn is_text(self) -> bool {
        matches!(self.code, types::STRING | types::VARCHAR | types::VAR_STRING | types::BLOB)
    }
}

/// How values of a column become what [`packed`](crate::mysql::packed) reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    kind: Kind,
    column: Column,
    charset: Charset,
}

impl Form {
    pub(super) fn new(kind: Kind, column: Column, charset: Charset) -> Self {
        Self { kind, column, charset }
    }

    /// Appends a value as a piece of JSON: the same that the triggers would have made of it.
    pub(super) fn write(&self, value: &[u8], out: &mut String) -> Result<()> {
        match &self.kind {
            Kind::Boolean | Kind::Integer { .. } if matches!(self.column.kind.code, types::ENUM | types::SET) => {
                let _ = write!(out, "{}", Input(value).number(value.len())?);
                Ok(())
            }
            Kind::Boolean | Kind::Integer { .. } | Kind::Float | Kind::Double => self.text(value, out),
            Kind::Text | Kind::Enum(_) | Kind::Json => {
                let mut text = String::new();
                self.text(value, &mut text)?;
                cell::write_text(&text, out);
                Ok(())
            }
            Kind::Bytes | Kind::Uuid => {
                cell::write_bytes(&self.whole(value), out);
                Ok(())
            }
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz if self.column.kind.code == types::TIMESTAMP2 => {
                let (seconds, fraction) = instant(value, self.column.kind.detail[0])?;
                // That of zeros is no instant.
                let _ = match seconds {
                    0 => write!(out, "\"0000-00-00 00:00:00{fraction}\""),
                    _ => write!(out, "{seconds}{fraction}"),
                };
                Ok(())
            }
            Kind::Decimal
            | Kind::Date
            | Kind::Time
            | Kind::DateTime
            | Kind::Timestamp
            | Kind::TimestampTz
            | Kind::Array(_) => {
                out.push('"');
                self.text(value, out)?;
                out.push('"');
                Ok(())
            }
        }
    }

    /// Zeros at the end of a column of so many bytes are left out in the log.
    fn whole<'a>(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        let [low, high] = self.column.kind.detail.map(usize::from);
        let len = low + (high << 8);
        if self.column.kind.code != types::STRING || self.column.collation != BYTES || value.len() == len {
            return Cow::Borrowed(value);
        }
        let mut whole = value.to_vec();
        whole.resize(len, 0);
        Cow::Owned(whole)
    }

    /// Appends a value as the database writes it as text.
    fn text(&self, value: &[u8], out: &mut String) -> Result<()> {
        let Column { kind: Type { code, detail: [one, two] }, is_unsigned, .. } = self.column;
        let number = Input(value).number(value.len().min(8))?;
        // Writing to a `String` cannot fail.
        let _ = match code {
            types::TINY | types::SHORT | types::INT24 | types::LONG | types::LONGLONG if is_unsigned => {
                write!(out, "{number}")
            }
            types::TINY | types::SHORT | types::INT24 | types::LONG | types::LONGLONG => {
                let unused = 64 - 8 * value.len();
                write!(out, "{}", (number << unused).cast_signed() >> unused)
            }
            types::YEAR => write!(out, "{:04}", if number == 0 { 0 } else { number + 1900 }),
            types::BIT => write!(out, "{}", value.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))),
            types::FLOAT => {
                let float = f32::from_le_bytes(value.try_into().map_err(|_| damaged())?);
                return float_text(f64::from(float), out);
            }
            types::DOUBLE => return float_text(f64::from_le_bytes(value.try_into().map_err(|_| damaged())?), out),
            types::NEWDECIMAL => return decimal(value, one.into(), two.into(), out),
            types::DATE | types::NEWDATE => {
                write!(out, "{:04}-{:02}-{:02}", number >> 9, number >> 5 & 15, number & 31)
            }
            types::TIMESTAMP2 => {
                let (seconds, fraction) = instant(value, one)?;
                match chrono::DateTime::from_timestamp(seconds, 0).filter(|_| seconds != 0) {
                    Some(at) => write!(out, "{}{fraction}", at.format("%F %T")),
                    None => write!(out, "0000-00-00 00:00:00{fraction}"),
                }
            }
            types::DATETIME2 => return date_time(value, one, out),
            types::TIME2 => return time(value, one, out),
            types::ENUM => {
                let label = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
                let Some(label) = label else { return Ok(()) };
                self.charset.write(self.column.labels.get(label).ok_or_else(damaged)?, out);
                Ok(())
            }
            types::SET => {
                let held = self.column.labels.iter().enumerate().filter(|(index, _)| number >> index & 1 == 1);
                for (place, (_, label)) in held.enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    self.charset.write(label, out);
                }
                Ok(())
            }
            _ if self.column.kind.is_text() => {
                self.charset.write(&self.whole(value), out);
                Ok(())
            }
            _ => return Err(damaged()),
        };
        Ok(())
    }
}

fn float_text(float: f64, out: &mut String) -> Result<()> {
    // There are none that are not finite.
    let mut buffer = zmij::Buffer::new();
    out.push_str(buffer.format(float));
    Ok(())
}

/// A number of bytes, highest first.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// So many digits behind the point, of hundredths, ten thousandths or millionths; with the point.
fn fraction(value: u64, digits: u8) -> String {
    match digits {
        0 => String::new(),
        digits => {
            let kept = usize::from(digits.div_ceil(2) * 2);
            let text = format!(".{value:0kept$}");
            text[..=usize::from(digits)].to_owned()
        }
    }
}

/// Seconds since 1970, and what is behind the point.
fn instant(value: &[u8], digits: u8) -> Result<(i64, String)> {
    let (seconds, parts) = value.split_at_checked(4).ok_or_else(damaged)?;
    Ok((big_endian(seconds).cast_signed(), fraction(big_endian(parts), digits)))
}

fn date_time(value: &[u8], digits: u8, out: &mut String) -> Result<()> {
    let (packed, parts) = value.split_at_checked(5).ok_or_else(damaged)?;
    let packed = big_endian(packed) & 0x7f_ffff_ffff;
    let (date, time) = (packed >> 17, packed & 0x1_ffff);
    let (months, day) = (date >> 5, date & 31);
    let (hour, minute, second) = (time >> 12, time >> 6 & 63, time & 63);
    let _ = write!(
        out,
        "{:04}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02}{}",
        months / 13,
        months % 13,
        fraction(big_endian(parts), digits)
    );
    Ok(())
}

fn time(value: &[u8], digits: u8, out: &mut String) -> Result<()> {
    let parts = value.len().checked_sub(3).ok_or_else(damaged)?;
    let whole = big_endian(value).cast_signed() - (0x80_0000_i64 << (8 * parts));
    if whole < 0 {
        out.push('-');
    }
    let whole = whole.unsigned_abs();
    let (time, parts) = (whole >> (8 * parts), whole & ((1 << (8 * parts)) - 1));
    let (hour, minute, second) = (time >> 12 & 0x3ff, time >> 6 & 63, time & 63);
    let _ = write!(out, "{hour:02}:{minute:02}:{second:02}{}", fraction(parts, digits));
    Ok(())
}

/// How many bytes so many decimal digits take, up to nine.
const DIGITS: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

fn decimal_len(precision: usize, scale: usize) -> Option<usize> {
    let whole = precision.checked_sub(scale)?;
    Some(whole / 9 * 4 + DIGITS[whole % 9] + scale / 9 * 4 + DIGITS[scale % 9])
}

/// Groups of nine digits in four bytes, the first and the last of fewer; the highest bit is turned over, and all are where it is negative.
fn decimal(value: &[u8], precision: usize, scale: usize, out: &mut String) -> Result<()> {
    let negative = value.first().ok_or_else(damaged)? & 0x80 == 0;
    let mut bytes: Vec<u8> = value.iter().map(|byte| if negative { !byte } else { *byte }).collect();
    bytes[0] ^= 0x80;
    let mut input = Input(&bytes);
    let mut digits = String::with_capacity(precision + 1);
    let mut group = |count: usize| -> Result<()> {
        if count > 0 {
            let number = big_endian(input.take(DIGITS[count])?);
            let _ = write!(digits, "{number:0count$}");
        }
        Ok(())
    };
    let whole = precision.checked_sub(scale).ok_or_else(damaged)?;
    group(whole % 9)?;
    (0..whole / 9).try_for_each(|_| group(9))?;
    (0..scale / 9).try_for_each(|_| group(9))?;
    group(scale % 9)?;
    let (before, behind) = digits.split_at_checked(whole).ok_or_else(damaged)?;
    let before = before.trim_start_matches('0');
    if negative {
        out.push('-');
    }
    out.push_str(if before.is_empty() { "0" } else { before });
    if scale > 0 {
        out.push('.');
        out.push_str(behind);
    }
    Ok(())
}
