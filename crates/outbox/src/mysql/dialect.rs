//! What MariaDB says in its own way.

use sea_orm::{DbBackend, sea_query::Value};

use crate::{
    filter::{Comparison, Like, Part},
    registry::Kind,
    sql::{Column, Dialect, Sql},
};

/// JSON is put together as text. MariaDB's JSON functions would do, but what passes a subquery is a plain string to them, they nest 32 deep
/// at most, and MySQL's are others.
#[derive(Debug)]
pub(crate) struct MysqlDialect;

impl Dialect for MysqlDialect {
    fn backend(&self) -> DbBackend {
        DbBackend::MySql
    }

    fn identifier(&self, name: &str, out: &mut String) {
        out.push('`');
        out.push_str(&name.replace('`', "``"));
        out.push('`');
    }

    fn placeholder(&self, _position: usize, out: &mut String) {
        out.push('?');
    }

    fn packed(&self, kind: &Kind, expression: &str, out: &mut String) {
        let value = match kind {
            Kind::Boolean | Kind::Integer { .. } => format!("{expression} + 0"),
            Kind::Double => expression.to_owned(),
            // As a float it would be written with six digits.
            Kind::Float => format!("CAST({expression} AS DOUBLE)"),
            Kind::Text | Kind::Enum(_) => format!("JSON_QUOTE({expression})"),
            // As text, so that white space and order of keys stay out of the way of what stands around it.
            Kind::Json => format!("JSON_QUOTE(CAST({expression} AS CHAR))"),
            Kind::Bytes | Kind::Uuid => format!("CONCAT('\"', HEX({expression}), '\"')"),
            // There are no arrays here; the check says so.
            Kind::Array(_)
            | Kind::Decimal
            | Kind::Date
            | Kind::Time
            | Kind::DateTime
            | Kind::Timestamp
            | Kind::TimestampTz => {
                format!("CONCAT('\"', {expression}, '\"')")
            }
        };
        out.push_str(&format!("COALESCE({value}, 'null')"));
    }

    fn array(&self) -> [&'static str; 3] {
        ["CONCAT('[', ", ", ',', ", ", ']')"]
    }

    /// The exclamation mark stands in place of a row that became too large for the server (`max_allowed_packet`): it is no JSON, so this is noticed.
    fn array_of_rows(&self) -> (&'static str, &'static str) {
        ("CONCAT('[', COALESCE(GROUP_CONCAT(COALESCE(", ", '!') SEPARATOR ','), ''), ']')")
    }

    fn array_of_ordered_rows(&self) -> Option<[&'static str; 4]> {
        Some(["CONCAT('[', COALESCE(GROUP_CONCAT(COALESCE(", ", '!') ORDER BY ", " SEPARATOR ','", "), ''), ']')"])
    }

    fn maybe(&self) -> (&'static str, &'static str) {
        ("COALESCE(", ", 'null')")
    }

    fn null(&self) -> &'static str {
        "'null'"
    }

    fn json_as_text(&self) -> (&'static str, &'static str) {
        ("COALESCE(", ", '!')")
    }

    /// Without a limit the rows of a subquery in `FROM` would have no order.
    fn limit(&self, limit: Option<u64>, offset: u64, sql: &mut Sql) {
        let limit = limit.unwrap_or(u64::MAX);
        sql.push(&format!(" LIMIT {limit} OFFSET {offset}"));
    }

    fn compare(&self, column: Column<'_>, comparison: Comparison, value: &Value, sql: &mut Sql) {
        match column.meta.kind {
            Kind::Text | Kind::Enum(_) => {
                // Bytes are equal only where the column's collation finds them equal too, which an index may know.
                let indexed = comparison == Comparison::Equal;
                if indexed {
                    sql.push("(");
                    column.write(self, sql);
                    sql.push(" = ").bind(self, value.clone()).push(" AND ");
                }
                self.bytes(column, sql);
                sql.push(" ").push(comparison.operator()).push(" CAST(").bind(self, value.clone()).push(" AS BINARY)");
                if indexed {
                    sql.push(")");
                }
            }
            Kind::Json => {
                sql.push("CAST(JSON_COMPACT(");
                column.write(self, sql);
                sql.push(") AS BINARY) ").push(comparison.operator());
                sql.push(" CAST(JSON_COMPACT(").bind(self, value.clone()).push(") AS BINARY)");
            }
            _ => {
                column.write(self, sql);
                sql.push(" ").push(comparison.operator()).push(" ").bind(self, operand(value));
            }
        }
    }

    fn is_in(&self, column: Column<'_>, values: &[Value], sql: &mut Sql) {
        if matches!(column.meta.kind, Kind::Text | Kind::Enum(_) | Kind::Json) {
            sql.joined(" OR ", values, &mut |sql, value| self.compare(column, Comparison::Equal, value, sql));
            return;
        }
        column.write(self, sql);
        sql.push(" IN (");
        sql.separated(", ", values, |sql, value| {
            sql.bind(self, operand(value));
        });
        sql.push(")");
    }

    /// ASCII letters match in either case, and pattern and text end at a zero character, as on SQLite.
    fn like(&self, column: Column<'_>, like: &Like, sql: &mut Sql) {
        let pattern = escaped(like);
        let folds = pattern.bytes().any(|byte| byte.is_ascii_alphabetic());
        sql.push("SUBSTRING_INDEX(");
        self.folded(column, folds, sql);
        sql.push(", CHAR(0 USING utf8mb4), 1) COLLATE utf8mb4_bin LIKE ");
        sql.bind(self, Value::String(Some(pattern.to_ascii_lowercase()))).push(" ESCAPE '|'");
    }

    fn equals_ignoring_case(&self, column: Column<'_>, text: &str, sql: &mut Sql) {
        sql.push("CAST(");
        self.folded(column, true, sql);
        sql.push(" AS BINARY) = CAST(").bind(self, Value::String(Some(text.to_ascii_lowercase()))).push(" AS BINARY)");
    }

    fn packed_sum(&self, kind: &Kind, column: &str, out: &mut String) {
        match kind {
            // A sum of 32-bit floats needs more room than its parts.
            Kind::Float => self.packed(&Kind::Double, &format!("sum({column})"), out),
            _ => self.packed(kind, &format!("sum({column})"), out),
        }
    }

    fn packed_mean(&self, column: &str, out: &mut String) {
        // The mean of exact numbers would be a decimal with four digits more.
        self.packed(&Kind::Double, &format!("avg({column} + 0e0)"), out);
    }

    fn order_by(&self, column: Column<'_>, sql: &mut Sql) {
        match column.meta.kind {
            // As comparisons have it.
            Kind::Text | Kind::Enum(_) | Kind::Json => self.bytes(column, sql),
            _ => column.write(self, sql),
        }
    }
}

/// A value as its column compares it. Instants would be bound as texts, which do not compare as times in a list.
fn operand(value: &Value) -> Value {
    match value {
        Value::ChronoDateTimeUtc(at) => Value::ChronoDateTime(at.map(|at| at.naive_utc())),
        Value::ChronoDateTimeLocal(at) => Value::ChronoDateTime(at.map(|at| at.naive_utc())),
        Value::ChronoDateTimeWithTimeZone(at) => Value::ChronoDateTime(at.map(|at| at.naive_utc())),
        _ => value.clone(),
    }
}

/// The pattern with `|` as the character that escapes. MariaDB takes an empty `ESCAPE` for a backslash in some statements and for none in others.
fn escaped(like: &Like) -> String {
    let mut out = String::with_capacity(like.pattern.len());
    for part in like.parts() {
        match part {
            Part::Many => out.push('%'),
            Part::One => out.push('_'),
            Part::Char(c @ ('%' | '_' | '|')) => out.extend(['|', c]),
            Part::Char(c) => out.push(c),
        }
    }
    out
}

impl MysqlDialect {
    /// A text as its bytes, which compare as they are, whatever the column's collation: with the case of letters, and spaces at the end.
    fn bytes(&self, column: Column<'_>, sql: &mut Sql) {
        sql.push("CAST(CONVERT(");
        column.write(self, sql);
        sql.push(" USING utf8mb4) AS BINARY)");
    }

    /// A text with its ASCII letters in lower case, and no others: `LOWER` would take `Ü` along.
    fn folded(&self, column: Column<'_>, folds: bool, sql: &mut Sql) {
        let letters = || (b'A'..=b'Z').filter(|_| folds).map(char::from);
        sql.push(&"REPLACE(".repeat(letters().count()));
        sql.push("CONVERT(");
        column.write(self, sql);
        sql.push(" USING utf8mb4)");
        for letter in letters() {
            sql.push(&format!(", '{letter}', '{}')", letter.to_ascii_lowercase()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_escape_with_a_bar() {
        let pattern = |pattern: &str, escape| escaped(&Like { pattern: pattern.to_owned(), escape });
        assert_eq!(pattern(r"a|\%_", None), r"a||\%_");
        assert_eq!(pattern(r"a\%\\\|\", Some('\\')), r"a|%\||");
        assert_eq!(pattern("%%a%", Some('%')), "|%a");
        assert_eq!(pattern("a\0b", None), "a");
    }
}
