use chrono::{DateTime, Days};
use sea_orm::{DbBackend, sea_query::Value};

use crate::{
    cell,
    filter::{Comparison, Like},
    registry::Kind,
    sql::{Column, Dialect, Sql},
};

/// SQLite's SQL.
pub(crate) struct SqliteDialect;

impl Dialect for SqliteDialect {
    fn backend(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    fn identifier(&self, name: &str, out: &mut String) {
        out.push('"');
        for c in name.chars() {
            if c == '"' {
                out.push('"');
            }
            out.push(c);
        }
        out.push('"');
    }

    fn placeholder(&self, _position: usize, out: &mut String) {
        out.push('?');
    }

    /// SQLite's JSON functions write floats with 15 digits, which loses some, and refuse blobs.
    fn packed(&self, kind: &Kind, expression: &str, out: &mut String) {
        match kind {
            Kind::Double => packed_double(expression, out),
            Kind::Float | Kind::Decimal => {
                push_all(out, "CASE typeof(@) WHEN 'real' THEN format('%!.17g', @) ELSE @ END", expression);
            }
            Kind::Bytes => push_all(out, "CASE WHEN @ IS NOT NULL THEN hex(@) END", expression),
            Kind::Uuid => push_all(out, "CASE typeof(@) WHEN 'blob' THEN hex(@) ELSE @ END", expression),
            _ => out.push_str(expression),
        }
    }

    fn array(&self) -> [&'static str; 3] {
        ["json_array(", ", ", ")"]
    }

    /// Functions take 127 arguments where SQLite is older than 3.48. The aggregate takes each array's text, which begins and ends with a bracket.
    fn long_array(&self) -> Option<(usize, [&'static str; 3])> {
        const CUT: [&str; 3] = [
            "(SELECT json('[' || group_concat(substr(column1, 2, length(column1) - 2), ',') || ']') FROM (VALUES (",
            "), (",
            ")))",
        ];
        Some((100, CUT))
    }

    fn array_of_rows(&self) -> (&'static str, &'static str) {
        ("json_group_array(", ")")
    }

    fn limit(&self, limit: Option<u64>, offset: u64, sql: &mut Sql) {
        let bigint = |value: u64| Value::BigInt(Some(i64::try_from(value).unwrap_or(i64::MAX)));
        match limit {
            None => {
                sql.push(" LIMIT -1");
            }
            Some(limit) => {
                sql.push(" LIMIT ").bind(self, bigint(limit));
            }
        }
        if offset > 0 {
            sql.push(" OFFSET ").bind(self, bigint(offset));
        }
    }

    fn compare(&self, column: Column<'_>, comparison: Comparison, value: &Value, sql: &mut Sql) {
        match column.meta.kind {
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz => {
                let Some(instant) = instant_of(value) else {
                    sql.push("NULL");
                    return;
                };
                sql.push("(");
                let (from, to) = match comparison {
                    Comparison::Equal => (true, true),
                    Comparison::NotEqual => (false, false),
                    Comparison::Less | Comparison::LessOrEqual => (false, true),
                    Comparison::Greater | Comparison::GreaterOrEqual => (true, false),
                };
                coarse_range(self, column, from.then_some(instant), to.then_some(instant), sql);
                instant_column(self, column, sql);
                sql.push(" ").push(comparison.operator()).push(" ");
                bind_instant(self, instant, sql);
                sql.push(")");
            }
            Kind::Json => {
                sql.push("CASE WHEN json_valid(");
                column.write(self, sql);
                sql.push(") THEN json(");
                column.write(self, sql);
                sql.push(") END ").push(comparison.operator()).push(" json(").bind(self, value.clone()).push(")");
            }
            _ => {
                column.write(self, sql);
                sql.push(" ").push(comparison.operator()).push(" ").bind(self, operand(&column.meta.kind, value));
            }
        }
    }

    fn is_in(&self, column: Column<'_>, values: &[Value], sql: &mut Sql) {
        match column.meta.kind {
            Kind::DateTime | Kind::Timestamp | Kind::TimestampTz | Kind::Json => {
                sql.joined(" OR ", values, &mut |sql, value| self.compare(column, Comparison::Equal, value, sql));
            }
            _ => {
                column.write(self, sql);
                sql.push(" IN (");
                sql.separated(", ", values, |sql, value| {
                    sql.bind(self, operand(&column.meta.kind, value));
                });
                sql.push(")");
            }
        }
    }

    fn like(&self, column: Column<'_>, like: &Like, sql: &mut Sql) {
        column.write(self, sql);
        sql.push(" LIKE ").bind(self, Value::String(Some(like.pattern.clone())));
        if let Some(escape) = like.escape {
            sql.push(" ESCAPE ").bind(self, Value::String(Some(escape.to_string())));
        }
    }

    fn equals_ignoring_case(&self, column: Column<'_>, text: &str, sql: &mut Sql) {
        sql.push("lower(");
        column.write(self, sql);
        sql.push(") = ").bind(self, Value::String(Some(text.to_ascii_lowercase())));
    }

    fn packed_sum(&self, kind: &Kind, column: &str, out: &mut String) {
        match kind {
            // SQLite's sum fails where it does not fit into 64 bits; the sums of the halves do.
            Kind::Integer { bits: 64, .. } => {
                push_all(out, "'+' || sum(@ >> 32) || ':' || sum(@ & 4294967295)", column);
            }
            // A sum of 32-bit floats needs more room than its parts.
            Kind::Float => self.packed(&Kind::Double, &format!("sum({column})"), out),
            _ => self.packed(kind, &format!("sum({column})"), out),
        }
    }

    /// Times order by their stored text, so that an index serves. That is their true order as long as a column keeps to one form,
    /// as everything written through SeaORM does.
    fn order_by(&self, column: Column<'_>, sql: &mut Sql) {
        column.write(self, sql);
    }
}

/// Writes a template with an expression in place of each `@`.
fn push_all(out: &mut String, template: &str, expression: &str) {
    out.push_str(&template.replace('@', expression));
}

/// A double as text that reads back the same.
///
/// SQLite's own conversion is wrong in the last digit for a fifth of all doubles, those below about 10^-82 and above 10^118 (tried with
/// 3.51: none of four thousand at each exponent in between). So what is far out is first brought nearer by a power of two, which is exact,
/// and the power is written behind it as `p`: `1.5p-900` is 1.5 × 2^-900.
fn packed_double(expression: &str, out: &mut String) {
    push_all(
        out,
        "CASE WHEN typeof(@) <> 'real' THEN @ WHEN @ = 0 OR abs(@) BETWEEN 1e-38 AND 1e38 THEN format('%!.17g', @)",
        expression,
    );
    // Up to which size, multiplied or divided by which power.
    for (below, times, power) in [("1e-180", '*', 900), ("1", '*', 400), ("1e192", '/', 300), ("9e999", '/', 650)] {
        let step = format!("{times}(1 << 50)");
        let factor = step.repeat(power / 50);
        let sign = if times == '*' { "-" } else { "" };
        push_all(
            out,
            &format!(" WHEN abs(@) < {below} THEN format('%!.17g', @{factor}) || 'p{sign}{power}'"),
            expression,
        );
    }
    push_all(out, " ELSE format('%!.17g', @) END", expression);
}

/// A sum in two halves, as [`packed_sum`](Dialect::packed_sum) writes it.
pub(super) fn read_sum(text: &str) -> Option<i128> {
    let (high, low) = text.strip_prefix('+')?.split_once(':')?;
    Some((high.parse::<i128>().ok()? << 32) + low.parse::<i128>().ok()?)
}

/// What [`packed_double`] wrote.
pub(super) fn read_double(text: &str) -> Option<f64> {
    match text.split_once('p') {
        Some((number, power)) => Some(number.parse::<f64>().ok()? * 2_f64.powi(power.parse().ok()?)),
        None => text.parse().ok(),
    }
}

/// Decimals live in REAL columns, so they compare as floats; a decimal bound as text would compare as text in a column without a numeric
/// affinity.
fn operand(kind: &Kind, value: &Value) -> Value {
    match (kind, value) {
        (Kind::Decimal, Value::Decimal(decimal)) => {
            Value::Double(decimal.and_then(|decimal| decimal.to_string().parse().ok()))
        }
        _ => value.clone(),
    }
}

fn instant_of(value: &Value) -> Option<(i64, u32)> {
    let mut text = String::new();
    cell::write_value(value, &mut text).then(|| cell::instant(&cell::text(&text)))?
}

/// SQLite keeps times as text in one of several forms (`T` or space, with and without an offset or a fraction), often mixed in one column:
/// SeaORM writes RFC 3339, `CURRENT_TIMESTAMP` a plain form. This is the pair of whole seconds since 1970 and nanoseconds, which compares
/// as time does. The fraction is taken from the text because SQLite's own functions round it to milliseconds, upwards over the second.
fn instant_column(dialect: &dyn Dialect, column: Column<'_>, sql: &mut Sql) {
    let c = |sql: &mut Sql| column.write(dialect, sql);
    sql.push("(unixepoch(substr(");
    c(sql);
    sql.push(", 1, 19)");
    if column.meta.kind != Kind::DateTime {
        sql.push(" || CASE WHEN ");
        c(sql);
        sql.push(" GLOB '????-??-??*[+-][0-9][0-9]:[0-9][0-9]' THEN substr(");
        c(sql);
        sql.push(", -6) ELSE '' END");
    }
    sql.push("), CAST(round(CAST('0' || substr(");
    c(sql);
    sql.push(", 20) AS REAL) * 1e9) AS INTEGER))");
}

fn bind_instant(dialect: &dyn Dialect, (seconds, nanos): (i64, u32), sql: &mut Sql) {
    sql.push("(").bind(dialect, Value::BigInt(Some(seconds))).push(", ");
    sql.bind(dialect, Value::BigInt(Some(i64::from(nanos)))).push(")");
}

/// Every form starts with the local date, so the text of a day that is surely earlier (or later) bounds the column as it stands, and an
/// index on it can serve. Offsets reach at most a day either way.
fn coarse_range(
    dialect: &dyn Dialect,
    column: Column<'_>,
    from: Option<(i64, u32)>,
    to: Option<(i64, u32)>,
    sql: &mut Sql,
) {
    let day = |(seconds, _): (i64, u32)| DateTime::from_timestamp(seconds, 0).map(|instant| instant.date_naive());
    let plain = |date: &chrono::NaiveDate| (0..=9999).contains(&chrono::Datelike::year(date));
    let bound = |operator: &str, date: Option<chrono::NaiveDate>, sql: &mut Sql| {
        if let Some(date) = date.filter(plain) {
            column.write(dialect, sql);
            sql.push(operator).bind(dialect, Value::String(Some(date.format("%F").to_string()))).push(" AND ");
        }
    };
    bound(" >= ", from.and_then(day).and_then(|date| date.checked_sub_days(Days::new(2))), sql);
    bound(" < ", to.and_then(day).and_then(|date| date.checked_add_days(Days::new(2))), sql);
}
