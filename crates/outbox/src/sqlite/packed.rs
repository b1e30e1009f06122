//! Reads the JSON that SQLite makes of a column ([`SqliteDialect::packed`](super::dialect)) into canonical form.

use super::dialect;
use crate::{
    cell,
    error::Result,
    image::{Image, ImageBuilder},
    json::Scanner,
    registry::{EntityMeta, Kind},
};

/// Appends the canonical form of one packed value; answers `false` for NULL.
///
/// SQLite lets any value into any column. What is not of the column's kind keeps its own JSON form, so that nothing is lost on the way;
/// reading it as the column's type fails later, where someone asks for that.
pub(crate) fn write_canonical(kind: &Kind, packed: &str, out: &mut String) -> bool {
    if packed == "null" {
        return false;
    }
    match kind {
        Kind::Boolean => out.push_str(match packed {
            "0" => "false",
            "true" | "false" => packed,
            _ if packed.bytes().all(|byte| byte.is_ascii_digit()) => "true",
            _ => packed,
        }),
        Kind::Integer { .. } => {
            // Up to 15 digits are always safe; longer ones are compared.
            let value = match packed.as_bytes()[0] {
                b'"' => dialect::read_sum(&cell::text(packed)),
                _ if packed.len() <= 15 => None,
                _ => packed.parse().ok(),
            };
            match value {
                Some(value) => cell::write_integer(value, out),
                None => out.push_str(packed),
            }
        }
        Kind::Double => match dialect::read_double(&cell::text(packed)) {
            Some(value) => cell::write_double(value, out),
            None => out.push_str(packed),
        },
        Kind::Float => match cell::text(packed).parse::<f64>() {
            // Narrowing is what reading the column as `f32` does.
            #[expect(clippy::cast_possible_truncation, reason = "the model's field is an f32")]
            Ok(value) => cell::write_float(value as f32, out),
            Err(_) => out.push_str(packed),
        },
        Kind::Decimal => write_decimal(packed, out),
        Kind::Text | Kind::Enum(_) => {
            if packed.starts_with('"') {
                out.push_str(packed);
            } else {
                cell::write_text(packed, out);
            }
        }
        Kind::Bytes => out.extend(packed.chars().map(|c| c.to_ascii_lowercase())),
        Kind::Json => write_json(packed, out),
        Kind::Uuid => write_uuid(packed, out),
        Kind::Date => out.push_str(packed),
        Kind::Time => write_time(packed, out),
        Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => write_instant(kind, packed, out),
    }
    true
}

/// SQLite has no decimals: SeaORM's are kept as floats, of which 15 digits are sure. The shortest text that means the same float is the
/// decimal that was written, as long as it had no more.
fn write_decimal(packed: &str, out: &mut String) {
    let text = cell::text(packed);
    match text.parse::<f64>() {
        // A whole number beyond what a float carries stays as it is.
        Ok(float) if float.is_finite() && text.parse::<i64>().is_err() => cell::write_text(&float.to_string(), out),
        _ => cell::write_text(&text, out),
    }
}

fn write_json(packed: &str, out: &mut String) {
    let document = cell::text(packed);
    if serde_json::from_str::<serde::de::IgnoredAny>(&document).is_ok() {
        out.push_str(document.trim());
    } else {
        cell::write_text(&document, out);
    }
}

fn write_uuid(packed: &str, out: &mut String) {
    let digits = cell::text(packed);
    if digits.len() == 32 && digits.is_ascii() {
        out.push('"');
        for (index, digit) in digits.chars().enumerate() {
            if matches!(index, 8 | 12 | 16 | 20) {
                out.push('-');
            }
            out.push(digit.to_ascii_lowercase());
        }
        out.push('"');
    } else {
        out.push_str(packed);
    }
}

fn write_time(packed: &str, out: &mut String) {
    let text = cell::text(packed);
    if text.len() == 8 {
        out.push_str(packed);
        return;
    }
    let parsed = ["%T%.f", "%R"].iter().find_map(|format| chrono::NaiveTime::parse_from_str(&text, format).ok());
    match parsed {
        Some(time) => cell::write_text(&time.format("%T%.f").to_string(), out),
        None => out.push_str(packed),
    }
}

fn write_instant(kind: &Kind, packed: &str, out: &mut String) {
    let text = cell::text(packed);
    if *kind != Kind::TimestampTz && write_plain_instant(kind, &text, out) {
        return;
    }
    // Numbers are seconds since 1970 (whole) or Julian days (fractional), as sqlx reads them.
    let parsed = cell::read_timestamp(&text).or_else(|| {
        let instant = match text.parse::<i64>() {
            Ok(seconds) => chrono::DateTime::from_timestamp(seconds, 0)?,
            Err(_) => {
                let seconds = (text.parse::<f64>().ok()? - 2_440_587.5) * 86_400.0;
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a float beyond the range saturates and is then no time"
                )]
                chrono::DateTime::from_timestamp_millis((seconds * 1e3) as i64)?
            }
        };
        Some(instant.fixed_offset())
    });
    match (kind, parsed) {
        (Kind::DateTime, Some(instant)) => cell::write_date_time(instant.naive_local(), out),
        (Kind::Timestamp, Some(instant)) => cell::write_timestamp(instant.to_utc(), out),
        (_, Some(instant)) => cell::write_timestamp_tz(instant, out),
        (_, None) => out.push_str(packed),
    }
}

/// The two forms that nearly all times have, `2026-11-20 16:43:00.5` and `2026-11-20T16:43:00.5+00:00`, rewritten without calendar
/// arithmetic.
fn write_plain_instant(kind: &Kind, text: &str, out: &mut String) -> bool {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-dd?dd:dd:dd";
    let fits = bytes.len() >= shape.len()
        && shape.iter().zip(bytes).all(|(shape, byte)| match shape {
            b'd' => byte.is_ascii_digit(),
            b'?' => matches!(byte, b'T' | b' '),
            other => byte == other,
        });
    // A leap second (60) is for the calendar's arithmetic.
    if !fits || bytes[17] >= b'6' {
        return false;
    }
    let rest = &text[shape.len()..];
    let fraction =
        rest.strip_prefix('.').map_or("", |rest| &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()]);
    let zone = &rest[if rest.starts_with('.') { fraction.len() + 1 } else { 0 }..];
    if fraction.len() > 9 || !matches!(zone, "" | "Z" | "+00:00") {
        return false;
    }
    out.push('"');
    out.push_str(&text[..10]);
    out.push('T');
    out.push_str(&text[11..19]);
    let digits = fraction.trim_end_matches('0').len().next_multiple_of(3);
    if digits > 0 {
        out.push('.');
        out.extend(fraction.chars().chain(std::iter::repeat('0')).take(digits));
    }
    out.push_str(if *kind == Kind::Timestamp { "Z\"" } else { "\"" });
    true
}

/// Reads an image as the capture triggers write it: a JSON object of column names and packed values.
pub(crate) fn read_image(entity: &EntityMeta, json: &str) -> Result<Image> {
    let mut scanner = Scanner::new(json);
    let mut values: Vec<Option<&str>> = vec![None; entity.columns.len()];
    // The triggers write the columns in the entity's own order, so the next value is nearly always the next column's. Not so in an image
    // that was written before a column was added or moved.
    let mut expected = 0;
    let mut more = scanner.take(b'{') && scanner.peek() != Some(b'}');
    while more {
        let name = cell::text(scanner.value()?);
        scanner.take(b':');
        let value = scanner.value()?;
        let index = match entity.columns.get(expected) {
            Some(column) if column.name == name => Some(expected),
            _ => entity.column_index(&name),
        };
        if let Some(index) = index {
            values[index] = Some(value);
            expected = index + 1;
        }
        more = scanner.take(b',');
    }
    let mut image = ImageBuilder::with_capacity(entity.columns.len(), json.len());
    for (column, value) in entity.columns.iter().zip(values) {
        if let Some(value) = value {
            write_canonical(&column.kind, value, &mut image.text);
        }
        image.end_cell();
    }
    Ok(image.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(kind: &Kind, packed: &str) -> String {
        let mut out = String::new();
        write_canonical(kind, packed, &mut out);
        out
    }

    #[test]
    fn times_become_canonical_from_every_form_that_sqlite_holds() {
        for (packed, expected) in [
            ("2006-02-15 04:34:33", "2006-02-15T04:34:33Z"),
            ("2006-02-15 04:34:33.000", "2006-02-15T04:34:33Z"),
            ("2006-02-15T04:34:33.5+00:00", "2006-02-15T04:34:33.500Z"),
            ("2006-02-15T04:34:33.123456700Z", "2006-02-15T04:34:33.123456700Z"),
            ("2006-02-15T06:34:33+02:00", "2006-02-15T04:34:33Z"),
            ("2006-02-15 04:34", "2006-02-15T04:34:00Z"),
        ] {
            assert_eq!(canonical(&Kind::Timestamp, &format!("\"{packed}\"")), format!("\"{expected}\""), "{packed}");
        }
        assert_eq!(canonical(&Kind::Timestamp, "1140000000"), "\"2006-02-15T10:40:00Z\"");
        assert_eq!(canonical(&Kind::Timestamp, "\"soon\""), "\"soon\"", "what is no time is kept");
        assert_eq!(canonical(&Kind::TimestampTz, "\"2006-02-15T06:34:33+02:00\""), "\"2006-02-15T06:34:33+02:00\"");
    }

    #[test]
    fn numbers_become_canonical() {
        assert_eq!(canonical(&Kind::Decimal, "\"4.9900000000000002\""), "\"4.99\"");
        assert_eq!(canonical(&Kind::Decimal, "20"), "\"20\"");
        assert_eq!(canonical(&Kind::Double, "\"5.0\""), "5.0");
        assert_eq!(canonical(&Kind::Double, "\"Inf\""), "\"Infinity\"");
        assert_eq!(canonical(&Kind::Float, "\"0.10000000149011612\""), "0.1");
        assert_eq!(canonical(&Kind::Integer { bits: 64, signed: true }, "9007199254740993"), "\"9007199254740993\"");
    }
}
