//! What PostgreSQL says in its own way.

use sea_orm::{DbBackend, sea_query::Value};

use crate::{
    filter::{ArrayOperator, Comparison, Like},
    registry::Kind,
    sql::{Column, Dialect, Sql},
};

#[derive(Debug)]
pub(crate) struct PostgresDialect;

impl Dialect for PostgresDialect {
    fn backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    fn identifier(&self, name: &str, out: &mut String) {
        out.push('"');
        out.push_str(&name.replace('"', "\"\""));
        out.push('"');
    }

    fn placeholder(&self, position: usize, out: &mut String) {
        out.push('$');
        out.push_str(&position.to_string());
    }

    /// PostgreSQL's JSON keeps every digit of a number, and writes times by ISO 8601 whatever the session's style is.
    fn packed(&self, kind: &Kind, expression: &str, out: &mut String) {
        match kind {
            // As text, so that white space and order of keys stay out of the way of what stands around it.
            Kind::Json => out.push_str(&format!("({expression})::text")),
            _ => out.push_str(expression),
        }
    }

    fn array(&self) -> [&'static str; 3] {
        ["json_build_array(", ", ", ")"]
    }

    /// Functions take a hundred arguments. What PostgreSQL writes of an array has nothing before its first bracket or behind its last.
    fn long_array(&self) -> Option<(usize, [&'static str; 3])> {
        const CUT: [&str; 3] =
            ["('[' || substr(left((", ")::text, -1), 2) || ', ' || substr(left((", ")::text, -1), 2) || ']')::json"];
        Some((100, CUT))
    }

    fn array_of_rows(&self) -> (&'static str, &'static str) {
        // With no rows there is no array.
        ("coalesce(json_agg(", "), '[]')")
    }

    fn json_as_text(&self) -> (&'static str, &'static str) {
        ("(", ")::text")
    }

    fn limit(&self, limit: Option<u64>, offset: u64, sql: &mut Sql) {
        let bigint = |value: u64| Value::BigInt(Some(i64::try_from(value).unwrap_or(i64::MAX)));
        if let Some(limit) = limit {
            sql.push(" LIMIT ").bind(self, bigint(limit));
        }
        if offset > 0 {
            sql.push(" OFFSET ").bind(self, bigint(offset));
        }
    }

    fn compare(&self, column: Column<'_>, comparison: Comparison, value: &Value, sql: &mut Sql) {
        if column.meta.kind == Kind::Json {
            sql.push("(");
            column.write(self, sql);
            sql.push(")::jsonb ").push(comparison.operator()).push(" ").bind(self, value.clone()).push("::jsonb");
            return;
        }
        column.write(self, sql);
        // Texts stand in the order of their bytes, as on every database; equality is of bytes in any collation that has an index.
        let by_bytes =
            column.meta.kind == Kind::Text && !matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        sql.push(if by_bytes { " COLLATE \"C\" " } else { " " }).push(comparison.operator()).push(" ");
        self.operand(column, value, sql);
    }

    fn is_in(&self, column: Column<'_>, values: &[Value], sql: &mut Sql) {
        if column.meta.kind == Kind::Json {
            sql.joined(" OR ", values, &mut |sql, value| self.compare(column, Comparison::Equal, value, sql));
            return;
        }
        column.write(self, sql);
        sql.push(" IN (");
        sql.separated(", ", values, |sql, value| self.operand(column, value, sql));
        sql.push(")");
    }

    fn compare_array(&self, column: Column<'_>, operator: ArrayOperator, values: &[Value], sql: &mut Sql) {
        let Some(element) = column.meta.element() else {
            sql.push("FALSE");
            return;
        };
        let list = Value::Array(column.meta.value_type.clone(), Some(Box::new(values.to_vec())));
        column.write(self, sql);
        // There is no comparison of lists of different types of text.
        sql.push(if element.kind == Kind::Text { "::text[] " } else { " " });
        sql.push(match operator {
            ArrayOperator::Contains => "@> ",
            ArrayOperator::Contained => "<@ ",
            ArrayOperator::Overlaps => "&& ",
        });
        match &element.kind {
            Kind::Enum(meta) => {
                sql.push("CAST(").bind(self, list).push(" AS ");
                self.identifier(&meta.name, &mut sql.text);
                sql.push("[])");
            }
            _ => {
                sql.bind(self, list);
            }
        }
    }

    /// ASCII letters match in either case, as on SQLite.
    fn like(&self, column: Column<'_>, like: &Like, sql: &mut Sql) {
        sql.push("lower(");
        column.write(self, sql);
        sql.push("::text COLLATE \"C\") LIKE ").bind(self, Value::String(Some(like.pattern.to_ascii_lowercase())));
        // Without this the backslash would escape.
        sql.push(" ESCAPE ").bind(self, Value::String(Some(like.escape.map(String::from).unwrap_or_default())));
    }

    fn equals_ignoring_case(&self, column: Column<'_>, text: &str, sql: &mut Sql) {
        sql.push("lower(");
        column.write(self, sql);
        sql.push("::text COLLATE \"C\") = ").bind(self, Value::String(Some(text.to_ascii_lowercase())));
    }

    fn packed_sum(&self, kind: &Kind, column: &str, out: &mut String) {
        match kind {
            // A sum of 32-bit floats needs more room than its parts.
            Kind::Float => out.push_str(&format!("sum({column}::float8)")),
            _ => out.push_str(&format!("sum({column})")),
        }
    }

    fn packed_extreme(&self, function: &str, kind: &Kind, column: &str, out: &mut String) {
        // These have an order and no function for it.
        match kind {
            Kind::Uuid => out.push_str(&format!("{function}({column}::text)")),
            Kind::Boolean => out.push_str(&format!("{function}({column}::int) <> 0")),
            _ => self.packed(kind, &format!("{function}({column})"), out),
        }
    }

    fn order_by(&self, column: Column<'_>, sql: &mut Sql) {
        match column.meta.kind {
            // As comparisons have it.
            Kind::Text => {
                column.write(self, sql);
                sql.push(" COLLATE \"C\"");
            }
            // Documents have no order of their own.
            Kind::Json => {
                sql.push("(");
                column.write(self, sql);
                sql.push(")::text COLLATE \"C\"");
            }
            _ => column.write(self, sql),
        }
    }
}

impl PostgresDialect {
    fn operand(&self, column: Column<'_>, value: &Value, sql: &mut Sql) {
        match &column.meta.kind {
            // A text is no value of an enumeration by itself.
            Kind::Enum(meta) => {
                sql.push("CAST(").bind(self, value.clone()).push(" AS ");
                self.identifier(&meta.name, &mut sql.text);
                sql.push(")");
            }
            _ => {
                sql.bind(self, value.clone());
            }
        }
    }
}
