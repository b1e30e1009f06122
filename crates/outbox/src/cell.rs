//! The canonical form of one value: a piece of JSON that means the same whatever database it came from.
//!
//! Images hold their columns in this form, filters read it, and the wire sends most of it unchanged.
//!
//! | kind | canonical form |
//! | --- | --- |
//! | boolean | `true`, `false` |
//! | integer | a number; beyond ±(2^53 − 1), where JavaScript would round it, a string |
//! | float, double | the shortest number that reads back the same; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | decimal | a string of digits, never with an exponent |
//! | text, enum | a string |
//! | bytes | a string of lower-case hexadecimal digits |
//! | JSON | the document itself |
//! | UUID | `"018f…-…"`, lower case with hyphens |
//! | date, time | `"2026-11-20"`, `"16:43:00"`, with a fraction of 3, 6 or 9 digits where it is not zero |
//! | date and time | `"2026-11-20T16:43:00"` |
//! | instant | `"2026-11-20T16:43:00Z"`; with a kept offset `"…+02:00"` |
//! | array | a list of its elements' forms, without white space; `null` for an element that is NULL |
//!
//! SQL NULL is not a cell: wherever a cell may be missing, it is an `Option`. So a JSON column's `null` and a NULL stay apart.

use std::{borrow::Cow, fmt::Write as _};

use chrono::{DateTime, FixedOffset, Local, NaiveDate, NaiveDateTime, NaiveTime, SecondsFormat, Utc};
use rust_decimal::Decimal;
use sea_orm::sea_query::{ArrayType, Enum, OptionEnum, Value};
use uuid::Uuid;

use crate::{
    json::Scanner,
    registry::{ColumnMeta, Kind},
};

/// The largest integer that a JSON number carries safely into every client: 2^53 − 1.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Appends the canonical form of an integer.
pub fn write_integer(value: i128, out: &mut String) {
    // Writing to a `String` cannot fail.
    let _ = if value.unsigned_abs() <= u128::from(MAX_SAFE_INTEGER) {
        write!(out, "{value}")
    } else {
        write!(out, "\"{value}\"")
    };
}

/// Appends the canonical form of a 64-bit float.
pub fn write_double(value: f64, out: &mut String) {
    if value.is_finite() {
        out.push_str(zmij::Buffer::new().format_finite(value));
    } else {
        out.push_str(non_finite(value));
    }
}

/// Appends the canonical form of a 32-bit float.
pub fn write_float(value: f32, out: &mut String) {
    if value.is_finite() {
        out.push_str(zmij::Buffer::new().format_finite(value));
    } else {
        out.push_str(non_finite(f64::from(value)));
    }
}

fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "\"NaN\""
    } else if value > 0.0 {
        "\"Infinity\""
    } else {
        "\"-Infinity\""
    }
}

/// Appends a JSON string.
pub fn write_text(value: &str, out: &mut String) {
    let escaped = serde_json::to_string(value).expect("a string is always valid JSON");
    out.push_str(&escaped);
}

/// Appends bytes as a string of hexadecimal digits.
pub fn write_bytes(value: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    out.reserve(value.len() * 2 + 1);
    for byte in value {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out.push('"');
}

/// Appends a date.
pub fn write_date(value: NaiveDate, out: &mut String) {
    let _ = write!(out, "\"{}\"", value.format("%F"));
}

/// Appends a time of day.
pub fn write_time(value: NaiveTime, out: &mut String) {
    let _ = write!(out, "\"{}\"", value.format("%T%.f"));
}

/// Appends a date and time without a zone.
pub fn write_date_time(value: NaiveDateTime, out: &mut String) {
    let _ = write!(out, "\"{}\"", value.format("%FT%T%.f"));
}

/// Appends an instant, in UTC.
pub fn write_timestamp(value: DateTime<Utc>, out: &mut String) {
    let _ = write!(out, "\"{}\"", value.to_rfc3339_opts(SecondsFormat::AutoSi, true));
}

/// Appends an instant with its offset.
pub fn write_timestamp_tz(value: DateTime<FixedOffset>, out: &mut String) {
    let _ = write!(out, "\"{}\"", value.to_rfc3339_opts(SecondsFormat::AutoSi, true));
}

/// Appends the canonical form of a value, or answers `false` where the value is NULL and nothing was written.
///
/// Takes any variant, so it also serves values that SeaORM read.
pub fn write_value(value: &Value, out: &mut String) -> bool {
    macro_rules! write {
        ($option:expr, $write:expr) => {
            match $option {
                Some(value) => $write(value, out),
                None => return false,
            }
        };
    }
    match value {
        Value::Bool(v) => write!(v, |v: &bool, out: &mut String| out.push_str(if *v { "true" } else { "false" })),
        Value::TinyInt(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::SmallInt(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::Int(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::BigInt(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::TinyUnsigned(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::SmallUnsigned(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::Unsigned(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::BigUnsigned(v) => write!(*v, |v, out: &mut _| write_integer(i128::from(v), out)),
        Value::Float(v) => write!(*v, write_float),
        Value::Double(v) => write!(*v, write_double),
        Value::Decimal(v) => write!(v, |v: &Decimal, out: &mut String| write_text(&v.to_string(), out)),
        Value::String(v) => write!(v, |v: &String, out: &mut _| write_text(v, out)),
        Value::Char(v) => write!(v, |v: &char, out: &mut _| write_text(v.encode_utf8(&mut [0; 4]), out)),
        Value::Enum(OptionEnum::Some(v)) => write_text(&v.value, out),
        Value::Enum(OptionEnum::None(_)) => return false,
        Value::Bytes(v) => write!(v, |v: &Vec<u8>, out: &mut _| write_bytes(v, out)),
        Value::Json(v) => write!(v, |v: &serde_json::Value, out: &mut String| out.push_str(&v.to_string())),
        Value::Uuid(v) => write!(v, |v: &Uuid, out: &mut String| write_text(&v.hyphenated().to_string(), out)),
        Value::ChronoDate(v) => write!(*v, write_date),
        Value::ChronoTime(v) => write!(*v, write_time),
        Value::ChronoDateTime(v) => write!(*v, write_date_time),
        Value::ChronoDateTimeUtc(v) => write!(*v, write_timestamp),
        Value::ChronoDateTimeLocal(v) => write!(v, |v: &DateTime<Local>, out: &mut _| write_timestamp(v.to_utc(), out)),
        Value::ChronoDateTimeWithTimeZone(v) => write!(*v, write_timestamp_tz),
        Value::Array(_, v) => write!(v, |v: &Vec<Value>, out: &mut _| write_array(v, out, write_value)),
        // Variants that no registered column can have: the registry refuses their types.
        #[allow(unreachable_patterns, reason = "which variants there are depends on SeaORM's features")]
        other => write_text(&other.to_string(), out),
    }
    true
}

/// Appends a list; `write` answers `false` for an element that is NULL.
pub(crate) fn write_array<T>(
    elements: impl IntoIterator<Item = T>,
    out: &mut String,
    mut write: impl FnMut(T, &mut String) -> bool,
) {
    out.push('[');
    for (index, element) in elements.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        if !write(element, out) {
            out.push_str("null");
        }
    }
    out.push(']');
}

/// The elements of a canonical array; `None` for those that are NULL.
pub fn elements(cell: &str) -> impl Iterator<Item = Option<&str>> {
    let mut scanner = Scanner::new(cell);
    std::iter::from_fn(move || {
        let more = scanner.next_item().ok()?;
        let element = if more { scanner.value().ok()? } else { return None };
        Some((element != "null").then_some(element))
    })
}

/// The text inside a JSON string, or the token itself where it is not a string.
pub fn text(cell: &str) -> Cow<'_, str> {
    match cell.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => Cow::Borrowed(inner),
        Some(_) => serde_json::from_str(cell).map_or(Cow::Borrowed(cell), Cow::Owned),
        None => Cow::Borrowed(cell),
    }
}

/// Reads a canonical cell back as the `Value` that the column's Rust field takes. `None` where the cell does not fit the column, which
/// happens only where the database itself held a value of another type (SQLite lets it).
pub fn read_value(column: &ColumnMeta, cell: Option<&str>) -> Option<Value> {
    let Some(cell) = cell else { return Some(column.null()) };
    if let Kind::Array(_) = &column.kind {
        // SeaORM's lists have no place for NULL.
        let values = elements(cell).map(|element| read(&column.value_type, element?));
        return Some(Value::Array(column.value_type.clone(), Some(Box::new(values.collect::<Option<_>>()?))));
    }
    read(&column.value_type, cell)
}

fn read(value_type: &ArrayType, cell: &str) -> Option<Value> {
    let inner = text(cell);
    macro_rules! parse {
        ($variant:ident) => {
            Value::$variant(Some(inner.parse().ok()?))
        };
    }
    Some(match value_type {
        ArrayType::Bool => Value::Bool(Some(match cell {
            "true" => true,
            "false" => false,
            _ => return None,
        })),
        ArrayType::TinyInt => parse!(TinyInt),
        ArrayType::SmallInt => parse!(SmallInt),
        ArrayType::Int => parse!(Int),
        ArrayType::BigInt => parse!(BigInt),
        ArrayType::TinyUnsigned => parse!(TinyUnsigned),
        ArrayType::SmallUnsigned => parse!(SmallUnsigned),
        ArrayType::Unsigned => parse!(Unsigned),
        ArrayType::BigUnsigned => parse!(BigUnsigned),
        ArrayType::Float => parse!(Float),
        ArrayType::Double => parse!(Double),
        ArrayType::Decimal => parse!(Decimal),
        ArrayType::Char => parse!(Char),
        ArrayType::String => Value::String(Some(inner.into_owned())),
        ArrayType::Bytes => Value::Bytes(Some(read_bytes(&inner)?)),
        ArrayType::Json => Value::Json(Some(Box::new(serde_json::from_str(cell).ok()?))),
        ArrayType::Uuid => parse!(Uuid),
        ArrayType::ChronoDate => Value::ChronoDate(Some(NaiveDate::parse_from_str(&inner, "%F").ok()?)),
        ArrayType::ChronoTime => Value::ChronoTime(Some(NaiveTime::parse_from_str(&inner, "%T%.f").ok()?)),
        ArrayType::ChronoDateTime => Value::ChronoDateTime(Some(read_date_time(&inner)?)),
        ArrayType::ChronoDateTimeUtc => Value::ChronoDateTimeUtc(Some(read_timestamp(&inner)?.to_utc())),
        ArrayType::ChronoDateTimeLocal => {
            Value::ChronoDateTimeLocal(Some(read_timestamp(&inner)?.with_timezone(&Local)))
        }
        ArrayType::ChronoDateTimeWithTimeZone => Value::ChronoDateTimeWithTimeZone(Some(read_timestamp(&inner)?)),
        ArrayType::Enum(name) => {
            let value = Enum { type_name: (**name).clone(), value: inner.into_owned().into() };
            Value::Enum(OptionEnum::Some(Box::new(value)))
        }
        // Types that no registered column can have.
        #[allow(unreachable_patterns, reason = "which types there are depends on SeaORM's features")]
        _ => return None,
    })
}

/// Reads hexadecimal digits of either case.
pub fn read_bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Reads a date and time without a zone, with `T` or a space between the two.
pub fn read_date_time(text: &str) -> Option<NaiveDateTime> {
    ["%FT%T%.f", "%F %T%.f", "%FT%R", "%F %R"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
}

/// Reads an instant: RFC 3339, or a date and time with an offset after an optional space, with `UTC`, or with none, which means UTC.
pub fn read_timestamp(text: &str) -> Option<DateTime<FixedOffset>> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant);
    }
    let zoneless = text.strip_suffix(" UTC").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    ["%F %T%.f%:z", "%F %T%.f %:z", "%FT%T%.f%:z", "%F %R%:z", "%FT%R%:z"]
        .iter()
        .find_map(|format| DateTime::parse_from_str(text, format).ok())
        .or_else(|| Some(read_date_time(zoneless)?.and_utc().fixed_offset()))
}

/// Seconds since 1970 and nanoseconds of a canonical time, with or without a zone (without one it counts as UTC).
pub(crate) fn instant(text: &str) -> Option<(i64, u32)> {
    let instant = read_timestamp(text)?;
    Some((instant.timestamp(), instant.timestamp_subsec_nanos()))
}

/// SQL NULL as a value of the given type.
pub(crate) fn null(value_type: &ArrayType) -> Value {
    match value_type {
        ArrayType::Bool => Value::Bool(None),
        ArrayType::TinyInt => Value::TinyInt(None),
        ArrayType::SmallInt => Value::SmallInt(None),
        ArrayType::Int => Value::Int(None),
        ArrayType::BigInt => Value::BigInt(None),
        ArrayType::TinyUnsigned => Value::TinyUnsigned(None),
        ArrayType::SmallUnsigned => Value::SmallUnsigned(None),
        ArrayType::Unsigned => Value::Unsigned(None),
        ArrayType::BigUnsigned => Value::BigUnsigned(None),
        ArrayType::Float => Value::Float(None),
        ArrayType::Double => Value::Double(None),
        ArrayType::Decimal => Value::Decimal(None),
        ArrayType::Char => Value::Char(None),
        ArrayType::Enum(name) => Value::Enum(OptionEnum::None((**name).clone())),
        ArrayType::Bytes => Value::Bytes(None),
        ArrayType::Json => Value::Json(None),
        ArrayType::Uuid => Value::Uuid(None),
        ArrayType::ChronoDate => Value::ChronoDate(None),
        ArrayType::ChronoTime => Value::ChronoTime(None),
        ArrayType::ChronoDateTime => Value::ChronoDateTime(None),
        ArrayType::ChronoDateTimeUtc => Value::ChronoDateTimeUtc(None),
        ArrayType::ChronoDateTimeLocal => Value::ChronoDateTimeLocal(None),
        ArrayType::ChronoDateTimeWithTimeZone => Value::ChronoDateTimeWithTimeZone(None),
        _ => Value::String(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_the_safe_range_are_strings() {
        let mut out = String::new();
        for value in [0, -1, i128::from(MAX_SAFE_INTEGER), i128::from(MAX_SAFE_INTEGER) + 1, i128::from(i64::MIN)] {
            write_integer(value, &mut out);
            out.push(' ');
        }
        assert_eq!(out, "0 -1 9007199254740991 \"9007199254740992\" \"-9223372036854775808\" ");
    }

    #[test]
    fn a_time_reads_in_every_common_form() {
        let expected = DateTime::parse_from_rfc3339("2026-11-20T16:43:00.5Z").expect("valid");
        for form in [
            "2026-11-20T16:43:00.5Z",
            "2026-11-20T16:43:00.500+00:00",
            "2026-11-20 16:43:00.5",
            "2026-11-20 16:43:00.5 UTC",
            "2026-11-20 17:43:00.5+01:00",
            "2026-11-20 17:43:00.500 +01:00",
        ] {
            assert_eq!(read_timestamp(form), Some(expected), "{form}");
        }
        assert_eq!(read_timestamp("yesterday"), None);
    }
}
