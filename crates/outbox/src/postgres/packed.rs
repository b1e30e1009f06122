//! Reads the JSON that PostgreSQL makes of a column into canonical form.

use super::dialect::PostgresDialect;
use crate::{
    cell,
    database::Packed,
    json,
    registry::Kind,
    times::{write_instant, write_time},
};

impl Packed for PostgresDialect {
    fn write_canonical(&self, kind: &Kind, packed: &str, out: &mut String) -> bool {
        if packed == "null" {
            return false;
        }
        match kind {
            Kind::Boolean | Kind::Date | Kind::Uuid => out.push_str(packed),
            Kind::Integer { .. } => match cell::text(packed).parse() {
                Ok(value) => cell::write_integer(value, out),
                Err(_) => out.push_str(packed),
            },
            Kind::Double => match cell::text(packed).parse::<f64>() {
                Ok(value) => cell::write_double(value, out),
                Err(_) => out.push_str(packed),
            },
            Kind::Float => match cell::text(packed).parse::<f32>() {
                Ok(value) => cell::write_float(value, out),
                Err(_) => out.push_str(packed),
            },
            Kind::Decimal => cell::write_text(&cell::text(packed), out),
            Kind::Text | Kind::Enum(_) => {
                if packed.starts_with('"') {
                    out.push_str(packed);
                } else {
                    cell::write_text(packed, out);
                }
            }
            Kind::Bytes => {
                let text = cell::text(packed);
                cell::write_text(text.strip_prefix("\\x").unwrap_or(&text), out);
            }
            // The document comes as a text, which tells its null from SQL's.
            Kind::Json => out.push_str(&json::canonical(&cell::text(packed))),
            Kind::Time => write_time(packed, out),
            // An instant has no offset of its own here: the session's says nothing.
            Kind::TimestampTz => write_instant(&Kind::Timestamp, packed, out),
            Kind::DateTime | Kind::Timestamp => write_instant(kind, packed, out),
            Kind::Array(element) => cell::write_array(cell::elements(packed), out, |packed, out| {
                packed.is_some_and(|packed| self.write_canonical(element, packed, out))
            }),
        }
        true
    }
}
