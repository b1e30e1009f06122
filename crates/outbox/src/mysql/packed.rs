//! Reads the JSON that [`MysqlDialect`] makes of a column into canonical form.

use super::dialect::MysqlDialect;
use crate::{
    cell,
    database::Packed,
    json,
    registry::Kind,
    times::{write_instant, write_time},
};

impl Packed for MysqlDialect {
    fn write_canonical(&self, kind: &Kind, packed: &str, out: &mut String) -> bool {
        if packed == "null" {
            return false;
        }
        match kind {
            Kind::Boolean => out.push_str(if packed == "0" { "false" } else { "true" }),
            Kind::Integer { .. } => match packed.parse() {
                Ok(value) => cell::write_integer(value, out),
                Err(_) => out.push_str(packed),
            },
            Kind::Double => match packed.parse::<f64>() {
                Ok(value) => cell::write_double(value, out),
                Err(_) => out.push_str(packed),
            },
            Kind::Float => match packed.parse::<f64>() {
                // Narrowing is what reading the column as `f32` does.
                #[expect(clippy::cast_possible_truncation, reason = "the model's field is an f32")]
                Ok(value) => cell::write_float(value as f32, out),
                Err(_) => out.push_str(packed),
            },
            // Control characters are written another way than here.
            Kind::Text | Kind::Enum(_) if packed.contains("\\u") => cell::write_text(&cell::text(packed), out),
            Kind::Decimal | Kind::Text | Kind::Enum(_) | Kind::Date | Kind::Array(_) => out.push_str(packed),
            Kind::Bytes => out.extend(packed.chars().map(|c| c.to_ascii_lowercase())),
            // The document comes as a text, which tells its null from SQL's.
            Kind::Json => out.push_str(&json::canonical(&cell::text(packed))),
            Kind::Uuid => write_uuid(packed, out),
            Kind::Time => write_time(packed, out),
            Kind::DateTime => match seconds(packed) {
                Some(instant) => cell::write_date_time(instant.naive_utc(), out),
                None => write_instant(kind, packed, out),
            },
            // An instant has no offset of its own here: the session's says nothing.
            Kind::Timestamp | Kind::TimestampTz => match seconds(packed) {
                Some(instant) => cell::write_timestamp(instant, out),
                None => write_instant(&Kind::Timestamp, packed, out),
            },
        }
        true
    }
}

fn write_uuid(packed: &str, out: &mut String) {
    match uuid::Uuid::parse_str(&cell::text(packed)) {
        Ok(uuid) => cell::write_text(&uuid.hyphenated().to_string(), out),
        Err(_) => out.push_str(packed),
    }
}

/// An instant in seconds since 1970, as triggers write it: a text would be in the time zone of whoever wrote.
fn seconds(packed: &str) -> Option<chrono::DateTime<chrono::Utc>> {
    let (whole, fraction) = packed.split_once('.').unwrap_or((packed, ""));
    let nanos = format!("{fraction:0<9}");
    chrono::DateTime::from_timestamp(whole.parse().ok()?, nanos.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_writes_becomes_canonical() {
        for (kind, packed, expected) in [
            (Kind::Boolean, "1", "true"),
            (Kind::Integer { bits: 64, signed: false }, "18446744073709551615", "\"18446744073709551615\""),
            (Kind::Double, "1e15", "1e15"),
            (Kind::Float, "0.10000000149011612", "0.1"),
            (Kind::Text, r#""\u001F\u0000""#, r#""\u001f\u0000""#),
            (Kind::Bytes, "\"00FF\"", "\"00ff\""),
            (Kind::Json, r#""{ \"a\": null }""#, r#"{"a":null}"#),
            (Kind::Uuid, "\"018F0000000000000000000000000001\"", "\"018f0000-0000-0000-0000-000000000001\""),
            (Kind::Timestamp, "1140000000", "\"2006-02-15T10:40:00Z\""),
            (Kind::TimestampTz, "1140000000.500000", "\"2006-02-15T10:40:00.500Z\""),
            (Kind::Timestamp, "\"2006-02-15 10:40:00.120000\"", "\"2006-02-15T10:40:00.120Z\""),
            (Kind::DateTime, "\"2006-02-15 10:40:00\"", "\"2006-02-15T10:40:00\""),
            (Kind::Time, "\"16:43:00.000000\"", "\"16:43:00\""),
        ] {
            let mut out = String::new();
            assert!(MysqlDialect.write_canonical(&kind, packed, &mut out));
            let same_number = out.parse::<f64>().is_ok_and(|number| expected.parse() == Ok(number));
            assert!(out == expected || same_number, "{out} is not {expected}");
        }
        assert!(!MysqlDialect.write_canonical(&Kind::Text, "null", &mut String::new()));
    }
}
