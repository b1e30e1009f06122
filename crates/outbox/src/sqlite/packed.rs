//! Reads the JSON that SQLite makes of a column ([`SqliteDialect::packed`](super::dialect)) into canonical form.

use super::dialect;
use crate::{
    cell,
    registry::Kind,
    times::{write_instant, write_time},
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
        // There are no arrays here; the check of the schema refuses them.
        Kind::Json | Kind::Array(_) => write_json(packed, out),
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
