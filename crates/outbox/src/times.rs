//! Times as databases write them, made canonical.

use crate::{cell, registry::Kind};

/// Appends a time of day.
pub(crate) fn write_time(packed: &str, out: &mut String) {
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

/// Appends a date and time, or an instant.
pub(crate) fn write_instant(kind: &Kind, packed: &str, out: &mut String) {
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
