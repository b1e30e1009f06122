//! Writing values for clients.

use tidewire_outbox::{ColumnMeta, Kind, Packed, cell};

use crate::names::Names;

/// How times are written for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeFormat {
    /// As Seaography writes them: `2026-11-20 16:43:00 UTC`.
    #[default]
    Seaography,
    /// As RFC 3339 and ISO 8601 have them: `2026-11-20T16:43:00Z`.
    Rfc3339,
}

/// Writes cells as the JSON that clients get.
#[derive(Clone, Copy)]
pub(crate) struct Wire<'a> {
    pub(crate) names: &'a Names,
    pub(crate) times: TimeFormat,
    pub(crate) packed: &'static dyn Packed,
    /// Writes null for what GraphQL has no form for. A stream must go on: it cannot take an error and stay a stream.
    pub(crate) lenient: bool,
}

/// A value that GraphQL has no form for (NULL where none may be, a float that is no number, an enum value that is not declared). Whoever
/// meets it leaves the fast path; the resolvers then say what is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsendable;

impl Wire<'_> {
    /// Writes a cell of a row as [`Select`](tidewire_outbox::Select) gave it.
    pub(crate) fn packed(&self, column: &ColumnMeta, packed: &str, out: &mut String) -> Result<(), Unsendable> {
        if self.is_sent_as_stored(&column.kind) {
            if self.packed.write_canonical(&column.kind, packed, out) { Ok(()) } else { self.null(column, out) }
        } else {
            let mut canonical = String::with_capacity(packed.len() + 8);
            let some = self.packed.write_canonical(&column.kind, packed, &mut canonical);
            self.canonical(column, some.then_some(&canonical), out)
        }
    }

    /// Writes a canonical cell.
    pub(crate) fn canonical(
        &self,
        column: &ColumnMeta,
        cell: Option<&str>,
        out: &mut String,
    ) -> Result<(), Unsendable> {
        let Some(cell) = cell else { return self.null(column, out) };
        match &column.kind {
            Kind::Enum(meta) => {
                let text = cell::text(cell);
                let Some(name) = self.names.enumeration(meta).name(&text) else { return self.unsendable(out) };
                out.push('"');
                out.push_str(name);
                out.push('"');
            }
            // The only strings among the canonical floats are those that JSON has no number for.
            Kind::Float | Kind::Double if cell.starts_with('"') => return self.null(column, out),
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => self.time(cell, out),
            Kind::Array(_) => {
                let Some(element) = column.element() else { return self.unsendable(out) };
                out.push('[');
                for (index, cell) in cell::elements(cell).enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    self.canonical(&element, cell, out)?;
                }
                out.push(']');
            }
            _ => out.push_str(cell),
        }
        Ok(())
    }

    /// Writes a canonical instant.
    pub(crate) fn time(&self, cell: &str, out: &mut String) {
        match self.times {
            TimeFormat::Seaography => write_seaography_time(cell, out),
            TimeFormat::Rfc3339 => out.push_str(cell),
        }
    }

    fn null(&self, column: &ColumnMeta, out: &mut String) -> Result<(), Unsendable> {
        if column.nullable {
            out.push_str("null");
            return Ok(());
        }
        self.unsendable(out)
    }

    fn unsendable(&self, out: &mut String) -> Result<(), Unsendable> {
        if self.lenient {
            out.push_str("null");
            return Ok(());
        }
        Err(Unsendable)
    }

    fn is_sent_as_stored(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Enum(_) | Kind::Float | Kind::Double | Kind::Array(_) => false,
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => self.times == TimeFormat::Rfc3339,
            _ => true,
        }
    }
}

/// `2026-11-20T16:43:00Z` as `2026-11-20 16:43:00 UTC`.
fn write_seaography_time(cell: &str, out: &mut String) {
    const DATE_AND_TIME: usize = 20;
    let inner = cell.trim_matches('"');
    if cell.len() <= DATE_AND_TIME || inner.as_bytes().get(10) != Some(&b'T') {
        out.push_str(cell);
        return;
    }
    let offset = inner[19..].find(['+', '-', 'Z']).map_or(inner.len(), |at| at + 19);
    out.push('"');
    out.push_str(&inner[..10]);
    out.push(' ');
    out.push_str(&inner[11..offset]);
    match &inner[offset..] {
        "" => {}
        "Z" => out.push_str(" UTC"),
        zone => {
            out.push(' ');
            out.push_str(zone);
        }
    }
    out.push('"');
}

/// Appends a JSON string.
pub(crate) fn write_string(text: &str, out: &mut String) {
    cell::write_text(text, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_seaography_writes_them() {
        for (canonical, expected) in [
            ("\"2006-02-15T04:34:33Z\"", "\"2006-02-15 04:34:33 UTC\""),
            ("\"2006-02-15T04:34:33.500\"", "\"2006-02-15 04:34:33.500\""),
            ("\"2006-02-15T04:34:33-02:00\"", "\"2006-02-15 04:34:33 -02:00\""),
            ("\"odd\"", "\"odd\""),
        ] {
            let mut out = String::new();
            write_seaography_time(canonical, &mut out);
            assert_eq!(out, expected);
        }
    }
}
